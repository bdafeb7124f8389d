"""Actions are read as they were written and given with their frames; a damaged table is refused with what is wrong."""

import os
import unicodedata
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from data.actions import read_actions, write_actions
from data.captions import key_of
from data.video_folder import ImageFolder, VideoFolder
from video_files import grey_frames, noise, numbers, write, write_gif, write_webm

NAMES = ("turn_left", "move_forward")
FRAMES, BITS = 40, 6


def table_of(files, frames=FRAMES, shift=0):
    """The text of a table in which the row of a frame has its number plus `shift`, in binary."""
    rows = [f"{file},{n},{','.join(format(n + shift, f'0{BITS}b'))}" for file in files for n in range(frames)]
    return "\n".join([",".join(["file", "frame", *(f"bit{n}" for n in range(BITS))]), *rows]) + "\n"


def frames_of(actions):
    """The frame of each row of such a table."""
    return (actions.long() @ 2 ** torch.arange(BITS - 1, -1, -1)).tolist()


def build(folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return VideoFolder(folder, **{"size": 16, "num_frames": 4} | options)


@pytest.fixture
def folder(tmp_path):
    """Two files of 8 frames, of which one has actions."""
    for name in ("a.mp4", "b.mp4"):
        write(tmp_path / name, grey_frames(8))
    (tmp_path / "actions.csv").write_text(table_of(["a.mp4"], 8))
    return tmp_path


def test_actions_are_read_as_they_were_written(tmp_path):
    write_actions(tmp_path, NAMES, {"a.mp4": ["turn_left", "move_forward"], "b, c.mp4": ["move_forward"]})
    names, rows = read_actions(tmp_path)
    assert names == NAMES
    assert {key: (file, actions.tolist()) for key, (file, actions) in rows.items()} == {
        key_of(tmp_path / "a.mp4"): ("a.mp4", [[True, False], [False, True]]),
        key_of(tmp_path / "b, c.mp4"): ("b, c.mp4", [[False, True]]),
    }


def test_several_actions_at_once_are_read(tmp_path):
    (tmp_path / "actions.csv").write_text("file,frame,left,forward\na.mp4,0,1,1\na.mp4,1,0,0\n")
    assert read_actions(tmp_path).of(tmp_path / "a.mp4", 2).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: must have the columns file, frame, and one for each action, each once, got \[\]"),
        ("file,frame\n", r"line 1: .* got \['file', 'frame'\]"),
        ("file,frame,left,left\n", r"line 1: .* each once, got .*'left', 'left'\]"),
        ("\nfile,frame,left,\n", r"line 2: .*each once, got .*'left', ''\]"),
        ("file,frame,left\na.mp4,1,0\n", "line 2: must have frame 0 of a.mp4 next, got '1'"),
        ("file,frame,left\na.mp4,0,0\n\na.mp4,2,0\n", "line 4: must have frame 1 of a.mp4 next, got '2'"),
        ("file,frame,left\na.mp4,0,0\n./x/../a.mp4,0,0\n", "line 3: must have frame 1 of ./x/../a.mp4 next, got '0'"),
        ("file,frame,left\na.mp4,0,2\n", r"line 2: .* 1 values of 0 or 1, got \['a.mp4', '0', '2'\]"),
        ("file,frame,left\na.mp4,0\n", r"line 2: .* 1 values of 0 or 1, got \['a.mp4', '0'\]"),
        ("file,frame,left\na.mp4\n", r"line 2: .* 1 values of 0 or 1, got \['a.mp4'\]"),
        ("file,frame,left\na.mp4,0,1,1\n", r"line 2: .* 1 values of 0 or 1, got \['a.mp4', '0', '1', '1'\]"),
        ("file,frame,left\n,0,1\n", r"line 2: must have a file, .* got \['', '0', '1'\]"),
        ('file,frame,left\n"a.mp4,0,1\n', "line 2: .* quote that begins here"),
    ],
)
def test_damaged_tables_are_refused_with_the_line(folder, text, message):
    (folder / "actions.csv").write_text(text)
    for read in (read_actions, build):
        with pytest.raises(ValueError, match=rf"actions\.csv, {message}"):
            read(folder)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_table_that_is_no_file_is_refused(tmp_path, kind):
    table = tmp_path / "actions.csv"
    {"link": lambda: table.symlink_to("gone.csv"), "pipe": lambda: os.mkfifo(table), "folder": table.mkdir}[kind]()
    with pytest.raises(ValueError, match=r"actions\.csv must be a file"):
        read_actions(tmp_path)


def test_without_a_table_there_are_no_names_and_no_actions(folder):
    (folder / "actions.csv").unlink()
    data = build(folder, flip=True)
    assert read_actions(folder) == ((), {}) and data.action_names == ()
    assert all(set(data[index]) == {"video", "caption"} for index in range(2))


