"""Command lines: numbers have ranges, flags without effect are refused, and errors end in one line."""

import argparse
from pathlib import Path

import pytest

from data.flags import flag_of, given_names, integer, mistakes_in_one_line, number, path, path_text, refuse_idle


def parser():
    new = argparse.ArgumentParser()
    new.add_argument("file", nargs="?")
    new.add_argument("--steps", type=integer(), default=5)
    new.add_argument("--learning-rate", type=number(above=0), default=0.1)
    new.add_argument("--flip", action="store_true")
    return new


@pytest.mark.parametrize("text", ["0", "11", "-1", "1.5", "nan", "inf", "", "one"])
def test_whole_numbers_outside_of_the_range_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected .* got"):
        integer(1, 10)(text)


def test_whole_numbers_of_the_range_are_read():
    assert [integer(1, 10)(text) for text in ("1", "7", "10")] == [1, 7, 10]
    assert integer(0)("0") == 0 and integer(-3)("-3") == -3


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        ({"at_least": 0}, "0", "-1e-9"),
        ({"above": 0}, "1e-9", "0"),
        ({"at_most": 1}, "1", "1.001"),
        ({"below": 1}, "0.999", "1"),
        ({"above": 0, "below": 1}, "0.5", "1"),
        ({}, "-5", "inf"),
        ({"at_least": 0}, "3", "nan"),
        ({}, "1e3", "many"),
    ],
)
def test_numbers_are_read_up_to_their_bounds(bounds, inside, outside):
    assert number(**bounds)(inside) == float(inside)
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected .* got"):
        number(**bounds)(outside)


def test_options_that_are_given_are_known_even_with_their_defaults():
    assert given_names(parser(), []) <= {"file"}
    assert given_names(parser(), ["x", "--steps", "5", "--flip"]) == {"file", "steps", "flip"}


def test_only_given_flags_without_effect_are_refused(capsys):
    refuse_idle(parser(), {"steps"}, "here", "learning_rate", "flip")
    with pytest.raises(SystemExit):
        refuse_idle(parser(), {"learning_rate", "steps"}, "without videos", "learning_rate", "flip")
    said = capsys.readouterr().err
    assert "--learning-rate would have no effect without videos" in said and "--flip" not in said.splitlines()[-1]
    assert flag_of("learning_rate") == "--learning-rate"


@pytest.mark.parametrize("error", [ValueError("two\n  lines of x.mp4"), FileNotFoundError(2, "none", "x"), OSError()])
def test_mistakes_end_in_one_line(error):
    with pytest.raises(SystemExit) as ended, mistakes_in_one_line("/somewhere/train.py"):
        raise error
    said = ended.value.code
    assert said.startswith("train.py: ") and len(said) > len("train.py: ") and "\n" not in said


def test_faults_of_a_program_keep_their_traceback():
    with pytest.raises(KeyError), mistakes_in_one_line("train.py"):
        raise KeyError("a fault")


@pytest.mark.parametrize("text", ["", " ", "a\0b", "http://127.0.0.1/x.mp4", "s3://bucket/x", "file:///a"])
def test_a_path_is_neither_empty_nor_an_address(text):
    for kind in (path, path_text):
        with pytest.raises(argparse.ArgumentTypeError, match="expected the name of a file or folder, got"):
            kind(text)


@pytest.mark.parametrize("text", ["a", "a/b.mp4", "/a b", "10:30.mp4", "md5:a/b", ".", "caf\u00e9//x"])
def test_all_other_paths_are_taken(text):
    assert path(text) == Path(text) and path_text(text) == text
