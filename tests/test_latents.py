"""`latents` of the tokenizers: what the decoder reads, not rounded to a code."""

import pytest
import torch
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from conftest import same_state, seed, state, tiny_cvivit, tiny_vqgan, tiny_vqvae, with_codes
from phenaki_pytorch.core.contracts import Codec, Tokenizer
from phenaki_pytorch.tokenizers.quantize import Quantizer

LEVELS = {"levels": [8, 4]}
QUANTIZERS = {  # of 32 codes: name, code_dim, quantizer_kwargs
    "vq": ("vq", 8, {}),
    "vq, projected": ("vq", 8, {"codebook_dim": 4}),
    "vq, norm after the projection": ("vq", 8, {"codebook_dim": 4, "layernorm_after_project_in": True}),
    "vq, euclidean": ("vq", 8, {"use_cosine_sim": False}),
    "ema": ("ema", 8, {}),
    "ema, projected": ("ema", 8, {"codebook_dim": 4}),
    "ema, cosine": ("ema", 8, {"use_cosine_sim": True}),
    "simvq": ("simvq", 8, {}),
    "simvq, narrow codes": ("simvq", 8, {"frozen_codebook_dim": 4}),
    "lfq": ("lfq", 5, {}),
    "lfq, projected": ("lfq", 8, {}),
    "lfq, scaled": ("lfq", 5, {"codebook_scale": 0.5, "soft_clamp_input_value": 1.0}),
    "lfq, spherical": ("lfq", 5, {"spherical": True, "codebook_scale": 2.0}),
    "lfq, rotated": ("lfq", 8, {"orthogonal_rotation": True, "cosine_sim_project_in": True}),
    "fsq": ("fsq", 2, LEVELS),
    "fsq, projected": ("fsq", 8, LEVELS),
    "fsq, symmetric": ("fsq", 5, {"levels": [2] * 5, "preserve_symmetry": True}),
    "fsq, symmetric, clamped": ("fsq", 2, {**LEVELS, "preserve_symmetry": True, "bound_hard_clamp": True}),
    "fsq, noisy": ("fsq", 2, {**LEVELS, "preserve_symmetry": True, "noise_dropout": 0.9}),
    "fsq, clamped": ("fsq", 2, {**LEVELS, "bound_hard_clamp": True}),
    "fsq, rotated": ("fsq", 8, {**LEVELS, "orthogonal_rotation": True}),
}
every_quantizer = pytest.mark.parametrize("name", QUANTIZERS)
every_fsq = pytest.mark.parametrize("name", [name for name in QUANTIZERS if name.startswith("fsq")])
TOKENIZERS = {
    **{
        f"CViViT, {name}": lambda kind=kind, e=e, kwargs=kwargs: with_codes(
            tiny_cvivit(quantizer=kind, code_dim=e, quantizer_kwargs=kwargs)
        )
        for name, (kind, e, kwargs) in QUANTIZERS.items()
        if name in ("vq", "ema", "simvq", "lfq, projected", "fsq, projected")
    },
    "VQVAE": tiny_vqvae,
    "VQGAN": tiny_vqgan,
}


class Signs(nn.Module):
    """A quantizer of the user's own: 2 codes, the sign of the first value; it counts its calls in training mode."""

    codebook_size = 2

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, features):
        self.calls += self.training
        ids = (features[..., 0] > 0).long()
        return features + (self.indices_to_codes(ids) - features).detach(), ids

    def indices_to_codes(self, ids):
        return (2.0 * ids - 1)[..., None].expand(*ids.shape, 8)


def build(name):
    """A quantizer after a few training steps, so that its codes are where features are."""
    kind, dim, kwargs = QUANTIZERS[name]
    quantizer = Quantizer(kind, dim=dim, codebook_size=32, kwargs=kwargs)
    for _ in range(3):
        quantizer(make_features(quantizer))
    return quantizer


def make_features(quantizer):
    return 1.5 * torch.randn(4, 50, quantizer.quantizer.dim if hasattr(quantizer.quantizer, "dim") else 8)


def inside(quantizer, values):
    """Values (..., d) as they were before the quantizer's last projection, if it has one."""
    out = getattr(quantizer.quantizer, "project_out", None)
    return (values - out.bias) @ torch.linalg.pinv(out.weight).T if isinstance(out, nn.Linear) else values


