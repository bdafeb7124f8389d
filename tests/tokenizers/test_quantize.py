"""Every quantizer behind one interface: features to ids and back, in float32, and `ids` changes no state."""

import pytest
import torch
from torch import nn
from vector_quantize_pytorch import FSQ, VectorQuantize

from conftest import QUANTIZERS, same_state, seed, state
from phenaki_pytorch.core.checks import check_ids
from phenaki_pytorch.tokenizers import quantize
from phenaki_pytorch.tokenizers.quantize import Quantizer

DIM, CODES = 8, 32


class Rounding(nn.Module):
    """The smallest module that fits: 4 codes along the first axis."""

    codebook_size = 4

    def forward(self, features):
        ids = features[..., 0].mul(2).round().clamp(0, 3).long()
        codes = self.indices_to_codes(ids)
        return features + (codes - features).detach(), ids

    def indices_to_codes(self, ids):
        return nn.functional.pad(ids[..., None] / 2, (0, DIM - 1))


def build(name):
    if name == "module":
        return Quantizer(Rounding(), dim=DIM, codebook_size=4)
    if name == "plain vq":
        return Quantizer("vq", dim=DIM, codebook_size=CODES, kwargs={"use_cosine_sim": False})
    if name == "projected vq":
        return Quantizer("vq", dim=DIM, codebook_size=CODES, kwargs={"codebook_dim": 4})
    if name == "projected ema":
        return Quantizer("ema", dim=DIM, codebook_size=CODES, kwargs={"codebook_dim": 4, "use_cosine_sim": True})
    return Quantizer(name, dim=DIM, codebook_size=CODES, kwargs=QUANTIZERS.get(name))


ALL = list(dict.fromkeys([*QUANTIZERS, "ema", "plain vq", "projected vq", "projected ema", "module"]))


@pytest.fixture(params=ALL)
def quantizer(request):
    """Each quantizer after a few training steps."""
    module = build(request.param)
    for _ in range(3):
        module(torch.randn(4, 50, DIM))
    return module


def test_shapes_dtypes_and_range_of_ids(quantizer):
    quantized, ids, loss = quantizer(torch.randn(4, 50, DIM))
    assert quantized.shape == (4, 50, DIM) and quantized.dtype == torch.float32
    assert ids.shape == (4, 50) and ids.dtype == torch.int64
    assert loss.shape == () and loss.dtype == torch.float32
    assert ids.min() >= 0 and ids.max() < quantizer.codebook_size
    assert ids.unique().numel() > 3


def test_ids_and_their_features_are_those_of_a_call_in_eval_mode(quantizer):
    features = torch.randn(4, 50, DIM)
    quantizer.eval()
    quantized, ids, _ = quantizer(features)
    assert torch.equal(quantizer.ids(features), ids)
    torch.testing.assert_close(quantizer.features(ids), quantized, atol=1e-6, rtol=0)
    assert quantizer.features(ids).dtype == torch.float32


def test_ids_changes_no_state_no_mode_and_no_random_state(quantizer):
    features = torch.randn(4, 50, DIM)
    quantizer.train()
    before, random_state = state(quantizer), torch.get_rng_state()
    ids = quantizer.ids(features)
    assert same_state(before, quantizer.state_dict())
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(module.training for module in quantizer.modules())
    quantizer.eval()
    assert torch.equal(ids, quantizer.ids(features))
    assert not any(module.training for module in quantizer.modules())


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("vq", {"kmeans_init": True}),
        ("vq", {"kmeans_init": True, "use_cosine_sim": False}),
        ("ema", {}),
    ],
)
def test_only_training_initialises_codes_that_the_first_batch_initialises(name, kwargs):
    module = Quantizer(name, dim=DIM, codebook_size=4, kwargs=kwargs)
    before, features = state(module), torch.randn(4, 50, DIM)
    for call in (module.ids, module):
        with pytest.raises(ValueError, match="initialised by the first batch of training"):
            module.eval()
            call(features)
    assert same_state(before, state(module))
    module.train()(features)
    assert module.ids(features).unique().numel() == 4


