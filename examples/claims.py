"""The claims of the paper, each a measure over the moving shapes: prompts in, shares and means out.

Every measure takes a `Phenaki`, how many prompts to ask, the seed, and the settings of `Phenaki.generate` (steps,
cond_scale, ...). Its clips are drawn in parts from one generator: the same seed gives the same clips. The numbers are
those of the project's benchmark; the tenth asks the first at other settings.

b = batch · c = channels · f = frames
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor
from tqdm import tqdm

from measures import BATCH, Mean, Share, judged_shares, read_each, share_of
from moving_shapes import SPEED, TURN_LATEST, Clip, MovingShapes, draw, prompts, read_caption, stories
from moving_shapes_judge import PACE, Verdict, agree, judge, seam_ratio, speed, track, wrap
from phenaki_pytorch import Phenaki

OVERLAP = 5  # frames that a window is given of the one before, and that a prediction goes on from
SHORTEST_JUDGED = TURN_LATEST + 2  # frames: one step after the latest turn
SHORTEST_STORY = OVERLAP + 2  # frames: one step among the new frames of a scene

Measured = dict[str, Share | Mean]


def generate_all(
    phenaki: Phenaki,
    captions: Sequence[str] | None,
    count: int,
    *,
    num_frames: int,
    seed: int,
    given: Tensor | None = None,
    title: str,
    **sampling,
) -> Tensor:
    """New frames for each caption, or `count` times for none: (b, c, num_frames, h, w), on the CPU."""
    generator = torch.Generator(phenaki.maskgit.to_logits.weight.device).manual_seed(seed)
    videos = []
    for first in tqdm(range(0, count, BATCH), desc=title, leave=False):
        part = slice(first, min(first + BATCH, count))
        new = phenaki.generate(
            None if captions is None else list(captions[part]),
            batch_size=part.stop - first if captions is None else 1,
            num_frames=num_frames,
            prime_frames=None if given is None else given[part],
            overlap=OVERLAP,
            generator=generator,
            **sampling,
        )
        videos.append(new.float().cpu())
    return torch.cat(videos)


class Judged(NamedTuple):
    """What clips were asked for, and what the judge read."""

    captions: Sequence[str]
    verdicts: Sequence[Verdict]

    def shares(self) -> dict[str, Share]:
        """Colour, shape, motion and all right; and all right of each verb, where there are both."""
        right = [agree(verdict, caption) for verdict, caption in zip(self.verdicts, self.captions)]
        measured = judged_shares(right)
        for verb in ("moves", "turns"):
            chosen = [each.all for each, caption in zip(right, self.captions) if f" {verb} " in caption]
            if 0 < len(chosen) < len(right):
                measured[f"all, {verb}"] = share_of(chosen)
        return measured

    def shuffled(self, seed: int) -> "Judged":
        """The same clips under each other's captions: what a model would reach that does not read its text."""
        order = torch.randperm(len(self.captions), generator=torch.Generator().manual_seed(seed)).tolist()
        return Judged([self.captions[place] for place in order], self.verdicts)

    def confusion(self) -> dict[str, dict[str, Counter[str]]]:
        """For colour, shape and motion: of each value that was asked for, how often which was read."""
        counts = {name: {} for name in Verdict._fields}
        for caption, verdict in zip(self.captions, self.verdicts):
            for name, asked, read in zip(Verdict._fields, read_caption(caption), verdict):
                if asked is not None:
                    counts[name].setdefault(asked, Counter())[read] += 1
        return counts


# from text alone


def text_to_video(phenaki: Phenaki, count: int, *, seed: int, split: str = "seen", **sampling) -> Judged:
    """Measures 1 to 3: prompts of a split of the moving shapes, a window each."""
    captions = prompts(split, count, seed=seed)
    of = {"num_frames": phenaki.window, "seed": seed, "title": f"text to video, {split}"}
    videos = generate_all(phenaki, captions, count, **of, **sampling)
    return Judged(captions, read_each(videos, captions))


def text_to_image(phenaki: Phenaki, count: int, *, seed: int, **sampling) -> Judged:
    """Measure 4: prompts without a motion, a frame each."""
    captions = prompts("captioned_images", count, seed=seed)
    images = generate_all(phenaki, captions, count, num_frames=1, seed=seed, title="text to image", **sampling)
    return Judged(captions, read_each(images, captions))


# from frames


def animation(phenaki: Phenaki, count: int, *, seed: int, **sampling) -> Measured:
    """Measure 5: a drawn first frame and its caption; colour and shape of the new frames, motion from the first on.

    The frame is kept where the object starts from its place there: by no longer a step than the judge allows.
    """
    videos, captions = MovingShapes("seen", size=phenaki.cvivit.image_size[0], seed=seed).told(count)
    first = videos[:, :, :1]
    of = {"num_frames": phenaki.window - 1, "seed": seed, "given": first, "title": "animation"}
    new = generate_all(phenaki, captions, count, **of, **sampling)
    whole = torch.cat((first, new), dim=2)
    motions = [verdict.motion for verdict in read_each(whole, captions)]
    verdicts = [verdict._replace(motion=motion) for verdict, motion in zip(judge(new), motions)]
    right = [agree(verdict, caption) for verdict, caption in zip(verdicts, captions)]
    size = whole.shape[-1]
    step = wrap(track(whole[:, :, :2]).diff(dim=1)[:, 0], size).norm(dim=-1)
    return {
        "motion": share_of([each.motion for each in right]),
        "object kept": share_of([each.colour and each.shape for each in right]),
        "first frame kept": share_of((step <= PACE[1] * SPEED * size).tolist()),
        "all": share_of([each.all for each in right]),
    }


