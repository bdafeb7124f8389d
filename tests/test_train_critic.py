"""train.py with a critic: it learns in the same loss, resumes, is watched and is saved with the model."""

import csv
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import tiny_maskgit, tiny_token_critic
from generate import load_model
from phenaki_pytorch import SelfCritic, TokenCritic
from test_train import TINY, finish, kill_at, start
from train_maskgit import build_critic, watch_prior


def held_out_batch():
    torch.manual_seed(1)
    return {
        "video_ids": torch.randint(0, 32, (8, 6, 2, 2)),
        "text_embeds": torch.randn(8, 4, 12),
        "text_mask": torch.ones(8, 4, dtype=torch.bool),
    }


@pytest.mark.parametrize("kind, built", [("token", TokenCritic), ("self", SelfCritic)])
def test_killed_and_resumed_the_critic_ends_with_the_same_weights(tmp_path, kind, built):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    uninterrupted = start(whole, *TINY, "--critic", kind)
    kill_at(start(broken, *TINY, "--critic", kind), broken / "maskgit" / "step-00000010.pt")
    finish(start(broken, "--resume"))
    finish(uninterrupted)
    for part in ("maskgit", "critic"):
        one, other = (load_file(out / "model" / part / "model.safetensors") for out in (whole, broken))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), part
    assert (whole / "maskgit" / "curves.csv").read_text() == (broken / "maskgit" / "curves.csv").read_text()
    with (whole / "maskgit" / "curves.csv").open() as file:
        watched = [row for row in csv.DictReader(file) if row["critic_loss"]]
    assert watched and all(0 < float(row["critic_loss"]) < 5 and 0 < float(row["wrong"]) < 1 for row in watched)
    phenaki = load_model(whole / "model")
    assert isinstance(phenaki.critic, built)
    fresh = build_critic(Namespace(critic=kind), phenaki.maskgit)
    assert not fresh.to_logits.bias.any() and phenaki.critic.to_logits.bias.all()


def test_no_critic_is_none():
    assert build_critic(Namespace(critic="none"), tiny_maskgit()) is None


@pytest.mark.parametrize("critic", [SelfCritic, lambda maskgit: tiny_token_critic()])
def test_watching_gives_the_same_figures_each_time_and_leaves_the_random_state_alone(critic):
    maskgit, batch = tiny_maskgit(), held_out_batch()
    prior = nn.ModuleList([maskgit, critic(maskgit)])
    watched = [watch_prior(prior, batch)]
    state = torch.random.get_rng_state()
    watched.append(watch_prior(prior, batch))
    assert watched[0] == watched[1] and torch.equal(state, torch.random.get_rng_state())
    assert watched[0].keys() == {
        *("held_out_loss", "accuracy", "blank_loss", "blank_loss_no_text", "critic_loss", "wrong")
    }
    with torch.no_grad():
        prior[1].to_logits.bias += 3.0
    again = watch_prior(prior, batch)
    assert again["critic_loss"] != watched[0]["critic_loss"] and again["held_out_loss"] == watched[0]["held_out_loss"]
