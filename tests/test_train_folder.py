"""The way of a user with a folder: clips of many kinds and a few bad files, train.py, then generate.py."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phenaki_pytorch import Phenaki
from test_video_reader import noise, write, write_gif, write_webm
from video_folder import read_video

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = (
    "--steps 4 4 --encoded 20 --dim 32 32 --depth 1 1 1 --batch-size 2 2 --sampling-steps 2 --levels 4 4 4 "
    "--temporal-patch-size 2 --mask-schedule linear"
)
BAD = ("cut.mp4", "empty.mp4", "text.mp4", "short.mp4")

# File, how ffmpeg draws it, frames, height, width, rate. Sizes that h264 and vp9 take are even.
CLIPS = (
    ("pattern.mp4", "testsrc", 30, 48, 64, 24),
    ("deep/fractal.mp4", "mandelbrot", 12, 96, 64, 30),
    ("cells.mp4", "life=mold=10:ratio=0.3", 9, 72, 128, 10),
    ("bars.webm", "smptebars", 6, 48, 48, 8),
    ("deep/pattern.webm", "testsrc2", 20, 66, 50, 25),
    ("loop.gif", "testsrc", 10, 47, 33, 10),
    ("fractal.gif", "mandelbrot", 5, 64, 64, 20),
    ("box.mp4", "box", 25, 64, 64, 12),
)


def draw_with_ffmpeg(path, kind, frames, height, width, rate):
    """Real encoders' defaults: several keyframes, B-frames, what palettes ffmpeg chooses."""
    if kind == "box":
        source = f"color=black:size={width}x{height}:rate={rate}[a];color=red:size=12x12:rate={rate}[b]"
        source += r";[a][b]overlay=x=mod(t*40\,48):y=20"
    else:
        source = f"{kind}{':' if '=' in kind else '='}size={width}x{height}:rate={rate}"
    codec = {".mp4": "-c:v libx264 -pix_fmt yuv420p", ".webm": "-c:v libvpx-vp9 -deadline realtime"}
    words = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, "-frames:v", str(frames)]
    subprocess.run([*words, *codec.get(path.suffix, "").split(), str(path)], check=True)


def draw_with_pyav(path, kind, frames, height, width, rate):
    """A bright square that moves over noise."""
    pixels = noise(frames, height, width) // 4
    for number, frame in enumerate(pixels):
        frame[8:24, number % 16 : number % 16 + 16] = 255
    writer = {".mp4": write, ".webm": write_webm, ".gif": write_gif}[path.suffix]
    writer(path, pixels, rate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    draw_clip = draw_with_ffmpeg if shutil.which("ffmpeg") else draw_with_pyav
    (folder / "deep").mkdir()
    for name, *how in CLIPS:
        draw_clip(folder / name, *how)
    captions = [f'{name},"a film of {how[0]}, moving"' for name, *how in CLIPS[:5]]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *captions, "b.png,a grey picture"]))
    (folder / "box.txt").write_text("a red box moves right")

    draw_clip(folder / "short.mp4", "testsrc", 3, 32, 32, 10)
    whole = tmp_path_factory.mktemp("whole") / "whole.mp4"
    data = write(whole, noise(30), movflags="faststart").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n")
    for name, shape in (("a.png", (40, 30, 3)), ("b.png", (20, 60)), ("c.jpg", (64, 64, 3))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


def program(name, *words):
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    said = program("train.py", "--data", folder, "--out", out, "--size", 16, "--frames", 5, *TINY.split())
    return out, said


def test_the_bad_files_are_named_and_no_others(folder, trained):
    _, said = trained
    assert all(f"/{name}:" in said for name in BAD)
    good = [name for name, *_ in CLIPS] + ["a.png", "b.png", "c.jpg"]
    assert not [name for name in good if f"/{name}:" in said]


def test_what_a_run_leaves_can_be_looked_at(trained):
    out, _ = trained
    for name in (
        "tokenizer/reconstructions.png",
        "tokenizer/curves.png",
        "maskgit/samples.png",
        "maskgit/curves.png",
        "story.png",
    ):
        with Image.open(out / name) as image:
            image.load()
            assert min(image.size) > 16, name
    for name in ("tokenizer/reconstructions.gif", "maskgit/samples.gif", "story.gif"):
        video, _ = read_video(out / name)
        assert video.shape[1] >= 5, name
    assert json.loads((out / "results.json").read_text())
    told = json.loads((out / "plan.json").read_text())["arguments"]
    maskgit = json.loads((out / "model" / "maskgit" / "config.json").read_text())
    assert told["data"] and maskgit["schedule"] == told["mask_schedule"] == "linear"


def test_the_model_generates(folder, trained, tmp_path):
    out, _ = trained
    assert Phenaki.GIVEN in (out / "model" / "config.json").read_text()
    words = ("--model", out / "model", "--scale", 2)
    said = program("generate.py", "a red box moves right", *words, "--fps", 12, "--out", tmp_path / "clip")
    assert "5 frames, 32 × 32, 12 a second" in said
    video, rate = read_video(tmp_path / "clip.mp4")
    assert video.shape == (3, 5, 32, 32) and rate == pytest.approx(12)
    # A video goes on at its own rate: 3 frames given, 2 more from each of two prompts.
    given = ("--video", folder / "pattern.mp4")
    program("generate.py", "a film", "a red box", *given, *words, "--out", tmp_path / "longer")
    video, rate = read_video(tmp_path / "longer.mp4")
    assert video.shape == (3, 3 + 2 + 2, 32, 32) and rate == pytest.approx(24)