def test_ids_are_computed_in_chunks(quantizer, monkeypatch):
    features = torch.randn(3, 50, DIM)
    whole = quantizer.ids(features)
    sizes = []
    nearest = quantizer._nearest
    monkeypatch.setattr(quantizer, "_nearest", lambda chunk: sizes.append(chunk.shape) or nearest(chunk))
    monkeypatch.setattr(quantize, "CHUNK", 40)
    assert torch.equal(quantizer.ids(features), whole)
    assert sizes == [(1, 40, DIM)] * 3 + [(1, 30, DIM)]


def test_the_similarities_of_a_chunk_to_8192_codes_fit_into_128_mib(monkeypatch):
    module = build("vq")
    sizes = []
    nearest = module._nearest
    monkeypatch.setattr(module, "_nearest", lambda chunk: sizes.append(chunk.shape[1]) or nearest(chunk))
    module.ids(torch.randn(2, 12_000, DIM))
    assert sum(sizes) == 24_000
    assert max(sizes) * 8192 * 4 <= 2**27


def test_autocast_changes_nothing(quantizer):
    features = torch.randn(4, 50, DIM)
    quantizer.eval()
    quantized, ids, _ = quantizer(features)
    with torch.autocast("cpu", torch.bfloat16):
        again, ids_again, _ = quantizer(features)
        assert torch.equal(quantizer.ids(features), ids)
        back = quantizer.features(ids)
    assert torch.equal(again, quantized) and torch.equal(ids_again, ids)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, quantized, atol=1e-6, rtol=0)


@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half, nn.Module.double])
def test_it_stays_float32_when_its_parent_is_cast(quantizer, cast):
    features = torch.randn(4, 50, DIM)
    before, ids = state(quantizer), quantizer.ids(features)
    parent = cast(nn.ModuleDict({"linear": nn.Linear(2, 2), "quantizer": quantizer}))
    assert parent["linear"].weight.dtype != torch.float32
    assert same_state(before, quantizer.state_dict())
    assert torch.equal(quantizer.ids(features), ids)
    low = features.to(parent["linear"].weight.dtype)
    assert quantizer(low)[0].dtype == torch.float32


def test_it_follows_its_parent_to_another_device(quantizer):
    parent = nn.ModuleDict({"quantizer": quantizer}).to("meta")
    assert all(value.device.type == "meta" for value in parent.state_dict().values())


def test_the_gradient_passes_straight_through():
    # Quantizers without projections, whose gradient is not the identity. A cosine codebook gets unit vectors.
    weights = torch.randn(4, 50, DIM)
    for name in ("vq", "ema", "plain vq", "module"):
        features = torch.randn(4, 50, DIM, requires_grad=True)
        quantized, _, _ = build(name)(features)
        (gradient,) = torch.autograd.grad((quantized * weights).sum(), features)
        passed = nn.functional.normalize(features, dim=-1) if name == "vq" else features
        (expected,) = torch.autograd.grad((passed * weights).sum(), features)
        torch.testing.assert_close(gradient, expected)


def test_gradients_reach_the_features_and_all_parameters(quantizer):
    features = torch.randn(4, 50, DIM, requires_grad=True)
    quantized, _, loss = quantizer.train()(features)
    (quantized.square().sum() + loss).backward()
    assert features.grad.abs().sum() > 0
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_vq_codes_are_unit_vectors_and_the_nearest_has_the_largest_cosine():
    module = build("vq")
    for _ in range(3):
        module(torch.randn(4, 50, DIM))
    codes = module.features(torch.arange(CODES)[None])[0]
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(CODES))
    features = torch.randn(4, 50, DIM)
    cosines = torch.einsum("b n d, k d -> b n k", features, codes)
    assert torch.equal(module.ids(features), cosines.argmax(dim=-1))
    assert torch.equal(module.ids(features * 100), module.ids(features))


