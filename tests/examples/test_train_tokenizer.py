"""train_tokenizer.py: a resumed training equals one that was not stopped, with and without a discriminator."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image
from tiny_training import TOKENIZER, assert_same_weights, run, run_killed, run_stopped

import train_tokenizer
from data.runs import whole_curves
from phenaki_pytorch import CViViT
from training.adversarial import SHOWN
from training.arguments import tokenizer_arguments
from training.loop import save_checkpoint
from training.stage import plan_steps

ADVERSARIAL = [
    *("--image-perceptual", "0.1", "--video-perceptual", "1", "--perceptual-steps", "3"),
    *("--adversarial", "0.5", "--adversarial-start", "0.25", "--adversarial-ramp", "0.2", "--discriminator-dim", "8"),
    *("--steps", "12", "--checkpoint-every", "4"),
]


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


def test_an_argument_that_the_plan_lacks_has_its_default(tmp_path, whole):
    (tmp_path / "tokenizer").mkdir()
    plan = json.loads((whole / "tokenizer" / "plan.json").read_text())
    del plan["arguments"]["schedule"]  # as if the program had not had it yet
    (tmp_path / "tokenizer" / "plan.json").write_text(json.dumps(plan))
    run(train_tokenizer.main, ["--resume", "--out", str(tmp_path)])
    assert_same_weights(whole / "model" / "cvivit", tmp_path / "model" / "cvivit")


def test_a_new_training_deletes_the_checkpoints_of_an_old_one(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    save_checkpoint(folder, {"step": 1000})
    run(train_tokenizer.main, [*TOKENIZER, "--out", str(tmp_path), "--warmup", "0"])
    assert [path.name for path in sorted(folder.glob("*.pt"))] == ["step-00000002.pt", "step-00000004.pt"]


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
def test_training_begins_with_the_weights_of_a_given_tokenizer(tmp_path, whole, kind):
    folder = whole / "model" if kind == "model" else whole / "model" / "cvivit"
    still = [*TOKENIZER, "--steps", "2", "--seed", "1", "--lr", "0", "--model", str(folder)]
    run(train_tokenizer.main, [*still, "--out", str(tmp_path / "new")])
    assert_same_weights(whole / "model" / "cvivit", tmp_path / "new" / "model" / "cvivit")
    assert [int(row["step"]) for row in whole_curves(tmp_path / "new", "tokenizer")] == [4, 6]
    if kind == "model":
        with pytest.raises(SystemExit, match="--model was trained with other sizes"):
            run(train_tokenizer.main, [*still, "--dim", "64", "--out", str(tmp_path / "wider")])


def test_curves_and_reconstructions_are_drawn(whole):
    for name in ("curves.png", "reconstructions.png", "reconstructions.gif"):
        with Image.open(whole / "tokenizer" / name) as image:
            image.load()
            assert min(image.size) > 16


def test_it_sees_as_many_time_steps_as_its_clips_have(whole):
    cvivit = CViViT.from_pretrained(whole / "model" / "cvivit")
    assert cvivit.temporal_window == cvivit.grid(5)[0] == 3


def test_a_number_of_frames_that_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="--frames does not fit: a clip needs 1 \\+ k · 2 frames"):
        run(train_tokenizer.main, [*TOKENIZER, "--frames", "6", "--out", str(tmp_path)])


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"nothing to resume: .*plan\.json is not there"):
        run(train_tokenizer.main, ["--resume", "--out", str(tmp_path)])


@pytest.mark.parametrize("minutes, steps", [(None, 1200), (2.0, 240), (0.0001, 1)])
def test_as_many_steps_are_planned_as_fit_into_the_minutes(minutes, steps):
    class OneProcess:
        def print(self, *texts, **options):
            pass

    args = tokenizer_arguments([] if minutes is None else ["--minutes", str(minutes)])
    assert plan_steps(args, OneProcess(), 0.5) == steps


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--adversarial", "0.4", "--other-sizes", "48"], "the discriminator reads frames of one size"),
        (["--data", "folder", "--image-perceptual", "1"], "the perceptual networks here learn the labels"),
        (["--steps", "0"], "--steps must be above 0, got 0"),
        (["--minutes", "-1"], "--minutes must be above 0, got -1"),
        (["--out", "run", "--model", "run/model"], "--model must lie outside of --out"),
    ],
)
def test_wrong_arguments_are_refused(capsys, argv, message):
    with pytest.raises(SystemExit) as caught:
        tokenizer_arguments(argv)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_activation_checkpointing_gives_the_same_weights(tmp_path, whole):
    run(train_tokenizer.main, [*TOKENIZER, "--checkpoint-activations", "--out", str(tmp_path)])
    weights = [CViViT.from_pretrained(out / "model" / "cvivit").state_dict() for out in (whole, tmp_path)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight)
