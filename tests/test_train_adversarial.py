"""The tokenizer's adversarial training in train.py: late start, ramp, and a resumed run that equals a whole one."""

import csv

import pytest
import torch
from accelerate import Accelerator

from adversarial import AdversarialOpponent, TokenizerStep
from conftest import same_state, state, tiny_cvivit, tiny_discriminator
from phenaki_pytorch import CViViT, Discriminator, LossWeights
from test_train import TINY, finish, kill_at, start
from training_loop import Recipe

ADVERSARIAL = [
    *("--stage", "tokenizer", "--image-perceptual", "0.1", "--video-perceptual", "1", "--perceptual-steps", "3"),
    *("--adversarial", "0.1", "--adversarial-start", "0.25", "--adversarial-ramp", "0.2", "--discriminator-dim", "8"),
]


def both_sides(start=2, ramp=4):
    discriminator = tiny_discriminator()
    tokenizer = TokenizerStep(tiny_cvivit(), weights=LossWeights(adversarial=0.4), discriminator=discriminator)
    recipe = Recipe(steps=10, lr=1e-3, seed=0, warmup=1)
    return tokenizer, AdversarialOpponent(Accelerator(), discriminator, tokenizer, recipe, start=start, ramp=ramp)


def test_the_discriminators_say_grows_from_its_start():
    tokenizer, opponent = both_sides()
    weights = []
    for step in range(9):
        opponent.before(step)
        weights.append(tokenizer.weights.adversarial)
    assert weights == pytest.approx([0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_it_learns_from_its_start_on_and_not_before():
    tokenizer, opponent = both_sides()
    batch = {"video": torch.rand(2, 3, 5, 16, 16)}
    for step in range(4):
        before = state(opponent.discriminator)
        opponent.before(step)
        opponent.after(step, batch, tokenizer(**batch))
        assert same_state(before, state(opponent.discriminator)) == (step < 2)
    row = opponent.row()
    assert set(row) == {"discriminator_loss", "adversarial", "fake_logits"} and row["discriminator_loss"] > 0


def test_the_discriminator_is_no_part_of_what_the_tokenizers_optimizer_moves():
    tokenizer, _ = both_sides()
    assert {name.split(".")[0] for name, _ in tokenizer.named_parameters()} == {"cvivit"}


def test_killed_and_resumed_both_sides_are_as_if_nothing_had_happened(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    uninterrupted = start(whole, *TINY, *ADVERSARIAL)
    kill_at(start(broken, *TINY, *ADVERSARIAL), broken / "tokenizer" / "step-00000020.pt")
    assert not (broken / "model" / "cvivit" / "model.safetensors").exists()
    assert "right on" in finish(start(broken, "--resume"))
    finish(uninterrupted)
    for part, kind in (("model/cvivit", CViViT), ("discriminator", Discriminator)):
        one, two = (kind.from_pretrained(folder / part) for folder in (whole, broken))
        assert same_state(one.state_dict(), two.state_dict()), part
    with (whole / "tokenizer" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"discriminator_loss", "adversarial", "fake_logits", "edge_energy"} <= set(rows[-1])
    assert float(rows[-1]["discriminator_loss"]) > 0
