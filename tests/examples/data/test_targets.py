"""targets.py: pictures by their suffix, files that differ, and new folders that an error leaves no trace of."""

import argparse
from pathlib import Path

import pytest

from data.outputs import alone
from data.targets import check_targets, made, png


def test_pictures_are_known_by_their_suffix():
    assert png("a/b.png") == Path("a/b.png") and png("a.PNG").name == "a.PNG"
    for text in ("a.jpg", "a", "png", "", "a.png/b"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected the name of a"):
            png(text)


def test_two_flags_with_one_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    for other in (tmp_path / "a.csv", Path("./a.csv"), Path("link.csv")):
        with pytest.raises(ValueError, match="--csv and --plot would write the same file"):
            check_targets({"--csv": Path("a.csv"), "--sheet": None, "--plot": other})
    check_targets({"--csv": Path("a.csv"), "--plot": Path("b.png"), "--sheet": None})


def fail(folder, *, keep_files=False, files=()):
    """Make a folder with files, then fail."""
    with pytest.raises(KeyboardInterrupt), made(folder, keep_files=keep_files), alone(folder):
        (folder / "part").mkdir(exist_ok=True)
        for file in files:
            (folder / file).touch()
        raise KeyboardInterrupt


def test_a_folder_that_was_made_is_deleted_after_an_error(tmp_path):
    fail(tmp_path / "a" / "b", files=["part/file"])
    fail(tmp_path / "a" / "b", keep_files=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    fail(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_and_what_was_there_before_are_kept(tmp_path):
    fail(tmp_path / "new", keep_files=True, files=["part/file"])
    assert (tmp_path / "new" / "part" / "file").is_file()
    fail(tmp_path / "new", files=["other"])
    assert (tmp_path / "new" / "other").is_file()


def test_without_an_error_nothing_is_deleted(tmp_path):
    with made(tmp_path / "new"):
        (tmp_path / "new").mkdir()
    assert (tmp_path / "new").is_dir()
