"""Tiny LatteTransformers with every kind of condition, and what they are given."""

import itertools

import pytest
import torch

from conftest import ToyTokenizer, tiny_cvivit, tiny_latte, tiny_vqgan, tiny_vqvae

VARIANTS = (1, 2, 3, 4)
COMBINATIONS = list(itertools.product(VARIANTS, ("uniform", "compressed"), ("adaln", "tokens"), ("absolute", "rotary")))
every_combination = pytest.mark.parametrize("variant, patches, conditioning, time_positions", COMBINATIONS)
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_conditioning = pytest.mark.parametrize("conditioning", ["adaln", "tokens"])
BOTH = {"num_classes": 3, "dim_context": 5}
CONDITIONS = [{}, {"num_classes": 3}, {"dim_context": 5}, BOTH]
every_condition = pytest.mark.parametrize("conditions", CONDITIONS, ids=lambda each: "+".join(each) or "none")
TIME = torch.tensor([3, 977])


def _row(v, c):
    """Options and conditions of the variant v and the conditions c; the rest are sums of their bits, modulo 2."""
    patches, conditioning = ("uniform", "compressed")[(v ^ c) & 1], ("adaln", "tokens")[(v ^ c) >> 1]
    time_positions = ("absolute", "rotary")[(v & 1) ^ (c >> 1)]
    return VARIANTS[v], patches, conditioning, time_positions, CONDITIONS[c]


# In these 16 of the 128 combinations each value of an option meets each value of every other option.
PAIRS = [_row(v, c) for v, c in itertools.product(range(4), range(4))]
every_pair = pytest.mark.parametrize("variant, patches, conditioning, time_positions, conditions", PAIRS)


def make_latents(b=2, t=4, h=4, w=4):
    return torch.randn(b, t, h, w, 4)


def given_for(conditions, images=0):
    """Random classes and texts of two samples, as a model with these conditions needs; one text is padded."""
    given = {"images": images}
    if "num_classes" in conditions:
        given["classes"] = torch.tensor([0, 2])
        if images:
            given["image_classes"] = torch.randint(0, 3, (2, images))
    if "dim_context" in conditions:
        given |= {"context": torch.randn(2, 3, 5), "context_mask": torch.tensor([[True] * 3, [True, True, False]])}
        if images:
            given |= {"image_context": torch.randn(2, images, 3, 5)}
            given["image_context_mask"] = torch.rand(2, images, 3) < 0.5
            given["image_context_mask"][:, :, 0] = True
    return given


FAST = {"steps": 2, "cond_scale": 1.0}
TEXTS = ["a red circle", "snow"]
LABELS = {"classes": torch.tensor([0, 2]), "texts": TEXTS}
TOLD = {"num_classes": 3, "dim_context": 12}
CODECS = {"CViViT": tiny_cvivit, "VQGAN": tiny_vqgan, "VQVAE": tiny_vqvae, "toy": lambda: ToyTokenizer(3, 2)}
every_codec = pytest.mark.parametrize("name", CODECS)


def clips(latte, b=2):
    """Videos of one window."""
    return torch.rand(b, 3, latte.window, 16, 16)


def measured(**changes):
    """A model whose statistics are measured, in eval mode."""
    latte = tiny_latte(**changes)
    latte.standardisation.measure(latte.codec.latents(clips(latte, 4)))
    return latte.eval()


def spied(latte):
    """What the codec encodes, what the transformer reads at each step, and the latents that are decoded, as lists."""
    encoded, read, decoded = [], [], []
    latents, transformer, decode = latte.codec.latents, latte.transformer.forward, latte.codec.decode_features

    def spied_latents(video, **options):
        encoded.append(video)
        return latents(video, **options)

    def spied_forward(x, time, *inputs, **named):
        read.append((x, time))
        return transformer(x, time, *inputs, **named)

    def spied_decode(features):
        decoded.append(features)
        return decode(features)

    latte.codec.latents, latte.transformer.forward, latte.codec.decode_features = (
        spied_latents,
        spied_forward,
        spied_decode,
    )
    return encoded, read, decoded
