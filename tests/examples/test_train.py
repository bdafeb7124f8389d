"""train.py: both stages at their defaults; a training that was stopped in either goes on there."""

import json

import pytest
from tiny_training import PRIOR, TOKENIZER, assert_same_weights, run, run_stopped

import train
from training.arguments import prior_arguments, tokenizer_arguments


@pytest.fixture
def tiny(monkeypatch):
    """Give the stages tiny sizes, but leave what train.py says itself."""
    stages = {"tokenizer_arguments": (tokenizer_arguments, TOKENIZER), "prior_arguments": (prior_arguments, PRIOR)}
    for name, (parse, sizes) in stages.items():
        monkeypatch.setattr(train, name, lambda argv, parse=parse, sizes=sizes: parse([*sizes, *argv]))


@pytest.fixture
def parsed(monkeypatch):
    """The arguments of the stages, which are not run."""
    stages = []
    monkeypatch.setattr(train, "train_tokenizer", stages.append)
    monkeypatch.setattr(train, "train_prior", lambda args, began: stages.append(args))
    return stages


def test_stopped_in_either_stage_and_resumed_it_ends_with_the_same_weights(tmp_path, tiny):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    argv = ["--tokenizer-steps", "4", "--prior-steps", "4", "--precision", "no", "--seed", "1"]
    run(train.main, [*argv, "--out", str(whole)])
    run_stopped(train.main, [*argv, "--out", str(broken)], after=2)
    assert (broken / "tokenizer" / "step-00000002.pt").is_file() and not (broken / "model").exists()
    resume = ["--resume", "--out", str(broken)]
    run_stopped(train.main, resume, after=4)  # the end of the tokenizer's steps
    run_stopped(train.main, resume, after=2)
    assert (broken / "maskgit" / "step-00000002.pt").is_file() and not (broken / "model" / "maskgit").exists()
    run(train.main, resume)
    for part in ("cvivit", "maskgit"):
        assert_same_weights(whole / "model" / part, broken / "model" / part)
    for stage in ("tokenizer", "maskgit"):
        assert (whole / stage / "curves.csv").read_text() == (broken / stage / "curves.csv").read_text()


def test_by_default_the_stages_are_those_of_their_own_programs(tmp_path, parsed):
    train.main(["--out", str(tmp_path)])
    own = [parse(["--out", str(tmp_path)]) for parse in (tokenizer_arguments, prior_arguments)]
    assert parsed == own
    assert [(args.steps, args.seed, args.data) for args in parsed] == [(n, 0, "moving_shapes") for n in (1200, 4100)]


def test_the_minutes_are_shared_between_the_stages(tmp_path, parsed):
    train.main(["--out", str(tmp_path), "--minutes", "10", "--share", "0.3"])
    assert [args.minutes for args in parsed] == pytest.approx([3.0, 7.0])


def test_a_resumed_training_has_the_arguments_of_its_start(tmp_path, parsed):
    train.main(["--out", str(tmp_path), "--seed", "3", "--prior-steps", "7"])
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "plan.json").write_text("{}")
    train.main(["--out", str(tmp_path), "--resume"])
    tokenizer, prior = parsed[2:]
    assert tokenizer.resume and not prior.resume  # its stage was not begun
    assert prior.seed == 3 and prior.steps == 7
    train.main(["--out", str(tmp_path)])
    assert not parsed[4].resume and parsed[4].seed == 0
    assert json.loads((tmp_path / "train.json").read_text())["seed"] == 0
    assert not (tmp_path / "tokenizer" / "plan.json").exists()


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"nothing to resume: .*train\.json is not there"):
        train.main(["--out", str(tmp_path), "--resume"])


def test_a_share_outside_0_and_1_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["--out", str(tmp_path), "--share", "1"])
    assert "--share must be above 0 and below 1, got 1.0" in capsys.readouterr().err
