"""VideoGPT: parts, batches and arguments that do not fit are refused, with what was got and expected."""

import json
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
from videogpt_models import GRID, TEXTS, clips, given, spied, videogpt


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: tiny_videogpt(num_tokens=64, code_dim=None), "gpt must have as many tokens .* 32, got 64"),
        (lambda: tiny_videogpt(grid=(3, 2, 4)), r"gpt's grid must be that of the \w+, \(3, 2, 2\), got \(3, 2, 4\)"),
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
        (
            {"videos": None, "video_ids": make_ids(grid=GRID)},
            ValueError,
            "has a frame encoder: expected some frames, got none",
        ),
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
        ({"texts": TEXTS}, ValueError, "reads no text: expected no texts"),
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
        ({"frames": None}, "has a frame encoder: expected some frames, got none"),
        ({"actions": None}, "expected some actions, got none"),
        ({"classes": None}, "expected some classes, got none"),
        ({"classes": torch.tensor(1)}, r"classes must be int64 \(2,\), got torch.int64 \(\)"),
        ({"actions": torch.randn(2, 6, 2)}, r"actions must be \(2, 9, 2\), .* got \(2, 6, 2\)"),
        ({"batch_size": 3}, "batch_size is 3, what is given has a batch of 2"),
        ({"overlap": 3}, r"window of 6 frames can share \[2, 4\].*got an overlap of 3"),
        ({"prime_frames": clips(f=1)}, "at least 2 frames, got 1"),
        ({"prime_frames": torch.rand(2, 3, 4, 8, 16)}, r"grid \(2, 2\), got \(8, 16\) pixels, of the grid \(1, 2\)"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"texts": TEXTS}, "reads no text"),
    ],
)
def test_wrong_arguments_of_generate(whole, changes, message):
    labels = given("actions", "classes", f=9)
    with pytest.raises(ValueError, match=message):
        whole.generate(**{"num_frames": 9, "frames": clips(f=1), **labels, **changes})


def test_ids_and_videos_of_other_shapes_are_refused():
    model = videogpt("vector")
    for given_ids in (torch.zeros(3, dtype=torch.int64), torch.zeros(2, 3, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"ids must be int64 \(b, t, h, w\)"):
            model(video_ids=given_ids, frames=clips()[:, :, :1])
    for videos in (torch.rand(2, 3), torch.rand(2, 3, 16)):
        with pytest.raises(ValueError, match=r"videos must be \(b, c, f, h, w\)"):
            model(videos)


def test_a_tokenizer_that_was_changed_after_the_gpt_took_its_codes_is_not_saved(tmp_path):
    model = videogpt()
    model.tokenizer.load_state_dict(tiny_vqvae().state_dict())
    with pytest.raises(ValueError, match="codes of another tokenizer"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("name, value", [("num_classes", "x"), ("dim_action", 1.5)])
def test_a_config_with_numbers_of_another_kind_is_refused(tmp_path, name, value):
    videogpt().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=f"{tmp_path} must have a whole number or null as {name}, got"):
        VideoGPT.from_pretrained(tmp_path)


def test_a_config_without_a_frame_encoder_has_none(tmp_path):
    videogpt().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["frame_encoder"]
    path.write_text(json.dumps(config))
    assert VideoGPT.from_pretrained(tmp_path).frame_encoder is None


def test_windows_share_as_many_frames_as_the_frame_encoder_reads():
    model = videogpt(frame_encoder=tiny_frame_encoder(num_frames=7), grid=(6, 2, 2)).eval()
    calls = spied(model)
    assert model.generate(num_frames=20, frames=clips(1, 7)).shape[2] == 20
    assert calls[1][0]["prime_ids"].shape[1] == 4  # 8 frames, the least that the tokenizer takes
