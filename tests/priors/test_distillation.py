"""Guidance distillation: the target is the teacher's guided logits, and the teacher does not change."""

import pytest
import torch
import torch.nn.functional as F

from conftest import (
    make_context,
    make_ids,
    same_state,
    state,
    tiny_cvivit,
    tiny_maskgit,
    tiny_phenaki,
    tiny_token_critic,
    train,
)
from phenaki_pytorch import GuidedTeacher, SelfCritic
from phenaki_pytorch.layers.attention import Context

GRID = (6, 2, 2)


def two_passes(model, scale, ids, masked, text, token_mask=None):
    """The guided logits of the masked ids, by the formula: one pass with the text, one with the null context."""
    null_text = Context(model.null_context.expand(2, 1, 12), torch.ones(2, 1, dtype=torch.bool))
    cond = model.logits(ids, masked, *text, token_mask)
    null = model.to_logits(model.features(ids, masked, context=null_text, token_mask=token_mask)).unflatten(1, GRID)
    return (null + scale * (cond - null))[masked]


def padding():
    """A token mask of one clip of six time steps and one of two."""
    return (torch.arange(6) < torch.tensor([[6], [2]]))[..., None, None].expand(2, *GRID)


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("real", [None, padding()], ids=["whole", "padded"])
def test_the_teacher_gives_the_guided_logits_of_two_passes(share, real):
    model, ids, text = tiny_maskgit().eval(), make_ids(), make_context()
    masked = torch.rand(ids.shape) < share
    if real is not None:
        masked &= real
    with torch.no_grad():
        expected = two_passes(model, 3.0, ids, masked, text, real)
    target = GuidedTeacher(model, cond_scale=3.0)(ids, masked, *text, real)
    torch.testing.assert_close(target, expected, atol=1e-4, rtol=1e-4)


def test_padding_does_not_change_the_target():
    model, ids, text, real = tiny_maskgit(), make_ids(), make_context(), padding()
    masked = (torch.rand(ids.shape) < 0.5) & real
    teacher = GuidedTeacher(model, cond_scale=3.0)
    targets = [teacher(some, masked, *text, real) for some in (ids, torch.where(real, ids, (ids + 1) % 32))]
    assert torch.equal(*targets) and not torch.equal(targets[0], teacher(ids, masked, *text))


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_target_is_the_teachers_distribution_or_the_ids_where_the_text_is_dropped(monkeypatch, probability):
    teacher = GuidedTeacher(tiny_maskgit(dim=48), cond_scale=3.0)
    model, ids, text = tiny_maskgit(cond_drop_prob=probability), make_ids(8), make_context(8)
    calls, draw_dropped = [], model.draw_dropped
    monkeypatch.setattr(model, "draw_dropped", lambda context: calls.append(draw_dropped(context)) or calls[0])
    losses = model.losses(ids, *text, teacher=teacher)
    target = teacher(ids, losses.masked, *text).softmax(dim=-1)
    soft = -(target * losses.logits.log_softmax(dim=-1)).sum(dim=-1)
    hard = F.cross_entropy(losses.logits, ids[losses.masked], reduction="none")
    dropped = calls[0][:, None, None, None].expand_as(ids)[losses.masked]
    torch.testing.assert_close(losses.total, torch.where(dropped, hard, soft).mean())
    assert 0 < dropped.float().mean() < 1 if probability == 0.5 else dropped.float().mean() == probability
    assert (hard - soft).abs().min() > 1e-4  # the two targets differ everywhere


def test_the_learner_comes_close_to_the_guided_distributions_in_one_pass():
    ids, text = make_ids(16, (2, 2, 2)), make_context(16)
    model = tiny_maskgit(cond_drop_prob=0.3, depth=1, grid=(2, 2, 2))
    train(model, lambda: model(ids, *text), steps=30, lr=5e-3)
    teacher = GuidedTeacher(model, cond_scale=3.0)
    masked = torch.rand(ids.shape) < 0.5
    target = teacher(ids, masked, *text)

    def distance():
        with torch.no_grad():
            return F.mse_loss(model.eval().logits(ids, masked, *text)[masked].softmax(-1), target.softmax(-1)).item()

    before, weights = distance(), state(teacher)
    model.train()
    train(model, lambda: model(ids, *text, teacher=teacher), steps=80, lr=5e-3)
    assert distance() < before / 4
    assert same_state(weights, state(teacher)) and torch.equal(teacher(ids, masked, *text), target)


def test_the_teacher_stays_in_eval_mode_and_gets_no_gradient():
    teacher = GuidedTeacher(tiny_maskgit(attn_dropout=0.5), cond_scale=2.0).train()
    assert not any(part.training for part in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    model = tiny_maskgit()
    model(make_ids(), *make_context(), teacher=teacher).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_phenaki_passes_the_teacher_to_maskgit_and_not_to_the_critic():
    model, ids, (embeds, mask) = tiny_phenaki(critic=SelfCritic), make_ids(), make_context()
    teacher = GuidedTeacher(model.maskgit, cond_scale=4.0)
    parts = []
    for given in (None, teacher):
        torch.manual_seed(1)
        parts.append(model.losses(video_ids=ids, text_embeds=embeds, text_mask=mask, teacher=given))
    assert parts[0].maskgit != parts[1].maskgit and torch.equal(parts[0].critic, parts[1].critic)


def test_distillation_works_under_bfloat16_autocast():
    model, ids, text = tiny_maskgit(), make_ids(), make_context()
    teacher = GuidedTeacher(model, cond_scale=3.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, *text, teacher=teacher)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: GuidedTeacher(tiny_maskgit(dim_context=None), cond_scale=2.0), "got an unconditional one"),
        (lambda: GuidedTeacher(tiny_maskgit(), cond_scale=-1.0), r"cond_scale must be .*at least 0, got -1\.0"),
        (lambda: GuidedTeacher(tiny_maskgit(), cond_scale=float("nan")), "cond_scale must be finite.*got nan"),
    ],
)
def test_teachers_without_guidance_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "changes, text, message",
    [
        ({"num_tokens": 16}, (2, 3, 12), "teacher's num_tokens must be the learner's, 32, got 16"),
        ({"dim_context": 8}, (2, 3, 12), "teacher's dim_context must be the learner's, 12, got 8"),
        ({"grid": (3, 2, 2)}, (2, 3, 12), r"must fit into the grid \(3, 2, 2\), got \(6, 2, 2\)"),
        ({}, (3, 3, 12), "the context has a batch of 3, expected 2"),
    ],
)
def test_teachers_of_other_ids_or_texts_are_refused(changes, text, message):
    teacher = GuidedTeacher(tiny_maskgit(**changes), cond_scale=2.0)
    with pytest.raises(ValueError, match=message):
        tiny_maskgit()(make_ids(), torch.randn(text), teacher=teacher)


def test_a_teacher_is_built_of_a_maskgit_alone():
    with pytest.raises(TypeError, match="must be a MaskGit, got a TokenCritic"):
        GuidedTeacher(tiny_token_critic(), cond_scale=2.0)
    with pytest.raises(TypeError):
        GuidedTeacher(tiny_cvivit(), cond_scale=2.0)


def test_a_teacher_must_be_a_guided_teacher_and_the_learner_must_read_texts():
    model = tiny_maskgit()
    with pytest.raises(TypeError):
        model(make_ids(), *make_context(), teacher=model)
    with pytest.raises(ValueError, match="teacher's dim_context must be the learner's, None, got 12"):
        tiny_maskgit(dim_context=None)(make_ids(), teacher=GuidedTeacher(model, cond_scale=2.0))
