"""VideoGPT: parts, batches and arguments that do not fit are refused, with what was got and expected."""

import math

import pytest
import torch
from torch import nn

from conftest import (
    make_ids,
    tiny_frame_encoder,
    tiny_gpt,
    tiny_maskgit,
    tiny_videogpt,
    tiny_vqvae,
)
from phenaki_pytorch import VideoGPT
from videogpt_models import GRID, TEXTS, clips, given, videogpt


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: tiny_videogpt(num_tokens=64, code_dim=None), "gpt must have as many tokens .* 32, got 64"),
        (lambda: tiny_videogpt(grid=(3, 2, 4)), r"gpt's grid must be the tokenizer's, \(3, 2, 2\), got \(3, 2, 4\)"),
        (lambda: tiny_videogpt(code_dim=9), "32 codes of width 9, got 32 codes of width 8"),
        (lambda: tiny_videogpt(num_classes=0), "num_classes must be at least 1, got 0"),
        (lambda: tiny_videogpt(dim_action=-1), "dim_action must be at least 1, got -1"),
        (lambda: tiny_videogpt(dim_action=2, dim_condition=5), "gpt's dim_condition must be 4, got 5"),
        (lambda: tiny_videogpt(dim_condition=5), "gpt's dim_condition must be None, got 5"),
        (lambda: tiny_videogpt(dim_frame_vector=5), "reads frame_vector, expected one or none, got none"),
        (
            lambda: tiny_videogpt(frame_encoder=tiny_frame_encoder(), dim_frame_vector=13),
            "the frame encoder is 12 wide, gpt's dim_frame_vector is 13",
        ),
        (lambda: tiny_videogpt(dim_context=13), "encoder is 12 wide.*dim_context is 13"),
        (
            lambda: VideoGPT(tokenizer=tiny_vqvae(), gpt=tiny_gpt(), frame_encoder=tiny_frame_encoder()),
            "the GPT reads no frames.* got a frame encoder",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_parts_of_another_kind():
    with pytest.raises(TypeError, match="gpt must be a GPT, got a MaskGit"):
        VideoGPT(tokenizer=tiny_vqvae(), gpt=tiny_maskgit())
    with pytest.raises(TypeError, match="Lengths"):
        VideoGPT(tokenizer=nn.Linear(1, 1), gpt=tiny_gpt())


@pytest.fixture(scope="module")
def whole():
    """A model with a frame encoder, actions and classes, which never samples."""
    torch.manual_seed(0)
    model = videogpt("vector", "actions", "classes")
    model.gpt.transformer.forward = None
    return model


GOOD = {"videos": clips(), **given("actions", "classes")}


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"video_ids": make_ids(grid=GRID)}, ValueError, "either videos or video_ids, got both"),
        ({"videos": None}, ValueError, "either videos or video_ids, got none"),
        ({"videos": None, "video_ids": make_ids(grid=GRID)}, ValueError, "expected some frames .* got none"),
        ({"videos": clips(f=5)}, ValueError, "k · 2 frames, k ≥ 1, got 5"),
        ({"videos": clips(f=8)}, ValueError, r"actions must be \(2, 8, 2\), one for each frame, got \(2, 6, 2\)"),
        ({"videos": clips() * 255}, ValueError, r"finite and in \[0, 1\]"),
        ({"frames": clips(b=1, f=1)}, ValueError, "frames have a batch of 1, expected 2"),
        ({"frames": clips(f=2)}, ValueError, r"frames must be \(b, 3, 1, h, w\).*got \(2, 3, 2, 16, 16\)"),
        ({"actions": None}, ValueError, "expected some actions, got none"),
        ({"actions": torch.randn(2, 5, 2)}, ValueError, r"actions must be \(2, 6, 2\).*got \(2, 5, 2\)"),
        ({"actions": torch.full((2, 6, 2), math.nan)}, ValueError, "actions must be finite"),
        ({"classes": None}, ValueError, "expected some classes, got none"),
        ({"classes": torch.tensor([0, 3])}, ValueError, r"classes must lie in \[0, 3\), got \[0, 3\]"),
        ({"texts": TEXTS}, ValueError, "unconditional: expected neither texts"),
        ({"frame_mask": torch.ones(2, 5, dtype=torch.bool)}, ValueError, r"frame_mask must be bool \(2, 6\)"),
        ({"classes": [0, 1]}, TypeError, "violates type hint"),
        ({"videos": [[0.5]]}, TypeError, "violates type hint"),
    ],
)
def test_wrong_training_batches(whole, changes, kind, message):
    with pytest.raises(kind, match=message):
        whole(**{**GOOD, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"frames": None}, "expected some frames .* got none"),
        ({"actions": None}, "expected some actions, got none"),
        ({"classes": None}, "expected some classes, got none"),
        ({"classes": torch.tensor(1)}, r"classes must be int64 \(2,\), got torch.int64 \(\)"),
        ({"actions": torch.randn(2, 6, 2)}, r"actions must be \(2, 9, 2\), .* got \(2, 6, 2\)"),
        ({"batch_size": 3}, r"actions must be \(3, 9, 2\), .* got \(2, 9, 2\)"),
        ({"overlap": 3}, r"window of 6 frames can share \[2, 4\].*got an overlap of 3"),
        ({"prime_frames": clips(f=1)}, "at least 2 frames, got 1"),
        ({"prime_frames": torch.rand(2, 3, 4, 8, 16)}, r"\(2, 2\) ids a frame, got \(8, 16\) pixels, \(1, 2\) ids"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"texts": TEXTS}, "unconditional"),
    ],
)
def test_wrong_arguments_of_generate(whole, changes, message):
    labels = given("actions", "classes", f=9)
    with pytest.raises(ValueError, match=message):
        whole.generate(**{"num_frames": 9, "frames": clips(f=1), **labels, **changes})
