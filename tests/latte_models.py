"""Tiny LatteTransformers with every kind of condition, and what they are given."""

import itertools

import pytest
import torch

VARIANTS = (1, 2, 3, 4)
COMBINATIONS = list(itertools.product(VARIANTS, ("uniform", "compressed"), ("adaln", "tokens"), ("absolute", "rotary")))
every_combination = pytest.mark.parametrize("variant, patches, conditioning, time_positions", COMBINATIONS)
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_conditioning = pytest.mark.parametrize("conditioning", ["adaln", "tokens"])
BOTH = {"num_classes": 3, "dim_context": 5}
CONDITIONS = [{}, {"num_classes": 3}, {"dim_context": 5}, BOTH]
every_condition = pytest.mark.parametrize("conditions", CONDITIONS, ids=lambda each: "+".join(each) or "none")
TIME = torch.tensor([3, 977])


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
