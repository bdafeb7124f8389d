"""plan.json: what it holds, that it is there whole or not at all, and what a resumed run takes from it."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from training.arguments import prior_arguments, tokenizer_arguments
from training.plans import change_of_files, files_of, load_plan, planned_of, write_plan

DAMAGED = {
    "empty": (b"", "is no JSON"),
    "half": (b'{"steps": 2, "argu', "is no JSON"),
    "binary": (b"\xff\xfe\x00", "is no JSON"),
    "list": (b"[1, 2]", "must hold a JSON object, got a list"),
    "other keys": (b'{"minutes": 3}', "is no plan of a training: expected its steps and arguments, got minutes"),
    "no steps": (b'{"steps": "two", "arguments": {}}', "is no plan of a training"),
    "wrong kind": (
        b'{"steps": 2, "arguments": {"size": "big"}}',
        "argument --size: expected a whole number, got 'big'",
    ),
    "out of range": (b'{"steps": 2, "arguments": {"clip": -1}}', "argument --clip: expected above 0, got -1"),
    "an object": (b'{"steps": 2, "arguments": {"lr": {"peak": 1}}}', "argument --lr: expected a number"),
    "help": (b'{"steps": 2, "arguments": {"help": true}}', "does not hold the arguments of this program"),
    "files": (b'{"steps": 2, "arguments": {}, "files": [{}]}', "is no plan of a training"),
    "unknown": (b'{"steps": 2, "arguments": {"colour": "red"}}', "unrecognized arguments: --colour=red"),
}


def resumed(folder, *argv):
    """The arguments of a resumed run."""
    return tokenizer_arguments(["--out", str(folder), "--resume", *argv])


@pytest.fixture
def planned(tmp_path):
    """The --out of a training of 6 steps that was begun."""
    args = tokenizer_arguments(["--size", "16", "--levels", "4", "4", "--seed", "3", "--out", str(tmp_path)])
    args.precision = "no"
    write_plan(tmp_path / "tokenizer" / "plan.json", args, 6, files=["a.mp4", "b.mp4"])
    return tmp_path


def test_a_plan_is_never_half_written(tmp_path, monkeypatch):
    plan, write_text = tmp_path / "plan.json", Path.write_text
    write_plan(plan, Namespace(seed=1, out=tmp_path, resume=True, given={"seed"}), 2)
    before = {"steps": 2, "arguments": {"seed": 1}}
    assert json.loads(plan.read_text()) == before

    def killed(path, text):
        write_text(path, text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        write_plan(plan, Namespace(seed=2), 3, words=["a", "red", "circle"])
    assert json.loads(plan.read_text()) == before
    monkeypatch.undo()
    write_plan(plan, Namespace(seed=2), 3, words=["a", "red", "circle"])
    assert json.loads(plan.read_text())["words"] == ["a", "red", "circle"]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("content, message", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_plan_is_named(tmp_path, content, message):
    path = tmp_path / "tokenizer" / "plan.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        resumed(tmp_path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_plan_of_the_other_stage_is_refused(tmp_path):
    write_plan(tmp_path / "tokenizer" / "plan.json", prior_arguments([]), 6)
    with pytest.raises(ValueError, match="does not hold the arguments of this program: unrecognized arguments"):
        resumed(tmp_path)


@pytest.mark.parametrize(
    "parse, argv",
    [
        (tokenizer_arguments, "--quantizer vq --codebook-size 64 --other-sizes 16 48 --image-perceptual 0.25"),
        (tokenizer_arguments, "--data . --fps 12.5 --flip --minutes 3"),
        (prior_arguments, "--critic self --critic-inline --token-temperature 1 0.4 --lr 0.0001"),
        (prior_arguments, "--model m --critic self --distil-guidance 2 --no-critic-inline --checkpoint-every 7"),
    ],
)
def test_a_resumed_run_has_the_arguments_of_its_start(tmp_path, parse, argv, capsys):
    out = ["--out", str(tmp_path)]
    args = parse([*argv.split(), *out])
    stage = "tokenizer" if parse is tokenizer_arguments else "."
    write_plan(tmp_path / stage / "plan.json", args, args.steps)
    again = parse(["--resume", *out])
    assert json.dumps(planned_of(again)) == json.dumps(planned_of(args))
    parse(["--resume", *argv.split(), *out])
    assert capsys.readouterr().out == ""  # what the plan says, too, is not named


def test_what_a_resumed_run_does_not_follow_is_named_in_one_line(planned, capsys):
    args = resumed(planned, "--lr", "1e-4", "--seed", "3", "--batch-size", "2", "--levels", "4", "4", "--flip")
    assert args.lr == 1e-3 and args.batch_size == 4 and not args.flip
    assert capsys.readouterr().out.count("\n") == 1 and resumed(planned).given == set()
    resumed(planned, "--lr", "1e-4", "--seed", "3", "--precision", "bf16", "--steps", "4")
    said = "--resume: ignored --lr, --precision, --steps, because the training was begun with other values\n"
    assert capsys.readouterr().out == said


def test_more_steps_and_what_no_step_depends_on_are_followed(planned, capsys):
    args = resumed(planned, "--steps", "9", "--workers", "2", "--checkpoint-every", "5", "--compile")
    assert (args.steps, args.workers, args.checkpoint_every, args.compile, args.size) == (9, 2, 5, True, 16)
    assert capsys.readouterr().out == "--resume: 9 steps in place of 6; the schedule follows the new number\n"


def test_a_resumed_run_may_be_evaluated_and_sampled_otherwise(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    write_plan(tmp_path / "plan.json", prior_arguments(out), 6)
    args = prior_arguments(["--resume", "--prompts", "7", "--sampling-steps", "3", "--cond-scale", "1.5", *out])
    assert (args.prompts, args.sampling_steps, args.cond_scale) == (7, 3, 1.5)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        prior_arguments(["--resume", "--critic-inline", *out])
    assert "--critic-inline would have no effect without a critic" in capsys.readouterr().err


def test_an_argument_that_the_plan_lacks_has_its_default(planned):
    path = planned / "tokenizer" / "plan.json"
    plan = load_plan(path)
    del plan["arguments"]["schedule"]  # as if the program had not had it yet
    path.write_text(json.dumps(plan))
    assert resumed(planned, "--schedule", "constant").schedule == "cosine"


def test_files_that_came_and_went_are_counted():
    sets = [Namespace(files=["b.mp4", "a.mp4"]), None, Namespace(files=["a.png"]), object()]
    assert files_of(sets) == ["a.mp4", "a.png", "b.mp4"]
    assert change_of_files(["a.mp4", "b.mp4"], ["b.mp4", "a.mp4"]) is None
    line = change_of_files(["a.mp4", "b.mp4"], ["b.mp4", "c.mp4", "d.mp4"])
    assert "2 added, 1 removed" in line and "\n" not in line
