"""Judge the turns of a video without a network: by how many pixels a frame is shifted against the one before.

Where the camera turns, everything in view moves to the other side. The shift at which two successive frames agree best
therefore tells left from right, and measures whether a generated video follows its actions.

b = batch · c = channels · f = frames
"""

import torch
from torch import Tensor


def horizontal_shifts(video: Tensor, most: int | None = None) -> Tensor:
    """By how many pixels the view moves from each frame to the next: video (b, c, f, h, w) -> int64 (b, f − 1).

    A shift s says that the pixel x of a frame is best found at x + s in the frame before, by the mean of absolute
    differences where both overlap: below 0 the camera turns left, above 0 right. Of equally good ones the smallest is
    taken, so a still video has 0. Only the middle half of the rows counts: floor and ceiling nearby move by more, and
    what the player holds, at the lower edge, does not move.

    most  the largest shift; by default a quarter of the width. Raises ValueError for another shape or no overlap.
    """
    if video.ndim != 5 or 0 in video.shape or video.shape[2] < 2:
        raise ValueError(f"video must be (b, c, f, h, w) of at least 2 frames, none empty, got {tuple(video.shape)}")
    width = video.shape[-1]
    most = width // 4 if most is None else most
    if not 0 <= most < width:
        raise ValueError(f"most must be at least 0 and below the width {width}, got {most}")
    height = video.shape[3]
    rows = video.narrow(3, height // 4, (height + 1) // 2)
    before, after = rows[:, :, :-1], rows[:, :, 1:]
    shifts = sorted(range(-most, most + 1), key=abs)
    errors = torch.stack([_error(before, after, shift) for shift in shifts], dim=-1)  # (b, f − 1, shifts)
    best = (errors == errors.amin(dim=-1, keepdim=True)).int().argmax(dim=-1)  # the first of equal ones
    return torch.tensor(shifts, device=video.device)[best]


def _error(before: Tensor, after: Tensor, shift: int) -> Tensor:
    """The mean absolute difference of each pair of frames at a shift, (b, f − 1)."""
    overlap = before.shape[-1] - abs(shift)
    first, second = before.narrow(-1, max(shift, 0), overlap), after.narrow(-1, max(-shift, 0), overlap)
    return (first - second).abs().mean(dim=(1, 3, 4))


def follows_turns(shifts: Tensor, turns: Tensor) -> Tensor:
    """Whether the view moves to the side of each turn: bool, one for each place where `turns` is not 0.

    shifts  int64, of `horizontal_shifts`
    turns   of the same shape: −1 where the camera turns left, 1 where it turns right, else 0

    Raises ValueError where the shapes differ.
    """
    if shifts.shape != turns.shape:
        raise ValueError(f"shifts and turns must have one shape, got {tuple(shifts.shape)} and {tuple(turns.shape)}")
    turned = turns != 0
    return shifts.sign()[turned] == turns[turned]
