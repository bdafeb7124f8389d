"""The discriminator's training: when it starts, how its weight is set, which frames it learns from."""

import pytest
import torch
from accelerate import Accelerator

from conftest import same_state, state, tiny_cvivit, tiny_discriminator
from phenaki_pytorch import LossWeights
from training.adversarial import SHOWN, DiscriminatorTraining, TokenizerStep, random_frames
from training.loop import Recipe


def both_sides(start=2, ramp=4, ratio=0.5):
    discriminator = tiny_discriminator()
    tokenizer = TokenizerStep(tiny_cvivit(), weights=LossWeights(adversarial=0), discriminator=discriminator)
    recipe = Recipe(steps=10, lr=1e-3, seed=0, warmup=1)
    parts = (Accelerator(), discriminator, tokenizer, recipe)
    return tokenizer, DiscriminatorTraining(*parts, ratio=ratio, start=start, ramp=ramp, frames=3)


def test_the_weight_of_the_adversarial_term_grows_from_the_start():
    tokenizer, training = both_sides()
    training.equal = 0.08
    weights = []
    for step in range(9):
        training.before(step)
        weights.append(tokenizer.weights.adversarial)
    assert weights == pytest.approx([0, 0, 0, 0.01, 0.02, 0.03, 0.04, 0.04, 0.04])


@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_the_gradients_at_the_reconstruction_have_the_given_ratio(ratio):
    tokenizer, training = both_sides(start=0, ramp=0, ratio=ratio)
    training.discriminator.network[-2].weight.data.mul_(1e4)  # a gradient much larger than that of the pixels
    video = torch.rand(2, 3, 5, 16, 16)
    losses = tokenizer(video)
    reconstruction = losses.reconstruction.clone().requires_grad_()
    adversarial_loss, _ = training.discriminator.generator_loss(reconstruction)
    (adversarial,) = torch.autograd.grad(adversarial_loss, reconstruction)
    pixel = 2 * (reconstruction - video) / video.numel()
    training.after(0, {"video": video}, losses)
    training.before(1)
    torch.testing.assert_close(tokenizer.weights.adversarial * adversarial.norm(), ratio * pixel.norm())


def test_the_weight_never_exceeds_the_papers():
    tokenizer, training = both_sides(start=0, ramp=0)
    training.discriminator.network[-2].weight.data.mul_(1e-6)  # next to no gradient
    video = torch.rand(2, 3, 5, 16, 16)
    training.after(0, {"video": video}, tokenizer(video))
    training.before(1)
    assert tokenizer.weights.adversarial == 0.1


def test_the_discriminators_gradient_is_not_clipped():
    tokenizer, training = both_sides(start=0)
    training.discriminator.network[-2].weight.data.mul_(1e4)
    norms = []

    def measure(optimizer, *_):
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm())

    for optimizer in training.optimizers:
        optimizer.optimizer.register_step_pre_hook(measure)
    video = torch.rand(2, 3, 5, 16, 16)
    training.after(0, {"video": video}, tokenizer(video))
    assert norms[0] > 10  # ten times the norm to which the tokenizer's gradient is clipped


def test_some_real_frames_of_each_clip_are_chosen_others_each_time():
    frame_mask = torch.arange(9) < torch.tensor([9, 6, 2, 1])[:, None]
    choices = [random_frames(frame_mask, 3) for _ in range(50)]
    for chosen in choices:
        assert chosen.sum(dim=1).tolist() == [3, 3, 2, 1] and not (chosen & ~frame_mask).any()
    assert torch.equal(torch.stack(choices).any(dim=0), frame_mask)


def test_the_discriminator_is_trained_from_its_start_on_and_not_before():
    tokenizer, training = both_sides()
    batch = {"video": torch.rand(2, 3, 5, 16, 16)}
    for step in range(4):
        before = state(training.discriminator)
        training.before(step)
        training.after(step, batch, tokenizer(**batch))
        assert same_state(before, state(training.discriminator)) == (step < 2)
    row = training.row()
    assert set(row) == set(SHOWN)
    assert row["discriminator_loss"] > 0 and row["r1"] > 0 and row["adversarial_weight"] > 0


def test_the_tokenizers_optimizer_does_not_train_the_discriminator():
    tokenizer, _ = both_sides()
    assert {name.split(".")[0] for name, _ in tokenizer.named_parameters()} == {"tokenizer"}
