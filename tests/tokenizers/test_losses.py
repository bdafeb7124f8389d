"""The tokenizer's whole loss: its terms and weights, padding, and which parameters get gradients."""

import copy

import pytest
import torch
from einops import rearrange
from torch import nn

from conftest import same_state, state, tiny_cvivit, tiny_discriminator
from phenaki_pytorch import LossWeights
from phenaki_pytorch.tokenizers.losses import LAION_WEIGHTS


def clips(batch=2, frames=7):
    return torch.rand(batch, 3, frames, 16, 16)


class ImageDistance(nn.Module):
    """Compares frames (n, c, h, w) by the features of a network with parameters."""

    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(3, 4, 3)
        self.shapes = []

    def forward(self, reconstruction, video):
        self.shapes.append(tuple(reconstruction.shape))
        return (self.network(reconstruction) - self.network(video)).square().mean(dim=(1, 2, 3))


class VideoDistance(nn.Module):
    """Compares clips (b, c, f, h, w) by features of space and time."""

    def __init__(self):
        super().__init__()
        self.network = nn.Conv3d(3, 4, (2, 3, 3))
        self.shapes = []

    def forward(self, reconstruction, video):
        self.shapes.append(tuple(reconstruction.shape))
        return (self.network(reconstruction) - self.network(video)).abs()


def networks():
    """One network of each kind, with the same weights in every call."""
    torch.manual_seed(1)
    return {
        "image_perceptual": ImageDistance(),
        "video_perceptual": VideoDistance(),
        "discriminator": tiny_discriminator(),
    }


def frames_of_both(*videos):
    return [rearrange(video, "b c f h w -> (b f) c h w") for video in videos]


# terms and weights


def test_the_loss_is_the_weighted_sum_of_its_terms():
    model, video, given = tiny_cvivit(), clips(), networks()
    weights = LossWeights(pixel=2.0, image_perceptual=0.3, video_perceptual=0.4, adversarial=0.5)
    twin = copy.deepcopy(model)
    losses = model.losses(video, weights=weights, **given)
    total = losses.quantizer + 2.0 * losses.pixel + 0.3 * losses.image_perceptual + 0.4 * losses.video_perceptual
    torch.testing.assert_close(losses.total, total + 0.5 * losses.adversarial)
    reconstruction = losses.reconstruction
    assert reconstruction.shape == video.shape and not reconstruction.requires_grad
    torch.testing.assert_close(losses.pixel, (reconstruction - video).square().mean())
    frames = frames_of_both(reconstruction, video)
    torch.testing.assert_close(losses.image_perceptual, given["image_perceptual"](*frames).mean())
    torch.testing.assert_close(losses.video_perceptual, given["video_perceptual"](reconstruction, video).mean())
    adversarial, logits = given["discriminator"].generator_loss(reconstruction)
    torch.testing.assert_close(losses.adversarial, adversarial)
    torch.testing.assert_close(losses.fake_logits, logits)
    assert torch.equal(twin(video, weights=weights, **given), losses.total)


def test_the_default_weights_are_the_papers():
    assert LossWeights() == (1.0, 0.1, 1.0, 0.1)
    model, video, given = tiny_cvivit(), clips(), networks()
    losses = model.losses(video, **given)
    total = losses.quantizer + losses.pixel + 0.1 * losses.image_perceptual + 1.0 * losses.video_perceptual
    torch.testing.assert_close(losses.total, total + 0.1 * losses.adversarial)


def test_laions_weights_leave_the_distance_of_clips_out():
    assert LAION_WEIGHTS == (1.0, 0.1, 0.0, 0.1)
    model, video, given = tiny_cvivit(), clips(), networks()
    losses = model.losses(video, weights=LAION_WEIGHTS, **given)
    assert losses.image_perceptual > 0 and losses.adversarial > 0 and given["video_perceptual"].shapes == []
    total = losses.quantizer + losses.pixel + 0.1 * losses.image_perceptual + 0.1 * losses.adversarial
    torch.testing.assert_close(losses.total, total)


@pytest.mark.parametrize("name", ["image_perceptual", "video_perceptual", "discriminator"])
def test_a_term_is_left_out_without_its_network_or_with_weight_0(name):
    model, video, given = tiny_cvivit(), clips(), networks()
    weight = "adversarial" if name == "discriminator" else name
    all_terms = copy.deepcopy(model).losses(video, **given)
    assert getattr(all_terms, weight) > 0
    network = given.pop(name)
    without = copy.deepcopy(model).losses(video, **given)
    assert getattr(without, weight) == 0
    torch.testing.assert_close(
        all_terms.total - without.total, getattr(LossWeights(), weight) * getattr(all_terms, weight)
    )
    network.forward = None  # a call would fail
    weightless = model.losses(video, weights=LossWeights()._replace(**{weight: 0.0}), **{name: network}, **given)
    assert torch.equal(weightless.total, without.total)