def steady(clip: Clip) -> bool:
    """Whether the last given step goes on to the end: no model could foretell a later turn."""
    return len(set(clip.motions[OVERLAP - 2 :])) == 1


def last_known(places: Tensor) -> Tensor:
    """Places (b, f, 2) with those that are not a number replaced by the last before them; the first are known."""
    found = ~places.isnan().any(dim=-1)
    last = torch.where(found, torch.arange(places.shape[1]), 0).cummax(dim=1).values
    return places.gather(1, repeat(last, "b f -> b f c", c=2))


def prediction(phenaki: Phenaki, count: int, *, seed: int, **sampling) -> Measured:
    """Measure 6: the frames after five given ones, without a text, of clips that do not turn any more.

    Mean distance, in pixels, of the object from where it was drawn: of the model's, of one that stands still, and of
    one that goes on as between the last two given frames. An object that is not found is where it last was.
    """
    size = phenaki.cvivit.image_size[0]
    world = MovingShapes("seen", size=size, num_frames=phenaki.window, seed=seed)
    clips = [clip for index in range(2 * count) if steady(clip := world.clip(index))][:count]
    videos = draw(clips, size)
    given = videos[:, :, :OVERLAP]
    of = {"num_frames": phenaki.window - OVERLAP, "seed": seed, "given": given, "title": "prediction"}
    new = generate_all(phenaki, None, len(clips), **of, **sampling)
    before, last, later = track(videos).split((OVERLAP - 1, 1, phenaki.window - OVERLAP), dim=1)
    ahead = torch.arange(1, later.shape[1] + 1)[:, None]
    guesses = {
        "error": last_known(torch.cat((last, track(new)), dim=1))[:, 1:],
        "error, standing still": last,
        "error, constant velocity": last + ahead * wrap(last - before[:, -1:], size),
    }
    return {name: Mean(wrap(guess - later, size).norm(dim=-1).mean(dim=1).tolist()) for name, guess in guesses.items()}


# beyond one window


def story(phenaki: Phenaki, count: int, *, seed: int, verb: str = "turns", **sampling) -> Measured:
    """Measure 7: three prompts, five shared frames; each scene, a window, is judged on its new frames alone."""
    frames_of = (phenaki.window, phenaki.window - OVERLAP, phenaki.window - OVERLAP)
    told = stories(count, seed=seed, verb=verb)
    generator = torch.Generator(phenaki.maskgit.to_logits.weight.device).manual_seed(seed)
    videos = []
    for first in tqdm(range(0, count, BATCH), desc=f"stories, {verb}", leave=False):
        of = {"num_frames": frames_of, "overlap": OVERLAP, "generator": generator}
        whole, _ = phenaki.generate_story(told[first : first + BATCH], **of, **sampling)
        videos.append(whole.float().cpu())
    videos = torch.cat(videos)
    seams = [sum(frames_of[:scene]) for scene in range(1, len(frames_of))]
    verdicts = []  # per scene, per story
    for scene, (first, frames) in enumerate(zip((0, *seams), frames_of)):
        read = judge(videos[:, :, : first + frames], start=first, motion_start=first)
        verdicts.append([agree(verdict, texts[scene]) for verdict, texts in zip(read, told)])
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


def length(phenaki: Phenaki, count: int, *, seed: int, windows: int = 10, **sampling) -> dict[str, Share]:
    """Measure 8: one prompt over many windows, "moves" alone; all right in each, by its new frames.

    Of the first window as many frames are judged as the others add, its last ones, so that all are judged alike.
    """
    captions = [caption for caption in prompts("seen", 3 * count, seed=seed) if " moves " in caption][:count]
    added = phenaki.window - OVERLAP
    of = {"num_frames": OVERLAP + windows * added, "seed": seed, "title": f"{windows} windows"}
    videos = generate_all(phenaki, captions, len(captions), **of, **sampling)
    shares = {}
    for window in range(windows):
        first = OVERLAP + window * added
        verdicts = judge(videos[:, :, : first + added], start=first)
        right = [agree(verdict, caption).all for verdict, caption in zip(verdicts, captions)]
        shares[f"window {window + 1}"] = share_of(right)
    return shares


# of one prompt


def mean_distance(places: Tensor, unit: float = 1.0) -> Mean:
    """Mean distance of two places (n, 2), n ≥ 3, in sides of the torus over `unit`; interval: the jackknife's."""
    n = len(places)
    to_others = wrap(places[:, None] - places, 1).norm(dim=-1).sum(dim=1)
    pairs = to_others.sum() / 2
    pseudo_values = 2 * pairs / (n - 1) - 2 * (pairs - to_others) / (n - 2)
    return Mean((pseudo_values / unit).tolist())


def variety(phenaki: Phenaki, count: int, *, seed: int, **sampling) -> Measured:
    """Measure 9: many samples of one prompt: the mean distance of two start positions, over that of the data."""
    captions = prompts("seen", 1, seed=seed) * count
    of = {"num_frames": phenaki.window, "seed": seed, "title": "variety"}
    videos = generate_all(phenaki, captions, count, **of, **sampling)
    starts = track(videos[:, :, :1])[:, 0] / videos.shape[-1]
    world = MovingShapes("seen", seed=seed)
    drawn = torch.tensor([world.clip(index).start for index in range(1000)])
    return {"spread over the data's": mean_distance(starts[~starts.isnan().any(dim=-1)], mean_distance(drawn))}
