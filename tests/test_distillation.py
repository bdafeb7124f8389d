"""Guidance distillation: what is learnt is what the teacher says under guidance, and the teacher stays as it is."""

import pytest
import torch
import torch.nn.functional as F

from conftest import make_context, make_ids, same_state, state, tiny_maskgit, tiny_phenaki, train
from phenaki_pytorch import GuidedTeacher, SelfCritic

GRID = (6, 2, 2)


def two_passes(model, scale, ids, masked, text, token_mask=None):
    """The guided logits of the masked ids, by the formula: cond from one pass, null from another."""
    cond = model.logits(ids, masked, *text, token_mask)
    null = model.eval().null_context.expand(2, 1, 12)
    x = model.features(
        ids.flatten(1),
        masked.flatten(1),
        layout=model.layout(GRID),
        token_mask=None if token_mask is None else token_mask.flatten(1),
        keys_values=model.transformer.keys_values(null),
        context_mask=torch.ones(2, 1, dtype=torch.bool),
    )
    null = model.to_logits(x).unflatten(1, GRID)
    return (null + scale * (cond - null))[masked]


def padded():
    """One clip of six time steps beside one of two."""
    return (torch.arange(6) < torch.tensor([[6], [2]]))[..., None, None].expand(2, *GRID)


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("real", [None, padded()], ids=["whole", "padded"])
def test_the_teacher_says_the_guided_logits_of_two_passes(share, real):
    model, ids, text = tiny_maskgit(depth=3).eval(), make_ids(), make_context()
    masked = torch.rand(ids.shape) < share
    if real is not None:
        masked &= real
    with torch.no_grad():
        expected = two_passes(model, 3.0, ids, masked, text, real)
    said = GuidedTeacher(model, cond_scale=3.0)(ids, masked, *text, real)
    torch.testing.assert_close(said, expected, atol=1e-4, rtol=1e-4)


def test_what_nobody_may_see_changes_nothing_on_either_side():
    model, ids, text, real = tiny_maskgit(depth=3), make_ids(), make_context(), padded()
    masked = (torch.rand(ids.shape) < 0.5) & real
    teacher = GuidedTeacher(model, cond_scale=3.0)
    said = [teacher(some, masked, *text, real) for some in (ids, torch.where(real, ids, (ids + 1) % 32))]
    assert torch.equal(*said) and not torch.equal(said[0], teacher(ids, masked, *text))


@pytest.mark.parametrize("dropped", [0.0, 0.5, 1.0])
def test_the_loss_is_what_the_teacher_says_or_of_dropped_captions_the_ids(monkeypatch, dropped):
    teacher = GuidedTeacher(tiny_maskgit(dim=48), cond_scale=3.0)
    model, ids, text = tiny_maskgit(cond_drop_prob=dropped), make_ids(8), make_context(8)
    drawn, draw = [], model.draw_dropped
    monkeypatch.setattr(model, "draw_dropped", lambda context: drawn.append(draw(context)) or drawn[0])
    losses = model.losses(ids, *text, teacher=teacher)
    told = teacher(ids, losses.masked, *text).softmax(dim=-1)
    soft = -(told * losses.logits.log_softmax(dim=-1)).sum(dim=-1)
    hard = F.cross_entropy(losses.logits, ids[losses.masked], reduction="none")
    of_null = drawn[0][:, None, None, None].expand_as(ids)[losses.masked]
    torch.testing.assert_close(losses.total, torch.where(of_null, hard, soft).mean())
    assert 0 < of_null.float().mean() < 1 if dropped == 0.5 else of_null.float().mean() == dropped
    assert (hard - soft).abs().min() > 1e-4  # it matters which


def test_the_learner_comes_to_say_alone_what_the_teacher_says_in_two_passes():
    torch.manual_seed(0)
    ids, text = make_ids(16), make_context(16)
    model = tiny_maskgit(cond_drop_prob=0.3)
    train(model, lambda: model(ids, *text), steps=60)
    teacher = GuidedTeacher(model, cond_scale=3.0)
    masked = torch.rand(ids.shape) < 0.5
    said = teacher(ids, masked, *text)

    def apart():
        with torch.no_grad():
            return F.mse_loss(model.eval().logits(ids, masked, *text)[masked].softmax(-1), said.softmax(-1)).item()

    before, taught = apart(), state(teacher)
    model.train()
    train(model, lambda: model(ids, *text, teacher=teacher), steps=150)
    assert apart() < before / 4
    assert same_state(taught, state(teacher)) and torch.equal(teacher(ids, masked, *text), said)


def test_the_teacher_has_no_mode_but_eval_and_no_gradient():
    teacher = GuidedTeacher(tiny_maskgit(attn_dropout=0.5), cond_scale=2.0).train()
    assert not any(part.training for part in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    model = tiny_maskgit()
    model(make_ids(), *make_context(), teacher=teacher).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_phenaki_hands_it_on_and_the_critic_learns_as_ever():
    model, ids, (embeds, mask) = tiny_phenaki(critic=SelfCritic), make_ids(), make_context()
    teacher = GuidedTeacher(model.maskgit, cond_scale=4.0)
    parts = []
    for given in (None, teacher):
        torch.manual_seed(1)
        parts.append(model.losses(video_ids=ids, text_embeds=embeds, text_mask=mask, teacher=given))
    assert parts[0].maskgit != parts[1].maskgit and torch.equal(parts[0].critic, parts[1].critic)
    torch.manual_seed(1)
    again = model(video_ids=ids, text_embeds=embeds, text_mask=mask, teacher=teacher)
    torch.testing.assert_close(again, parts[1].total)


def test_under_autocast_it_learns():
    model, ids, text = tiny_maskgit(), make_ids(), make_context()
    teacher = GuidedTeacher(model, cond_scale=3.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, *text, teacher=teacher)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: GuidedTeacher(tiny_maskgit(dim_context=None), cond_scale=2.0), "unconditional one: there is nothing"),
        (lambda: GuidedTeacher(tiny_maskgit(), cond_scale=-1.0), r"cond_scale must be at least 0, got -1\.0"),
        (lambda: GuidedTeacher(tiny_maskgit(), cond_scale=float("nan")), "cond_scale must be finite, got nan"),
    ],
)
def test_teachers_that_cannot_be(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "changes, text, message",
    [
        ({"num_tokens": 16}, (2, 3, 12), "teacher's num_tokens must be the learner's, 32, got 16"),
        ({"dim_context": 8}, (2, 3, 12), "teacher's dim_context must be the learner's, 12, got 8"),
        ({"grid": (3, 2, 2)}, (2, 3, 12), r"must fit in the window \(3, 2, 2\), got \(6, 2, 2\)"),
        ({}, (3, 3, 12), "the context has a batch of 3, expected 2"),
    ],
)
def test_teachers_that_do_not_fit(changes, text, message):
    teacher = GuidedTeacher(tiny_maskgit(**changes), cond_scale=2.0)
    with pytest.raises(ValueError, match=message):
        tiny_maskgit()(make_ids(), torch.randn(text), teacher=teacher)


def test_a_model_itself_is_no_teacher():
    model = tiny_maskgit()
    with pytest.raises(TypeError):
        model(make_ids(), *make_context(), teacher=model)
    with pytest.raises(ValueError, match="teacher's dim_context must be the learner's, None, got 12"):
        tiny_maskgit(dim_context=None)(make_ids(), teacher=GuidedTeacher(model, cond_scale=2.0))