def test_the_adversarial_weight_can_grow_from_0_during_training():
    model, video, discriminator = tiny_cvivit().eval(), clips(), tiny_discriminator()
    start, ramp = 10, 4
    totals = [
        model(
            video,
            discriminator=discriminator,
            weights=LossWeights(adversarial=0.1 * min(1, max(0, (step - start) / ramp))),
        ).item()
        for step in (0, 10, 12, 14, 20)
    ]
    alone = model(video).item()
    assert totals[0] == totals[1] == alone
    assert totals[2] - alone == pytest.approx((totals[4] - alone) / 2, rel=1e-3)
    assert totals[3] == totals[4] > totals[2]


# which networks, and which parameters get gradients


def test_given_networks_get_no_gradient_and_do_not_become_submodules():
    model, video, given = tiny_cvivit(), clips(), networks()
    names = set(model.state_dict())
    before = {name: state(network) for name, network in given.items()}
    model(video, **given).backward()
    for name, network in given.items():
        assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
        assert same_state(before[name], state(network))
    assert set(model.state_dict()) == names
    assert all(parameter.grad is not None for parameter in model.parameters())


class Scripted(nn.Module):
    """A distance with a TorchScript network, the form in which feature extractors are often saved."""

    def __init__(self):
        super().__init__()
        self.network = torch.jit.script(nn.Conv2d(3, 4, 3))

    def forward(self, reconstruction, video):
        return (self.network(reconstruction) - self.network(video)).square()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("whole", [False, True])
def test_given_torchscript_networks_get_no_gradient_either(whole):
    distance = Scripted()
    given = torch.jit.script(distance) if whole else distance
    model, video = tiny_cvivit(), clips()
    losses = model.losses(video, image_perceptual=given, weights=LossWeights(pixel=0))
    frames = frames_of_both(losses.reconstruction, video)
    torch.testing.assert_close(losses.image_perceptual, distance(*frames).mean())
    losses.total.backward()
    assert model.decoder.pixels_rest.weight.grad.abs().sum() > 0
    assert all(value.grad is None and value.requires_grad for value in distance.parameters())


@pytest.mark.parametrize("name", ["image_perceptual", "video_perceptual"])
def test_the_gradient_of_a_perceptual_term_reaches_the_tokenizer(name):
    model, video, network = tiny_cvivit(), clips(), networks()[name]
    model(video, weights=LossWeights(pixel=0.0), **{name: network}).backward()
    assert model.decoder.pixels_rest.weight.grad.abs().sum() > 0


def test_a_perceptual_distance_may_be_a_plain_function():
    model, video = tiny_cvivit(), clips()
    losses = model.losses(video, image_perceptual=lambda reconstruction, video: (reconstruction - video).abs())
    torch.testing.assert_close(losses.image_perceptual, (losses.reconstruction - video).abs().mean())


class ToyDiscriminator:
    """Has the two calls that the loss needs of a discriminator, and no others."""

    def __call__(self, real, fake, frame_mask=None):
        return fake.mean() - real.mean()

    def generator_loss(self, fake, frame_mask=None):
        return (1 - fake).square().mean(), fake.detach().mean()


def test_any_object_with_the_two_calls_is_a_discriminator():
    model, video = tiny_cvivit(), clips()
    losses = model.losses(video, discriminator=ToyDiscriminator(), weights=LossWeights(pixel=0.0))
    torch.testing.assert_close(losses.adversarial, (1 - losses.reconstruction).square().mean())
    torch.testing.assert_close(losses.fake_logits, losses.reconstruction.mean())
    torch.testing.assert_close(losses.total, losses.quantizer + 0.1 * losses.adversarial)
    losses.total.backward()
    assert model.decoder.pixels_rest.weight.grad.abs().sum() > 0


# images, and clips of several lengths


def test_images_have_no_video_distance():
    model, given = tiny_cvivit(), networks()
    losses = model.losses(clips()[:, :, 0], **given)
    assert losses.video_perceptual == 0 and given["video_perceptual"].shapes == []
    assert losses.image_perceptual > 0 and losses.adversarial > 0
    assert given["image_perceptual"].shapes == [(2, 3, 16, 16)]


MASK = torch.arange(7) < torch.tensor([[7], [1], [3], [7]])


