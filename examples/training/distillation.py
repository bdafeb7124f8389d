"""Guidance distillation in train_prior.py: MaskGit learns to give in one pass what a copy gives under guidance."""

import argparse
import random
from collections.abc import Sequence

from torch import Tensor, nn

from data.encoded import Encoded
from phenaki_pytorch import GuidedTeacher, Phenaki


class Crossed(Encoded):
    """Clips under captions that do not describe them."""

    def __getitem__(self, index: int) -> dict:
        return super().__getitem__(index) | {"crossed": True}


class DistillationStep(nn.Module):
    """Phenaki's loss with a teacher as MaskGit's target; of crossed clips MaskGit's part only.

    From crossed clips a critic would learn that ids which fit the caption are wrong, and that the clip's are right.
    """

    def __init__(self, phenaki: Phenaki, teacher: GuidedTeacher):
        super().__init__()
        self.phenaki = phenaki
        self.teacher = teacher

    def forward(
        self, *, video_ids: Tensor, text_embeds: Tensor, text_mask: Tensor, prime_steps: Tensor, crossed: bool = False
    ) -> Tensor:
        options = {"prime_steps": prime_steps, "teacher": self.teacher}
        if crossed:
            return self.phenaki.maskgit(video_ids, text_embeds, text_mask, **options)
        return self.phenaki(video_ids=video_ids, text_embeds=text_embeds, text_mask=text_mask, **options)


def crossed_clips(args: argparse.Namespace, encoded: Sequence[Encoded | None]) -> Crossed | None:
    """With --distil-guidance: the videos, each under the caption of a random image. None without, or where one lacks.

    The guided teacher can put content that only images show into videos, but no training pair has it. So videos are
    also paired with captions of images. None of them is a continuation.
    """
    videos, images = encoded
    if args.distil_guidance is None or videos is None or images is None:
        return None
    rng, steps = random.Random(f"crossed {args.seed}"), videos.latents.shape[1]
    captions = [[images.captions[rng.randrange(len(images))][0]] * steps for _ in range(len(videos))]
    return Crossed(videos.latents, captions, seed=args.seed)
