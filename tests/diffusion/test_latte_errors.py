"""Wrong arguments of a LatteTransformer raise the right kind of error, which says what was got and expected."""

import math

import pytest
import torch

from conftest import tiny_latte_transformer
from latte_models import TIME, make_latents


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"dim": 18}, "heads and 4 must divide dim, got dim 18 and 2 heads"),
        ({"heads": 3}, "heads and 4 must divide dim, got dim 16 and 3 heads"),
        ({"depth": 3}, "depth must be even, got 3"),
        ({"depth": 3, "variant": 2}, "depth must be even, got 3"),
        ({"variant": 4, "heads": 1}, "heads must be even, got 1"),
        ({"variant": 5}, r"variant must be one of \(1, 2, 3, 4\), got 5"),
        ({"patches": "tubes"}, "patches must be one of .*got 'tubes'"),
        ({"conditioning": "film"}, "conditioning must be one of .*got 'film'"),
        ({"time_positions": "learned"}, "time_positions must be one of .*got 'learned'"),
        ({"time_positions": "rotary", "dim": 12, "heads": 4}, "even dim_head of at least 2, got 3"),
        ({"cond_drop_prob": 1.5}, r"cond_drop_prob must lie in \[0, 1\], got 1.5"),
        ({"grid": (4, 4)}, r"grid must be \(t, h, w\), each at least 1, got \(4, 4\)"),
        ({"grid": (4, 5, 4)}, r"of grid must be multiples of the patch 1×2×2, got \(4, 5, 4\)"),
        ({"patches": "compressed", "grid": (5, 4, 4)}, r"multiples of the patch 2×2×2, got \(5, 4, 4\)"),
    ],
)
def test_wrong_sizes(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_latte_transformer(**changes)


CLASSES, CONTEXT = torch.tensor([0, 2]), torch.randn(2, 3, 5)


@pytest.mark.parametrize(
    "conditions, changes, message",
    [
        ({}, {"latents": torch.randn(2, 4, 4, 4, 3)}, r"latents must be \(b, t, h, w, 4\).*got \(2, 4, 4, 4, 3\)"),
        ({}, {"latents": torch.full((2, 4, 4, 4, 4), math.nan)}, "latents must be finite, got nan"),
        ({}, {"latents": torch.randn(2, 4, 3, 4, 4)}, r"multiples of the patch 1×2×2, got \(4, 3, 4\)"),
        ({}, {"time": torch.tensor([1])}, r"time must be \(2,\), integers or floats, got torch.int64 \(1,\)"),
        ({}, {"time": torch.tensor([True, False])}, "got torch.bool"),
        ({}, {"images": 4}, "images must be at least 0 and fewer than 4 time steps, got 4"),
        ({}, {"images": -1}, "images must be at least 0 and fewer than 4 time steps, got -1"),
        ({"patches": "compressed"}, {"images": 2}, "with compressed patches there must be no images, got 2"),
        ({}, {"classes": CLASSES}, "expected no classes, got some"),
        ({}, {"context": CONTEXT}, r"unconditional \(dim_context is None\): expected no context, got one"),
        ({}, {"dropped": torch.tensor([True, False])}, "no classes and no text that could be dropped"),
        ({"num_classes": 3}, {}, "expected some classes, got none"),
        ({"num_classes": 3}, {"classes": CLASSES + 1}, r"classes must lie in \[0, 3\), got \[1, 3\]"),
        ({"num_classes": 3}, {"classes": CLASSES[:1]}, r"classes must be int64 \(2,\), got torch.int64 \(1,\)"),
        ({"num_classes": 3}, {"classes": CLASSES, "images": 1}, "expected some image_classes, got none"),
        ({"num_classes": 3}, {"classes": CLASSES, "image_classes": CLASSES[:, None]}, "expected no image_classes"),
        (
            {"num_classes": 3},
            {"classes": CLASSES, "images": 2, "image_classes": CLASSES[:, None]},
            r"image_classes must be int64 \(2, 2\), got torch.int64 \(2, 1\)",
        ),
        (
            {"num_classes": 3},
            {"classes": CLASSES, "dropped": torch.tensor([0, 1])},
            r"dropped must be bool \(2,\), got torch.int64 \(2,\)",
        ),
        ({"dim_context": 5}, {}, r"needs a context \(b, m, 5\), got none"),
        ({"dim_context": 5}, {"context": CONTEXT[:1]}, "the context has a batch of 1, expected 2"),
        ({"dim_context": 5}, {"context": CONTEXT, "images": 1}, "expected some image_context, got none"),
        ({"dim_context": 5}, {"context": CONTEXT, "image_context": CONTEXT[:, None]}, "expected no image_context"),
        (
            {"dim_context": 5},
            {"context": CONTEXT, "images": 1, "image_context": torch.randn(2, 1, 4, 5)},
            r"image_context must be \(2, 1, 3, 5\), padded as the context, got \(2, 1, 4, 5\)",
        ),
        (
            {"dim_context": 5},
            {
                "context": CONTEXT,
                "images": 1,
                "image_context": CONTEXT[:, None],
                "image_context_mask": torch.zeros(2, 1, 3).bool(),
            },
            "image_context_mask must be True somewhere",
        ),
        (
            {"dim_context": 5},
            {"context": CONTEXT, "image_context_mask": torch.ones(2, 1, 3).bool()},
            "expected no image_context_mask without an image_context",
        ),
    ],
)
def test_wrong_inputs(conditions, changes, message):
    model = tiny_latte_transformer(**conditions)
    with pytest.raises(ValueError, match=message):
        model(**{"latents": make_latents(), "time": TIME, **changes})


@pytest.mark.parametrize("changes", [{"latents": torch.zeros(2, 4, 4, 4, 4).long()}, {"time": 3}, {"images": 1.0}])
def test_inputs_of_another_kind(changes):
    with pytest.raises(TypeError):
        tiny_latte_transformer()(**{"latents": make_latents(), "time": TIME, **changes})