def test_the_vq_loss_is_a_quarter_of_the_mean_squared_distance_to_the_codes():
    module = build("vq")
    features = nn.functional.normalize(torch.randn(4, 50, DIM), dim=-1)
    codes = module.features(module.ids(features))
    loss = module(features)[2]
    torch.testing.assert_close(loss, 0.25 * (features - codes).square().mean())


def test_the_vq_codebook_moves_by_averages_in_training_only():
    module = build("vq")
    assert not list(module.parameters())
    features = torch.randn(4, 50, DIM)
    module.eval()
    before = state(module)
    module(features)
    assert same_state(before, module.state_dict())
    module.train()
    ids = module.ids(features)
    module(features)
    used = torch.zeros(CODES, dtype=torch.bool)
    used[ids.unique()] = True
    moved = (module.state_dict()["quantizer._codebook.embed"] - before["quantizer._codebook.embed"])[0].norm(dim=-1)
    assert moved[used].min() > 1e-5
    assert moved[~used].max() < 1e-5
    counts = module.state_dict()["quantizer._codebook.cluster_size"][0]
    expected = 0.99 * before["quantizer._codebook.cluster_size"][0] + 0.01 * ids.flatten().bincount(minlength=CODES)
    torch.testing.assert_close(counts, expected)


def test_lfq_and_fsq_have_a_different_code_for_each_id():
    for name in ("lfq", "fsq"):
        codes = build(name).features(torch.arange(CODES)[None])[0]
        assert codes.shape == (CODES, DIM)
        assert torch.pdist(codes).min() > 1e-4


def test_given_options_replace_those_of_the_paper():
    module = Quantizer("vq", dim=DIM, codebook_size=CODES, kwargs={"commitment_weight": 2.0, "decay": 0.5})
    assert module.quantizer.commitment_weight == 2.0
    assert module.quantizer._codebook.decay == 0.5
    paper = build("vq").quantizer
    assert (paper.commitment_weight, paper._codebook.decay, paper.rotation_trick) == (0.25, 0.99, False)
    assert paper.use_cosine_sim


def test_given_modules_are_used_as_they_are():
    given = VectorQuantize(dim=DIM, codebook_size=CODES, use_cosine_sim=True)
    module = Quantizer(given, dim=DIM, codebook_size=CODES)
    assert module.quantizer is given
    features = torch.randn(4, 50, DIM, generator=seed())
    assert torch.equal(module.ids(features), given.eval()(features)[1])
    assert Quantizer(FSQ(levels=[8, 4], dim=DIM), dim=DIM, codebook_size=CODES).codebook_size == CODES


def test_unknown_quantizers_are_refused():
    with pytest.raises(ValueError, match=r"\('vq', 'ema', 'lfq', 'fsq', 'simvq'\) or a module, got 'vqq'"):
        Quantizer("vqq", dim=DIM, codebook_size=CODES)


@pytest.mark.parametrize("kwargs, product", [({"levels": [8, 8]}, 64), ({}, 8192)])
def test_fsq_levels_must_make_the_codebook(kwargs, product):
    with pytest.raises(ValueError, match=f"make {product} codes, codebook_size is 32"):
        Quantizer("fsq", dim=DIM, codebook_size=CODES, kwargs=kwargs)


def test_given_modules_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="codebook_size is 32, the quantizer given has 4"):
        Quantizer(Rounding(), dim=DIM, codebook_size=CODES)
    with pytest.raises(ValueError, match="Linear has neither"):
        Quantizer(nn.Linear(DIM, DIM), dim=DIM, codebook_size=CODES)
    with pytest.raises(ValueError, match="already"):
        Quantizer(Rounding(), dim=DIM, codebook_size=4, kwargs={"decay": 0.9})


@pytest.mark.parametrize("ids, message", [([0, 32], "0 to 32"), ([-1, 3], "-1 to 3")])
def test_ids_outside_the_codebook_are_refused(ids, message):
    with pytest.raises(ValueError, match=rf"\[0, 32\), got values from {message}"):
        check_ids(torch.tensor(ids).reshape(1, 1, 1, 2), 32)
    check_ids(torch.tensor([0, 31]).reshape(1, 1, 1, 2), 32)
