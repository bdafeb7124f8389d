"""The tokenizer's whole loss: its parts and weights, what is skipped, what padding does, whose gradient goes where."""

import copy

import pytest
import torch
from torch import nn

from conftest import same_state, state, tiny_cvivit, tiny_discriminator
from phenaki_pytorch import LossWeights


def clips(batch=2, frames=7):
    return torch.rand(batch, 3, frames, 16, 16)


class ImageDistance(nn.Module):
    """Frames (n, c, h, w), compared by features of a network with parameters and dropout-like state of its own."""

    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(3, 4, 3)
        self.seen = []

    def forward(self, made, real):
        self.seen.append(tuple(made.shape))
        return (self.network(made) - self.network(real)).square().mean(dim=(1, 2, 3))


class VideoDistance(nn.Module):
    """Clips (b, c, f, h, w), compared by features of both space and time."""

    def __init__(self):
        super().__init__()
        self.network = nn.Conv3d(3, 4, (2, 3, 3))
        self.seen = []

    def forward(self, made, real):
        self.seen.append(tuple(made.shape))
        return (self.network(made) - self.network(real)).abs()


def networks():
    """One of each, the same for every call."""
    torch.manual_seed(1)
    return {
        "image_perceptual": ImageDistance(),
        "video_perceptual": VideoDistance(),
        "discriminator": tiny_discriminator(),
    }


def test_the_parts_and_their_weights_make_the_loss():
    model, clip, given = tiny_cvivit(), clips(), networks()
    weights = LossWeights(pixel=2.0, image_perceptual=0.3, video_perceptual=0.4, adversarial=0.5)
    twin = copy.deepcopy(model)
    losses = model.losses(clip, weights=weights, **given)
    total = losses.quantizer + 2.0 * losses.pixel + 0.3 * losses.image_perceptual + 0.4 * losses.video_perceptual
    torch.testing.assert_close(losses.total, total + 0.5 * losses.adversarial)
    made = losses.reconstruction
    assert made.shape == clip.shape and not made.requires_grad
    torch.testing.assert_close(losses.pixel, (made - clip).square().mean())
    frames = [video.transpose(1, 2).flatten(0, 1) for video in (made, clip)]
    torch.testing.assert_close(losses.image_perceptual, given["image_perceptual"](*frames).mean())
    torch.testing.assert_close(losses.video_perceptual, given["video_perceptual"](made, clip).mean())
    adversarial, logits = given["discriminator"].generator_loss(made)
    torch.testing.assert_close(losses.adversarial, adversarial)
    torch.testing.assert_close(losses.fake_logits, logits)
    assert torch.equal(twin(clip, weights=weights, **given), losses.total)


def test_the_weights_are_the_papers_by_default():
    assert LossWeights() == (1.0, 0.1, 1.0, 0.1)
    model, clip, given = tiny_cvivit(), clips(), networks()
    losses = model.losses(clip, **given)
    total = losses.quantizer + losses.pixel + 0.1 * losses.image_perceptual + 1.0 * losses.video_perceptual
    torch.testing.assert_close(losses.total, total + 0.1 * losses.adversarial)


@pytest.mark.parametrize("name", ["image_perceptual", "video_perceptual", "discriminator"])
def test_each_part_can_be_switched_off_by_not_giving_it_or_by_its_weight(name):
    model, clip, given = tiny_cvivit(), clips(), networks()
    weight = "adversarial" if name == "discriminator" else name
    everything = copy.deepcopy(model).losses(clip, **given)
    assert getattr(everything, weight) > 0
    network = given.pop(name)
    without = copy.deepcopy(model).losses(clip, **given)
    assert getattr(without, weight) == 0
    torch.testing.assert_close(
        everything.total - without.total, getattr(LossWeights(), weight) * getattr(everything, weight)
    )
    network.forward = None  # a network whose weight is 0 is not run
    silent = model.losses(clip, weights=LossWeights()._replace(**{weight: 0.0}), **{name: network}, **given)
    assert torch.equal(silent.total, without.total)


def test_a_weight_that_grows_brings_the_adversarial_term_in_late():
    model, clip, discriminator = tiny_cvivit().eval(), clips(), tiny_discriminator()
    start, ramp = 10, 4
    totals = [
        model(
            clip,
            discriminator=discriminator,
            weights=LossWeights(adversarial=0.1 * min(1, max(0, (step - start) / ramp))),
        ).item()
        for step in (0, 10, 12, 14, 20)
    ]
    alone = model(clip).item()
    assert totals[0] == totals[1] == alone
    assert totals[2] - alone == pytest.approx((totals[4] - alone) / 2, rel=1e-3)
    assert totals[3] == totals[4] > totals[2]


def test_the_networks_given_keep_no_gradient_and_do_not_become_parts():
    model, clip, given = tiny_cvivit(), clips(), networks()
    names = set(model.state_dict())
    before = {name: state(network) for name, network in given.items()}
    model(clip, **given).backward()
    for name, network in given.items():
        assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
        assert same_state(before[name], state(network))
    assert set(model.state_dict()) == names
    assert all(parameter.grad is not None for parameter in model.parameters())


class Scripted(nn.Module):
    """A distance whose network is TorchScript's, as feature extractors are often saved."""

    def __init__(self):
        super().__init__()
        self.network = torch.jit.script(nn.Conv2d(3, 4, 3))

    def forward(self, made, real):
        return (self.network(made) - self.network(real)).square()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("whole", [False, True])
