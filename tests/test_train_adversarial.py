"""The tokenizer's adversarial training in train.py: late start, ramp, and a resumed run that equals a whole one."""

import csv
import shutil

import pytest
import torch
from accelerate import Accelerator

from adversarial import SHOWN, AdversarialOpponent, TokenizerStep, drawn_frames
from conftest import same_state, state, tiny_cvivit, tiny_discriminator
from phenaki_pytorch import CViViT, Discriminator, LossWeights
from test_train import TINY, finish, kill_at, start
from training_loop import Recipe

ADVERSARIAL = [
    *("--stage", "tokenizer", "--image-perceptual", "0.1", "--video-perceptual", "1", "--perceptual-steps", "3"),
    *("--adversarial", "0.5", "--adversarial-start", "0.25", "--adversarial-ramp", "0.2", "--discriminator-dim", "8"),
]


def both_sides(start=2, ramp=4, share=0.5):
    discriminator = tiny_discriminator()
    tokenizer = TokenizerStep(tiny_cvivit(), weights=LossWeights(adversarial=0), discriminator=discriminator)
    recipe = Recipe(steps=10, lr=1e-3, seed=0, warmup=1)
    sides = (discriminator, tokenizer, recipe)
    return tokenizer, AdversarialOpponent(Accelerator(), *sides, share=share, start=start, ramp=ramp, frames=3)


def test_the_discriminators_say_grows_from_its_start():
    tokenizer, opponent = both_sides()
    opponent.equal = 0.08
    weights = []
    for step in range(9):
        opponent.before(step)
        weights.append(tokenizer.weights.adversarial)
    assert weights == pytest.approx([0, 0, 0, 0.01, 0.02, 0.03, 0.04, 0.04, 0.04])


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_its_gradient_at_the_reconstruction_is_the_share_of_the_others(share):
    tokenizer, opponent = both_sides(start=0, ramp=0, share=share)
    opponent.discriminator.network[-2].weight.data.mul_(1e4)  # sure of itself: its gradient dwarfs that of the pixels
    video = torch.rand(2, 3, 5, 16, 16)
    losses = tokenizer(video)
    made = losses.reconstruction.clone().requires_grad_()
    (adversarial,) = torch.autograd.grad(opponent.discriminator.generator_loss(made)[0], made)
    pixel = 2 * (made - video) / video.numel()
    opponent.after(0, {"video": video}, losses)
    opponent.before(1)
    torch.testing.assert_close(tokenizer.weights.adversarial * adversarial.norm(), share * pixel.norm())


def test_its_weight_is_never_more_than_the_papers():
    tokenizer, opponent = both_sides(start=0, ramp=0)
    opponent.discriminator.network[-2].weight.data.mul_(1e-6)  # knows nothing: its gradient is next to none
    video = torch.rand(2, 3, 5, 16, 16)
    opponent.after(0, {"video": video}, tokenizer(video))
    opponent.before(1)
    assert tokenizer.weights.adversarial == 0.1


def test_its_gradient_is_not_clipped():
    tokenizer, opponent = both_sides(start=0)
    opponent.discriminator.network[-2].weight.data.mul_(1e4)
    norms = []

    def measure(optimizer, *_):
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm())

    for optimizer in opponent.optimizers:
        optimizer.optimizer.register_step_pre_hook(measure)
    video = torch.rand(2, 3, 5, 16, 16)
    opponent.after(0, {"video": video}, tokenizer(video))
    assert norms[0] > 10  # ten times what the tokenizer's is clipped to


def test_it_learns_from_some_real_frames_of_each_clip_others_every_time():
    frame_mask = torch.arange(9) < torch.tensor([9, 6, 2, 1])[:, None]
    draws = [drawn_frames(frame_mask, 3) for _ in range(50)]
    for drawn in draws:
        assert drawn.sum(dim=1).tolist() == [3, 3, 2, 1] and not (drawn & ~frame_mask).any()
    assert torch.equal(torch.stack(draws).any(dim=0), frame_mask)


def test_it_learns_from_its_start_on_and_not_before():
    tokenizer, opponent = both_sides()
    batch = {"video": torch.rand(2, 3, 5, 16, 16)}
    for step in range(4):
        before = state(opponent.discriminator)
        opponent.before(step)
        opponent.after(step, batch, tokenizer(**batch))
        assert same_state(before, state(opponent.discriminator)) == (step < 2)
    row = opponent.row()
    assert set(row) == set(SHOWN)
    assert row["discriminator_loss"] > 0 and row["r1"] > 0 and row["adversarial_weight"] > 0


def test_the_discriminator_is_no_part_of_what_the_tokenizers_optimizer_moves():
    tokenizer, _ = both_sides()
    assert {name.split(".")[0] for name, _ in tokenizer.named_parameters()} == {"cvivit"}


def test_killed_and_resumed_both_sides_are_as_if_nothing_had_happened(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    uninterrupted = start(whole, *TINY, *ADVERSARIAL)
    kill_at(start(broken, *TINY, *ADVERSARIAL), broken / "tokenizer" / "step-00000020.pt")
    assert not (broken / "model" / "cvivit" / "model.safetensors").exists()
    assert "right on" not in finish(start(broken, "--resume"))  # the perceptual networks were kept
    assert finish(uninterrupted).count("right on") == 2
    early = tmp_path / "early"  # killed before there was any checkpoint
    early.mkdir()
    shutil.copy(whole / "plan.json", early)
    finish(start(early, "--resume"))
    for part, kind in (("model/cvivit", CViViT), ("discriminator", Discriminator)):
        one, *others = (kind.from_pretrained(folder / part).state_dict() for folder in (whole, broken, early))
        assert all(same_state(one, other) for other in others), part
    with (whole / "tokenizer" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {*SHOWN, "edge_energy"} <= set(rows[-1])
    assert float(rows[-1]["discriminator_loss"]) > 0
