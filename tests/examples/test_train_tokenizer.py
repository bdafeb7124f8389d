"""train_tokenizer.py: a resumed training equals one that was not stopped, with and without a discriminator."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image
from tiny_training import (
    STILL,
    TOKENIZER,
    TOKENIZER_RUN,
    assert_close_weights,
    assert_same_weights,
    run,
    run_killed,
    run_stopped,
)

import train
import train_prior
import train_tokenizer
from data.outputs import alone
from data.runs import load_tokenizer, whole_curves
from phenaki_pytorch import CViViT
from training import tokenizer
from training.adversarial import SHOWN
from training.arguments import tokenizer_arguments
from training.checkpoints import save_checkpoint
from training.loop import Recipe, lr_factor
from training.stage import plan_steps

ADVERSARIAL = [
    *("--image-perceptual", "0.1", "--video-perceptual", "1", "--perceptual-steps", "3"),
    *("--adversarial", "0.5", "--adversarial-start", "0.25", "--adversarial-ramp", "0.2", "--discriminator-dim", "8"),
    *("--steps", "12", "--checkpoint-every", "4"),
]

KINDS = {
    "vqvae": ["--dim", "8", "--strides", "2", "8", "8", "--frames", "8"],
    "vqgan": ["--dim", "16", "--frames", "5", "--adversarial", "0.5", "--discriminator-dim", "8"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The --out of a training that was not stopped."""
    out = tmp_path_factory.mktemp("whole")
    train_tokenizer.main([*TOKENIZER, "--out", str(out)])
    return out


def test_a_stopped_and_resumed_training_ends_with_the_same_weights_and_curves(tmp_path, whole, capsys):
    run_stopped(train_tokenizer.main, [*TOKENIZER, "--out", str(tmp_path)], after=2)
    assert not (tmp_path / "model").exists()
    run(train_tokenizer.main, ["--resume", "--out", str(tmp_path)])
    assert "tokenizer: going on from step 2" in capsys.readouterr().out
    assert_same_weights(whole / "model" / "cvivit", tmp_path / "model" / "cvivit")
    assert (whole / "tokenizer" / "curves.csv").read_text() == (tmp_path / "tokenizer" / "curves.csv").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_kinds_of_tokenizers_resume_to_the_same_weights(tmp_path, kind):
    whole, broken, argv = tmp_path / "whole", tmp_path / "broken", ["--tokenizer", kind, *TOKENIZER_RUN, *KINDS[kind]]
    argv += ["--depth", "1", "--codebook-size", "4"]  # so few codes as a batch has tokens for
    run(train_tokenizer.main, [*argv, "--out", str(whole)])
    run_stopped(train_tokenizer.main, [*argv, "--out", str(broken)], after=2)
    run(train_tokenizer.main, ["--resume", "--out", str(broken)])
    assert_same_weights(whole / "model" / "tokenizer", broken / "model" / "tokenizer")
    assert (whole / "tokenizer" / "curves.csv").read_text() == (broken / "tokenizer" / "curves.csv").read_text()
    assert type(load_tokenizer(whole / "model")).__name__.lower() == kind and not (whole / "model" / "cvivit").exists()
    with pytest.raises(SystemExit, match="tokenizer holds a training of 4 steps"):
        run(train_tokenizer.main, [*TOKENIZER, "--out", str(whole)])


