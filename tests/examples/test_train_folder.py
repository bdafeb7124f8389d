"""Training on a folder of clips of many kinds and a few bad files: both stages, then generate.py."""

import json
import shutil
import subprocess
import warnings
from contextlib import redirect_stdout
from io import StringIO

import av
import numpy as np
import pytest
from PIL import Image
from tiny_training import PRIOR, TOKENIZER

import generate
import train_prior
import train_tokenizer
from data.video_reader import read_video
from phenaki_pytorch import Phenaki

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
    """With the defaults of real encoders: several keyframes, B-frames, palettes."""
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
    if path.suffix == ".gif":
        images = [Image.fromarray(frame) for frame in pixels]
        images[0].save(path, save_all=True, append_images=images[1:], duration=1000 // rate, loop=0)
    else:
        write(path, pixels, rate, codec={".mp4": "libx264", ".webm": "libvpx-vp9"}[path.suffix])


def noise(frames, height=64, width=64):
    """Random pixels, (f, h, w, 3)."""
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def write(path, pixels, rate, codec="libx264", options=None):
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


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
    write(whole, noise(30), 10, options={"movflags": "faststart"})
    data = whole.read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n")
    for name, shape in (("a.png", (40, 30, 3)), ("b.png", (20, 60)), ("c.jpg", (64, 64, 3))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


def program(main, *argv):
    """Run a program in this process; what it prints, and its warnings."""
    printed = StringIO()
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(printed):
        warnings.simplefilter("always")
        main(list(map(str, argv)))
    return "\n".join([printed.getvalue(), *(str(warning.message) for warning in caught)])


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The --out of both stages, and what they print."""
    out = tmp_path_factory.mktemp("run") / "out"
    where = ("--data", folder, "--out", out)
    said = program(train_tokenizer.main, *TOKENIZER, *where)
    said += program(train_prior.main, *PRIOR, *where, "--mask-schedule", "linear", "--sampling-steps", 2)
    return out, said


def test_bad_files_are_named_and_no_others(folder, trained):
    _, said = trained
    assert all(f"/{name}:" in said for name in BAD)
    good = [name for name, *_ in CLIPS] + ["a.png", "b.png", "c.jpg"]
    assert not [name for name in good if f"/{name}:" in said]


def test_the_pictures_of_a_training_can_be_read(trained):
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
    plan = json.loads((out / "plan.json").read_text())
    arguments = plan["arguments"]
    assert plan["files"] == sorted([name for name, *_ in CLIPS] + ["a.png", "b.png", "c.jpg"])
    maskgit = json.loads((out / "model" / "maskgit" / "config.json").read_text())
    assert arguments["data"] and maskgit["schedule"] == arguments["mask_schedule"] == "linear"


def test_the_trained_model_generates(folder, trained, tmp_path):
    out, _ = trained
    assert Phenaki.GIVEN in (out / "model" / "config.json").read_text()
    words = ("--model", out / "model", "--scale", 2)
    said = program(generate.main, "a red box moves right", *words, "--fps", 12, "--out", tmp_path / "clip")
    assert "5 frames, 32 × 32, 12 a second" in said
    video, rate = read_video(tmp_path / "clip.mp4")
    assert video.shape == (3, 5, 32, 32) and rate == pytest.approx(12)
    # A video is continued at its own rate: 3 of its frames, and 2 more from each of two prompts.
    given = ("--video", folder / "pattern.mp4")
    program(generate.main, "a film", "a red box", *given, *words, "--out", tmp_path / "longer")
    video, rate = read_video(tmp_path / "longer.mp4")
    assert video.shape == (3, 3 + 2 + 2, 32, 32) and rate == pytest.approx(24)
