"""Actions are read as they were written, and a damaged table is refused with what is wrong."""

import pytest

from data.actions import read_actions, write_actions

NAMES = ("turn_left", "move_forward")


def test_actions_are_read_as_they_were_written(tmp_path):
    write_actions(tmp_path, NAMES, {"a.mp4": ["turn_left", "move_forward"], "b, c.mp4": ["move_forward"]})
    names, actions = read_actions(tmp_path)
    assert names == list(NAMES)
    assert {path: clip.tolist() for path, clip in actions.items()} == {
        tmp_path / "a.mp4": [[True, False], [False, True]],
        tmp_path / "b, c.mp4": [[False, True]],
    }


def test_several_actions_at_once_are_read(tmp_path):
    (tmp_path / "actions.csv").write_text("file,frame,left,forward\na.mp4,0,1,1\na.mp4,1,0,0\n")
    _, actions = read_actions(tmp_path)
    assert actions[tmp_path / "a.mp4"].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"columns file, frame, and one for each action, got \[\]"),
        ("file,frame\n", r"got \['file', 'frame'\]"),
        ("file,frame,left\na.mp4,1,0\n", "must have frame 0 of a.mp4 next, got '1'"),
        ("file,frame,left\na.mp4,0,0\na.mp4,2,0\n", "must have frame 1 of a.mp4 next, got '2'"),
        ("file,frame,left\na.mp4,0,2\n", r"1 values of 0 or 1, got \['a.mp4', '0', '2'\]"),
        ("file,frame,left\na.mp4,0\n", r"1 values of 0 or 1, got \['a.mp4', '0'\]"),
        ("file,frame,left\na.mp4\n", r"1 values of 0 or 1, got \['a.mp4'\]"),
        ("file,frame,left\na.mp4,0,1,1\n", r"1 values of 0 or 1, got \['a.mp4', '0', '1', '1'\]"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, text, message):
    (tmp_path / "actions.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_actions(tmp_path)


def test_a_missing_table_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"actions\.csv"):
        read_actions(tmp_path)
