"""train_prior.py: a resumed training equals one that was not stopped, with critics, with a teacher, without texts."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_training import (
    PRIOR,
    STILL,
    TOKENIZER,
    assert_close_weights,
    assert_same_weights,
    run,
    run_killed,
    run_stopped,
)

import train_prior
import train_tokenizer
from data.moving_shapes import COLOURS, MOTIONS, SHAPES
from data.runs import load_model, load_tokenizer, read_plan, whole_curves
from data.sampling import planned_sampling
from phenaki_pytorch import SelfCritic, TokenCritic
from training import second_stage
from training.arguments import prior_arguments


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a trained tokenizer."""
    out = tmp_path_factory.mktemp("tokenizer")
    run(train_tokenizer.main, [*TOKENIZER, "--out", str(out)])
    return out / "model" / "cvivit"


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """The folder of a trained model with a self-critic."""
    out = tmp_path_factory.mktemp("model")
    train_prior.main([*PRIOR, "--critic", "self", "--tokenizer", str(tokenizer), "--out", str(out)])
    return out / "model"


def test_a_stopped_and_resumed_training_ends_with_the_same_weights_and_curves(tmp_path, tokenizer, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    argv = [*PRIOR, "--critic", "token", "--tokenizer", str(tokenizer)]
    run(train_prior.main, [*argv, "--out", str(whole)])
    run_stopped(train_prior.main, [*argv, "--out", str(broken)], after=2)
    assert not (broken / "model").exists()
    plan = json.loads((broken / "plan.json").read_text())
    del plan["arguments"]["guide_every"]  # as if the program had not had it yet
    (broken / "plan.json").write_text(json.dumps(plan))
    run(train_prior.main, ["--resume", "--out", str(broken)])
    assert "maskgit: going on from step 2" in capsys.readouterr().out
    for part in ("maskgit", "critic", "cvivit"):
        assert_same_weights(whole / "model" / part, broken / "model" / part)
    assert (whole / "maskgit" / "curves.csv").read_text() == (broken / "maskgit" / "curves.csv").read_text()
    critic = load_model(whole / "model").critic
    assert isinstance(critic, TokenCritic) and critic.to_logits.bias.all()  # it was 0 before training


def test_a_killed_and_resumed_training_with_critic_and_teacher_ends_with_the_same_weights(tmp_path, model):
    whole, broken, plain = (tmp_path / name for name in ("whole", "broken", "plain"))
    argv = [*PRIOR, "--steps", "12", "--checkpoint-every", "4", "--critic", "self", "--model", str(model)]
    distilled = [*argv, "--distil-guidance", "3"]
    run_killed("train_prior.py", [*distilled, "--out", str(broken)], at=broken / "maskgit" / "step-00000004.pt")
    assert not (broken / "model").exists()
    run(train_prior.main, ["--resume", "--out", str(broken)])
    run(train_prior.main, [*distilled, "--out", str(whole)])
    for part in ("maskgit", "critic"):
        assert_same_weights(whole / "model" / part, broken / "model" / part)
    run(train_prior.main, [*argv, "--out", str(plain)])
    one, other = (load_model(out / "model").maskgit.to_logits.weight for out in (whole, plain))
    assert not torch.equal(one, other)
    scales = [planned_sampling(read_plan(out / "model"))["cond_scale"] for out in (whole, plain)]
    assert scales == [1.0, 2.0]
    assert read_plan(whole / "model")["distil_guidance"] == 3.0


def test_the_model_comes_with_its_tokenizer_its_words_and_what_to_look_at(model, tokenizer):
    out = model.parent
    assert_same_weights(tokenizer, model / "cvivit")
    plan = json.loads((out / "plan.json").read_text())
    assert plan["steps"] == 4 and set(plan["words"]) == {"a", "moves", "turns", *SHAPES, *MOTIONS, *COLOURS}
    assert plan["arguments"]["size"] == 16 and plan["arguments"]["frames"] == 5  # those of the tokenizer
    files = ("results.json", "story.gif", "story.png", "maskgit/samples.gif", "maskgit/samples.png")
    assert all((out / name).is_file() for name in files)
    assert "reconstructed all" in json.loads((out / "results.json").read_text())
    assert isinstance(load_model(model).critic, SelfCritic)
    with (out / "maskgit" / "curves.csv").open() as file:
        [row] = csv.DictReader(file)
    assert 0 < float(row["critic_loss"]) < 5 and 0 < float(row["wrong"]) < 1
    assert [int(row["step"]) for row in whole_curves(out, "tokenizer")] == [4]  # of the run that trained it


def test_a_training_that_is_there_is_replaced_only_if_asked_for(model, tokenizer, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(model.parent, out)
    argv = [*PRIOR, "--tokenizer", str(tokenizer), "--seed", "1", "--out", str(out)]
    with pytest.raises(SystemExit, match="holds a training of 4 steps: --resume goes on with it, --overwrite replaces"):
        run(train_prior.main, argv)
    assert_same_weights(model / "maskgit", out / "model" / "maskgit")
    run(train_prior.main, [*argv, "--overwrite"])
    assert "overwrite" not in read_plan(out / "model") and load_model(out / "model").critic is None


def test_a_training_goes_on_with_its_own_tokenizer_only(model, tokenizer, tmp_path):
    out, moved = tmp_path / "out", tmp_path / "moved"
    shutil.copytree(model.parent, out)
    shutil.copytree(tokenizer, moved)
    plan = json.loads((out / "plan.json").read_text())
    plan["arguments"]["tokenizer"] = str(moved)
    (out / "plan.json").write_text(json.dumps(plan))
    run(train_prior.main, ["--resume", "--out", str(out)])  # ends at once: it has all its steps
    other = load_tokenizer(tokenizer)
    other.decoder.pixels_first.weight.data[0, 0] += 1
    other.save_pretrained(moved)
    with pytest.raises(SystemExit, match=r"the tokenizer is not the one that the training in .*plan\.json began with"):
        run(train_prior.main, ["--resume", "--out", str(out)])
    del plan["tokenizer_sha256"]  # as if the program had not written it yet
    (out / "plan.json").write_text(json.dumps(plan))
    run(train_prior.main, ["--resume", "--out", str(out)])


def test_without_captions_the_model_is_unconditional(tmp_path, tokenizer):
    argv = [*PRIOR, "--condition", "none", "--critic", "self", "--image-weight", "0", "--tokenizer", str(tokenizer)]
    run(train_prior.main, [*argv, "--out", str(tmp_path)])
    phenaki = load_model(tmp_path / "model")
    assert phenaki.text_encoder is None and phenaki.maskgit.dim_context is None
    prime = torch.rand(1, 3, 3, 16, 16)
    assert phenaki.generate(num_frames=2, prime_frames=prime, overlap=3, steps=2).shape == (1, 3, 2, 16, 16)
    assert "blank_loss" not in (tmp_path / "maskgit" / "curves.csv").read_text()
    assert "words" not in json.loads((tmp_path / "plan.json").read_text())


def test_training_begins_with_the_weights_of_a_given_model(tmp_path, model):
    still = ["--encoded", "8", "--batch-size", "2", "--prompts", "0", "--stories", "0", "--steps", "2", "--seed", "1"]
    still += [*STILL, "--model", str(model)]
    run(train_prior.main, [*still, "--out", str(tmp_path / "new")])
    assert_same_weights(model / "cvivit", tmp_path / "new" / "model" / "cvivit")
    for part in ("maskgit", "critic"):  # a critic of the same kind, which was not asked for
        assert_close_weights(model / part, tmp_path / "new" / "model" / part)
    assert [int(row["step"]) for row in whole_curves(tmp_path / "new", "maskgit")] == [4, 6]
    assert {"dim": 32, "depth": 1, "critic": "self"}.items() <= read_plan(tmp_path / "new" / "model").items()
    with pytest.raises(SystemExit, match="--model was trained with other sizes: expected no --dim, or 32, got 64"):
        run(train_prior.main, [*still, "--dim", "64", "--out", str(tmp_path / "wider")])


def test_another_size_uses_the_same_tokenizer(tmp_path, tokenizer):
    argv = [*PRIOR, "--steps", "1", "--size", "24", "--frames", "3", "--tokenizer", str(tokenizer.parent)]
    run(train_prior.main, [*argv, "--out", str(tmp_path)])
    assert_same_weights(tokenizer, tmp_path / "model" / "cvivit")
    phenaki = load_model(tmp_path / "model")
    assert phenaki.cvivit.image_size == (24, 24) and phenaki.maskgit.grid == (2, 6, 6)


def test_missing_files_and_lengths_that_do_not_fit_are_errors(tmp_path, tokenizer):
    out = ["--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"nothing to resume: .*plan\.json is not there"):
        run(train_prior.main, ["--resume", *out])
    with pytest.raises(SystemExit, match=r"no tokenizer in .*train_tokenizer\.py"):
        run(train_prior.main, [*PRIOR, *out])
    with pytest.raises(SystemExit, match="no model in "):
        run(train_prior.main, [*PRIOR, *out, "--model", str(tokenizer)])
    with pytest.raises(SystemExit, match="--frames does not fit: a clip needs 1 \\+ k · 2 frames"):
        run(train_prior.main, [*PRIOR, *out, "--tokenizer", str(tokenizer), "--frames", "4"])


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--prompts 5", "--prompts needs clips of at least"),
        ("--stories 5", "--stories needs clips of at least"),
        ("--size 15", "--size does not fit: "),
        ("--size 15", "must be multiples of the patch 4×4, got 15×15"),
        ("--sampling-steps 1 --temperature 2", "--temperature would have no effect in a single step"),
        ("--text-encoder nowhere/t5", "nowhere/t5"),
        (f"--data {Path(__file__).parent}", "must hold a usable file"),
    ],
)
def test_what_only_the_end_uses_is_checked_before_clips_are_encoded(tmp_path, tokenizer, monkeypatch, argv, message):
    monkeypatch.setattr(second_stage, "encode_sets", lambda *given: pytest.fail("the clips were encoded"))
    words = [*("--tokenizer", str(tokenizer), "--precision", "no", "--out", str(tmp_path)), *argv.split()]
    with pytest.raises(SystemExit) as caught:
        train_prior.main(words)
    assert message in caught.value.code and "\n" not in caught.value.code


def test_a_critic_of_the_model_has_its_options(tmp_path, model, monkeypatch):
    encoded = []
    monkeypatch.setattr(second_stage, "encode_sets", lambda args, *given: encoded.append(args.critic) or 1 / 0)
    words = ["--model", str(model), "--precision", "no", "--out", str(tmp_path), "--critic-inline"]
    with pytest.raises(ZeroDivisionError):
        train_prior.main(words)
    assert encoded == ["self"]
    with pytest.raises(SystemExit):
        train_prior.main([*words, "--critic", "none"])


def test_sampling_options_have_their_defaults_and_guidance_depends_on_distillation():
    options = {"steps": 24, "temperature": 4.0, "token_temperature": (1.2, 0.1), "critic_scale": 1.0, "guide_every": 1}
    for argv, scale in (([], 2.0), (["--model", "m", "--distil-guidance", "3"], 1.0), (["--cond-scale", "5"], 5.0)):
        planned = planned_sampling(vars(prior_arguments(argv)))
        assert planned == options | {"cond_scale": scale, "critic_inline": False}
