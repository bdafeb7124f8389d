"""The discriminator: its size, its losses, and that the gradient of one side does not reach the other."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from conftest import same_state, state, tiny_cvivit, tiny_discriminator, train
from phenaki_pytorch import Discriminator
from phenaki_pytorch.tokenizers.discriminators import BlurDownsample, ResidualBlock
from phenaki_pytorch.tokenizers.losses import frames_of


def clips(batch=2, frames=3):
    return torch.rand(batch, 3, frames, 16, 16)


# the network


def test_the_papers_discriminator_has_23_88_million_parameters_at_128_pixels():
    with torch.device("meta"):
        model = Discriminator(image_size=128)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 23_880_833
    assert abs(count / 23.88e6 - 1) < 0.01


@pytest.mark.parametrize(
    "size, multiplier, widths, last",
    [
        (256, 1, [64, 128, 256, 512, 512, 512, 512], (4, 4)),
        (128, 2, [256, 512, 512, 512, 512, 512], (4, 4)),
        ((64, 128), 1, [256, 512, 512, 512, 512], (4, 8)),
        ((96, 64), 0.5, [128, 512, 512, 512, 512], (6, 4)),
        (36, 1, [256, 512, 512, 512, 512], (3, 3)),
    ],
)
def test_the_channels_depend_on_the_resolution(size, multiplier, widths, last):
    with torch.device("meta"):
        model = Discriminator(image_size=size, channel_multiplier=multiplier)
        height, width = model.image_size
        assert model.network(torch.rand(2, 3, height, width)).shape == (2,)
    blocks = [part for part in model.network if isinstance(part, ResidualBlock)]
    assert [model.network[0].out_channels, *(block.main[3].out_channels for block in blocks)] == widths
    linear = next(part for part in model.network if isinstance(part, torch.nn.Linear))
    assert linear.in_features == 512 * math.prod(last)


def test_blurring_halves_the_size_and_keeps_constant_images():
    constant = BlurDownsample()(torch.ones(1, 2, 8, 8))
    assert constant.shape == (1, 2, 4, 4)
    torch.testing.assert_close(constant[:, :, 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    impulse = torch.zeros(1, 1, 8, 8)
    impulse[..., 3, 4] = 1  # at the taps 3 and 1 of two windows vertically, at 1 and 3 horizontally
    taps = BlurDownsample()(impulse)[0, 0]
    expected = torch.zeros(4, 4)
    expected[1:3, 1:3] = torch.outer(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])) / 64
    torch.testing.assert_close(taps, expected)
    assert BlurDownsample()(torch.ones(1, 1, 5, 7)).shape == (1, 1, 3, 4)


# losses


def test_the_losses_are_the_non_saturating_ones():
    model = tiny_discriminator().eval()
    real, fake = clips(), clips()
    losses = model.losses(real, fake)
    real_logits = model.network(frames_of(real) * 2 - 1)
    fake_logits = model.network(frames_of(fake) * 2 - 1)
    expected = F.binary_cross_entropy_with_logits(real_logits, torch.ones(6))
    expected = expected + F.binary_cross_entropy_with_logits(fake_logits, torch.zeros(6))
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(losses.real_logits, real_logits.mean())
    torch.testing.assert_close(losses.fake_logits, fake_logits.mean())
    torch.testing.assert_close(model(real, fake), expected)
    generator, mean = model.generator_loss(fake)
    torch.testing.assert_close(generator, F.binary_cross_entropy_with_logits(fake_logits, torch.ones(6)))
    torch.testing.assert_close(mean, fake_logits.mean())


def test_the_penalty_is_the_squared_gradient_in_every_r1_every_th_step():
    model = tiny_discriminator(r1_every=3, r1_weight=4.0)
    real = clips()
    frames = (frames_of(real) * 2 - 1).requires_grad_()
    (gradient,) = torch.autograd.grad(model.network(frames).sum(), frames)
    expected = 3 * 4.0 / 2 * gradient.square().sum(dim=(1, 2, 3)).mean()
    penalties = [model.losses(real, clips()).r1 for _ in range(7)]
    torch.testing.assert_close(penalties[0], expected.detach())
    assert [penalty.item() > 0 for penalty in penalties] == [True, False, False, True, False, False, True]
    model.eval()
    assert model.losses(real, clips()).r1 == 0
    assert tiny_discriminator(r1_weight=0).losses(real, clips()).r1 == 0


def test_training_with_the_penalty_makes_gradients_smaller():
    def slope(r1_weight):
        torch.manual_seed(0)
        model = tiny_discriminator(r1_weight=r1_weight, r1_every=1)
        real, fake = clips(), clips()
        train(model, lambda: model(real, fake), 20)
        return model._gradient_norm(frames_of(real)).item()

    assert slope(10.0) < 0.5 * slope(0.0)


def test_it_learns_to_separate_real_from_fake_frames():
    model = tiny_discriminator()
    real, fake = clips(), clips() * 0.5
    losses = train(model, lambda: model(real, fake), 60, lr=1e-3)
    assert losses[-1] < 0.5 < losses[1]
    after = model.losses(real, fake)
    assert after.real_logits > after.fake_logits + 2


def test_images_are_clips_of_one_frame_and_masked_frames_are_not_judged():
    model = tiny_discriminator().eval()
    real, fake = clips(), clips()
    torch.testing.assert_close(model(real[:, :, 0], fake[:, :, 0]), model(real[:, :, :1], fake[:, :, :1]))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    loss = model(real, fake, mask)
    assert torch.equal(model(real, fake.masked_fill(~mask[:, None, :, None, None], 7.0), mask), loss)
    assert not torch.equal(model(real, fake), loss)


# gradients


def test_the_loss_of_each_side_gives_the_other_no_gradient():
    cvivit, discriminator, video = tiny_cvivit(), tiny_discriminator(), clips()
    before = state(discriminator)
    losses = cvivit.losses(video, discriminator=discriminator)
    losses.total.backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    assert same_state(before, state(discriminator))
    gradients = [parameter.grad.clone() for parameter in cvivit.parameters()]
    discriminator(video, losses.reconstruction).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())
    assert all(torch.equal(parameter.grad, before) for parameter, before in zip(cvivit.parameters(), gradients))
    with_gradient = cvivit.decode_features(cvivit.features(video))
    discriminator(video, with_gradient).backward()  # the caller need not detach
    assert all(torch.equal(parameter.grad, before) for parameter, before in zip(cvivit.parameters(), gradients))


def test_images_fit_their_reconstructions_of_one_frame():
    cvivit, discriminator, images = tiny_cvivit(), tiny_discriminator(), clips()[:, :, 0]
    reconstruction = cvivit.losses(images, discriminator=discriminator).reconstruction
    twin = copy.deepcopy(discriminator)
    assert torch.equal(discriminator(images, reconstruction), twin(images, reconstruction[:, :, 0]))


def test_the_adversarial_gradient_reaches_the_tokenizer():
    cvivit, video = tiny_cvivit(), clips()
    cvivit(video, discriminator=tiny_discriminator()).backward()
    other = copy.deepcopy(cvivit)
    other.zero_grad()
    other(video).backward()
    assert not torch.allclose(
        cvivit.decoder.pixels_rest.weight.grad, other.decoder.pixels_rest.weight.grad, atol=1e-7, rtol=1e-3
    )


# precision, compilation, saving


def test_the_penalty_is_computed_in_float32_under_autocast():
    model, real = tiny_discriminator(r1_every=1), clips()
    twin = copy.deepcopy(model)
    fake = clips()
    for each in (model, twin):
        each.network[-2].weight.data.mul_(30)  # larger logits, so that an error would show
    exact = model.losses(real, fake)
    with torch.autocast("cpu", torch.bfloat16):
        losses = twin.losses(real, fake)
    torch.testing.assert_close(losses.r1, exact.r1)
    losses.total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in twin.parameters())
    torch.testing.assert_close(losses.adversarial, exact.adversarial, atol=0.05, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_frames_may_have_another_dtype_than_the_parameters(dtype):
    model, real, fake = tiny_discriminator(r1_every=1), clips(), clips()
    expected = model.losses(real, fake)
    losses = model.losses(real.to(dtype), fake.to(dtype))
    torch.testing.assert_close(losses.total, expected.total, atol=0.05, rtol=0.05)
    expected, got = model.generator_loss(fake)[0], model.generator_loss(fake.to(dtype))[0]
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0)
    model.to(dtype).losses(real, fake).total.backward()
    assert model.network[0].weight.grad.dtype == dtype


def test_without_gradients_no_penalty_is_computed_and_no_step_is_counted():
    model, real, fake = tiny_discriminator(r1_every=1), clips(), clips()
    with torch.no_grad():
        losses = model.losses(real, fake)
    assert losses.r1 == 0 and model.steps == 0 and losses.total == losses.adversarial
    assert model.losses(real, fake).r1 > 0 and model.steps == 1


def test_the_compiled_discriminator_is_the_same_with_and_without_penalty():
    model, (real, fake) = tiny_discriminator(image_size=8, dim=4, r1_every=2), torch.rand(2, 2, 3, 1, 8, 8)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin.losses, backend="aot_eager")  # like inductor, without second derivatives
    for _ in range(2):  # with the penalty, then without
        expected, loss = model(real, fake), compiled(real, fake).total
        torch.testing.assert_close(loss, expected)
        expected.backward()
        loss.backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)


def test_a_loaded_discriminator_has_its_penalty_in_the_same_steps(tmp_path):
    model, real, fake = tiny_discriminator(r1_every=2), clips(), clips()
    model(real, fake)
    model.save_pretrained(tmp_path)
    loaded = Discriminator.from_pretrained(tmp_path)
    for _ in range(3):
        expected, losses = model.losses(real, fake), loaded.losses(real, fake)
        assert torch.equal(losses.total, expected.total) and torch.equal(losses.r1, expected.r1)
    assert loaded.steps == 4


# errors


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 3}, "at least 4×4, got 3×3"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"r1_every": 0}, "r1_every must be at least 1, got 0"),
        ({"channel_multiplier": 0}, "above 0, r1_weight at least 0, both finite, got 0"),
        ({"r1_weight": -1}, "r1_weight at least 0, both finite, got 1.0, -1"),
        ({"r1_weight": float("nan")}, "got 1.0, nan"),
        ({"image_size": [16, 16, 16]}, r"\(height, width\), got \(16, 16, 16\)"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_discriminator(**changes)


@pytest.mark.parametrize(
    "real, fake, mask, kind, message",
    [
        (clips(), clips(3), None, ValueError, r"one shape, got \(2, 3, 3, 16, 16\) and \(3, 3, 3, 16, 16\)"),
        (torch.rand(3, 16, 16), torch.rand(3, 16, 16), None, ValueError, r"\(b, c, h, w\), got \(3, 16, 16\)"),
        (torch.rand(1, 3, 2, 8, 16), torch.rand(1, 3, 2, 8, 16), None, ValueError, r"16, 16\).*got \(2, 3, 8, 16\)"),
        (clips(0), clips(0), None, ValueError, r"n ≥ 1, got \(0, 3, 16, 16\)"),
        (clips().long(), clips(), None, TypeError, r"floating point in \[0, 1\], got torch.int64"),
        (clips(), clips(), torch.ones(2, 4, dtype=torch.bool), ValueError, r"bool \(2, 3\), got torch.bool \(2, 4\)"),
        (clips(), clips(), torch.zeros(2, 3, dtype=torch.bool), ValueError, "all False"),
    ],
)
def test_frames_and_masks_that_do_not_fit_are_refused(real, fake, mask, kind, message):
    with pytest.raises(kind, match=message):
        tiny_discriminator()(real, fake, mask)
    if real.shape == fake.shape:
        with pytest.raises(kind, match=message):
            tiny_discriminator().generator_loss(real, mask)


@pytest.mark.parametrize("change", [lambda v: 255 * v, lambda v: v * math.nan, lambda v: v + math.inf])
def test_real_frames_are_checked_as_a_video_is(change):
    with pytest.raises(ValueError, match=r"real must be finite and in \[0, 1\]"):
        tiny_discriminator()(change(clips()), clips())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_fake_frames_must_be_finite_where_they_are_real(bad):
    model, real, fake = tiny_discriminator(), clips(), clips()
    frame_mask = torch.tensor([[True, True, True], [True, False, False]])
    fake[1, :, 1:] = bad  # padding
    assert model(real, fake, frame_mask).isfinite()
    assert model.generator_loss(fake, frame_mask)[0].isfinite()
    for call in (lambda: model(real, fake), lambda: model.generator_loss(fake)):
        with pytest.raises(ValueError, match=f"fake must be finite, got {bad}"):
            call()
    assert model(real, 9 * clips() - 4).isfinite()  # a reconstruction may lie outside [0, 1]
