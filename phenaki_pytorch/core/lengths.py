"""Which numbers of frames a tokenizer takes, always read from its `num_frames`.

b = batch · f = frames · t, h, w = grid of ids
"""

from collections.abc import Sequence
from itertools import count, takewhile

import torch
from einops import rearrange, repeat
from torch import Tensor

from phenaki_pytorch.core.checks import check_bool, free_to_look
from phenaki_pytorch.core.contracts import Lengths


def lengths_up_to(tokenizer: Lengths, most: int) -> list:
    """The numbers of frames, `most` and fewer, that the tokenizer takes, from the smallest on."""
    return list(takewhile(lambda frames: frames <= most, map(tokenizer.num_frames, count(1))))


def usable_frames(tokenizer: Lengths, frames: int) -> int:
    """The largest number of frames, `frames` or fewer, that the tokenizer takes; 0 if its shortest clip is longer."""
    return max(lengths_up_to(tokenizer, frames), default=0)


def zero_padding(video: Tensor, frame_mask: Tensor) -> Tensor:
    """Videos (b, c, f, h, w) with zeros where `frame_mask`, bool (b, f), is False: padding may hold anything, even NaN.

    What does not fit is left to the checks that follow.
    """
    if video.ndim != 5 or frame_mask.dtype != torch.bool or frame_mask.shape != video.shape[0:3:2]:
        return video
    return video.masked_fill(~rearrange(frame_mask, "b f -> b 1 f 1 1"), 0)


def real_tokens(frame_mask: Tensor, ids_shape: Sequence, tokenizer: Lengths) -> Tensor:
    """Which ids are real, bool (b, t, h, w), given which frames are, bool (b, f).

    The real frames of a clip come first, in a number that the tokenizer takes; raises ValueError where they do not.
    """
    b, t, h, w = ids_shape
    lengths = torch.tensor([tokenizer.num_frames(steps) for steps in range(1, t + 1)], device=frame_mask.device)
    f = tokenizer.num_frames(t)
    check_bool("frame_mask", frame_mask, torch.Size((b, f)))
    if free_to_look(frame_mask):
        counts = frame_mask.sum(dim=1)
        prefix = torch.arange(f, device=frame_mask.device) < counts[:, None]
        if (frame_mask != prefix).any() or not torch.isin(counts, lengths).all():
            raise ValueError(
                f"frame_mask must be True for the first frames of each clip and False after, in one of the numbers "
                f"{lengths.tolist()}, got {counts.tolist()} real frames"
            )
    # A time step is real where its last frame is.
    return repeat(frame_mask[:, lengths - 1], "b t -> b t h w", h=h, w=w)
