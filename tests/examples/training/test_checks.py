"""What the training programs refuse on their command lines, or in a plan that is resumed."""

import argparse

import pytest

from training.checks import check_run


@pytest.mark.parametrize("name", ["data", "model", "tokenizer"])
def test_an_empty_name_of_a_folder_is_refused(name, tmp_path, capsys):
    args = {"given": set(), "minutes": None, "data": "moving_shapes", "model": None, "out": tmp_path, "fps": None}
    args |= {"video_weight": 1.0, "image_weight": 1.0, "tokenizer": None}
    check_run(argparse.ArgumentParser(), argparse.Namespace(**args))
    with pytest.raises(SystemExit):
        check_run(argparse.ArgumentParser(), argparse.Namespace(**args | {name: ""}))
    assert f"--{name} must be the name of a folder, got ''" in capsys.readouterr().err
