"""train.py with a teacher: what it learns from, that it resumes, and how what it leaves is to be asked."""

import json
import sys
from argparse import Namespace
from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from arguments import parse_arguments
from conftest import tiny_phenaki
from distillation import Taught, learner, lessons
from encoded import Captions, Encoded
from generate import load_model, planned_sampling, read_plan
from phenaki_pytorch import SelfCritic
from sources import mixture
from test_train import TINY, finish, kill_at, start
from word_vectors import WordVectors


def encoded(caption, count, *, steps):
    return Encoded(torch.randint(0, 32, (count, steps, 2, 2)), [[caption] * steps for _ in range(count)])


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A model to learn from."""
    out = tmp_path_factory.mktemp("learnt")
    finish(start(out, *TINY, "--critic", "self"))
    return out / "model"


def test_killed_and_resumed_it_has_learnt_from_the_same_teacher(tmp_path, learnt):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    asked = (*TINY, "--critic", "self", "--stage", "maskgit", "--model", str(learnt), "--distil-guidance", "3")
    uninterrupted = start(whole, *asked)
    kill_at(start(broken, *asked), broken / "maskgit" / "step-00000010.pt")
    finish(start(broken, "--resume"))
    finish(uninterrupted)
    one, other = (load_file(out / "model" / "maskgit" / "model.safetensors") for out in (whole, broken))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    plain = tmp_path / "plain"
    finish(start(plain, *asked[:-2]))
    assert not torch.equal(one["to_logits.weight"], load_model(plain / "model").maskgit.to_logits.weight)
    scales = [planned_sampling(read_plan(out / "model"))["cond_scale"] for out in (whole, plain)]
    assert scales == [1.0, 2.0]
    assert json.loads((whole / "plan.json").read_text())["arguments"]["distil_guidance"] == 3.0


def batch(**options):
    embeds = torch.randn(2, 3, 12)
    text = {"text_embeds": embeds, "text_mask": torch.ones(2, 3, dtype=torch.bool)}
    ids = torch.randint(0, 32, (2, 6, 2, 2))
    return {"video_ids": ids, **text, "prime_steps": torch.tensor([0, 2]), **options}


def test_the_teacher_is_what_maskgit_was_when_the_training_began():
    phenaki, given = tiny_phenaki(), batch()
    args = Namespace(distil_guidance=3.0)
    taught = learner(args, phenaki)
    assert isinstance(taught, Taught) and taught.teacher.cond_scale == 3.0
    with torch.no_grad():
        phenaki.maskgit.to_logits.weight.zero_()
    assert taught.teacher.maskgit.to_logits.weight.any()
    torch.manual_seed(1)
    loss = taught.train()(**given)
    torch.manual_seed(1)
    assert torch.equal(loss, phenaki(**given, teacher=taught.teacher))
    args.distil_guidance = None
    assert learner(args, phenaki) is phenaki


def test_of_crossed_clips_maskgit_learns_and_the_critic_does_not():
    phenaki = tiny_phenaki(critic=SelfCritic)
    taught = learner(Namespace(distil_guidance=3.0), phenaki).train()
    for crossed, learns in ((True, False), (False, True)):
        torch.manual_seed(1)
        loss = taught(**batch(crossed=crossed))
        torch.manual_seed(1)
        parts = phenaki.losses(**batch(), teacher=taught.teacher)
        assert torch.equal(loss, parts.total if learns else parts.maskgit)
        phenaki.zero_grad()
        loss.backward()
        assert phenaki.maskgit.to_logits.weight.grad.any()
        assert (phenaki.critic.to_logits.weight.grad is not None) == learns


def test_crossed_clips_are_the_videos_under_captions_of_images():
    videos, images = encoded("a red circle moves left", 40, steps=5), encoded("a white square", 3, steps=1)
    images.captions[1] = ["a blue circle"]
    args = Namespace(distil_guidance=2.0, seed=0)
    both, others, asked = lessons(args, (videos, images))
    assert both is videos and others is images
    items = [asked.draw(index, epoch=0) for index in range(len(asked))]
    assert all(torch.equal(item["ids"], videos[index]["ids"]) for index, item in enumerate(items))
    assert {item["caption"] for item in items} == {"a white square", "a blue circle"}
    assert asked.captions == lessons(args, (videos, images))[2].captions
    assert asked.captions != lessons(Namespace(distil_guidance=2.0, seed=1), (videos, images))[2].captions
    collated = Captions(WordVectors()).collate(items[:4])
    assert collated["crossed"] and not collated["prime_steps"].any()
    assert "crossed" not in Captions(WordVectors()).collate([videos[0], videos[1]])


@pytest.mark.parametrize("missing", ["teacher", "videos", "images"])
def test_nothing_is_crossed_without_a_teacher_or_where_a_side_is_missing(missing):
    videos, images = encoded("a red circle moves left", 4, steps=5), encoded("a white square", 3, steps=1)
    sides = (None if missing == "videos" else videos), (None if missing == "images" else images)
    args = Namespace(distil_guidance=None if missing == "teacher" else 2.0, seed=0)
    assert lessons(args, sides) == sides


def test_crossed_clips_come_by_their_weight():
    videos, images = encoded("a red circle moves left", 40, steps=5), encoded("a white square", 3, steps=1)
    args = Namespace(
        **{"distil_guidance": 2.0, "seed": 0, "batch_size": (4, 2)},
        **{"video_weight": 1.0, "image_weight": (0.0, 0.5), "crossed_weight": 0.5},
    )
    collate = Captions(WordVectors()).collate
    batches = mixture(args, 1, [lessons(args, (videos, images))], collate, Accelerator(), steps=400)
    kinds = Counter((len(drawn["video_ids"]), "crossed" in drawn) for drawn in map(batches.__getitem__, range(400)))
    assert kinds.keys() == {(2, False), (8, False), (2, True)}
    assert kinds[2, True] == pytest.approx(100, abs=30) and kinds[8, False] == pytest.approx(100, abs=30)


@pytest.mark.parametrize(
    "asked, message",
    [
        (["--stage", "maskgit"], "needs --stage maskgit and a --model to learn from"),
        (["--model", "somewhere"], "needs --stage maskgit and a --model to learn from"),
        (["--stage", "maskgit", "--model", "somewhere", "--text-encoder", "none"], "there is nothing to guide"),
        (["--stage", "maskgit", "--model", "somewhere", "--distil-guidance", "-1"], "must be at least 0, got -1.0"),
        (["--stage", "maskgit", "--model", "somewhere", "--crossed-weight", "-1"], "must be at least 0, got -1.0"),
        (["--stage", "maskgit", "--model", "somewhere", "--crossed-weight", "nan"], "must be finite, got nan"),
    ],
)
def test_without_anything_to_learn_from_it_says_so(monkeypatch, capsys, asked, message):
    monkeypatch.setattr(sys, "argv", ["train.py", "--distil-guidance", "2", *asked])
    with pytest.raises(SystemExit) as caught:
        parse_arguments("")
    assert caught.value.code == 2 and message in capsys.readouterr().err