def nearest(quantizer, values):
    """The ids of the codes nearest to values (b, n, d), among all codes."""
    codes = inside(quantizer, quantizer.features(torch.arange(quantizer.codebook_size)[None]))
    return torch.cdist(inside(quantizer, values), codes).argmin(dim=-1)


def make_video(model, b=2):
    return torch.rand(b, 3, model.num_frames(3), 16, 16, generator=seed())


@pytest.fixture(params=TOKENIZERS)
def model(request):
    """Each tokenizer after a batch of training, in eval mode."""
    return TOKENIZERS[request.param]().eval()


# quantizers


@every_quantizer
@torch.no_grad()
def test_the_nearest_code_of_the_values_is_that_of_the_features(name):
    quantizer = build(name)
    features = make_features(quantizer)
    values, ids = quantizer.continuous(features), quantizer.ids(features)
    assert values.shape == features.shape and ids.unique().numel() > 3
    assert torch.equal(nearest(quantizer, values), ids)
    assert (values - quantizer.features(ids)).abs().max() > 0.1  # not rounded


@every_fsq
@torch.no_grad()
def test_rounded_values_of_fsq_are_its_codes(name):
    quantizer = build(name)
    features = make_features(quantizer)
    values = inside(quantizer, quantizer.continuous(features))
    codes = inside(quantizer, quantizer.features(quantizer.ids(features)))
    fsq = quantizer.quantizer
    if fsq.orthogonal_rotation:
        values, codes = values @ fsq.orthogonal_rot, codes @ fsq.orthogonal_rot
    levels = fsq._levels - 1
    step = 2 / levels if fsq.preserve_symmetry else 1 / (fsq._levels // 2)
    assert ((values - codes).abs() <= 0.502 * step).all()  # FSQ's range is 0.1 % wider than its levels
    torch.testing.assert_close(((values + 1) / step).round() * step - 1, codes, atol=1e-5, rtol=0)


@every_fsq
def test_values_of_fsq_have_the_gradient_that_its_codes_pass_on(name):
    quantizer = build(name)
    fsq, features = quantizer.quantizer.eval(), make_features(quantizer).requires_grad_()
    weights = torch.randn_like(features)
    [expected] = torch.autograd.grad((fsq(features)[0] * weights).sum(), features)
    [got] = torch.autograd.grad((quantizer.continuous(features) * weights).sum(), features)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_values_of_a_cosine_codebook_have_unit_length():
    for name in ("vq", "ema, cosine"):
        quantizer = build(name)
        values = quantizer.continuous(make_features(quantizer))
        torch.testing.assert_close(values.norm(dim=-1), torch.ones(4, 50))


@torch.no_grad()
def test_values_of_a_euclidean_codebook_are_the_features():
    for name in ("ema", "vq, euclidean", "simvq", "simvq, narrow codes"):
        quantizer = build(name)
        features = make_features(quantizer)
        assert torch.equal(quantizer.continuous(features), features)


@torch.no_grad()
def test_values_of_lfq_lie_between_its_codes():
    for name, scale in (("lfq", 1.0), ("lfq, scaled", 0.5)):
        quantizer = build(name)
        values = quantizer.continuous(make_features(quantizer))
        assert values.aminmax() == (-scale, scale) and (values.abs() < scale).any()
    spherical = build("lfq, spherical")
    values = spherical.continuous(make_features(spherical))
    torch.testing.assert_close(values.norm(dim=-1), torch.full((4, 50), 2.0))


@every_quantizer
def test_values_are_float32_under_autocast_and_change_no_state(name):
    quantizer = build(name).train()
    features, before = make_features(quantizer), state(quantizer)
    values = quantizer.continuous(features)
    with torch.autocast("cpu", torch.bfloat16):
        again = quantizer.continuous(features)
    assert again.dtype == torch.float32 and torch.equal(values, again)
    assert quantizer.continuous(features.bfloat16()).dtype == torch.float32
    assert same_state(before, state(quantizer)) and all(part.training for part in quantizer.modules())


def test_values_of_a_module_of_the_users_own_are_the_quantized_ones():
    quantizer = Quantizer(Signs(), dim=8, codebook_size=2)
    features = torch.randn(4, 50, 8, requires_grad=True)
    values, ids = quantizer.continuous(features), quantizer.ids(features)
    assert ids.unique().numel() == 2
    torch.testing.assert_close(values, quantizer.features(ids))
    values.sum().backward()
    assert features.grad.eq(1).all()  # as the module passes it on
    assert quantizer.quantizer.calls == 0 and quantizer.quantizer.training


def test_codes_that_are_not_initialised_are_refused_only_where_they_are_needed():
    video = torch.rand(2, 3, 4, 16, 16)
    untrained = tiny_vqvae(trained=False)
    assert untrained.latents(video).isfinite().all()

    class Wrapped(nn.Module):
        codebook_size = 32

        def __init__(self):
            super().__init__()
            self.inner = VectorQuantize(dim=8, codebook_size=32, kmeans_init=True)

        def forward(self, features):
            return self.inner(features)

        def indices_to_codes(self, ids):
            return self.inner.get_output_from_indices(ids)

    with pytest.raises(ValueError, match="initialised by the first batch of training"):
        tiny_vqvae(trained=False, quantizer=Wrapped()).latents(video)


# tokenizers


def test_tokenizers_are_codecs(model):
    assert isinstance(model, Codec) and isinstance(model, Tokenizer)


@torch.no_grad()
def test_latents_are_what_the_decoder_reads(model):
    video = make_video(model)
    latents = model.latents(video)
    assert latents.shape == (2, 3, 2, 2, model.code_dim) and latents.dtype == torch.float32
    decoded = model.decode_features(latents)
    assert decoded.shape == video.shape and decoded.isfinite().all()
    assert latents.std() > 1e-3


@torch.no_grad()
def test_the_nearest_codes_of_latents_are_the_ids(model):
    video = make_video(model)
    latents, ids = model.latents(video), model.encode(video)
    assert ids.unique().numel() > 1
    assert torch.equal(nearest(model.quantizer, latents.flatten(1, 3)), ids.flatten(1))


def test_latents_pass_gradients_to_the_encoder(model):
    latents = model.latents(make_video(model))
    (latents * torch.randn_like(latents)).sum().backward()
    assert max(parameter.grad.abs().max() for parameter in model.encoder.parameters() if parameter.grad is not None) > 0


@torch.no_grad()
def test_a_generator_is_not_used(model):
    video, generator = make_video(model), seed(3)
    before = generator.get_state()
    assert torch.equal(model.latents(video), model.latents(video, generator=generator))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda video: (255 * video).to(torch.uint8),
        lambda video: video[:, :2],
        lambda video: video[..., :15],
        lambda video: video[0, 0],
        lambda video: video[:0],
        lambda video: 2 * video - 1,
        lambda video: video * float("nan"),
        lambda video: torch.cat((video, video[:, :, :1]), dim=2),
    ],
)
def test_latents_refuse_what_features_refuse(model, change):
    video = change(make_video(model))
    with pytest.raises((ValueError, TypeError)) as expected:
        model.features(video)
    with pytest.raises(type(expected.value)) as got:
        model.latents(video)
    assert str(got.value) == str(expected.value)


@torch.no_grad()
@pytest.mark.parametrize("build", [tiny_cvivit, tiny_vqgan])
def test_images_are_clips_of_one_frame(build):
    model, images = build().eval(), torch.rand(2, 3, 16, 16)
    latents = model.latents(images)
    assert latents.shape == (2, 1, 2, 2, 8)
    assert torch.equal(latents, model.latents(images[:, :, None]))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vq", "fsq, projected"])
def test_latents_of_a_cvivit_are_causal(name):
    kind, _, kwargs = QUANTIZERS[name]
    model, video = tiny_cvivit(quantizer=kind, quantizer_kwargs=kwargs), torch.rand(2, 3, 7, 16, 16)
    other = torch.cat((video[:, :, :4], torch.rand(2, 3, 3, 16, 16)), dim=2)  # frame 4 is the second of time step 2
    difference = (model.latents(video) - model.latents(other)).abs().amax(dim=(0, 2, 3, 4))
    assert (difference[:2] < 1e-6).all() and (difference[2:] > 1e-4).all()
