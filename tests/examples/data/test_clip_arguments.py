"""What a clip can be asked for: wrong kinds and ranges are refused by name, before any file is looked at."""

from fractions import Fraction

import numpy as np
import pytest

from data.clip_arguments import (
    MANY_FRAMES,
    MAX_FPS,
    MAX_REPEATS,
    MIN_FPS,
    as_flag,
    as_path,
    as_size,
    check_rate,
    check_repeats,
    whole,
    writable_rate,
)
from data.image_reader import read_image
from data.video_folder import ImageFolder, VideoFolder
from data.video_reader import read_video
from video_files import grey_frames, numbers, write

WRONG = [
    ({"num_frames": True}, TypeError, "num_frames must be a whole number, got True"),
    ({"num_frames": 3.0}, TypeError, "num_frames must be a whole number, got 3.0"),
    ({"num_frames": 0}, ValueError, "num_frames must be at least 1, got 0"),
    ({"size": True}, TypeError, "size must be a whole number, got True"),
    ({"size": 2.5}, TypeError, "size must be a whole number, got 2.5"),
    ({"size": "32"}, TypeError, "size must be a whole number, got '3'"),
    ({"size": (32,)}, ValueError, r"size must be a positive number or \(height, width\), got \(32,\)"),
    ({"size": (8, 0)}, ValueError, "size must be at least 1, got 0"),
    ({"size": (1, 10**9)}, ValueError, "size must be at most"),
    ({"fps": "8"}, TypeError, "fps must be a number, got '8'"),
    ({"fps": True}, TypeError, "fps must be a number, got True"),
    ({"fps": float("nan")}, ValueError, "fps must be above 0, got nan"),
    ({"fps": 1e7}, ValueError, "fps must be at most 1000, got 10000000"),
    ({"stride": 1.5}, TypeError, "stride must be a whole number, got 1.5"),
    ({"stride": 10**20}, ValueError, "stride must be at most"),
    ({"stride": True}, TypeError, "stride must be a whole number, got True"),
    ({"fps": 4, "stride": 2}, ValueError, "either fps or stride"),
]


@pytest.mark.parametrize(
    "changes, kind, message", [*WRONG, ({"start": 1.5}, TypeError, "start must be a whole number")]
)
def test_readers_refuse_wrong_arguments_by_name_before_they_look_at_the_file(tmp_path, changes, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        read_video(tmp_path / "none.mp4", **changes)
    if "size" in changes:
        with pytest.raises(kind, match=f"^{message}"):
            read_image(tmp_path / "none.png", **changes)


OF_FOLDERS = [
    ({"flip": "no"}, TypeError, "flip must be True or False, got 'no'"),
    ({"flip": 1}, TypeError, "flip must be True or False, got 1"),
    ({"seed": 1.5}, TypeError, "seed must be a whole number, got 1.5"),
    ({"leave_out": 3}, TypeError, "leave_out must be a path, got 3"),
    ({"leave_out": ""}, ValueError, "leave_out must be a path, got an empty text"),
    ({"folder": None}, TypeError, "folder must be a path, got None"),
    ({"folder": ""}, ValueError, "folder must be a path, got an empty text"),
]


@pytest.mark.parametrize(
    "changes, kind, message", [*WRONG, *OF_FOLDERS, ({"num_frames": None}, TypeError, "num_frames")]
)
def test_folders_refuse_wrong_arguments_by_name_before_they_look_at_a_file(
    tmp_path, monkeypatch, changes, kind, message
):
    monkeypatch.setattr("data.video_folder.files_below", lambda *args, **kw: pytest.fail("was looked at"))
    arguments = {"folder": tmp_path, "size": 16, "num_frames": 2} | changes
    with pytest.raises(kind, match=f"^{message}"):
        VideoFolder(**arguments)
    arguments.pop("num_frames")
    if changes.keys() <= {"folder", "size", "flip", "seed", "leave_out"}:
        with pytest.raises(kind, match=f"^{message}"):
            ImageFolder(**arguments)


def test_numbers_of_numpy_and_paths_as_text_are_taken_as_pythons_own(tmp_path):
    write(tmp_path / "a.mp4", grey_frames(8))
    write(tmp_path / "runs" / "b.mp4", grey_frames(8))
    one, two = np.int64(1), np.int32(2)
    video, rate = read_video(str(tmp_path / "a.mp4"), size=np.int64(16), num_frames=two, stride=two, start=one)
    assert video.shape == (3, 2, 16, 16) and numbers(video) == [1, 3] and rate == pytest.approx(5)
    assert read_video(tmp_path / "a.mp4", fps=np.float32(5), num_frames=2)[1] == 5
    assert read_video(tmp_path / "a.mp4", fps=Fraction(5), num_frames=2)[1] == 5
    folder = VideoFolder(
        str(tmp_path), size=[16, np.int64(24)], num_frames=two, seed=one, leave_out=str(tmp_path / "runs")
    )
    folder.set_epoch(one)
    assert folder.files == ["a.mp4"] and folder[np.int64(0)]["video"].shape == (3, 2, 16, 24)


@pytest.mark.parametrize("epoch", [1.5, "1", True])
def test_an_epoch_is_a_whole_number(tmp_path, epoch):
    write(tmp_path / "a.mp4", grey_frames(4))
    folder = VideoFolder(tmp_path, size=16, num_frames=2)
    with pytest.raises(TypeError, match="epoch must be a whole number"):
        folder.set_epoch(epoch)


def test_single_checks():
    assert whole("n", np.uint8(3), 1, 3) == 3 and whole("n", -5) == -5
    assert as_size(None) is None and as_size(4) == (4, 4) and as_size([4, 6]) == (4, 6)
    assert as_flag("flip", False) is False and str(as_path("folder", "a/b")) == "a/b"
    assert check_rate(None, 3) == (None, 3) and check_rate(8, 1) == (8.0, 1)


def test_frames_that_are_repeated_too_often_are_refused_with_their_number():
    check_repeats("a.mp4", MANY_FRAMES, 1)
    check_repeats("a.mp4", 100 * MAX_REPEATS, 100)
    for frames, of in ((MANY_FRAMES + 1, 1), (100 * MAX_REPEATS + 1, 100)):
        with pytest.raises(ValueError, match=rf"^a\.mp4: .* {frames:,} frames .* the {of} frames"):
            check_repeats("a.mp4", frames, of)


def test_a_gap_of_a_month_is_not_filled_with_frames(tmp_path):
    path = write(tmp_path / "a.mkv", grey_frames(5), times=[0, 0.1, 0.2, 0.3, 30 * 24 * 3600])
    with pytest.raises(ValueError, match=r"a\.mkv: .* 20,736,00\d frames repeats the 5 frames"):
        read_video(path, fps=8)
    assert read_video(path)[0].shape[1] == 5 and read_video(path, fps=8, num_frames=9)[0].shape[1] == 9


@pytest.mark.parametrize("rate, expected", [(8, 8), (1000.0000001, MAX_FPS), (0.00999999, MIN_FPS)])
def test_a_rate_that_an_mp4_holds_stays_up_to_rounding(rate, expected):
    assert writable_rate("a.mp4", rate) == expected


@pytest.mark.parametrize("rate", [1e-9, 0.009, 1010, 90_000])
def test_a_rate_that_no_mp4_holds_is_refused_with_the_file(rate):
    with pytest.raises(ValueError, match=r"a\.mp4 has .* frames a second: expected 0\.01 to 1000, or another --fps"):
        writable_rate("a.mp4", rate)
