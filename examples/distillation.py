"""Distilled guidance in train.py: MaskGit learns from a copy of itself what that says under guidance."""

import argparse
import random
from collections.abc import Sequence

from torch import Tensor, nn

from encoded import Encoded
from phenaki_pytorch import GuidedTeacher, Phenaki


class Crossed(Encoded):
    """Clips under captions that they do not show."""

    def __getitem__(self, index: int) -> dict:
        return super().__getitem__(index) | {"crossed": True}


class Taught(nn.Module):
    """Phenaki's loss, of which MaskGit's part is what a teacher says; of crossed clips that part alone.

    A critic would learn from these that what the caption asks for is wrong, and what contradicts it is right.
    """

    def __init__(self, phenaki: Phenaki, teacher: GuidedTeacher):
        super().__init__()
        self.phenaki = phenaki
        self.teacher = teacher

    def forward(
        self, *, video_ids: Tensor, text_embeds: Tensor, text_mask: Tensor, prime_steps: Tensor, crossed: bool = False
    ) -> Tensor:
        given = {"prime_steps": prime_steps, "teacher": self.teacher}
        if crossed:
            return self.phenaki.maskgit(video_ids, text_embeds, text_mask, **given)
        return self.phenaki(video_ids=video_ids, text_embeds=text_embeds, text_mask=text_mask, **given)


def learner(args: argparse.Namespace, phenaki: Phenaki) -> Phenaki | Taught:
    """What gives the loss: Phenaki or, with --distil-guidance, Phenaki taught by what its MaskGit is now."""
    if args.distil_guidance is None:
        return phenaki
    return Taught(phenaki, GuidedTeacher(phenaki.maskgit, cond_scale=args.distil_guidance))


def lessons(args: argparse.Namespace, encoded: Sequence[Encoded | None]) -> tuple[Encoded | None, ...]:
    """What MaskGit learns from, given the videos and the images: these and, with --distil-guidance, crossed clips.

    What images alone have shown, the teacher's guidance brings into videos, and nothing in the data asks it to. So it
    is asked about videos under the captions of images: what it says is to be learnt, whatever they show.
    """
    videos, images = encoded
    if args.distil_guidance is None or videos is None or images is None:
        return videos, images
    return videos, images, crossed(videos, images, seed=args.seed)


def crossed(videos: Encoded, images: Encoded, *, seed: int) -> Crossed:
    """The videos, each told by the caption of an image that is drawn for it; none is a continuation."""
    rng, steps = random.Random(f"crossed {seed}"), videos.ids.shape[1]
    told = [[images.captions[rng.randrange(len(images))][0]] * steps for _ in range(len(videos))]
    return Crossed(videos.ids, told, seed=seed)
