"""Figures of clips and tokenizers: shares and means with 95 % intervals, reconstruction, and what the judge reads.

b = batch · c = channels · f = frames
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from data.moving_shapes import IMAGE_ONLY_COLOUR, TURN_LATEST
from evaluation.judge import Agreement, Verdict, agree, judge

BATCH = 25  # clips at a time


class Share(float):
    """A share of a number of trials; `str` adds the 95 % interval (Wilson 1927)."""

    def __new__(cls, right: int, trials: int):
        share = super().__new__(cls, right / trials)
        share.trials = trials
        return share

    def interval(self) -> tuple[float, float]:
        """The ends of the 95 % interval."""
        z, n = 1.96, self.trials
        middle = (self + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(self * (1 - self) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)  # against rounding errors

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self:6.1%}  [{low:.1%}, {high:.1%}] of {self.trials}"


def share_of(right: Sequence[bool]) -> Share:
    """The share of True."""
    return Share(sum(right), len(right))


class Mean(float):
    """A mean of values without those that are NaN; `str` adds the 95 % interval (normal distribution)."""

    def __new__(cls, values: Iterable[float]):
        known = [value for value in values if not math.isnan(value)]
        average = math.fsum(known) / len(known) if known else math.nan
        mean = super().__new__(cls, average)
        mean.trials = len(known)
        mean.error = math.nan  # standard error
        if len(known) > 1:
            spread = math.fsum((value - average) ** 2 for value in known) / (len(known) - 1)
            mean.error = math.sqrt(spread / len(known))
        return mean

    def interval(self) -> tuple[float, float]:
        """The ends of the 95 % interval, NaN for fewer than 2 values."""
        return self - 1.96 * self.error, self + 1.96 * self.error

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{float(self):6.3f}  [{low:.3f}, {high:.3f}] of {self.trials}"


def psnr(video: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio of values in [0, 1], in dB."""
    return -10 * math.log10((video - other).square().mean().clamp(min=1e-12).item())


def code_use(ids: Tensor, codebook_size: int) -> tuple[float, float]:
    """Code usage, the perplexity over the codebook size, and the entropy of the ids in nats per token."""
    counts = torch.bincount(ids.flatten(), minlength=codebook_size).double()
    shares = counts[counts > 0] / counts.sum()
    entropy = -(shares * shares.log()).sum().item()
    return math.exp(entropy) / codebook_size, entropy


def edge_energy(videos: Tensor) -> float:
    """Mean square of the differences between neighbouring pixels: lower for soft edges."""
    return (videos.diff(dim=-1).square().mean() + videos.diff(dim=-2).square().mean()).item()


def flicker(rebuilt: Tensor, videos: Tensor) -> float:
    """Root mean square of the change of the error from frame to frame: 0 for a constant error."""
    return (rebuilt - videos).diff(dim=2).square().mean().sqrt().item()


@torch.no_grad()
def reconstruction(cvivit: nn.Module, videos: Tensor) -> dict[str, float]:
    """Figures of a tokenizer on videos (b, c, f, h, w) in [0, 1].

    Those of `picture_figures`, code usage and entropy.
    """
    ids = torch.cat([cvivit.encode(part) for part in videos.split(BATCH)])
    rebuilt = torch.cat([cvivit.decode(part) for part in ids.split(BATCH)]).float().clamp(0, 1)
    usage, entropy = code_use(ids, cvivit.codebook_size)
    return picture_figures(rebuilt, videos) | {"code_usage": usage, "entropy": entropy}


@torch.no_grad()
def from_latents(codec: nn.Module, videos: Tensor) -> Tensor:
    """Videos (b, c, f, h, w) in [0, 1] through continuous latents and back, in [0, 1]."""
    generator = torch.Generator(videos.device).manual_seed(0)  # of the latents that an image VAE draws
    parts = [codec.decode_features(codec.latents(part, generator=generator)) for part in videos.split(BATCH)]
    return torch.cat(parts).float().clamp(0, 1)


def picture_figures(rebuilt: Tensor, videos: Tensor) -> dict[str, float]:
    """Figures of reconstructions of videos, both (b, c, f, h, w) in [0, 1].

    PSNR of the first frame and of the others, flicker, edge energy over that of the videos.
    """
    measured = {"psnr_first": psnr(rebuilt[:, :, :1], videos[:, :, :1])}
    if videos.shape[2] > 1:
        measured["psnr_others"] = psnr(rebuilt[:, :, 1:], videos[:, :, 1:])
        measured["flicker"] = flicker(rebuilt, videos)
    edges = edge_energy(videos)
    measured["edge_energy"] = edge_energy(rebuilt) / edges if edges else math.nan  # videos of one colour have none
    return measured


def judged_reconstruction(cvivit: nn.Module, videos: Tensor, captions: Sequence[str]) -> dict[str, Share]:
    """`judged_pictures` of moving shapes (b, 3, f, h, w) through the ids of a tokenizer."""
    return judged_pictures(torch.cat([cvivit.reconstruct(part) for part in videos.split(BATCH)]), captions)


def judged_pictures(rebuilt: Tensor, captions: Sequence[str]) -> dict[str, Share]:
    """The share of reconstructed moving shapes (b, 3, f, h, w) that agree with the caption, as the judge reads them.

    For each attribute, for all of them together, and for all of them in clips of white objects, if there are any.
    """
    verdicts = judge_each(rebuilt, captions)
    measured = {f"reconstructed {name}": share for name, share in judged_shares(verdicts).items()}
    white = [verdict.all for verdict, caption in zip(verdicts, captions) if IMAGE_ONLY_COLOUR in caption]
    return measured | ({"reconstructed all, white": share_of(white)} if white else {})


def motion_start(caption: str, frames: int) -> int:
    """The frame from which the motion counts: for "turns" the latest turn, TURN_LATEST or the last step."""
    return min(TURN_LATEST, frames - 2) if "turns" in caption else 0


def read_each(videos: Tensor, captions: Sequence[str]) -> list[Verdict]:
    """The verdict on each clip, with the motion of the frames that its caption describes."""
    return [
        judge(video[None], motion_start=motion_start(caption, video.shape[1]))[0]
        for video, caption in zip(videos.float().cpu(), captions)
    ]


def judge_each(videos: Tensor, captions: Sequence[str]) -> list[Agreement]:
    """How each clip agrees with its caption."""
    return [agree(verdict, caption) for verdict, caption in zip(read_each(videos, captions), captions)]


def judged_shares(verdicts: Sequence[Agreement]) -> dict[str, Share]:
    """The shares with colour, shape, motion and all of them right."""
    return {name: share_of([getattr(verdict, name) for verdict in verdicts]) for name in Agreement._fields}


def table(measured: dict[str, float], line: Callable[[str], None] = print) -> None:
    """Print one figure per line."""
    width = max(map(len, measured)) + 2
    for name, value in measured.items():
        line(f"{name:<{width}}{value if isinstance(value, Share | Mean) else f'{value:8.3f}'}")
