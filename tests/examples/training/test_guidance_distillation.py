"""Guidance distillation in train_prior.py: the teacher, and clips under captions of images."""

from argparse import Namespace
from collections import Counter
from functools import partial

import pytest
import torch
from accelerate import Accelerator

from conftest import make_ids, tiny_phenaki
from data.conditions import Conditions
from data.encoded import Encoded
from data.mixture import Source
from data.sources import mixture, sources_of
from data.word_vectors import WordVectors
from phenaki_pytorch import SelfCritic
from training.distillation import DistillationStep, crossed_clips
from training.maskgit_prior import collate, training_step

TEXTS = Conditions(["text"], encoder=WordVectors())


def encoded(caption, count, *, steps):
    return Encoded(torch.randint(0, 32, (count, steps, 2, 2)), [[caption] * steps for _ in range(count)])


def videos_and_images():
    return encoded("a red circle moves left", 40, steps=5), encoded("a white square", 3, steps=1)


def batch(**options):
    text = {"text_embeds": torch.randn(2, 3, 12), "text_mask": torch.ones(2, 3, dtype=torch.bool)}
    return {"video_ids": make_ids(), **text, "prime_steps": torch.tensor([0, 2]), **options}


def test_the_teacher_is_maskgit_at_the_beginning_of_the_training():
    phenaki, given = tiny_phenaki(), batch()
    step = training_step(Namespace(distil_guidance=3.0), phenaki)
    assert isinstance(step, DistillationStep) and step.teacher.cond_scale == 3.0
    with torch.no_grad():
        phenaki.maskgit.to_logits.weight.zero_()
    assert step.teacher.maskgit.to_logits.weight.any()
    torch.manual_seed(1)
    loss = step.train()(**given)
    torch.manual_seed(1)
    assert torch.equal(loss, phenaki(**given, teacher=step.teacher))
    assert training_step(Namespace(distil_guidance=None), phenaki) is phenaki


@pytest.mark.parametrize("crossed", [True, False])
def test_the_critic_does_not_learn_from_crossed_clips(crossed):
    phenaki, given = tiny_phenaki(critic=SelfCritic), batch()
    step = training_step(Namespace(distil_guidance=3.0), phenaki).train()
    torch.manual_seed(1)
    loss = step(**given, crossed=crossed)
    torch.manual_seed(1)
    parts = phenaki.losses(**given, teacher=step.teacher)
    assert torch.equal(loss, parts.maskgit if crossed else parts.total)
    loss.backward()
    assert phenaki.maskgit.to_logits.weight.grad.any()
    assert (phenaki.critic.to_logits.weight.grad is None) == crossed


def test_crossed_clips_are_the_videos_under_captions_of_images():
    videos, images = videos_and_images()
    images.captions[1] = ["a blue circle"]
    crossed = crossed_clips(Namespace(distil_guidance=2.0, seed=0), (videos, images))
    items = [crossed.draw(index, epoch=0) for index in range(len(crossed))]
    assert all(torch.equal(item["latents"], videos[index]["latents"]) for index, item in enumerate(items))
    assert {item["caption"] for item in items} == {"a white square", "a blue circle"}
    same, other = (crossed_clips(Namespace(distil_guidance=2.0, seed=seed), (videos, images)) for seed in (0, 1))
    assert crossed.captions == same.captions != other.captions
    collated = collate(TEXTS, items[:4])
    assert collated["crossed"] and not collated["prime_steps"].any()
    assert "crossed" not in collate(TEXTS, [videos[0], videos[1]])


@pytest.mark.parametrize("missing", ["teacher", "videos", "images"])
def test_without_a_teacher_videos_or_images_there_are_no_crossed_clips(missing):
    sides = [None if missing == name else clips for name, clips in zip(("videos", "images"), videos_and_images())]
    args = Namespace(distil_guidance=None if missing == "teacher" else 2.0, seed=0)
    assert crossed_clips(args, sides) is None


def test_crossed_clips_have_their_weight_among_the_batches():
    args = Namespace(distil_guidance=2.0, seed=0, batch_size=2, video_weight=1.0, image_weight=0.5)
    sets = videos_and_images()
    mixed = [*sources_of(args, sets), Source(crossed_clips(args, sets), 0.5, args.batch_size)]
    batches = mixture(args, mixed, partial(collate, TEXTS), Accelerator(), steps=400)
    kinds = Counter((len(each["video_ids"]), "crossed" in each) for each in map(batches.__getitem__, range(400)))
    assert kinds.keys() == {(2, False), (8, False), (2, True)}
    assert kinds[2, True] == pytest.approx(100, abs=30) and kinds[8, False] == pytest.approx(100, abs=30)