def test_networks_of_torchscript_keep_no_gradient_either(whole):
    distance = Scripted()
    given = torch.jit.script(distance) if whole else distance
    model, clip = tiny_cvivit(), clips()
    losses = model.losses(clip, image_perceptual=given, weights=LossWeights(pixel=0))
    frames = [video.transpose(1, 2).flatten(0, 1) for video in (losses.reconstruction, clip)]
    torch.testing.assert_close(losses.image_perceptual, distance(*frames).mean())
    losses.total.backward()
    assert model.decoder.pixels_rest.weight.grad.abs().sum() > 0
    assert all(value.grad is None and value.requires_grad for value in distance.parameters())


@pytest.mark.parametrize("name", ["image_perceptual", "video_perceptual"])
def test_a_perceptual_gradient_reaches_the_tokenizer(name):
    model, clip, network = tiny_cvivit(), clips(), networks()[name]
    model(clip, weights=LossWeights(pixel=0.0), **{name: network}).backward()
    assert model.decoder.pixels_rest.weight.grad.abs().sum() > 0


def test_a_plain_function_will_do():
    model, clip = tiny_cvivit(), clips()
    losses = model.losses(clip, image_perceptual=lambda made, real: (made - real).abs())
    torch.testing.assert_close(losses.image_perceptual, (losses.reconstruction - clip).abs().mean())


# images, and clips of several lengths


def test_images_have_no_video_distance():
    model, given = tiny_cvivit(), networks()
    losses = model.losses(clips()[:, :, 0], **given)
    assert losses.video_perceptual == 0 and given["video_perceptual"].seen == []
    assert losses.image_perceptual > 0 and losses.adversarial > 0
    assert given["image_perceptual"].seen == [(2, 3, 16, 16)]


MASK = torch.arange(7) < torch.tensor([[7], [1], [3], [7]])


def test_each_clip_is_compared_at_its_own_length():
    model, clip, given = tiny_cvivit().eval(), clips(4), networks()
    losses = model.losses(clip, MASK, **given)
    assert given["video_perceptual"].seen == [(1, 3, 3, 16, 16), (2, 3, 7, 16, 16)]
    assert given["image_perceptual"].seen == [(18, 3, 16, 16)]
    made = losses.reconstruction
    network = given["video_perceptual"]
    each = [network(made[i : i + 1, :, :n], clip[i : i + 1, :, :n]).mean() for i, n in ((0, 7), (2, 3), (3, 7))]
    torch.testing.assert_close(losses.video_perceptual, sum(each) / 3)
    errors = (made - clip).square().transpose(1, 2)[MASK]
    torch.testing.assert_close(losses.pixel, errors.mean())


@pytest.mark.parametrize("padding", [torch.zeros_like, torch.rand_like])
def test_padding_changes_no_part_no_gradient_and_no_codebook(padding):
    clip = clips(4)

    def outcome(video):
        torch.manual_seed(0)
        model, given = tiny_cvivit(), networks()
        losses = model.losses(video, MASK, **given)
        losses.total.backward()
        own = given["discriminator"].losses(video, losses.reconstruction, MASK)
        own.total.backward()
        gradients = [parameter.grad for part in (model, given["discriminator"]) for parameter in part.parameters()]
        return [*losses[:-1], *own], gradients, state(model)

    other = torch.where(MASK[:, None, :, None, None], clip, padding(clip))
    assert not torch.equal(other, clip)
    for one, two in zip(outcome(clip), outcome(other)):
        torch.testing.assert_close(one, two)
    other = clip.clone()
    other[2, :, 2] = padding(other[2, :, 2])  # a real frame
    parts = zip(outcome(clip)[0][:6], outcome(other)[0][:6])
    assert all((one - two).abs() > 1e-6 for one, two in parts)


# how it is run


def test_bfloat16_autocast_stays_near():
    model, clip, given = tiny_cvivit(), clips(), networks()
    exact = copy.deepcopy(model).losses(clip, **given)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(clip, **given)
    losses.total.backward()
    assert losses.total.dtype == losses.reconstruction.dtype == torch.float32
    torch.testing.assert_close(losses.total, exact.total, atol=0, rtol=0.1)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", LossWeights._fields)
def test_weights_below_zero_are_refused(name):
    with pytest.raises(ValueError, match=f"at least 0, got {name}=-0.5"):
        tiny_cvivit()(clips(), weights=LossWeights(**{name: -0.5}))


def test_a_discriminator_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"judges frames \(n, 3, 32, 32\).*got \(2, 3, 16, 16\)"):
        tiny_cvivit()(clips(), discriminator=tiny_discriminator(image_size=32))


@pytest.mark.parametrize("given", [{"weights": LossWeights(pixel=-1)}, {"discriminator": tiny_discriminator(dim=4)}])
def test_what_is_refused_has_changed_nothing(given):
    model, clip = tiny_cvivit(), torch.rand(2, 3, 7, 16, 24)
    before = state(model)
    with pytest.raises(ValueError):
        model(clip, **given)
    assert same_state(before, state(model))
    model(clip)
    assert not same_state(before, state(model))  # the positive control


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(weight):
    with pytest.raises(ValueError, match=f"finite and at least 0, got adversarial={weight}"):
        tiny_cvivit()(clips(), weights=LossWeights(adversarial=weight))


@pytest.mark.parametrize("name", ["image_perceptual", "video_perceptual"])
def test_distances_are_tensors(name):
    with pytest.raises(TypeError, match="must be a tensor, got float"):
        tiny_cvivit()(clips(), **{name: lambda made, real: 0.5})


@pytest.mark.parametrize("name", ["image_perceptual", "video_perceptual", "discriminator", "weights"])
def test_what_is_no_network_and_no_weights_is_refused(name):
    with pytest.raises(TypeError, match=name):
        tiny_cvivit()(clips(), **{name: 3})
