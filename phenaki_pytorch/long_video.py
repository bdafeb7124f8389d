"""Video of any length, window by window: each goes on from the last frames before it, encoded again.

A window is the video of one pass of the second stage; its first frames may be given (Phenaki, section 2.3,
https://arxiv.org/abs/2210.02399). Beside the video itself, one window is in memory at a time.

b = batch · c = channels · f = frames · t, h, w = grid of ids or latents
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from phenaki_pytorch.core.checks import check_finite, check_items
from phenaki_pytorch.core.contracts import Lengths
from phenaki_pytorch.core.lengths import lengths_up_to, usable_frames

OVERLAP = 5  # frames, the paper's


class Window(NamedTuple):
    """What a window goes on from.

    frames  its first ones, (b, c, f, h, w), in a number that the first stage takes; None: nothing is given
    made    how many new frames there are already
    """

    frames: Tensor | None
    made: int

    @property
    def start(self) -> int:
        """The number of its first frame, where the first new frame of the video is 0."""
        return self.made - (0 if self.frames is None else self.frames.shape[2])


class LongVideo:
    """The lengths of windows, and videos made of several.

    lengths  the first stage, whose grid and num_frames say which lengths it takes
    grid     (t, h, w) of a window
    """

    def __init__(self, lengths: Lengths, grid: tuple[int, int, int]):
        self.lengths, self.grid = lengths, grid
        self.window = lengths.num_frames(grid[0])

    def check_overlap(self, overlap: int | None, least: int = 1) -> int:
        """How many frames a window shares with the one before, `least` or more.

        None is the paper's 5, or the number nearest to it, first below and then above, which the first stage takes and
        which leaves room for new frames. Raises ValueError for a number that does not fit.
        """
        fitting = lengths_up_to(self.lengths, self.window - 1)
        enough = [length for length in fitting if length >= least]
        if overlap is None and enough:
            return max([length for length in enough if length <= OVERLAP], default=enough[0])
        if overlap in fitting and overlap < least:
            raise ValueError(f"windows must share at least {least} frames, got an overlap of {overlap}")
        if overlap not in enough:
            raise ValueError(
                f"a window of {self.window} frames can share {fitting or 'none'} of them with the one before, "
                f"got an overlap of {overlap}"
            )
        return overlap

    def check_prime(self, prime_frames: Tensor, batch_size: int) -> Tensor:
        """Refuse frames that no window can go on from; images (b, c, h, w) come back as (b, c, 1, h, w)."""
        if prime_frames.ndim == 4:
            prime_frames = rearrange(prime_frames, "b c h w -> b c 1 h w")
        if prime_frames.ndim != 5 or 0 in prime_frames.shape or not prime_frames.is_floating_point():
            raise ValueError(
                f"prime_frames must be floating point (b, c, f, h, w), or images (b, c, h, w), none empty, "
                f"got {prime_frames.dtype} {tuple(prime_frames.shape)}"
            )
        if len(prime_frames) != batch_size:
            raise ValueError(f"prime_frames have a batch of {len(prime_frames)}, expected {batch_size}")
        shortest = self.lengths.num_frames(1)
        if prime_frames.shape[2] < shortest:
            raise ValueError(f"prime_frames must be at least {shortest} frames, got {prime_frames.shape[2]}")
        grid = self.lengths.grid(shortest, *prime_frames.shape[3:])
        if grid[1:] != self.grid[1:]:
            raise ValueError(
                f"prime_frames must have the size of the window, of the grid {self.grid[1:]}, "
                f"got {tuple(prime_frames.shape[3:])} pixels, of the grid {grid[1:]}"
            )
        return prime_frames

    def generate(
        self,
        sample: Callable[[Window], Tensor],
        num_frames: int,
        *,
        prime_frames: Tensor | None = None,
        overlap: int | None = None,
        least: int = 1,
    ) -> Iterator[Tensor]:
        """Yield new frames, (b, c, f, h, w) in [0, 1], of one window after the other, until there are `num_frames`.

        sample        a callable: what a window begins with -> the whole window, (b, c, f, h, w), not clamped
        prime_frames  (b, c, f, h, w) to go on from: the last ones, as many as the first stage takes and the window has
                      room for; from longer ones the last `overlap`
        overlap       see `check_overlap`
        least         frames that a further window has to share with those before

        Raises ValueError, before anything is sampled, for an overlap that does not fit, and where a further window is
        needed that can share no frames.
        """
        known = 0 if prime_frames is None else prime_frames.shape[2]
        if overlap is not None or known >= self.window or self._kept(known, 0) + num_frames > self.window:
            overlap = self.check_overlap(overlap, least)
        return self._windows(sample, num_frames, prime_frames, overlap or 0)

    def _windows(
        self, sample: Callable[[Window], Tensor], num_frames: int, recent: Tensor | None, overlap: int
    ) -> Iterator[Tensor]:
        made = 0
        while made < num_frames:
            kept = self._kept(0 if recent is None else recent.shape[2], overlap)
            known = recent[:, :, -kept:] if kept else None
            new = self._checked(sample(Window(known, made)), known)[:, :, kept:].clamp(0, 1)
            recent = new if recent is None else torch.cat((recent, new.to(recent.dtype)), dim=2)[:, :, -self.window :]
            made += new.shape[2]
            yield new[:, :, : new.shape[2] - max(0, made - num_frames)]

    def _checked(self, window: Tensor, known: Tensor | None) -> Tensor:
        """Refuse what a first stage of the user's own has not decoded to a whole window of the size of known frames."""
        size = window.shape[3:] if known is None else known.shape[3:]
        if window.ndim != 5 or window.shape[2:] != (self.window, *size) or not window.is_floating_point():
            raise ValueError(
                f"a window must be decoded to (b, c, {self.window}, {', '.join(map(str, size)) or 'h, w'}), floating "
                f"point, got {window.dtype} {tuple(window.shape)}"
            )
        check_finite("the frames of a decoded window", window)
        return window

    def _kept(self, known: int, overlap: int) -> int:
        """How many of the known frames the next window begins with."""
        usable = usable_frames(self.lengths, min(known, self.window))
        return usable if usable < self.window else overlap


