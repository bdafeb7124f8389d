"""MaskGit as a prior: what its curves measure, which critic is built, what is compiled."""

from argparse import Namespace

import pytest
import torch
from torch import nn

from conftest import make_ids, tiny_maskgit, tiny_phenaki, tiny_token_critic
from phenaki_pytorch import SelfCritic, TokenCritic
from training.maskgit_prior import build_critic, compile_model, trainable_part, watch


def held_out_batch():
    mask = torch.ones(8, 4, dtype=torch.bool)
    return {"video_ids": make_ids(8), "text_embeds": torch.randn(8, 4, 12), "text_mask": mask}


def watched(model, batch):
    return watch(model, trainable_part(model), batch)


def test_with_all_ids_masked_the_loss_depends_on_the_text_alone():
    model, batch = tiny_phenaki(), held_out_batch()
    one = watched(model, batch)
    other = watched(model, batch | {"text_embeds": torch.randn(8, 4, 12)})
    assert one["blank_loss"] != other["blank_loss"] and one["blank_loss_no_text"] == other["blank_loss_no_text"]
    ids = batch["video_ids"]
    logits = model.maskgit.logits(ids, torch.ones_like(ids, dtype=torch.bool), batch["text_embeds"])
    by_hand = nn.functional.cross_entropy(logits.flatten(0, 3), ids.flatten())
    assert one["blank_loss"] == pytest.approx(by_hand.item(), rel=1e-5)


def test_an_unconditional_model_has_no_loss_of_the_text():
    assert watched(tiny_phenaki(dim_context=None), {"video_ids": make_ids(8)}).keys() == {"held_out_loss", "accuracy"}


@pytest.mark.parametrize("critic", [SelfCritic, lambda maskgit: tiny_token_critic()])
def test_the_measures_are_the_same_each_time_and_leave_the_random_state_alone(critic):
    model, batch = tiny_phenaki(critic=critic), held_out_batch()
    first = watched(model, batch)
    random_state = torch.random.get_rng_state()
    second = watched(model, batch)
    assert first == second and torch.equal(random_state, torch.random.get_rng_state())
    names = ("held_out_loss", "accuracy", "blank_loss", "blank_loss_no_text", "critic_loss", "wrong")
    assert first.keys() == set(names)
    with torch.no_grad():
        model.critic.to_logits.bias += 3.0
    third = watched(model, batch)
    assert third["critic_loss"] != first["critic_loss"] and third["held_out_loss"] == first["held_out_loss"]


@pytest.mark.parametrize("kind, built", [("none", type(None)), ("self", SelfCritic), ("token", TokenCritic)])
def test_the_critic_is_of_the_kind_asked_for_and_its_output_begins_at_0(kind, built):
    critic = build_critic(Namespace(critic=kind), tiny_maskgit())
    assert isinstance(critic, built) and (critic is None or not critic.to_logits.bias.any())


@pytest.mark.parametrize("critic, parts", [(None, 1), (SelfCritic, 1), (lambda maskgit: tiny_token_critic(), 2)])
def test_all_transformers_of_the_training_are_compiled(monkeypatch, critic, parts):
    compiled, model = [], tiny_phenaki(critic=critic)
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    compile_model(model)
    assert len(compiled) == parts
    reached = []
    for part in compiled:
        part.register_forward_hook(lambda module, *_: reached.append(module))
    model(video_ids=make_ids(), texts=["up", "down"])
    assert set(reached) == set(compiled)
