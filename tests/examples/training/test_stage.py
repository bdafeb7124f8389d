"""What both stages do around their training: whose weights they begin with, whose plan they keep."""

from argparse import Namespace

import pytest
from torch import nn

from training.plans import load_plan, write_plan
from training.stage import STAGES, begin_with, check_held, one_run, open_plan, remove_second_stage


def test_a_part_that_only_one_side_has_is_left_as_it_is():
    begin_with(None, nn.Linear(2, 2))
    module = nn.Linear(2, 2)
    weight = module.weight.clone()
    begin_with(module, None)
    assert (module.weight == weight).all()


def test_weights_of_another_size_are_refused():
    with pytest.raises(ValueError, match="--model was trained with other sizes"):
        begin_with(nn.Linear(2, 2), nn.Linear(3, 2))


def test_a_new_run_deletes_the_plan_of_an_earlier_one_and_a_resumed_one_brings_it_up_to_date(tmp_path, capsys):
    path = tmp_path / "plan.json"
    write_plan(path, Namespace(seed=1, workers=0), 2, words=["red"], files=["a.mp4"])
    open_plan(path, Namespace(seed=1, workers=3, resume=True, steps=5), ["b.mp4", "c.mp4"])
    assert "2 added, 1 removed" in capsys.readouterr().out
    arguments = {"seed": 1, "workers": 3, "steps": 5}
    assert load_plan(path) == {"steps": 5, "arguments": arguments, "words": ["red"], "files": ["a.mp4"]}
    open_plan(path, Namespace(resume=False), [])
    assert not path.exists()


def test_a_folder_is_kept_for_one_run(tmp_path):
    with one_run(tmp_path), pytest.raises(ValueError, match="another run is writing to"), one_run(tmp_path):
        pytest.fail("two runs in one folder")
    with one_run(tmp_path):
        pass


def test_a_run_that_is_refused_leaves_no_folder_but_one_that_has_written_files_does(tmp_path):
    for name, written in (("refused", False), ("begun", True)):
        with pytest.raises(ValueError), one_run(tmp_path / "runs" / name):
            (tmp_path / "runs" / name / "tokenizer").mkdir()
            if written:
                (tmp_path / "runs" / name / "tokenizer" / "plan.json").touch()
            raise ValueError
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["begun"]


# what an earlier training left


def arguments(out, **flags):
    return Namespace(out=out, **{"resume": False, "overwrite": False} | flags)


@pytest.mark.parametrize(
    "stage, weights",
    [
        ("tokenizer", "cvivit"),
        ("tokenizer", "tokenizer"),
        ("maskgit", "maskgit"),
        ("gpt", "gpt"),
        ("latte", "transformer"),
    ],
)
def test_a_training_that_is_there_is_refused_unless_it_goes_on_or_is_replaced(tmp_path, stage, weights):
    check_held(arguments(tmp_path), *STAGES)
    (tmp_path / stage).mkdir()
    (tmp_path / stage / "plan.json").touch()  # without a checkpoint there is nothing to lose
    check_held(arguments(tmp_path), *STAGES)
    (tmp_path / stage / "step-00000900.pt").touch()
    (tmp_path / stage / "step-00001000.pt").touch()
    with pytest.raises(ValueError, match="holds a training of 1000 steps: --resume goes on with it, --overwrite"):
        check_held(arguments(tmp_path), *STAGES)
    check_held(arguments(tmp_path, resume=True), *STAGES)
    check_held(arguments(tmp_path, overwrite=True), *STAGES)
    (tmp_path / "other" / "model" / weights).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"model/{weights} is of another training: expected another --out, or --over"):
        check_held(arguments(tmp_path / "other"), *STAGES)


MODEL_PARTS = ("codec", "critic", "frame_encoder", "gpt", "maskgit", "standardisation", "transformer")


@pytest.mark.parametrize("keep, other", [("cvivit", "tokenizer"), ("tokenizer", "cvivit")])
def test_the_second_stage_of_a_tokenizer_that_is_replaced_is_deleted_and_that_is_said(tmp_path, capsys, keep, other):
    remove_second_stage(tmp_path, keep=keep)
    assert capsys.readouterr().out == ""
    kept = ["maskgit/curves.csv", f"model/{keep}/config.json", "tokenizer/plan.json"]
    deleted = [
        "gpt/step-00000002.pt",
        "latte/step-00000002.pt",
        "maskgit/step-00000002.pt",
        "plan.json",
        "model/config.json",
    ]
    deleted += [f"model/{part}/config.json" for part in (*MODEL_PARTS, other)]
    for name in (*kept, *deleted):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_second_stage(tmp_path, keep=keep)
    assert capsys.readouterr().out.startswith("deleted the model, plan.json and checkpoints of the second stage in ")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == kept
