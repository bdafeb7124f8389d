"""What a Latte refuses: parts that do not fit, and inputs of its training and of its sampling."""

import pytest
import torch

from conftest import ToyTokenizer, WordEncoder, same_state, state, tiny_cvivit, tiny_latte, tiny_latte_transformer
from latte_models import FAST, LABELS, TOLD, measured
from phenaki_pytorch import Latte


@pytest.mark.parametrize(
    "build, kind, message",
    [
        (lambda: Latte(codec=tiny_cvivit(), transformer=tiny_cvivit()), TypeError, "LatteTransformer, got a CViViT"),
        (
            lambda: Latte(codec=tiny_latte_transformer(), transformer=tiny_latte_transformer()),
            TypeError,
            "codec must have latents, decode_features, grid, num_frames, code_dim; LatteTransformer lacks",
        ),
        (lambda: tiny_latte(code_dim=3), ValueError, "code_dim must be that of the codec, 8, got 3"),
        (lambda: tiny_latte(grid=(4, 2, 4)), ValueError, r"grid must be that of the codec, \(4, 2, 2\), got \(4, 2, 4"),
        (
            lambda: tiny_latte(dim_context=5, text_encoder=WordEncoder(4)),
            ValueError,
            "text encoder is 4 wide, the model's dim_context is 5",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(build, kind, message):
    with pytest.raises(kind, match=message):
        build()


class OtherCodec(ToyTokenizer):
    """A codec of the user's own, of which one method gives something else."""

    def __init__(self, name, change):
        super().__init__(1, 1)
        method = getattr(self, name)
        setattr(self, name, lambda *inputs, **named: change(method(*inputs, **named)))


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("decode_features", lambda video: video[:, :, :2], r"to \(b, c, 4, 16, 16\), .* \(1, 3, 2, 16, 16"),
        ("decode_features", lambda video: video[:, 0], r"to \(b, c, 4, .* got torch.float32 \(1, 4, 16, 16\)"),
        ("decode_features", lambda video: video.long(), r"floating point, got torch\.int64"),
        ("decode_features", lambda video: video * float("nan"), "frames of a decoded window must be finite"),
        ("latents", lambda latents: latents[:, :1], r"latents must be \(1, 2, 2, 2, 1\), got \(1, 1, 2, 2, 1\)"),
        ("latents", lambda latents: latents[..., 0], r"the codec's latents must be \(b, t, h, w, 1\)"),
    ],
)
def test_what_a_codec_of_the_users_own_gives_is_checked(name, change, message):
    latte = tiny_latte(codec=OtherCodec(name, change))
    with pytest.raises(ValueError, match=message):
        latte.generate(num_frames=9, prime_frames=torch.rand(1, 3, 2, 16, 16), **FAST)


VIDEO = torch.rand(2, 3, 7, 16, 16)
IMAGE = {"images": torch.rand(2, 1, 3, 16, 16), "image_classes": torch.zeros(2, 1).long()}
IMAGE["image_text_embeds"] = torch.rand(2, 1, 4, 12)


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"videos": None}, ValueError, "expected either videos or latents, got none"),
        ({"latents": torch.rand(2, 4, 2, 2, 8)}, ValueError, "either videos or latents, got both"),
        ({"videos": VIDEO[:, :, :6]}, ValueError, "got 6"),
        ({"videos": None, "latents": torch.rand(2, 4, 2, 2, 7)}, ValueError, r"latents must be \(b, t, h, w, 8\)"),
        ({"videos": None, "latents": torch.ones(2, 4, 2, 2, 8).int()}, TypeError, "latents must be floating point"),
        ({"classes": None}, ValueError, "expected some classes, got none"),
        ({"classes": torch.tensor([0])}, ValueError, r"classes must be int64 \(2,\)"),
        ({"classes": torch.tensor([0, 3])}, ValueError, r"must lie in \[0, 3\), got \[0, 3\]"),
        ({"texts": None}, ValueError, "either texts or text_embeds, got none"),
        ({"texts": ["a"]}, ValueError, "batch of 1, expected 2"),
        ({"image_classes": torch.zeros(2, 1).long()}, ValueError, "either images or image_latents, got none"),
        ({"images": torch.rand(2, 1, 3, 16, 16)}, ValueError, "expected image_text_embeds for the images"),
        (IMAGE | {"image_classes": None}, ValueError, "expected some image_classes, got none"),
        (IMAGE | {"image_text_mask": torch.zeros(2, 1, 4).bool()}, ValueError, "image_context_mask must be True"),
        (
            {"images": torch.rand(2, 3, 16, 16)},
            ValueError,
            r"must be \(2, i, \.\.\.\), i at least 1, 5 axes in all, got",
        ),
        ({"images": torch.rand(1, 2, 3, 16, 16)}, ValueError, r"images must be \(2, i, .*got \(1, 2, 3, 16, 16\)"),
        ({"images": torch.rand(2, 0, 3, 16, 16)}, ValueError, "i at least 1"),
        (
            IMAGE | {"images": torch.rand(2, 1, 3, 8, 16)},
            ValueError,
            r"size of the videos, latents of \(2, 2\), got \(1, 2\)",
        ),
        (
            {"images": torch.rand(2, 1, 3, 16, 16), "image_latents": torch.rand(2, 1, 2, 2, 8)},
            ValueError,
            "either images or image_latents, got both",
        ),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_and_changes_nothing(changes, kind, message):
    latte = tiny_latte(**TOLD)
    before = state(latte), torch.get_rng_state()
    with pytest.raises(kind, match=message):
        latte(**{"videos": VIDEO, **LABELS, **changes})
    assert same_state(before[0], state(latte)) and torch.equal(before[1], torch.get_rng_state())


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"num_frames": 0}, ValueError, "num_frames must be at least 1, got 0"),
        ({"classes": None}, ValueError, "expected some classes, got none"),
        ({"classes": torch.tensor([0, 1, 2])}, ValueError, r"classes must be int64 \(2,\), got torch.int64 \(3,\)"),
        ({"texts": None}, ValueError, "either texts or text_embeds"),
        ({"batch_size": 3}, ValueError, "batch_size is 3, the text has a batch of 2"),
        ({"prime_frames": VIDEO[:1]}, ValueError, "batch of 1, expected 2"),
        ({"prime_frames": VIDEO[..., :8]}, ValueError, "size of the window"),
        ({"num_frames": 20, "overlap": 2}, ValueError, "got an overlap of 2"),
        ({"sampler": "euler"}, ValueError, r"sampler must be one of \('ddpm', 'ddim'\), got 'euler'"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 1001}, ValueError, "steps must be from 1 to 1000, got 1001"),
        ({"cond_scale": -1.0}, ValueError, "cond_scale must be finite and at least 0, got -1.0"),
        ({"eta": 0.5}, ValueError, "eta is of the sampler 'ddim': expected 0 with 'ddpm', got 0.5"),
        ({"resamples": 0}, ValueError, "resamples must be at least 1, got 0"),
        ({"eta": 2.0, "sampler": "ddim"}, ValueError, r"eta must lie in \[0, 1\], got 2.0"),
        ({"spacing": "cosine"}, ValueError, "spacing must be one of"),
        ({"temperature": 1.0}, TypeError, "unknown sampling options temperature; expected sampler, steps"),
        ({"steps": "2"}, TypeError, "steps"),
    ],
)
def test_what_cannot_be_generated_is_refused(changes, kind, message):
    with pytest.raises(kind, match=message):
        measured(**TOLD).generate(**{**LABELS, "num_frames": 4, **FAST, **changes})


def test_conditions_of_a_model_without_any_are_refused():
    latte = measured()
    for given in ({"classes": torch.tensor([0])}, {"texts": "snow"}, {"text_mask": torch.ones(1, 2).bool()}):
        with pytest.raises(ValueError, match="expected no"):
            latte.generate(num_frames=2, **given, **FAST)
    with pytest.raises(ValueError, match="batch_size is 3, what is given has a batch of 2"):
        latte.generate(num_frames=2, prime_frames=VIDEO[:, :, :3], batch_size=3, **FAST)
