"""LAION's discriminator of patches: its size, its losses, spectral normalisation, and whose gradient goes where."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from conftest import same_state, state, tiny_cvivit, train
from phenaki_pytorch.tokenizers.discriminators import PatchDiscriminator, SpectralConv2d
from phenaki_pytorch.tokenizers.losses import frames_of


def clips(batch=2, frames=3):
    return torch.rand(batch, 3, frames, 16, 16)


def tiny_patches(**changes):
    """Frames of 16×16 pixels have 2×2 patches."""
    return PatchDiscriminator(**{"dim": 16, "depth": 3, **changes})


def spectral(model):
    return [part for part in model.network if isinstance(part, SpectralConv2d)]


def largest_singular_value(weight):
    return torch.linalg.svdvals(weight.detach().flatten(1))[0]


def test_laions_discriminator_has_1_568_833_parameters_and_judges_patches_of_any_frame():
    model = PatchDiscriminator()
    for size, patches in (((128, 128), (2, 2)), ((256, 72), (4, 2))):
        assert model.network(torch.rand(1, 3, *size)).shape == (1, 1, *patches)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_568_833
    assert [part.out_channels for part in spectral(model)] == [32, 64, 128, 256, 256, 256]


def test_the_losses_of_patches_have_smoothed_targets():
    model, real, fake = tiny_patches().eval(), clips(), clips()
    losses = model.losses(real, fake)
    real_logits, fake_logits = (model.network(frames_of(each)) for each in (real, fake))
    assert real_logits.shape == (6, 1, 2, 2)
    # LAION's network gives the probability of fake, with 0.1 for real frames and 0.9 for fake ones.
    real_fake, fake_fake = torch.sigmoid(-real_logits), torch.sigmoid(-fake_logits)
    expected = F.binary_cross_entropy(real_fake, torch.full_like(real_fake, 0.1))
    expected = (expected + F.binary_cross_entropy(fake_fake, torch.full_like(fake_fake, 0.9))) / 2
    torch.testing.assert_close(losses.total, expected)
    assert losses.adversarial == losses.total and losses.r1 == 0
    torch.testing.assert_close(losses.real_logits, real_logits.mean())
    torch.testing.assert_close(losses.fake_logits, fake_logits.mean())
    torch.testing.assert_close(model(real, fake), expected)
    generator, mean = model.generator_loss(fake)
    torch.testing.assert_close(generator, F.binary_cross_entropy(fake_fake, torch.full_like(fake_fake, 0.1)))
    torch.testing.assert_close(mean, fake_logits.mean())


def test_it_learns_to_separate_real_from_fake_patches_and_not_beyond_its_targets():
    model, real = tiny_patches(dim=32), clips()
    fake = real.clone()
    fake[..., ::2] = 0
    losses = train(model, lambda: model(real, fake), 80, lr=3e-2)
    assert losses[-1] < 0.5 < losses[0]
    assert losses[-1] > -0.9 * math.log(0.9) - 0.1 * math.log(0.1) - 1e-3  # the entropy of the targets
    after = model.losses(real, fake)
    assert after.real_logits > 0 > after.fake_logits


def test_weights_are_divided_by_their_largest_singular_value():
    layer, x = SpectralConv2d(3, 4, 3, stride=2, padding=1), torch.randn(2, 3, 8, 8)
    for _ in range(50):
        layer(x)
    sigma = largest_singular_value(layer.weight)
    assert (sigma - 1).abs() > 0.1  # or dividing by it would change nothing
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight / sigma, layer.bias, stride=2, padding=1))
    expected = torch.nn.utils.parametrizations.spectral_norm(copy.deepcopy(layer), n_power_iterations=50)
    torch.testing.assert_close(expected.weight, layer.weight / sigma)
    with torch.no_grad():
        layer.weight.mul_(7)
    torch.testing.assert_close(layer(x), F.conv2d(x, expected.weight, layer.bias, stride=2, padding=1))


def test_the_gradient_of_a_normalised_weight_is_that_through_its_singular_value():
    layer, x = SpectralConv2d(2, 3, 3), torch.randn(1, 2, 5, 5)
    for _ in range(200):
        layer(x)
    layer(x).square().sum().backward()
    weight = layer.weight.detach().clone().requires_grad_()
    sigma = torch.linalg.matrix_norm(weight.flatten(1), ord=2)
    F.conv2d(x, weight / sigma, layer.bias).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad, atol=1e-4, rtol=1e-3)


def test_singular_vectors_move_in_the_discriminators_own_training_steps_only():
    model, real, fake = tiny_patches(), clips(), clips()
    for part in spectral(model):  # as after steps of an optimizer
        part.weight.data.normal_()
    before = state(model)
    model.generator_loss(fake.requires_grad_())[0].backward()
    assert fake.grad.abs().sum() > 0
    with torch.no_grad():
        model(real, fake)
    model.eval()
    model(real, fake).backward()
    assert same_state(before, state(model))
    model.train()
    model(real, fake)
    changed = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert changed == {f"network.{i}.left" for i, part in enumerate(model.network) if isinstance(part, SpectralConv2d)}


def test_two_losses_before_their_backward_passes_have_their_own_singular_vectors():
    model, real, fake = tiny_patches(), clips(), clips()
    first, second = model(real, fake), model(real, fake)
    (first + second).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_loaded_discriminator_of_patches_takes_the_same_next_step_however_often_the_generator_asks(tmp_path):
    model, real, fake = tiny_patches(), clips(), clips()
    train(model, lambda: model(real, fake), 3)
    model.save_pretrained(tmp_path)
    loaded = PatchDiscriminator.from_pretrained(tmp_path)
    assert loaded.config == model.config and same_state(state(model), state(loaded))
    for _ in range(3):
        loaded.generator_loss(fake)
    assert train(model, lambda: model(real, fake), 3) == train(loaded, lambda: loaded(real, fake), 3)
    assert same_state(state(model), state(loaded))


def test_the_loss_of_patches_gives_each_side_its_own_gradients_only():
    cvivit, discriminator, video = tiny_cvivit(), tiny_patches(), clips()
    losses = cvivit.losses(video, discriminator=discriminator)
    losses.total.backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in discriminator.parameters())
    gradients = [parameter.grad.clone() for parameter in cvivit.parameters()]
    discriminator(video, cvivit.decode_features(cvivit.features(video))).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())
    assert all(torch.equal(parameter.grad, before) for parameter, before in zip(cvivit.parameters(), gradients))


def test_patches_of_images_and_of_masked_frames():
    model, real, fake = tiny_patches().eval(), clips(), clips()
    torch.testing.assert_close(model(real[:, :, 0], fake[:, :, 0]), model(real[:, :, :1], fake[:, :, :1]))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    loss = model(real, fake, mask)
    assert torch.equal(model(real, fake.masked_fill(~mask[:, None, :, None, None], 7.0), mask), loss)
    assert not torch.equal(model(real, fake), loss)


def test_patches_under_bfloat16_autocast_and_in_other_precisions():
    model, real, fake = tiny_patches(), clips(), clips()
    exact = model.eval().losses(real, fake)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(real, fake)
        generator = model.generator_loss(fake)[0]
    losses.total.backward()
    assert losses.total.dtype == generator.dtype == torch.float32
    torch.testing.assert_close(losses.total, exact.total, atol=0.02, rtol=0)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    for dtype in (torch.bfloat16, torch.float64):
        cast = copy.deepcopy(model).to(dtype).train()
        losses = cast.losses(real, fake)
        torch.testing.assert_close(losses.total, exact.total, atol=0.02, rtol=0)
        losses.total.backward()
        assert cast.network[0].weight.grad.dtype == dtype


def test_the_compiled_discriminator_of_patches_is_the_same_without_a_graph_break():
    model, real, fake = tiny_patches(), clips(), clips()
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(lambda: twin(real, fake), backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(), model(real, fake))
    assert same_state(state(model), state(twin))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dim": 12}, "multiple of 8, at least 8, got 12"),
        ({"dim": 0}, "multiple of 8, at least 8, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_of_patches_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_patches(**changes)


@pytest.mark.parametrize(
    "frames, kind, message",
    [
        (torch.rand(2, 3, 8, 8), ValueError, "above 8, got 8×8"),
        (torch.rand(2, 1, 16, 16), ValueError, r"frames \(n, 3, h, w\), none empty, got \(2, 1, 16, 16\)"),
        (torch.rand(0, 3, 16, 16), ValueError, r"none empty, got \(0, 3, 16, 16\)"),
        (torch.ones(2, 3, 16, 16).long(), TypeError, "floating point in .*, got torch.int64"),
    ],
)
def test_frames_that_have_no_patches_are_refused(frames, kind, message):
    model = tiny_patches()
    for call in (lambda: model(frames, frames), lambda: model.generator_loss(frames)):
        with pytest.raises(kind, match=message):
            call()
    assert torch.isfinite(model(torch.rand(2, 3, 8, 9), torch.rand(2, 3, 8, 9)))  # two patches are enough
