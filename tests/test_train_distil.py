"""train.py with a teacher: what it learns from, that it resumes, and how what it leaves is to be asked."""

import json
import sys
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file

from arguments import parse_arguments
from conftest import tiny_phenaki
from generate import load_model, planned_sampling, read_plan
from test_train import TINY, finish, kill_at, start
from train_maskgit import Taught, learner


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


def test_the_teacher_is_what_maskgit_was_when_the_training_began():
    phenaki = tiny_phenaki()
    given = {"video_ids": torch.randint(0, 32, (2, 6, 2, 2)), "texts": ["a", "b"]}
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


@pytest.mark.parametrize(
    "asked, message",
    [
        (["--stage", "maskgit"], "needs --stage maskgit and a --model to learn from"),
        (["--model", "somewhere"], "needs --stage maskgit and a --model to learn from"),
        (["--stage", "maskgit", "--model", "somewhere", "--text-encoder", "none"], "there is nothing to guide"),
        (["--stage", "maskgit", "--model", "somewhere", "--distil-guidance", "-1"], "must be at least 0, got -1.0"),
    ],
)
def test_without_anything_to_learn_from_it_says_so(monkeypatch, capsys, asked, message):
    monkeypatch.setattr(sys, "argv", ["train.py", "--distil-guidance", "2", *asked])
    with pytest.raises(SystemExit) as caught:
        parse_arguments("")
    assert caught.value.code == 2 and message in capsys.readouterr().err