@pytest.mark.parametrize("writer", [write, write_webm, write_gif])
@pytest.mark.parametrize(
    ("rate", "steps"), [({}, {1}), ({"stride": 3}, {3}), ({"fps": 4}, {2, 3}), ({"fps": 25}, {0, 1})]
)
def test_each_frame_of_a_drawn_clip_has_its_own_actions(tmp_path, writer, rate, steps):
    name = {write: "a.mp4", write_webm: "a.webm", write_gif: "a.gif"}[writer]
    writer(tmp_path / name, grey_frames(FRAMES))
    (tmp_path / "actions.csv").write_text(table_of([name]))
    data, starts, seen = build(tmp_path, num_frames=7, **rate), set(), set()
    for epoch in range(8):
        item = data.draw(0, epoch)
        assert item["actions"].shape == (7, BITS) and item["actions"].dtype == torch.float32
        frames = frames_of(item["actions"])
        assert frames == numbers(item["video"])
        starts.add(frames[0])
        seen |= set(np.diff(frames).tolist())
    assert len(starts) > 3 and seen == steps


def test_rows_of_videos_with_uneven_times_belong_to_the_frames_in_order(tmp_path):
    write(tmp_path / "a.mp4", grey_frames(6), times=[0, 0.1, 0.2, 0.7, 0.8, 1.2])
    (tmp_path / "actions.csv").write_text(table_of(["a.mp4"], 6))
    item = build(tmp_path, num_frames=12, fps=10).draw(0, 0)
    assert frames_of(item["actions"]) == numbers(item["video"])
    assert frames_of(item["actions"]).count(2) == 5 and 3 in frames_of(item["actions"])


def test_only_files_with_rows_have_actions(folder):
    data = build(folder)
    assert data.action_names == tuple(f"bit{n}" for n in range(BITS))
    assert [set(data[index]) for index in range(2)] == [{"video", "actions", "caption"}, {"video", "caption"}]


def test_the_file_that_replaces_a_failed_one_brings_its_own_actions(folder):
    (folder / "actions.csv").write_text(table_of(["a.mp4"], 8, 30) + table_of(["b.mp4"], 8).split("\n", 1)[1])
    data = build(folder)
    assert frames_of(data[0]["actions"])[0] >= 30
    (folder / "a.mp4").write_bytes(b"gone bad")
    with pytest.warns(UserWarning, match=r"a\.mp4"):
        item = data[0]
    assert frames_of(item["actions"]) == numbers(item["video"])


@pytest.mark.parametrize("rows", [1, 7, 9])
def test_a_used_video_must_have_one_row_for_each_frame(folder, rows):
    (folder / "actions.csv").write_text(table_of(["a.mp4"], rows))
    with pytest.raises(ValueError, match=rf"a\.mp4 must have 8 rows in actions\.csv, .*got {rows}"):
        build(folder)


def test_the_rows_of_videos_that_are_not_used_may_have_any_number(folder):
    write(folder / "short.mp4", grey_frames(3))
    (folder / "broken.mp4").write_text("no video")
    (folder / "actions.csv").write_text(table_of(["short.mp4", "broken.mp4", "a.mp4"], 8))
    with pytest.warns(UserWarning) as caught:
        data = VideoFolder(folder, size=16, num_frames=4)
    assert len(caught) == 1 and {path.name for path in data.skipped} == {"short.mp4", "broken.mp4"}
    assert data.files == ["a.mp4", "b.mp4"] and "actions" in data[0]


def test_rows_that_belong_to_no_file_are_named_with_their_tables(folder):
    (folder / ".hidden.mp4").touch()
    (folder / "actions.csv").write_text(table_of(["gone.mp4", "a.mp4", "both.mp4", ".hidden.mp4"], 8))
    (folder / "captions.csv").write_text("file,caption\na.mp4,a\nb.mp4,b\nboth.mp4,c\n")
    with pytest.warns(UserWarning, match=r"3 files are skipped") as caught:
        data = VideoFolder(folder, size=16, num_frames=4)
    assert data.skipped == {
        folder / "gone.mp4": "named in actions.csv but missing",
        folder / "both.mp4": "named in captions.csv and actions.csv but missing",
        folder / ".hidden.mp4": "named in actions.csv but hidden, a folder, left out, or outside of the data",
    }
    assert all(f"{path}: {why}" in str(caught[0].message) for path, why in data.skipped.items())


def test_paths_are_resolved_as_those_of_captions(tmp_path):
    disk, table = (unicodedata.normalize(form, "café.mp4") for form in ("NFC", "NFD"))
    write(tmp_path / "store" / disk, grey_frames(8))
    (tmp_path / "store" / "link.mp4").symlink_to(disk)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "store")
    files = ["../data/linked/link.mp4", f"{tmp_path}/store/./{table}"]
    (tmp_path / "data" / "actions.csv").write_text(table_of(files, 8), encoding="utf-8")
    data = build(tmp_path / "data")
    assert len(data) == 2 and all(frames_of(data[i]["actions"]) == numbers(data[i]["video"]) for i in range(2))


def test_clips_with_actions_are_not_mirrored(folder):
    with pytest.raises(ValueError, match=r"flip must be False with actions\.csv, .*left and right.*got True"):
        build(folder, flip=True)


def test_images_have_no_actions_whatever_the_table_says(tmp_path):
    Image.fromarray(noise(1)[0]).save(tmp_path / "a.png")
    for text in ("broken", table_of(["a.png", "gone.png"], 1)):
        (tmp_path / "actions.csv").write_text(text)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            images = ImageFolder(tmp_path, size=16, flip=True)
        assert set(images[0]) == {"video", "caption"} and not hasattr(images, "action_names")
