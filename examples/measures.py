"""What a trained model is measured by: its reconstructions, its texts turned into clips, and its stories.

The judge of the moving shapes looks at pixels only; shares come with 95 % intervals.

b = batch · c = channels · f = frames
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from moving_shapes import IMAGE_ONLY_COLOUR, TURN_LATEST, prompts, stories
from moving_shapes_judge import Agreement, agree, judge, seam_ratio, speed
from phenaki_pytorch import Phenaki

OVERLAP = 5  # frames that a scene is given of the one before
SHORTEST_JUDGED = TURN_LATEST + 2  # frames: one step after the latest turn
SHORTEST_STORY = OVERLAP + 2  # frames: one step among the new frames of a scene
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
        return middle - half, middle + half

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self:6.1%}  [{low:.1%}, {high:.1%}] of {self.trials}"


def share_of(right: Sequence[bool]) -> Share:
    return Share(sum(right), len(right))


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
    measured = {f"reconstructed {name}": share_of([getattr(v, name) for v in verdicts]) for name in Agreement._fields}
    white = [verdict.all for verdict, caption in zip(verdicts, captions) if IMAGE_ONLY_COLOUR in caption]
    return measured | ({"reconstructed all, white": share_of(white)} if white else {})


def motion_start(caption: str, frames: int) -> int:
    """Where motion counts from: "turns" may turn as late as TURN_LATEST, or as the last step if that is sooner."""
    return min(TURN_LATEST, frames - 2) if "turns" in caption else 0


def judge_each(videos: Tensor, captions: Sequence[str]) -> list[Agreement]:
    """One verdict a clip, each over the frames that its own caption speaks of."""
    return [
        agree(judge(video[None], motion_start=motion_start(caption, video.shape[1]))[0], caption)
        for video, caption in zip(videos.float().cpu(), captions)
    ]


def parts(texts: Sequence) -> Iterator[list]:
    for first in range(0, len(texts), BATCH):
        yield list(texts[first : first + BATCH])


def text_to_video(phenaki: Phenaki, count: int, *, num_frames: int, seed: int, **sampling) -> dict[str, Share]:
    """Measure 1: prompts of seen combinations; the share with colour, shape, motion and all right."""
    captions = prompts("seen", count, seed=seed)
    generator = torch.Generator(phenaki.maskgit.to_logits.weight.device).manual_seed(seed)
    verdicts = []
    for part in parts(captions):
        videos = phenaki.generate(part, num_frames=num_frames, generator=generator, **sampling)
        verdicts += judge_each(videos, part)
    measured = {f"text to video {name}": share_of([getattr(v, name) for v in verdicts]) for name in Agreement._fields}
    for verb in ("moves", "turns"):
        right = [verdict.all for verdict, caption in zip(verdicts, captions) if verb in caption]
        measured[f"text to video all, {verb}"] = share_of(right)
    return measured


def story(
    phenaki: Phenaki, count: int, *, num_frames: int, seed: int, verb: str = "turns", **sampling
) -> dict[str, float]:
    """Measure 7: three prompts, five shared frames; each scene is judged on its new frames alone.

    Each scene is one window of `num_frames`.
    """
    frames_of = (num_frames, num_frames - OVERLAP, num_frames - OVERLAP)
    told = stories(count, seed=seed, verb=verb)
    generator = torch.Generator(phenaki.maskgit.to_logits.weight.device).manual_seed(seed)
    videos = []
    for part in parts(told):
        whole, _ = phenaki.generate_story(part, num_frames=frames_of, overlap=OVERLAP, generator=generator, **sampling)
        videos.append(whole.float().cpu())
    videos = torch.cat(videos)
    seams = [sum(frames_of[:scene]) for scene in range(1, len(frames_of))]
    verdicts = []  # per scene, per story
    for scene, (first, frames) in enumerate(zip((0, *seams), frames_of)):
        read = judge(videos[:, :, : first + frames], start=first, motion_start=first)
        verdicts.append([agree(verdict, texts[scene]) for verdict, texts in zip(read, told)])
    by_story = list(zip(*verdicts))
    speeds = torch.stack([speed(videos[:, :, a:b]) for a, b in zip((0, *seams), (*seams, None))])
    name = f"story ({verb})"
    return {
        f"{name} scenes with motion right": share_of([v.motion for scene in verdicts for v in scene]),
        f"{name} motion right in every scene": share_of([all(v.motion for v in story) for story in by_story]),
        f"{name} object kept": share_of([all(v.colour and v.shape for v in story) for story in by_story]),
        f"{name} every scene right": share_of([all(v.all for v in story) for story in by_story]),
        f"{name} seam ratio": seam_ratio(videos, seams).nanmean().item(),
        f"{name} speed over the drawn one": speeds.nanmean().item(),
    }


def table(measured: dict[str, float], line: Callable[[str], None] = print) -> None:
    """Print one measure a line."""
    width = max(map(len, measured)) + 2
    for name, value in measured.items():
        line(f"{name:<{width}}{value if isinstance(value, Share) else f'{value:8.3f}'}")
