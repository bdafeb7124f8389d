"""The paper's claims as measures on moving shapes: generate clips for prompts, let the judge read them, count.

Every measure takes a `Phenaki`, a number of prompts, a seed and the sampling options of `Phenaki.generate`. It
generates its clips in batches with one random generator, so the same seed gives the same clips. Measures 1 to 9 are
numbered as in evaluate.py; measure 10 there is measure 1 with other sampling options.

b = batch · c = channels · f = frames
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Unpack

import torch
from einops import repeat
from torch import Tensor
from tqdm import tqdm

from data.moving_shapes import SPEED, TURN_LATEST, Clip, MovingShapes, draw, prompts, read_caption, stories
from data.runs import device_of, tokenizer_of
from data.sampling import Model
from evaluation.judge import PACE, Verdict, agree, judge, seam_ratio, speed, track, wrap
from evaluation.measures import BATCH, Mean, Share, judged_shares, read_each, share_of
from phenaki_pytorch import Phenaki, SamplingOptions
from phenaki_pytorch.long_video import OVERLAP, LongVideo

SHORTEST_JUDGED = TURN_LATEST + 2  # frames: one step after the latest turn
SHORTEST_STORY = OVERLAP + 2  # frames: one step between the new frames of a scene

Measured = dict[str, Share | Mean]


def overlap_of(phenaki: Phenaki) -> int:
    """How many frames each further window shares with the one before: 5, or the nearest number that fits."""
    return LongVideo(phenaki.cvivit, phenaki.maskgit.grid).check_overlap(None)


def generate_all(
    model: Model,
    captions: Sequence[str] | None,
    count: int,
    *,
    num_frames: int,
    seed: int,
    given: Tensor | None = None,
    title: str,
    **sampling: object,
) -> Tensor:
    """Generate new frames for each of `count` captions: (b, c, num_frames, h, w), float32, on the CPU.

    captions  None for an unconditional model, which generates `count` videos
    given     the frames before the new ones, (b, c, f, h, w), or None
    title     what the progress bar shows
    """
    generator = torch.Generator(device_of(model)).manual_seed(seed)
    videos = []
    for first in tqdm(range(0, count, BATCH), desc=title, leave=False):
        part = slice(first, min(first + BATCH, count))
        new = model.generate(
            None if captions is None else list(captions[part]),
            batch_size=part.stop - first if captions is None else 1,
            num_frames=num_frames,
            prime_frames=None if given is None else given[part],
            generator=generator,
            **sampling,
        )
        videos.append(new.float().cpu())
    return torch.cat(videos)


class Judged(NamedTuple):
    """The captions of clips, and what the judge read in each clip."""

    captions: Sequence[str]
    verdicts: Sequence[Verdict]

    def shares(self) -> dict[str, Share]:
        """The shares with colour, shape, motion and all right, and all right for "moves" and "turns" alone.

        The last two are left out where the captions have only one of the verbs.
        """
        right = [agree(verdict, caption) for verdict, caption in zip(self.verdicts, self.captions)]
        measured = judged_shares(right)
        for verb in ("moves", "turns"):
            chosen = [each.all for each, caption in zip(right, self.captions) if f" {verb} " in caption]
            if 0 < len(chosen) < len(right):
                measured[f"all, {verb}"] = share_of(chosen)
        return measured

    def shuffled(self, seed: int) -> "Judged":
        """The same clips with the captions shuffled: the baseline of a model that ignores its text."""
        order = torch.randperm(len(self.captions), generator=torch.Generator().manual_seed(seed)).tolist()
        return Judged([self.captions[index] for index in order], self.verdicts)

    def confusion(self) -> dict[str, dict[str, Counter[str]]]:
        """For colour, shape and motion: for each value in the captions, how often the judge read which value."""
        counts = {name: {} for name in Verdict._fields}
        for caption, verdict in zip(self.captions, self.verdicts):
            for name, expected, read in zip(Verdict._fields, read_caption(caption), verdict):
                if expected is not None:
                    counts[name].setdefault(expected, Counter())[read] += 1
        return counts


# from text alone


def text_to_video(model: Model, count: int, *, seed: int, split: str = "seen", **sampling: object) -> Judged:
    """Measures 1 to 3: one window for each prompt of a split of the moving shapes."""
    captions = prompts(split, count, seed=seed)
    options = {"num_frames": model.window, "seed": seed, "title": f"text to video, {split}"}
    videos = generate_all(model, captions, count, **options, **sampling)
    return Judged(captions, read_each(videos, captions))


def text_to_image(phenaki: Phenaki, count: int, *, seed: int, **sampling: Unpack[SamplingOptions]) -> Judged:
    """Measure 4: one frame for each prompt; the prompts have no motion."""
    captions = prompts("captioned_images", count, seed=seed)
    images = generate_all(phenaki, captions, count, num_frames=1, seed=seed, title="text to image", **sampling)
    return Judged(captions, read_each(images, captions))


# from frames


def animation(model: Model, count: int, *, seed: int, **sampling: object) -> Measured:
    """Measure 5: continue a drawn first frame under its caption.

    A tokenizer that does not take single frames is given the shortest clip that it takes. Colour and shape are those
    of the new frames, the motion that of all frames. The first frame counts as kept where the first step of the
    object is at most as long as the judge's largest step.
    """
    tokenizer = tokenizer_of(model)
    videos, captions = MovingShapes("seen", size=tokenizer.image_size[0], seed=seed).told(count)
    known = tokenizer.num_frames(1)
    given = videos[:, :, :known]
    options = {"num_frames": model.window - known, "seed": seed, "given": given, "title": "animation"}
    new = generate_all(model, captions, count, **options, **sampling)
    whole = torch.cat((given, new), dim=2)
    motions = [verdict.motion for verdict in read_each(whole, captions)]
    verdicts = [verdict._replace(motion=motion) for verdict, motion in zip(judge(new), motions)]
    right = [agree(verdict, caption) for verdict, caption in zip(verdicts, captions)]
    size = whole.shape[-1]
    step = wrap(track(whole[:, :, known - 1 : known + 1]).diff(dim=1)[:, 0], size).norm(dim=-1)
    return {
        "motion": share_of([each.motion for each in right]),
        "object kept": share_of([each.colour and each.shape for each in right]),
        "first frame kept": share_of((step <= PACE[1] * SPEED * size).tolist()),
        "all": share_of([each.all for each in right]),
    }


def steady(clip: Clip, known: int) -> bool:
    """Whether the last of the steps between the `known` first frames goes on to the end.

    A later turn cannot be predicted from these frames.
    """
    return len(set(clip.motions[known - 2 :])) == 1


def last_known(positions: Tensor) -> Tensor:
    """Replace each NaN position of (b, f, 2) by the last one before it; the first must be known."""
    found = ~positions.isnan().any(dim=-1)
    last = torch.where(found, torch.arange(positions.shape[1]), 0).cummax(dim=1).values
    return positions.gather(1, repeat(last, "b f -> b f c", c=2))


def prediction(phenaki: Phenaki, count: int, *, seed: int, **sampling: Unpack[SamplingOptions]) -> Measured:
    """Measure 6: continue the first frames of drawn clips without a text.

    Mean distance, in pixels, of the object from where it was drawn: for the model's frames, for an object that stands
    still, and for one that repeats its last given step. An object that the judge does not find counts as standing
    where it was last found. Clips that turn after the given frames are left out. Raises ValueError where fewer than 2
    frames can be given.
    """
    size, known = phenaki.cvivit.image_size[0], overlap_of(phenaki)
    if known < 2:
        raise ValueError(f"prediction needs at least 2 given frames, a window of {phenaki.window} has {known}")
    world = MovingShapes("seen", size=size, num_frames=phenaki.window, seed=seed)
    clips = [clip for index in range(2 * count) if steady(clip := world.clip(index), known)][:count]
    videos = draw(clips, size)
    given = videos[:, :, :known]
    options = {"num_frames": phenaki.window - known, "seed": seed, "given": given, "title": "prediction"}
    new = generate_all(phenaki, None, len(clips), **options, **sampling)
    before, last, later = track(videos).split((known - 1, 1, phenaki.window - known), dim=1)
    ahead = torch.arange(1, later.shape[1] + 1)[:, None]
    guesses = {
        "error": last_known(torch.cat((last, track(new)), dim=1))[:, 1:],
        "error, standing still": last,
        "error, constant velocity": last + ahead * wrap(last - before[:, -1:], size),
    }
    return {name: Mean(wrap(guess - later, size).norm(dim=-1).mean(dim=1).tolist()) for name, guess in guesses.items()}


# beyond one window


def story(
    phenaki: Phenaki, count: int, *, seed: int, verb: str = "turns", **sampling: Unpack[SamplingOptions]
) -> Measured:
    """Measure 7: stories of three prompts, one window per scene; each scene is judged by its new frames alone."""
    overlap = overlap_of(phenaki)
    counts = (phenaki.window, phenaki.window - overlap, phenaki.window - overlap)
    scenes_of = stories(count, seed=seed, verb=verb)
    generator = torch.Generator(phenaki.maskgit.to_logits.weight.device).manual_seed(seed)
    videos = []
    for first in tqdm(range(0, count, BATCH), desc=f"stories, {verb}", leave=False):
        options = {"num_frames": counts, "overlap": overlap, "generator": generator}
        whole, _ = phenaki.generate_story(scenes_of[first : first + BATCH], **options, **sampling)
        videos.append(whole.float().cpu())
    return judged_stories(torch.cat(videos), scenes_of, counts)


def judged_stories(videos: Tensor, scenes_of: Sequence[Sequence[str]], counts: Sequence[int]) -> Measured:
    """The figures of measure 7.

    videos     (b, c, f, h, w)
    scenes_of  the prompts of each story, one per scene
    counts     the number of new frames of each scene
    """
    seams = [sum(counts[:scene]) for scene in range(1, len(counts))]
    verdicts = []  # per scene, per story
    for scene, (first, frames) in enumerate(zip((0, *seams), counts)):
        read = judge(videos[:, :, : first + frames], start=first, motion_start=first)
        verdicts.append([agree(verdict, scenes[scene]) for verdict, scenes in zip(read, scenes_of)])
    by_story = list(zip(*verdicts))
    speeds = torch.stack([speed(videos[:, :, a:b]) for a, b in zip((0, *seams), (*seams, None))])
    return {
        "scenes with motion right": share_of([v.motion for scene in verdicts for v in scene]),
        "motion right in every scene": share_of([all(v.motion for v in scenes) for scenes in by_story]),
        "object kept": share_of([all(v.colour and v.shape for v in scenes) for scenes in by_story]),
        "every scene right": share_of([all(v.all for v in scenes) for scenes in by_story]),
        "seam ratio": Mean(seam_ratio(videos, seams).tolist()),
        "speed over the drawn one": Mean(speeds.nanmean(dim=0).tolist()),
    }


def length(
    phenaki: Phenaki, count: int, *, seed: int, windows: int = 10, **sampling: Unpack[SamplingOptions]
) -> dict[str, Share]:
    """Measure 8: one "moves" prompt over many windows; for each window the share with all right in its new frames.

    All frames of the first window are new. Of these the last are judged, as many as each further window adds, so that
    all windows are judged by equally many frames.
    """
    captions = [caption for caption in prompts("seen", 3 * count, seed=seed) if " moves " in caption][:count]
    overlap = overlap_of(phenaki)
    added = phenaki.window - overlap
    options = {"num_frames": overlap + windows * added, "seed": seed, "title": f"{windows} windows"}
    videos = generate_all(phenaki, captions, len(captions), **options, **sampling)
    shares = {}
    for window in range(windows):
        first = overlap + window * added
        verdicts = judge(videos[:, :, : first + added], start=first)
        right = [agree(verdict, caption).all for verdict, caption in zip(verdicts, captions)]
        shares[f"window {window + 1}"] = share_of(right)
    return shares


# many samples of one prompt


def mean_distance(positions: Tensor, unit: float = 1.0) -> Mean:
    """Mean distance between two of the positions (n, 2), n ≥ 3, in sides of the torus, divided by `unit`.

    The interval comes from the jackknife.
    """
    n = len(positions)
    to_others = wrap(positions[:, None] - positions, 1).norm(dim=-1).sum(dim=1)
    pairs = to_others.sum() / 2
    pseudo_values = 2 * pairs / (n - 1) - 2 * (pairs - to_others) / (n - 2)
    return Mean((pseudo_values / unit).tolist())


def variety(phenaki: Phenaki, count: int, *, seed: int, **sampling: Unpack[SamplingOptions]) -> Measured:
    """Measure 9: mean distance between the start positions of `count` samples of one prompt, over that of the data."""
    captions = prompts("seen", 1, seed=seed) * count
    options = {"num_frames": phenaki.window, "seed": seed, "title": "variety"}
    videos = generate_all(phenaki, captions, count, **options, **sampling)
    starts = track(videos[:, :, :1])[:, 0] / videos.shape[-1]
    world = MovingShapes("seen", seed=seed)
    drawn = torch.tensor([world.clip(index).start for index in range(1000)])
    return {"spread over the data's": mean_distance(starts[~starts.isnan().any(dim=-1)], mean_distance(drawn))}
