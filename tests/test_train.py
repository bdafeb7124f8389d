"""train.py: killed and resumed it gives the same weights, and half a checkpoint is refused."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from arguments import parse_arguments
from conftest import tiny_maskgit, tiny_phenaki, tiny_token_critic
from generate import load_model
from moving_shapes import COLOURS, MOTIONS, SHAPES, read_caption
from phenaki_pytorch import SelfCritic
from sources import data_sets, held_out, mixture
from train_maskgit import compile_transformers, note_words, watch_prior
from train_tokenizer import collate_videos
from training_loop import Recipe, build_optimizers, load_newest, lr_factor, save_checkpoint

ROOT = Path(__file__).parent.parent
TINY = [
    *("--steps", "40", "40", "--checkpoint-every", "10", "--encoded", "100", "--size", "16", "--frames", "5"),
    *("--dim", "32", "32", "--depth", "1", "1", "1", "--levels", "4", "4", "4", "--batch-size", "2", "2"),
    *("--sampling-steps", "2", "--prompts", "0", "--stories", "0", "--precision", "no"),
]


def start(out: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "train.py"), "--out", str(out), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_at(process: subprocess.Popen, checkpoint: Path) -> None:
    """SIGKILL as soon as the checkpoint is there, in the midst of the steps after it."""
    deadline = time.monotonic() + 200
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_in_either_stage_and_resumed_it_ends_with_the_same_weights(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    uninterrupted = start(whole, *TINY)
    kill_at(start(broken, *TINY), broken / "tokenizer" / "step-00000020.pt")
    assert not (broken / "model" / "cvivit" / "model.safetensors").exists()
    saved = json.loads((broken / "plan.json").read_text())
    del saved["arguments"]["guide_every"]  # as of before there was this argument
    (broken / "plan.json").write_text(json.dumps(saved))
    kill_at(start(broken, "--resume"), broken / "maskgit" / "step-00000010.pt")
    assert not (broken / "model" / "maskgit" / "model.safetensors").exists()
    newest = sorted((broken / "maskgit").glob("step-*.pt"))[-1]
    output = finish(start(broken, "--resume"))
    assert f"maskgit: going on from step {int(newest.stem.split('-')[1])}" in output
    finish(uninterrupted)
    for stage in ("cvivit", "maskgit"):
        one, other = (load_file(out / "model" / stage / "model.safetensors") for out in (whole, broken))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), stage
    for stage in ("tokenizer", "maskgit"):
        assert (whole / stage / "curves.csv").read_text() == (broken / stage / "curves.csv").read_text()
    assert set(json.loads((broken / "plan.json").read_text())["words"]) == {
        *("a", "moves", "turns", *SHAPES, *MOTIONS, *COLOURS)
    }


def test_settings_of_sampling_are_checked_before_anything_is_trained(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--guide-every", "0"])
    with pytest.raises(SystemExit) as caught:
        parse_arguments("")
    assert caught.value.code == 2 and "guide_every must be at least 1, got 0" in capsys.readouterr().err


def test_without_captions_the_model_is_unconditional(tmp_path):
    finish(start(tmp_path, *TINY, "--text-encoder", "none", "--critic", "self", "--image-weight", "0", "0"))
    phenaki = load_model(tmp_path / "model")
    assert phenaki.text_encoder is None and phenaki.maskgit.dim_context is None
    assert isinstance(phenaki.critic, SelfCritic)
    given = torch.rand(1, 3, 3, 16, 16)
    assert phenaki.generate(num_frames=2, prime_frames=given, overlap=3, steps=2).shape == (1, 3, 2, 16, 16)
    assert "blank_loss" not in (tmp_path / "maskgit" / "curves.csv").read_text()
    assert "words" not in json.loads((tmp_path / "plan.json").read_text())
    assert (tmp_path / "maskgit" / "samples.gif").is_file() and not (tmp_path / "story.gif").exists()


def test_what_is_watched_with_all_masked_is_the_text_and_nothing_else():
    maskgit, size = tiny_maskgit(), (8, 6, 2, 2)
    torch.manual_seed(1)
    batch = {"video_ids": torch.randint(0, 32, size), "text_embeds": torch.randn(8, 4, 12)}
    batch["text_mask"] = torch.ones(8, 4, dtype=torch.bool)
    one = watch_prior(nn.ModuleList([maskgit]), batch)
    other = watch_prior(nn.ModuleList([maskgit]), batch | {"text_embeds": torch.randn(8, 4, 12)})
    assert one["blank_loss"] != other["blank_loss"] and one["blank_loss_no_text"] == other["blank_loss_no_text"]
    logits = maskgit.logits(batch["video_ids"], torch.ones(size, dtype=torch.bool), batch["text_embeds"])
    by_hand = nn.functional.cross_entropy(logits.flatten(0, 3), batch["video_ids"].flatten())
    assert one["blank_loss"] == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_plan_is_never_seen_half_written(tmp_path, monkeypatch):
    plan, inside = tmp_path / "plan.json", Path.write_text
    plan.write_text(json.dumps({"steps": [1, 2]}))

    def killed(path, text):
        inside(path, text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        note_words(plan, [["a red circle moves left"]])
    assert json.loads(plan.read_text()) == {"steps": [1, 2]}
    monkeypatch.undo()
    note_words(plan, [["a red circle turns left", "a red circle moves left"], ["a blue circle"]])
    assert json.loads(plan.read_text())["words"] == ["a", "blue", "circle", "left", "moves", "red", "turns"]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_half_a_checkpoint_is_refused_and_the_one_before_it_used(tmp_path, capsys):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, {"step": step, "weights": torch.full((1000,), float(step))})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002.pt", "step-00000003.pt"]
    assert load_newest(tmp_path)["step"] == 3
    newest = tmp_path / "step-00000003.pt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    state = load_newest(tmp_path)
    assert state["step"] == 2 and (state["weights"] == 2).all()
    assert str(newest) in capsys.readouterr().out


def test_a_new_run_leaves_no_checkpoint_of_an_old_one(tmp_path):
    old = tmp_path / "tokenizer" / "step-00001000.pt"
    old.parent.mkdir()
    save_checkpoint(old.parent, {"step": 1000})
    finish(start(tmp_path, *TINY, "--stage", "tokenizer", "--warmup", "0"))
    assert [path.name for path in sorted(old.parent.glob("*.pt"))] == ["step-00000030.pt", "step-00000040.pt"]


def test_with_a_model_training_begins_with_what_that_one_learnt(tmp_path):
    old, new, short = tmp_path / "old", tmp_path / "new", ("--steps", "2", "2", "--critic", "self")
    finish(start(old, *TINY, *short))
    still = (*TINY, *short, "--seed", "1", "--lr", "0", "0", "--model", str(old / "model"))
    finish(start(new, *still))
    finish(start(tmp_path / "second", *still, "--stage", "maskgit"))
    for part in ("cvivit", "maskgit", "critic"):
        learnt = load_file(old / "model" / part / "model.safetensors")
        kept = load_file(new / "model" / part / "model.safetensors")
        second = load_file(tmp_path / "second" / "model" / part / "model.safetensors")
        assert learnt.keys() == kept.keys() == second.keys()
        assert all(torch.equal(learnt[name], kept[name]) for name in learnt), part
        assert all(torch.equal(learnt[name], second[name]) for name in learnt), part
    refused = start(tmp_path / "wider", *still, "--dim", "32", "64")
    output, _ = refused.communicate(timeout=120)
    assert refused.returncode == 1 and "--model was trained with other sizes" in output


def test_nothing_to_resume_is_an_error(tmp_path):
    process = start(tmp_path / "empty", "--resume")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "nothing to resume" in output and "plan.json" in output


@pytest.mark.parametrize("schedule, last", [("cosine", 0.02), ("constant", 1.0)])
def test_the_learning_rate_warms_up_and_then_falls_or_stays(schedule, last):
    recipe = Recipe(steps=1000, lr=2.0, seed=0, warmup=100, schedule=schedule)
    rates = [lr_factor(recipe, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01, rel=1e-3) and rates[49] == pytest.approx(0.5, rel=0.02)
    assert all(a >= b for a, b in itertools.pairwise(rates[100:]))
    assert rates[-1] == pytest.approx(last, rel=0.01)


@pytest.mark.parametrize("optimizer, count", [("adamw", 1), ("muon", 2)])
def test_every_trainable_parameter_has_one_optimizer_and_muon_only_matrices_of_the_blocks(optimizer, count):
    maskgit = tiny_maskgit()
    frozen = maskgit.to_logits.bias.requires_grad_(False)
    optimizers = build_optimizers(maskgit, Recipe(steps=1, lr=0.1, seed=0, optimizer=optimizer))
    held = [[id(p) for group in one.param_groups for p in group["params"]] for one in optimizers]
    assert len(optimizers) == count
    assert sorted(itertools.chain(*held)) == sorted(id(p) for p in maskgit.parameters() if p is not frozen)
    if optimizer == "muon":
        inside = {id(p) for p in maskgit.transformer.blocks.parameters() if p.ndim == 2}
        assert set(held[1]) == inside and inside
        assert optimizers[1].param_groups[0]["peak"] == pytest.approx(0.2)


@pytest.mark.parametrize("critic, parts", [(None, 1), (SelfCritic, 1), (lambda maskgit: tiny_token_critic(), 2)])
def test_what_is_compiled_is_what_the_second_stage_trains(monkeypatch, critic, parts):
    compiled, model = [], tiny_phenaki(critic=critic)
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    compile_transformers(model)
    assert len(compiled) == parts
    reached = []
    for part in compiled:
        part.register_forward_hook(lambda module, *_: reached.append(module))
    model(video_ids=torch.randint(0, 32, (2, 6, 2, 2)), texts=["up", "down"])
    assert set(reached) == set(compiled)


def test_the_tokenizer_learns_from_every_size_and_the_second_stage_from_one():
    args = Namespace(
        **{"data": "moving_shapes", "size": 16, "other_sizes": [24, 32], "frames": 5, "seed": 0},
        **{"video_weight": 1.0, "image_weight": (0.5, 0.5), "crossed_weight": 0.5, "batch_size": (2, 2)},
    )
    sets = data_sets(args, "tokenizer")
    batches = mixture(args, 0, sets, collate_videos, Accelerator(), steps=60)
    shapes = [tuple(batches[step]["video"].shape) for step in range(60)]
    assert set(shapes) == {
        *((2, 3, 5, size, size) for size in (16, 24, 32)),
        *((8, 3, 1, size, size) for size in (16, 24, 32)),
    }
    videos, captions = held_out(args, sets, 4)
    assert videos.shape == (4, 3, 5, 16, 16) and all(read_caption(caption)[2] for caption in captions)
    assert [videos.size for videos, _ in data_sets(args, "maskgit")] == [16]
