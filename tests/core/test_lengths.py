"""Lengths: a tokenizer says which numbers of frames it takes, so 1 + k · stride and k · stride both work."""

import pytest
import torch

from conftest import ToyTokenizer, tiny_cvivit
from phenaki_pytorch.core.contracts import Tokenizer
from phenaki_pytorch.core.lengths import lengths_up_to, real_tokens, usable_frames

TOKENIZERS = {"1 + k · 3": (1, 3), "k · 3": (3, 3), "k · 1": (1, 1)}


@pytest.fixture(params=TOKENIZERS.values(), ids=TOKENIZERS)
def tokenizer(request):
    return ToyTokenizer(*request.param)


def takes(tokenizer, frames):
    """Whether the tokenizer takes a clip of this length."""
    try:
        tokenizer.grid(frames)
    except ValueError:
        return False
    return True


def test_the_tokenizers_fit_the_protocol(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    assert isinstance(tiny_cvivit(), Tokenizer)


def test_lengths_up_to_are_all_that_the_tokenizer_takes(tokenizer):
    for most in range(14):
        assert lengths_up_to(tokenizer, most) == [frames for frames in range(1, most + 1) if takes(tokenizer, frames)]


def test_usable_frames_is_the_largest_length_that_the_tokenizer_takes(tokenizer):
    for frames in range(14):
        fitting = [length for length in range(1, frames + 1) if takes(tokenizer, length)]
        assert usable_frames(tokenizer, frames) == max(fitting, default=0)


def test_no_frames_are_usable_below_the_smallest_length():
    assert usable_frames(ToyTokenizer(first=3, stride=3), 2) == 0
    assert usable_frames(ToyTokenizer(first=1, stride=3), 0) == 0


@pytest.mark.parametrize("first, counts", [(1, [7, 4, 1]), (3, [9, 6, 3])])
def test_real_tokens_are_those_of_real_frames(first, counts):
    tokenizer = ToyTokenizer(first=first, stride=3)
    mask = torch.arange(counts[0]) < torch.tensor(counts)[:, None]
    tokens = real_tokens(mask, (3, 3, 4, 2), tokenizer)
    assert tokens.shape == (3, 3, 4, 2) and tokens.dtype == torch.bool
    assert tokens[:, :, 0, 0].tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    assert torch.equal(tokens, tokens[:, :, :1, :1].expand_as(tokens))


@pytest.mark.parametrize("first, count", [(1, 3), (3, 4), (1, 0), (3, 0)])
def test_numbers_of_real_frames_that_the_tokenizer_does_not_take_are_refused(first, count):
    tokenizer = ToyTokenizer(first=first, stride=3)
    mask = (torch.arange(tokenizer.num_frames(3)) < count)[None]
    lengths = lengths_up_to(tokenizer, mask.shape[1])
    with pytest.raises(ValueError) as raised:
        real_tokens(mask, (1, 3, 2, 2), tokenizer)
    assert f"in one of the numbers {lengths}, got [{count}] real frames" in str(raised.value)


def test_real_frames_after_padding_are_refused():
    mask = torch.tensor([[False, False, False, True, True, True, False, False, False]])
    with pytest.raises(ValueError, match=r"first frames of each clip.*got \[3\] real frames"):
        real_tokens(mask, (1, 3, 2, 2), ToyTokenizer(first=3, stride=3))


@pytest.mark.parametrize("mask", [torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 7)])
def test_frame_masks_of_another_shape_or_dtype_are_refused(mask):
    with pytest.raises(ValueError, match=r"frame_mask must be bool \(2, 7\), got torch\.\w+ \(2, \d\)"):
        real_tokens(mask, (2, 3, 2, 2), ToyTokenizer(first=1, stride=3))
