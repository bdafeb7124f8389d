"""Written files have the right sizes, frames, rates and colours, and a failed write changes no file."""

import json
import shutil
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

from data.clip_arguments import MAX_FPS, MIN_FPS
from data.media import write_curves, write_gif, write_mp4, write_plots, write_sheet
from data.video_reader import read_video


def smooth_video(frames=9, height=64, width=48):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size=(frames, height, width), mode="trilinear")[0]


def psnr(a, b):
    return float(-10 * torch.log10((a - b).square().mean()))


@pytest.mark.parametrize("fps", [8, 24, 29.97, Fraction(30000, 1001)])
@pytest.mark.parametrize(("frames", "height", "width"), [(9, 64, 48), (1, 32, 32), (17, 32, 32), (5, 2, 6)])
def test_mp4_has_the_frames_and_the_rate(tmp_path, fps, frames, height, width):
    video = smooth_video(frames, height, width)
    path = tmp_path / "new" / "a.mp4"
    write_mp4(path, video, fps)
    got, rate = read_video(path)
    assert got.shape == video.shape and rate == pytest.approx(float(fps), rel=1e-6)
    if height >= 32:  # colour is halved in height and width, of which 2 × 6 has too little
        assert psnr(got, video) > 36
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"]
    if shutil.which("ffprobe"):
        command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
        [stream] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
        assert (stream["height"], stream["width"], int(stream["nb_read_frames"])) == (height, width, frames)
        assert Fraction(stream["avg_frame_rate"]) == Fraction(fps).limit_denominator(1001)
        assert (stream["codec_name"], stream["pix_fmt"]) == ("h264", "yuv420p")


@pytest.mark.parametrize("writer", [write_mp4, write_gif])
def test_colours_keep_their_channel(tmp_path, writer):
    path = tmp_path / ("a.mp4" if writer is write_mp4 else "a.gif")
    for channel in range(3):
        video = torch.zeros(3, 3, 32, 32)
        video[channel] = 1
        writer(path, video, 8)
        assert (read_video(path)[0] - video).abs().max() < 0.02


def test_gif_has_the_frames_and_the_rate(tmp_path):
    video = smooth_video()
    video[:, 4] = video[:, 3]  # equal frames must not be merged
    write_gif(tmp_path / "a.gif", video, 10)
    got, rate = read_video(tmp_path / "a.gif")
    assert got.shape == video.shape and rate == pytest.approx(10) and psnr(got, video) > 33
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0 and image.n_frames == 9 and image.info["duration"] == 100


def test_gif_with_few_colours_is_exact_at_every_scale(tmp_path):
    video = torch.zeros(3, 5, 12, 10)
    for frame in range(5):
        video[0, frame, frame : frame + 4] = 1
        video[2, frame, :, frame : frame + 4] = 0.6
    for scale in (1, 3):
        write_gif(tmp_path / "a.gif", video, 24, scale=scale)
        got, _ = read_video(tmp_path / "a.gif")
        large = video.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
        assert torch.equal((got * 255).round(), (large * 255).round())


def test_sheet_has_a_row_per_clip_and_a_column_per_frame(tmp_path):
    dark, light = torch.zeros(3, 9, 10, 12), torch.full((3, 2, 10, 12), 0.5)
    dark[0] = torch.linspace(0, 1, 9)[:, None, None]
    write_sheet(tmp_path / "a.png", [("", dark), ("", light)], columns=3, scale=2)
    sheet = np.array(Image.open(tmp_path / "a.png"))
    gap = 4
    assert sheet.shape == (2 * 20 + 3 * gap, 3 * 24 + 4 * gap, 3)
    centres = [gap + 12 + column * (24 + gap) for column in range(3)]
    assert [sheet[gap + 10, x].tolist() for x in centres] == [[0, 0, 0], [128, 0, 0], [255, 0, 0]]
    assert [sheet[2 * gap + 30, x].tolist() for x in centres] == [[128] * 3, [128] * 3, [255] * 3]


def test_sheet_has_the_labels_above_the_rows(tmp_path):
    video = torch.zeros(3, 4, 16, 16)
    write_sheet(tmp_path / "plain.png", [("", video)])
    write_sheet(tmp_path / "named.png", [("a red circle moves left, and " * 4, video)])
    plain, named = (np.array(Image.open(tmp_path / name)) for name in ("plain.png", "named.png"))
    assert named.shape[1] == plain.shape[1] and named.shape[0] > plain.shape[0] + 3 * 17
    assert (named[:-24] < 128).any() and (named[-20:-4] == plain[-20:-4]).all()