def test_a_killed_and_resumed_training_with_a_discriminator_ends_with_the_same_weights(tmp_path, capsys):
    whole, broken, early = (tmp_path / name for name in ("whole", "broken", "early"))
    argv = [*TOKENIZER, *ADVERSARIAL]
    run_killed("train_tokenizer.py", [*argv, "--out", str(broken)], at=broken / "tokenizer" / "step-00000004.pt")
    assert not (broken / "model").exists()
    run(train_tokenizer.main, ["--resume", "--out", str(broken)])
    assert "is right about" not in capsys.readouterr().out  # the perceptual networks were kept
    run(train_tokenizer.main, [*argv, "--out", str(whole)])
    assert capsys.readouterr().out.count("is right about") == 2
    (early / "tokenizer").mkdir(parents=True)  # killed before its first checkpoint
    shutil.copy(whole / "tokenizer" / "plan.json", early / "tokenizer")
    run(train_tokenizer.main, ["--resume", "--out", str(early)])
    for part in ("model/cvivit", "discriminator"):
        assert_same_weights(whole / part, broken / part, early / part)
    with (whole / "tokenizer" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {*SHOWN, "edge_energy"} <= set(rows[-1])
    assert float(rows[-1]["discriminator_loss"]) > 0


def test_a_new_training_deletes_the_checkpoints_of_an_old_one(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    save_checkpoint(folder, {"step": 1000})
    run(train_tokenizer.main, [*TOKENIZER, "--overwrite", "--out", str(tmp_path), "--warmup", "0"])
    assert [path.name for path in sorted(folder.glob("*.pt"))] == ["step-00000002.pt", "step-00000004.pt"]


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
def test_training_begins_with_the_weights_of_a_given_tokenizer(tmp_path, whole, kind):
    folder = whole / "model" if kind == "model" else whole / "model" / "cvivit"
    still = ["--steps", "2", "--seed", "1", *STILL, "--model", str(folder), "--size", "16", "--frames", "5"]
    run(train_tokenizer.main, [*still, "--out", str(tmp_path / "new")])
    assert_close_weights(whole / "model" / "cvivit", tmp_path / "new" / "model" / "cvivit")
    plan = json.loads((tmp_path / "new" / "tokenizer" / "plan.json").read_text())
    assert plan["arguments"]["dim"] == 32 and plan["arguments"]["levels"] == [4, 4, 4]  # those of the model
    assert [int(row["step"]) for row in whole_curves(tmp_path / "new", "tokenizer")] == [4, 6]
    for wrong in ("--dim 64", "--levels 8 8 8", "--codebook-size 64"):
        with pytest.raises(SystemExit, match=f"--model was trained with other sizes: expected no {wrong.split()[0]}"):
            run(train_tokenizer.main, [*still, *wrong.split(), "--out", str(tmp_path / "other")])


def test_curves_and_reconstructions_are_drawn(whole):
    for name in ("curves.png", "reconstructions.png", "reconstructions.gif"):
        with Image.open(whole / "tokenizer" / name) as image:
            image.load()
            assert min(image.size) > 16


def test_it_sees_as_many_time_steps_as_its_clips_have(whole):
    cvivit = CViViT.from_pretrained(whole / "model" / "cvivit")
    assert cvivit.temporal_window == cvivit.grid(5)[0] == 3


@pytest.mark.parametrize("minutes, steps", [(None, 1200), (2.0, 240), (0.0001, 1)])
def test_as_many_steps_are_planned_as_fit_into_the_minutes(minutes, steps):
    class OneProcess:
        def print(self, *texts, **options):
            pass

    args = tokenizer_arguments([] if minutes is None else ["--minutes", str(minutes)])
    assert plan_steps(args, OneProcess(), 0.5) == steps


def test_activation_checkpointing_gives_the_same_weights(tmp_path, whole):
    run(train_tokenizer.main, [*TOKENIZER, "--checkpoint-activations", "--out", str(tmp_path)])
    weights = [CViViT.from_pretrained(out / "model" / "cvivit").state_dict() for out in (whole, tmp_path)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight)


def test_more_steps_go_on_from_the_last_checkpoint_along_the_longer_schedule(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "run")
    run(train_tokenizer.main, ["--resume", "--steps", "6", "--lr", "5e-4", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "6 steps in place of 4" in said and "ignored --lr, because" in said and "going on from step 4" in said
    folder = tmp_path / "run" / "tokenizer"
    with (folder / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [4, 6]
    recipe = Recipe(steps=6, lr=1e-3, seed=0)
    assert float(rows[-1]["lr"]) == pytest.approx(recipe.lr * lr_factor(recipe, 5))
    assert json.loads((folder / "plan.json").read_text())["steps"] == 6


@pytest.mark.parametrize("damage", ["checkpoint", "all checkpoints", "perceptual", "empty"])
def test_damaged_files_of_a_resumed_run_are_named_in_one_line(tmp_path, whole, damage):
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run" / "tokenizer"
    if damage == "checkpoint":
        save_checkpoint(folder, {"step": 5})  # one of another program
        named = folder
    elif damage == "all checkpoints":
        for path in folder.glob("step-*.pt"):
            path.write_bytes(b"")
        named = folder
    else:
        plan = json.loads((folder / "plan.json").read_text())
        plan["arguments"]["image_perceptual"] = 0.5
        (folder / "plan.json").write_text(json.dumps(plan))
        named = tmp_path / "run" / "image_perceptual.pt"
        named.write_bytes(b"" if damage == "empty" else b"no weights")
    with pytest.raises(SystemExit) as caught:
        run(train_tokenizer.main, ["--resume", "--out", str(tmp_path / "run")])
    message = caught.value.code
    assert message.startswith("train_tokenizer.py: ") and str(named) in message and "\n" not in message


def test_a_run_that_is_refused_leaves_the_plan_and_the_checkpoints_of_the_run_before(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    before = sorted((tmp_path / "run" / "tokenizer").iterdir())
    for wrong in (["--frames", "6"], ["--model", str(tmp_path)]):
        with pytest.raises(SystemExit):
            run(train_tokenizer.main, [*TOKENIZER, *wrong, "--overwrite", "--out", str(tmp_path / "run")])
    assert sorted((tmp_path / "run" / "tokenizer").iterdir()) == before


@pytest.mark.parametrize("prior", ["maskgit", "gpt"])
def test_a_tokenizer_whose_ids_a_prior_has_learnt_is_not_replaced(tmp_path, whole, prior):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "model" / prior).mkdir()
    for argv, message in (
        (TOKENIZER, "holds a training of 4 steps: --resume goes on with it, --overwrite replaces it"),
        (["--resume", "--steps", "6"], "was trained with the tokenizer beside it: expected no more --steps"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(train_tokenizer.main, [*argv, "--out", str(out)])
        assert_same_weights(whole / "model" / "cvivit", out / "model" / "cvivit")
    run(train_tokenizer.main, ["--resume", "--out", str(out)])  # ends at once: it has all its steps


def test_a_tokenizer_that_is_replaced_takes_the_model_of_its_ids_with_it(tmp_path, whole, capsys):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in ("maskgit", "gpt", "frame_encoder", "tokenizer"):
        (out / "model" / name).mkdir()
    (out / "plan.json").write_text("{}")
    run(train_tokenizer.main, [*TOKENIZER, "--seed", "1", "--overwrite", "--out", str(out)])
    assert [path.name for path in (out / "model").iterdir()] == ["cvivit"] and not (out / "plan.json").exists()
    assert "deleted the model, plan.json and checkpoints of the second stage" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        assert_same_weights(whole / "model" / "cvivit", out / "model" / "cvivit")


@pytest.mark.parametrize("program", [train_tokenizer, train_prior, train])
def test_overwriting_and_going_on_are_refused_together(program, capsys, tmp_path):
    with pytest.raises(SystemExit):
        program.main(["--resume", "--overwrite", "--out", str(tmp_path)])
    assert "--overwrite would have no effect beside --resume" in capsys.readouterr().err


@pytest.mark.parametrize("program", [train_tokenizer, train_prior, train])
def test_an_empty_name_of_a_folder_is_refused(program, capsys):
    for flag in ("--out", "--data", "--model"):
        if program is not train or flag == "--out":
            with pytest.raises(SystemExit):
                program.main([flag, ""])
            assert f"argument {flag}: expected the name of a file or folder, got ''" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_training_in_one_line(tmp_path):
    for steps, what in ((4, "the loss is not a finite number, step 4"), (1, "the model of step 1 cannot be measured")):
        argv = [*TOKENIZER, "--lr", "1e30", "--checkpoint-every", "4", "--steps", str(steps), "--out", str(tmp_path)]
        with pytest.raises(SystemExit, match=f"train_tokenizer.py: {what}: lower --lr, or use --precision no"):
            run(train_tokenizer.main, argv)
        assert not (tmp_path / "model").exists() and not list((tmp_path / "tokenizer").glob("step-*"))


@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_ends_a_training_in_one_line_that_says_how_it_goes_on(tmp_path, monkeypatch, capsys, begun):
    def stop(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "trained" if begun else "build_tokenizer", stop)
    with pytest.raises(SystemExit) as caught:
        run(train_tokenizer.main, [*TOKENIZER, "--out", str(tmp_path / "out")])
    assert caught.value.code == 130
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("train_tokenizer.py: stopped") and "--resume goes on" in said
    assert (tmp_path / "out").exists() == begun


@pytest.mark.parametrize("program", [train_tokenizer, train_prior, train])
def test_two_runs_in_one_folder_are_refused(tmp_path, program):
    with alone(tmp_path), pytest.raises(SystemExit, match=f"{program.__name__}.py: another run is writing to "):
        program.main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("program", [train_tokenizer, train_prior, train])
def test_results_that_cannot_be_written_end_in_one_line(program):
    with pytest.raises(SystemExit) as caught:
        program.main(["--out", "/proc/nowhere"])
    assert "/proc/nowhere" in caught.value.code and "\n" not in caught.value.code
