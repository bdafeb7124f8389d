"""Arguments of a quantizer that could not train, or whose ids would not be one per token, are refused when built."""

import math

import pytest
import torch
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from conftest import QUANTIZERS, same_state, state, tiny_cvivit
from phenaki_pytorch.tokenizers.quantizer_arguments import check_one_id_per_token


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("own", ["dim", "codebook_size"])
def test_the_tokenizers_own_arguments_are_refused(quantizer, own):
    with pytest.raises(ValueError, match=f"must not hold {own}"):
        tiny_cvivit(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer] | {own: 3})


@pytest.mark.parametrize(
    "quantizer, kwargs, message",
    [
        *[("vq", {"decay": decay}, r"decay must lie in \[0, 1\]") for decay in (-0.1, 5.0, math.nan, math.inf)],
        *[("vq", {"commitment_weight": weight}, "commitment_weight") for weight in (-1.0, math.nan, math.inf)],
        ("vq", {"eps": math.nan}, "eps of a quantizer must be finite"),
        ("lfq", {"entropy_loss_weight": -0.1}, "entropy_loss_weight"),
        ("simvq", {"commitment_weight": math.inf}, "commitment_weight"),
        ("vq", {"learnable_codebook": True}, "do not go together"),
        ("fsq", {"levels": [32, 1]}, r"levels\[1\] must be at least 2, got 1"),
        ("fsq", {"levels": [-8, -4]}, r"levels\[0\] must be at least 2, got -8"),
    ],
)
def test_values_that_could_not_train_are_refused(quantizer, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_cvivit(quantizer=quantizer, quantizer_kwargs=kwargs)


@pytest.mark.parametrize(
    "quantizer, kwargs",
    [
        ("vq", {"channel_last": False}),
        ("vq", {"accept_image_fmap": True}),
        ("vq", {"accept_3d_fmap": True}),
        ("vq", {"heads": 2}),
        ("vq", {"heads": 2, "separate_codebook_per_head": True}),
        ("lfq", {"num_codebooks": 2}),
        ("lfq", {"channel_first": True}),
        ("simvq", {"channel_first": True}),
        ("fsq", {"levels": [8, 4], "num_codebooks": 2}),
        ("fsq", {"levels": [8, 4], "channel_first": True}),
    ],
)
def test_another_layout_is_refused_when_it_is_built(quantizer, kwargs):
    with pytest.raises(ValueError, match=r"one id per token|cannot be quantized"):
        tiny_cvivit(quantizer=quantizer, quantizer_kwargs=kwargs)


@pytest.mark.parametrize(
    "quantizer, kwargs",
    [
        ("ema", {"affine_param": True}),
        ("vq", {"affine_param": True, "use_cosine_sim": False}),
        (
            "vq",
            {"vq_bridge": nn.Linear(8, 8), "use_cosine_sim": False, "learnable_codebook": True, "ema_update": False},
        ),
    ],
)
def test_codes_that_are_not_what_features_are_quantized_to_are_refused(quantizer, kwargs):
    with pytest.raises(ValueError, match="the code of an id must be what features are quantized to"):
        tiny_cvivit(quantizer=quantizer, quantizer_kwargs=kwargs)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_other_arguments_are_accepted_and_used(quantizer):
    kwargs = {"vq": {"decay": 0.5}, "lfq": {"entropy_loss_weight": 0}, "simvq": {"commitment_weight": 2}, "fsq": {}}
    model = tiny_cvivit(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer] | kwargs[quantizer])
    for name, value in kwargs[quantizer].items():
        inside = model.quantizer.quantizer
        assert getattr(inside._codebook if name == "decay" else inside, name) == value


@pytest.mark.parametrize("kmeans_init", [False, True])
def test_the_trial_changes_neither_the_quantizer_nor_the_random_state(kmeans_init):
    quantizer = VectorQuantize(dim=8, codebook_size=32, kmeans_init=kmeans_init, threshold_ema_dead_code=2)
    before, random_state = state(quantizer), torch.get_rng_state()
    check_one_id_per_token(quantizer, 8)
    assert same_state(before, state(quantizer)) and torch.equal(random_state, torch.get_rng_state())
    assert all(part.training for part in quantizer.modules())
    assert bool(quantizer._codebook.initted) != kmeans_init


@pytest.mark.parametrize("quantizer", ["vq", "lfq", "simvq"])
def test_there_is_no_trial_on_the_meta_device(quantizer):
    with torch.device("meta"):
        model = tiny_cvivit(quantizer=quantizer)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_arguments_that_are_changed_later_do_not_change_the_config():
    kwargs, sides = {"levels": [8, 4]}, [16, 16]
    model = tiny_cvivit(quantizer="fsq", quantizer_kwargs=kwargs, image_size=sides)
    kwargs["levels"][0] = 5
    sides[0] = 8
    assert model.config["quantizer_kwargs"] == {"levels": [8, 4]} and model.config["image_size"] == [16, 16]