def test_curves_have_a_panel_per_column(tmp_path):
    table = tmp_path / "log.csv"
    table.write_text("step,loss,lr,empty\n1,2.0,0.1,\n2,1.0,,\n3,0.5,0.3,\n")
    write_curves(tmp_path / "two.png", table)
    table.write_text("step,loss\n1,2.0\n2,1.0\n")
    write_curves(tmp_path / "one.png", table)
    two, one = (Image.open(tmp_path / name) for name in ("two.png", "one.png"))
    assert two.width == 2 * one.width and two.height == one.height
    assert len(set(np.array(one.convert("L")).ravel().tolist())) > 10
    for text, words in [
        ("loss,lr\n1,2\n", "columns step and another, got"),
        ("step\n1\n", "columns step and another, got"),
        ("", "columns step and another, got None"),
        ("step,loss\n", "must have a value"),
        ("step,loss\n1,high\n", "high"),
    ]:
        table.write_text(text)
        with pytest.raises(ValueError, match=words):
            write_curves(tmp_path / "x.png", table)
    assert not (tmp_path / "x.png").exists()


def test_axes_from_zero_leave_room_above_flat_lines(tmp_path, monkeypatch):
    limits, original = [], Figure.savefig

    def savefig(figure, *args, **kw):
        limits.extend(axes.get_ylim() for axes in figure.axes)
        original(figure, *args, **kw)

    monkeypatch.setattr(Figure, "savefig", savefig)
    panels = {"high": {"a": [(1, 0.99), (2, 1.0)]}, "nothing": {"a": [(1, 0.0), (2, 0.0)]}}
    write_plots(tmp_path / "a.png", panels, from_zero=True)
    assert [low for low, _ in limits] == [0, 0]
    assert 1.02 < limits[0][1] < 1.2 and limits[1][1] > 0


def test_wrong_arguments_are_refused(tmp_path):
    video = smooth_video(3)
    for writer in (write_mp4, write_gif):
        with pytest.raises(TypeError, match=r"float tensor, got torch\.uint8"):
            writer(tmp_path / "a", video.byte(), 8)
        with pytest.raises(TypeError, match="float tensor, got"):
            writer(tmp_path / "a", video.numpy(), 8)
        for shape in [(3, 64, 48), (1, 3, 64, 48), (3, 0, 64, 48)]:
            with pytest.raises(ValueError, match=r"must be \(3, f, h, w\), got"):
                writer(tmp_path / "a", torch.zeros(shape), 8)
        with pytest.raises(ValueError, match=r"fps must be at least 0.01 .* got 0"):
            writer(tmp_path / "a", video, 0)
    with pytest.raises(ValueError, match="at most 50, got 60"):
        write_gif(tmp_path / "a", video, 60)
    with pytest.raises(ValueError, match=r"scale must be .* got 0"):
        write_gif(tmp_path / "a", video, 8, scale=0)
    with pytest.raises(ValueError, match="must be even for mp4, got 63 × 48"):
        write_mp4(tmp_path / "a", video[:, :, 1:], 8)
    with pytest.raises(ValueError, match="at least one"):
        write_sheet(tmp_path / "a", [])
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        write_sheet(tmp_path / "a", [("", video)], columns=0)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_mp4(tmp_path / "a.mp4", smooth_video(3), 8)
    before = (tmp_path / "a.mp4").read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("av.VideoFrame.from_ndarray", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mp4(tmp_path / "a.mp4", smooth_video(5), 8)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    "name", ["10:30.mp4", "md5:a.mp4", "tee:a.mp4", "pipe:1", "a%03d.mp4", "http:/127.0.0.1/a.mp4"]
)
@pytest.mark.parametrize("writer", [write_mp4, write_gif])
def test_names_are_never_written_as_addresses_or_patterns(tmp_path, monkeypatch, capfd, writer, name):
    monkeypatch.chdir(tmp_path)
    writer(name, smooth_video(3), 8)
    assert read_video(tmp_path / name)[0].shape[1] == 3
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name] and not capfd.readouterr().out


@pytest.mark.parametrize("writer", [write_mp4, write_gif])
def test_the_slowest_and_the_fastest_rate_can_be_read_again(tmp_path, writer):
    for fps in (MIN_FPS, 50 if writer is write_gif else MAX_FPS):
        writer(tmp_path / "a", smooth_video(3), fps)
        assert read_video(tmp_path / "a")[1] == pytest.approx(fps)
    with pytest.raises(ValueError, match=r"at least 0\.01 .* got 0\.009"):
        writer(tmp_path / "a", smooth_video(3), 0.009)


FORKED = """
import gc, os, signal, sys, torch
from data.media import write_mp4
from data.video_reader import read_video

gc.disable()  # what is read and written becomes garbage that is not collected yet
for _ in range(3):
    write_mp4(sys.argv[1], torch.rand(3, 8, 256, 256), 8)
    read_video(sys.argv[1], size=64)
child = os.fork()
if child == 0:
    signal.alarm(30)
    gc.collect()
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_forked_process_can_collect_what_was_read_and_written_before_the_fork(tmp_path):
    """As the workers of a DataLoader do: a decoder, scaler or encoder with threads would wait for them for ever."""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", FORKED, str(tmp_path / "a.mp4")]
    assert subprocess.run(command, env=environment, timeout=100).returncode == 0
