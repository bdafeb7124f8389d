"""train.py: both stages at their defaults; a training that was stopped in either goes on there."""

import json

import pytest
from tiny_training import PRIOR, TOKENIZER, assert_same_weights, run, run_stopped

import train
from training.arguments import prior_arguments, tokenizer_arguments
from training.plans import planned_of, write_plan


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
    monkeypatch.setattr(train, "train_second_stage", lambda args, began: stages.append(args))
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
    assert [planned_of(args) for args in parsed] == [planned_of(args) for args in own]
    assert [(args.steps, args.seed, args.data) for args in parsed] == [(n, 0, "moving_shapes") for n in (1200, 4100)]


def test_the_minutes_are_shared_between_the_stages(tmp_path, parsed):
    train.main(["--out", str(tmp_path), "--minutes", "10", "--share", "0.3"])
    assert [args.minutes for args in parsed] == pytest.approx([3.0, 7.0])


def test_a_resumed_training_has_the_arguments_of_its_start(tmp_path, parsed):
    train.main(["--out", str(tmp_path), "--seed", "3", "--prior-steps", "7"])
    (tmp_path / "tokenizer").mkdir()
    write_plan(tmp_path / "tokenizer" / "plan.json", parsed[0], 1200)
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


def begun(folder, parsed, *argv):
    """A training whose stages have a plan each."""
    train.main(["--out", str(folder), *argv])
    tokenizer, prior = parsed
    write_plan(folder / "tokenizer" / "plan.json", tokenizer, tokenizer.steps)
    write_plan(folder / "plan.json", prior, prior.steps)
    parsed.clear()
    return ["--out", str(folder), "--resume"]


def test_a_resumed_training_takes_more_steps_and_names_what_it_ignores(tmp_path, parsed, capsys):
    resume = begun(tmp_path, parsed, "--seed", "3", "--prior-steps", "7", "--precision", "no")
    train.main(
        [*resume, "--prior-steps", "9", "--seed", "4", "--tokenizer-steps", "5", "--precision", "auto", "--compile"]
    )
    said = capsys.readouterr().out
    assert "--resume: ignored --seed, --tokenizer-steps, because" in said and "9 steps in place of 7" in said
    assert len(said.splitlines()) == 2
    tokenizer, prior = parsed
    assert (prior.steps, prior.seed, tokenizer.steps, tokenizer.compile) == (9, 3, 1200, True)
    train.main(resume)  # train.json holds the new number
    assert parsed[-1].steps == 9


def test_a_tokenizer_whose_ids_were_learnt_takes_no_more_steps(tmp_path, parsed):
    resume = begun(tmp_path, parsed, "--tokenizer-steps", "5")
    with pytest.raises(SystemExit, match="the second stage has begun with the tokenizer as it is"):
        train.main([*resume, "--tokenizer-steps", "6"])
    assert parsed == []


def test_a_resumed_training_keeps_its_minutes(tmp_path, parsed, capsys):
    resume = begun(tmp_path, parsed, "--minutes", "10", "--share", "0.5")
    train.main([*resume, "--prior-steps", "9000"])
    assert [args.minutes for args in parsed] == [5.0, 5.0] and parsed[1].steps == 4100
    assert "ignored --prior-steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is no JSON"),
        ("[]", "must hold a JSON object, got a list"),
        ('{"steps": 3}', "unrecognized arguments: --steps=3"),
        ('{"share": 2}', "argument --share: expected"),
    ],
)
def test_a_damaged_or_foreign_train_json_is_named_in_one_line(tmp_path, parsed, content, message):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(SystemExit) as caught:
        train.main(["--out", str(tmp_path), "--resume"])
    assert str(tmp_path / "train.json") in caught.value.code and message in caught.value.code
    assert "\n" not in caught.value.code and parsed == []


def test_a_damaged_plan_of_the_second_stage_is_found_before_the_first_goes_on(tmp_path, parsed):
    resume = begun(tmp_path, parsed)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"plan\.json is no plan of a training"):
        train.main(resume)
    assert parsed == []


def test_a_refused_training_leaves_the_plans_of_the_one_before(tmp_path, parsed):
    begun(tmp_path, parsed)
    with pytest.raises(SystemExit):
        train.main(["--out", str(tmp_path), "--share", "0.5"])
    assert (tmp_path / "plan.json").is_file() and (tmp_path / "tokenizer" / "plan.json").is_file()


def test_a_training_that_is_there_is_replaced_only_if_asked_for(tmp_path, parsed):
    begun(tmp_path, parsed, "--seed", "3")
    (tmp_path / "maskgit").mkdir()
    (tmp_path / "maskgit" / "step-00000100.pt").touch()
    with pytest.raises(SystemExit, match="maskgit holds a training of 100 steps: --resume goes on with it"):
        train.main(["--out", str(tmp_path)])
    assert parsed == [] and json.loads((tmp_path / "train.json").read_text())["seed"] == 3
    train.main(["--out", str(tmp_path), "--overwrite"])
    assert [args.overwrite for args in parsed] == [True, True]
    train.main(["--out", str(tmp_path), "--resume"])
    assert [args.overwrite for args in parsed[2:]] == [False, False]
