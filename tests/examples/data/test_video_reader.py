"""Reading clips: which frames they have, by index and by time, and their pixels."""

import numpy as np
import pytest
import torch

from data import video_reader
from data.video_reader import read_video
from video_files import grey_frames, numbers, write, write_gif, write_webm


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("rate", [8, 15, 30])
def test_fps_picks_frames_by_their_times(tmp_path, suffix, rate):
    writer = {".mp4": write, ".webm": write_webm, ".gif": write_gif}[suffix]
    path = writer(tmp_path / f"a{suffix}", grey_frames(24), rate=rate)
    half, fps = read_video(path, fps=rate / 2)
    assert fps == rate / 2 and np.abs(np.array(numbers(half)) - np.arange(0, 24, 2)).max() <= (suffix == ".gif")
    whole, fps = read_video(path)
    assert numbers(whole) == list(range(24)) and fps == pytest.approx(rate, rel=0.02)
    if suffix != ".gif":  # its times are rounded to 1/100 s
        double, _ = read_video(path, fps=rate * 2, num_frames=10, start=3)
        assert numbers(double) == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7]


def test_fps_of_a_variable_frame_rate(tmp_path):
    times = [0, 0.1, 0.2, 0.3, 0.4, 0.9, 1.4, 1.5, 1.6, 1.7]  # the frames 4 and 5 last half a second
    path = write(tmp_path / "a.mp4", grey_frames(10), times=times)
    video, _ = read_video(path, fps=10, num_frames=17)
    assert numbers(video) == [0, 1, 2, 3, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 7, 8]
    assert numbers(read_video(path, fps=2, num_frames=3)[0]) == [0, 4, 5]


def test_clips_after_a_seek_are_those_read_from_the_beginning(tmp_path):
    pixels = grey_frames(40)
    paths = [write(tmp_path / f"a{suffix}", pixels, options={"g": "7"}) for suffix in (".mp4", ".mkv", ".mov")]
    paths += [write_webm(tmp_path / "a.webm", pixels), write_gif(tmp_path / "a.gif", pixels)]
    paths += [write(tmp_path / "a.avi", pixels, codec="mpeg4", options={"g": "7", "b": "4000000"})]
    for path in paths:
        whole, _ = read_video(path)
        assert numbers(whole) == list(range(40)), path.name
        for start in (0, 1, 6, 7, 20, 36):
            clip, _ = read_video(path, start=start, num_frames=4)
            assert torch.equal(clip, whole[:, start : start + 4]), (path.name, start)


def test_only_the_frames_of_the_clip_are_converted(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", grey_frames(40), options={"g": "8", "bf": "0"})
    converted = []
    original = video_reader._pixels
    monkeypatch.setattr(video_reader, "_pixels", lambda frame: converted.append(frame.pts) or original(frame))
    read_video(path, start=30, num_frames=4)
    assert len(converted) == 4


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_red_is_red(tmp_path, suffix):
    writer = {".mp4": write, ".webm": write_webm, ".gif": write_gif}[suffix]
    red = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    red[..., 0] = 255
    video, _ = read_video(writer(tmp_path / f"a{suffix}", red))
    assert video[0].min() > 0.97 and video[1:].max() < 0.03


def test_resizing_keeps_the_aspect_and_the_centre(tmp_path):
    frames = np.zeros((2, 60, 120, 3), dtype=np.uint8)
    frames[:, 20:40, 50:70] = 255  # a square in the middle
    frames[:, :, :30] = frames[:, :, 90:] = 128  # outside the crop
    path = write(tmp_path / "a.mp4", frames, options={"crf": "1"})
    video, _ = read_video(path, size=30)
    assert video.shape == (3, 2, 30, 30)
    expected = torch.zeros(30, 30)
    expected[10:20, 10:20] = 1
    assert (video.mean(dim=(0, 1)) - expected).abs().mean() < 0.02
    assert read_video(path, size=(30, 60))[0][0, 0, :, :15].mean() == pytest.approx(0.5, abs=0.02)
    assert read_video(path, size=(90, 32))[0].shape == (3, 2, 90, 32)


def test_rotated_videos_are_turned_upright(tmp_path):
    frames = np.zeros((2, 32, 64, 3), dtype=np.uint8)
    frames[:, :, :32] = 255  # the left of the stored frame
    path = write(tmp_path / "a.mp4", frames)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    quarter = [0, 1 << 16, 0, -(1 << 16) % 2**32, 0, 0, 0, 0, 1 << 30]  # clockwise
    data[matrix : matrix + 36] = np.array(quarter, dtype=">u4").tobytes()
    path.write_bytes(data)
    video, _ = read_video(path)
    assert video.shape == (3, 2, 64, 32)
    assert video[:, :, :30].min() > 0.9 and video[:, :, 34:].max() < 0.1  # left has become top
