"""What clips and tokenizers are measured by: shares and means with 95 % intervals, reconstructions, verdicts.

The judge of the moving shapes looks at pixels only.

b = batch · c = channels · f = frames
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from moving_shapes import IMAGE_ONLY_COLOUR, TURN_LATEST
from moving_shapes_judge import Agreement, Verdict, agree, judge

BATCH = 25


class Share(float):
    """A share of n trials; `str` adds the 95 % interval (Wilson 1927)."""

    def __new__(cls, right: int, trials: int):
        share = super().__new__(cls, right / trials)
        share.trials = trials
        return share

    def interval(self) -> tuple[float, float]:
        z, n = 1.96, self.trials
        middle = (self + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(self * (1 - self) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)  # rounding may leave either end

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self:6.1%}  [{low:.1%}, {high:.1%}] of {self.trials}"


def share_of(right: Sequence[bool]) -> Share:
    return Share(sum(right), len(right))


class Mean(float):
    """A mean of n values, those that are not a number left out; `str` adds the 95 % interval (normal)."""

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
        return self - 1.96 * self.error, self + 1.96 * self.error

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{float(self):6.3f}  [{low:.3f}, {high:.3f}] of {self.trials}"


def psnr(video: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio of values in [0, 1], in dB."""
    return -10 * math.log10((video - other).square().mean().clamp(min=1e-12).item())


def code_use(ids: Tensor, codebook_size: int) -> tuple[float, float]:
    """Code usage (perplexity / codebook size) and entropy of the ids, in nats per token."""
    counts = torch.bincount(ids.flatten(), minlength=codebook_size).double()
    shares = counts[counts > 0] / counts.sum()
    entropy = -(shares * shares.log()).sum().item()
    return math.exp(entropy) / codebook_size, entropy


def edge_energy(videos: Tensor) -> float:
    """Mean square of the differences between neighbouring pixels: falls where edges are soft."""
    return (videos.diff(dim=-1).square().mean() + videos.diff(dim=-2).square().mean()).item()


def flicker(rebuilt: Tensor, videos: Tensor) -> float:
    """Root mean square of the change of the error from frame to frame: 0 where errors stay in place."""
    return (rebuilt - videos).diff(dim=2).square().mean().sqrt().item()


@torch.no_grad()
def reconstruction(cvivit: nn.Module, videos: Tensor) -> dict[str, float]:
    """PSNR of the first frame and of the others, edge energy over the original's, flicker, code usage and entropy.

    Of videos (b, c, f, h, w) in [0, 1].
    """
    ids = torch.cat([cvivit.encode(part) for part in videos.split(BATCH)])
    rebuilt = torch.cat([cvivit.decode(part) for part in ids.split(BATCH)]).float().clamp(0, 1)
    usage, entropy = code_use(ids, cvivit.codebook_size)
    measured = {"psnr_first": psnr(rebuilt[:, :, :1], videos[:, :, :1])}
    if videos.shape[2] > 1:
        measured["psnr_others"] = psnr(rebuilt[:, :, 1:], videos[:, :, 1:])
        measured["flicker"] = flicker(rebuilt, videos)
    measured["edge_energy"] = edge_energy(rebuilt) / edge_energy(videos)
    return measured | {"code_usage": usage, "entropy": entropy}


def judged_reconstruction(cvivit: nn.Module, videos: Tensor, captions: Sequence[str]) -> dict[str, Share]:
    """The share of moving shapes (b, 3, f, h, w) whose reconstruction bears out what the clip's own caption says.

    In each attribute, in all of them, and in all of them among the white objects, if there are any.
    """
    rebuilt = torch.cat([cvivit.reconstruct(part) for part in videos.split(BATCH)])
    verdicts = judge_each(rebuilt, captions)
    measured = {f"reconstructed {name}": share for name, share in judged_shares(verdicts).items()}
    white = [verdict.all for verdict, caption in zip(verdicts, captions) if IMAGE_ONLY_COLOUR in caption]
    return measured | ({"reconstructed all, white": share_of(white)} if white else {})


def motion_start(caption: str, frames: int) -> int:
    """Where motion counts from: "turns" may turn as late as TURN_LATEST, or as the last step if that is sooner."""
    return min(TURN_LATEST, frames - 2) if "turns" in caption else 0


def read_each(videos: Tensor, captions: Sequence[str]) -> list[Verdict]:
    """One verdict a clip, each over the frames that its own caption speaks of."""
    return [
        judge(video[None], motion_start=motion_start(caption, video.shape[1]))[0]
        for video, caption in zip(videos.float().cpu(), captions)
    ]


def judge_each(videos: Tensor, captions: Sequence[str]) -> list[Agreement]:
    """What each clip bears out of its own caption."""
    return [agree(verdict, caption) for verdict, caption in zip(read_each(videos, captions), captions)]


def judged_shares(verdicts: Sequence[Agreement]) -> dict[str, Share]:
    """The shares of colour, shape, motion and all of them."""
    return {name: share_of([getattr(verdict, name) for verdict in verdicts]) for name in Agreement._fields}


def table(measured: dict[str, float], line: Callable[[str], None] = print) -> None:
    """Print one measure a line."""
    width = max(map(len, measured)) + 2
    for name, value in measured.items():
        line(f"{name:<{width}}{value if isinstance(value, Share | Mean) else f'{value:8.3f}'}")
