"""A video of any length, window by window: each goes on from the last frames before it, encoded again.

What one pass of the prior draws is a window; of a further one the first frames are given (Phenaki, section 2.3,
https://arxiv.org/abs/2210.02399). At any time there is one window in memory beside what has been made.

b = batch · c = channels · f = frames · t, h, w = grid of ids
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from torch import Tensor, nn


def joined(parts: Iterator[Tensor], num_frames: int) -> Tensor:
    """One video, (b, c, num_frames, h, w), of its parts, each put in its place as it is made: not twice in memory."""
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


class Windows:
    """The lengths, in frames, of a tokenizer and of a window of so many time steps.

    `cvivit` is any module with CViViT's encode, decode, grid and num_frames.
    """

    def __init__(self, cvivit: nn.Module, grid: tuple[int, int, int]):
        self.cvivit, self.grid = cvivit, grid
        self.length = cvivit.num_frames(grid[0])
        self.step = cvivit.num_frames(2) - 1  # of all time steps but the first

    def usable(self, known: int) -> int:
        """Of so many known frames, how many of the last the tokenizer takes: the largest 1 + k · step, or 0."""
        return 1 + (known - 1) // self.step * self.step if known else 0

    def check_overlap(self, overlap: int) -> None:
        """Refuse what a window cannot share with the one before."""
        if overlap < 1 or overlap != self.usable(overlap) or overlap >= self.length:
            raise ValueError(
                f"overlap must be 1 + k · {self.step} and less than the window of {self.length} frames, got {overlap}"
            )

    def check_prime(self, prime_frames: Tensor, batch_size: int) -> Tensor:
        """Refuse what a window does not go on from; images (b, c, h, w) come back as (b, c, 1, h, w)."""
        if prime_frames.ndim == 4:
            prime_frames = rearrange(prime_frames, "b c h w -> b c 1 h w")
        if prime_frames.ndim != 5 or 0 in prime_frames.shape or not prime_frames.is_floating_point():
            raise ValueError(
                f"prime_frames must be floating point (b, c, f, h, w), or images (b, c, h, w), none empty, "
                f"got {prime_frames.dtype} {tuple(prime_frames.shape)}"
            )
        if len(prime_frames) != batch_size:
            raise ValueError(f"prime_frames have a batch of {len(prime_frames)}, expected {batch_size}")
        grid = self.cvivit.grid(1, *prime_frames.shape[3:])
        if grid[1:] != self.grid[1:]:
            raise ValueError(
                f"prime_frames must have the size of the window, {self.grid[1:]} ids a frame, "
                f"got {tuple(prime_frames.shape[3:])} pixels, {grid[1:]} ids"
            )
        return prime_frames

    def generate(
        self, draw: Callable[[Tensor | None], Tensor], num_frames: int, *, prime: Tensor | None, overlap: int
    ) -> Iterator[Tensor]:
        """Yield new frames, (b, c, f, h, w) in [0, 1], of one window after the other, until there are `num_frames`.

        draw     a callable, ids to begin with, (b, s, h, w), or None -> the ids of a window, (b, t, h, w)
        prime    frames to go on from, (b, c, f, h, w)
        overlap  frames that each further window shares with what is there already

        Raises ValueError, before anything is drawn, where a further window is needed and the overlap does not fit.
        """
        known = 0 if prime is None else prime.shape[2]
        if num_frames > self.length - self.usable(known) or self.usable(known) >= self.length:
            self.check_overlap(overlap)
        return self._generate(draw, num_frames, prime, overlap)

    def _generate(
        self, draw: Callable[[Tensor | None], Tensor], num_frames: int, recent: Tensor | None, overlap: int
    ) -> Iterator[Tensor]:
        known, made = 0 if recent is None else recent.shape[2], 0
        while made < num_frames:
            keep = self.usable(known + made)
            if keep >= self.length:
                keep = overlap
            ids = draw(None if keep == 0 else self.cvivit.encode(recent[:, :, -keep:]))
            new = self.cvivit.decode(ids)[:, :, keep:].clamp(0, 1)
            recent = new if recent is None else torch.cat((recent, new.to(recent.dtype)), dim=2)[:, :, -self.length :]
            made += new.shape[2]
            yield new[:, :, : new.shape[2] - max(0, made - num_frames)]
