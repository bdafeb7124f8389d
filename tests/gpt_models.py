"""Tiny GPTs for every pair of conditions: a text, a vector and a map of frames, and that of the norms."""

import pytest
import torch

from conftest import make_context, seed, tiny_gpt

GRID = (3, 2, 2)
ALL = (True, True, True, "steps")
# No condition, all of them, and rows in which each pair of values of two conditions occurs.
COMBINATIONS = [
    (False, False, False, None),
    (True, True, True, None),
    (False, True, False, "constant"),
    (True, False, True, "constant"),
    (False, False, True, "steps"),
    (True, True, False, "steps"),
    ALL,
]
every_pair = pytest.mark.parametrize("text, vector, frame_map, condition", COMBINATIONS)


def gpt_for(text, vector, frame_map, condition, **changes):
    """In eval mode, for a combination of conditions, whose gains and biases are far from 0."""
    widths = {
        "dim_context": 12 if text else None,
        "dim_frame_vector": 5 if vector else None,
        "dim_frame_map": 6 if frame_map else None,
        "dim_condition": 4 if condition else None,
    }
    model = tiny_gpt(**{"grid": GRID, **widths, **changes})
    for name, parameter in model.named_parameters():
        if name.endswith("to_gain_bias.weight"):
            parameter.data.mul_(5)
    return model.eval()


def given_for(text, vector, frame_map, condition, b=2, t=GRID[0]):
    """Random conditions of a combination."""
    given = dict(zip(("context", "context_mask"), make_context(b))) if text else {}
    if vector:
        given["frame_vector"] = torch.randn(b, 5)
    if frame_map:
        given["frame_map"] = torch.randn(b, 7, 6)
    if condition:
        given["condition"] = torch.randn(b, 4) if condition == "constant" else torch.randn(b, t, 4)
    return given


def part_of(given, samples):
    return {name: value[samples] for name, value in given.items()}


def flat(logits):
    """(b, t, h, w, k) -> (b, n, k)."""
    return logits.flatten(1, 3)


def generated(model, grid, given, **options):
    """Ids, and the logits (b, new ids, k) from which they were drawn."""
    logits = []
    hook = model.to_logits.register_forward_hook(lambda _, __, out: logits.append(out))
    ids = model.generate(grid, generator=seed(), **given, **options)
    hook.remove()
    return ids, torch.stack(logits, dim=1)
