"""Tiny VideoGPTs with any of their parts, and what they are given."""

import pytest
import torch

from conftest import (
    tiny_frame_encoder,
    tiny_frame_map_encoder,
    tiny_videogpt,
)

TEXTS = ["a red circle", "snow"]
GRID = (3, 2, 2)
ENCODERS = {"vector": tiny_frame_encoder, "map": tiny_frame_map_encoder, None: lambda: None}
PARTS = ("vector", "map", "actions", "classes", "texts")


def videogpt(*parts, **changes):
    """A window of 3 time steps, which are 6 frames of the tiny VQVAE; its gains and biases are far from 0."""
    encoder = next((ENCODERS[part]() for part in parts if part in ENCODERS), None)
    asked = {"frame_encoder": encoder, "grid": GRID}
    asked |= {"num_classes": 3} if "classes" in parts else {}
    asked |= {"dim_action": 2} if "actions" in parts else {}
    asked |= {"dim_context": 12, "cond_drop_prob": 0.0} if "texts" in parts else {}
    model = tiny_videogpt(**{**asked, **changes})
    for name, parameter in model.named_parameters():
        if name.endswith("to_gain_bias.weight"):
            parameter.data.mul_(10)
    return model


def given(*parts, b=2, f=6):
    """What a model with these parts is given, beside videos."""
    labels = {"actions": torch.randn(b, f, 2)} if "actions" in parts else {}
    labels |= {"classes": torch.arange(b) % 3} if "classes" in parts else {}
    return labels | ({"texts": TEXTS[:b]} if "texts" in parts else {})


def clips(b=2, f=6):
    return torch.rand(b, 3, f, 16, 16)


def spied(model):
    """The options of each call of gpt.generate, and its ids, kept in a list."""
    calls, inside = [], model.gpt.generate

    def generate(*args, **options):
        calls.append((options, inside(*args, **options)))
        return calls[-1][1]

    model.gpt.generate = generate
    return calls


def all_parts(test):
    combinations = [(), *((part,) for part in PARTS), ("vector", "actions", "classes", "texts")]
    return pytest.mark.parametrize("parts", combinations, ids=lambda parts: "+".join(parts) or "none")(test)