def test_each_clip_is_compared_without_its_padding():
    model, video, given = tiny_cvivit().eval(), clips(4), networks()
    losses = model.losses(video, MASK, **given)
    network, reconstruction = given["video_perceptual"], losses.reconstruction
    assert network.shapes == [(1, 3, 3, 16, 16), (2, 3, 7, 16, 16)]
    assert given["image_perceptual"].shapes == [(18, 3, 16, 16)]
    each = [network(reconstruction[[i], :, :n], video[[i], :, :n]).mean() for i, n in ((0, 7), (2, 3), (3, 7))]
    torch.testing.assert_close(losses.video_perceptual, sum(each) / 3)
    errors = rearrange((reconstruction - video).square(), "b c f h w -> b f c h w")[MASK]
    torch.testing.assert_close(losses.pixel, errors.mean())


@pytest.mark.parametrize("padding", [torch.zeros_like, torch.rand_like])
def test_padding_changes_no_term_no_gradient_and_no_codebook(padding):
    video = clips(4)

    def outcome(video):
        torch.manual_seed(0)
        model, given = tiny_cvivit(), networks()
        losses = model.losses(video, MASK, **given)
        losses.total.backward()
        own = given["discriminator"].losses(video, losses.reconstruction, MASK)
        own.total.backward()
        gradients = [parameter.grad for part in (model, given["discriminator"]) for parameter in part.parameters()]
        return [*losses[:-1], *own], gradients, state(model)

    expected = outcome(video)
    other = torch.where(MASK[:, None, :, None, None], video, padding(video))
    assert not torch.equal(other, video)
    for got, each in zip(outcome(other), expected):
        torch.testing.assert_close(got, each)
    other = video.clone()
    other[2, :, 2] = padding(other[2, :, 2])  # a real frame
    assert all((got - each).abs() > 1e-6 for got, each in zip(outcome(other)[0][:6], expected[0][:6]))


# precision


def test_bfloat16_autocast_stays_near():
    model, video, given = tiny_cvivit(), clips(), networks()
    exact = copy.deepcopy(model).losses(video, **given)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(video, **given)
    losses.total.backward()
    assert losses.total.dtype == losses.reconstruction.dtype == torch.float32
    torch.testing.assert_close(losses.total, exact.total, atol=0, rtol=0.1)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# errors


@pytest.mark.parametrize("name", LossWeights._fields)
def test_negative_weights_are_refused(name):
    with pytest.raises(ValueError, match=f"at least 0, got {name}=-0.5"):
        tiny_cvivit()(clips(), weights=LossWeights(**{name: -0.5}))


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(weight):
    with pytest.raises(ValueError, match=f"finite and at least 0, got adversarial={weight}"):
        tiny_cvivit()(clips(), weights=LossWeights(adversarial=weight))


@pytest.mark.parametrize("adversarial", [0.1, 0.0])
def test_a_discriminator_of_another_size_is_refused_whatever_its_weight(adversarial):
    given = {"discriminator": tiny_discriminator(image_size=32), "weights": LossWeights(adversarial=adversarial)}
    with pytest.raises(ValueError, match=r"judges frames \(n, 3, 32, 32\).*got \(2, 3, 16, 16\)"):
        tiny_cvivit()(clips(), **given)


@pytest.mark.parametrize("terms", [{"weights": LossWeights(pixel=-1)}, {"discriminator": tiny_discriminator(dim=4)}])
def test_refused_terms_have_changed_no_state(terms):
    model, video = tiny_cvivit(), torch.rand(2, 3, 7, 16, 24)
    before = state(model)
    with pytest.raises(ValueError):
        model(video, **terms)
    assert same_state(before, state(model))
    model(video)
    assert not same_state(before, state(model))  # a training step does change it


@pytest.mark.parametrize("name", ["image_perceptual", "video_perceptual"])
def test_distances_that_are_no_tensors_are_refused(name):
    with pytest.raises(TypeError, match="must be a tensor, got float"):
        tiny_cvivit()(clips(), **{name: lambda reconstruction, video: 0.5})


@pytest.mark.parametrize("name", ["image_perceptual", "video_perceptual", "discriminator", "weights"])
def test_terms_of_the_wrong_type_are_refused(name):
    with pytest.raises(TypeError, match=name):
        tiny_cvivit()(clips(), **{name: 3})


def test_unknown_terms_are_refused():
    model = tiny_cvivit()
    before = state(model)
    for call in (model, model.losses):
        with pytest.raises(TypeError, match="perceptual_image"):
            call(clips(), perceptual_image=ImageDistance())
    assert same_state(before, state(model))