def concatenated(parts: Iterator[Tensor], num_frames: int) -> Tensor:
    """One video (b, c, num_frames, h, w) of its parts, each copied as it is made, so that none is in memory twice."""
    video, done = None, 0
    for part in parts:
        if part.shape[2] == num_frames:
            return part
        if video is None:
            video = part.new_empty(*part.shape[:2], num_frames, *part.shape[3:])
        video[:, :, done : done + part.shape[2]] = part
        done += part.shape[2]
    assert done == num_frames
    return video


def check_scenes(scenes: Sequence, num_frames: int | Sequence) -> tuple[list, list]:
    """Stories, scene by scene: the prompts of all of them, and the number of new frames."""
    if isinstance(scenes, str):
        raise TypeError(f"scenes must be a list of prompts, got one str, {scenes!r}")
    if len(scenes) == 0:
        raise ValueError("a story needs at least 1 scene, got 0")
    if isinstance(scenes[0], str):
        scenes = [scenes]
    check_items("scenes", scenes, list, tuple)
    stories = [list(story) for story in scenes]
    for story in stories:
        check_items("a story", story, str)
    lengths = sorted({len(story) for story in stories})
    if len(lengths) > 1 or lengths[0] == 0:
        raise ValueError(f"stories need equally many scenes, at least 1, got {lengths}")
    counts = [num_frames] * lengths[0] if isinstance(num_frames, int) else list(num_frames)
    check_items("num_frames", counts, int)
    if len(counts) != lengths[0]:
        raise ValueError(f"expected one num_frames for each of {lengths[0]} scenes, got {len(counts)}")
    if min(counts) < 1:
        raise ValueError(f"num_frames must be at least 1, got {min(counts)}")
    return [list(prompts) for prompts in zip(*stories)], counts
