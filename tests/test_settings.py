"""The settings of a generation: guidance and critic for a part of the steps, and those that are refused."""

import pytest
import torch
from torch import nn

from conftest import make_context, make_ids, seed, tiny_maskgit, tiny_phenaki, tiny_token_critic
from phenaki_pytorch import MaskGit, SelfCritic

GRID = (6, 2, 2)


def batches_of(model, *, steps=8, **options):
    """How many contexts go through MaskGit's last block in each step, over how many samples; and the ids."""
    torch.manual_seed(0)
    seen, (context, context_mask) = [], make_context()
    hook = model.transformer.blocks[-1].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    ids = model.generate(context=context, context_mask=context_mask, steps=steps, generator=seed(), **options)
    hook.remove()
    return [count // len(context) for count in seen], ids


@pytest.mark.parametrize("until, guided", [(0.0, 0), (0.1, 1), (0.5, 4), (0.51, 5), (1.0, 8)])
def test_so_many_of_the_first_steps_are_guided(until, guided):
    passes, _ = batches_of(tiny_maskgit(), cond_scale=3.0, guided_until=until)
    assert passes == [2] * guided + [1] * (8 - guided)


def test_guided_steps_are_those_of_the_scale_and_the_others_those_of_scale_1():
    model, ids, (context, context_mask) = tiny_maskgit().eval(), make_ids().flatten(1), make_context()
    masked = torch.rand(ids.shape) < 0.5

    def at(progress, scale, until=1.0):
        return model.guided_logits(GRID, context, context_mask, scale, until)(ids, masked, None, progress)

    with torch.no_grad():
        assert not torch.allclose(at(0.0, 3.0), at(0.0, 1.0))
        for progress in (0.0, 0.25):
            torch.testing.assert_close(at(progress, 3.0, 0.5), at(progress, 3.0))
        for progress in (0.5, 0.75):
            torch.testing.assert_close(at(progress, 3.0, 0.5), at(progress, 1.0))


def test_guidance_of_all_steps_or_none_is_what_it_was_with_a_scale_alone():
    model = tiny_maskgit()
    drawn = {until: batches_of(model, cond_scale=6.0, guided_until=until)[1] for until in (0.0, 0.5, 1.0)}
    assert torch.equal(drawn[1.0], batches_of(model, cond_scale=6.0)[1])
    assert torch.equal(drawn[0.0], batches_of(model, cond_scale=1.0)[1])
    assert not torch.equal(drawn[0.5], drawn[0.0]) and not torch.equal(drawn[0.5], drawn[1.0])


@pytest.mark.parametrize("build", [SelfCritic, lambda _: tiny_token_critic()])
def test_a_critic_that_never_starts_is_none_and_one_that_starts_at_once_the_usual_one(build):
    model = tiny_maskgit()
    critic = build(model)
    nn.init.normal_(critic.to_logits.weight, std=3.0)
    drawn = {start: batches_of(model, critic=critic, critic_from=start)[1] for start in (0.0, 0.5, 1.0)}
    assert torch.equal(drawn[1.0], batches_of(model)[1])
    assert torch.equal(drawn[0.0], batches_of(model, critic=critic)[1])
    assert not torch.equal(drawn[0.5], drawn[0.0]) and not torch.equal(drawn[0.5], drawn[1.0])


def test_half_of_the_steps_guided_and_the_critic_after_them_take_as_many_passes_as_guided_steps():
    model = tiny_maskgit()
    halves = {"critic": SelfCritic(model), "cond_scale": 2.0, "guided_until": 0.5, "critic_from": 0.5}
    assert batches_of(model, **halves)[0] == [2, 2, 2, 2, *(1, 1) * 3, 1, 1]


def calls(model):
    """Everything that generates with a text."""
    return [
        lambda **options: model.generate("a", num_frames=12, **options),
        lambda **options: model.generate_images("a", **options),
        lambda **options: model.generate_story(["a", "b"], num_frames=6, **options)[0],
    ]


def test_whatever_generates_passes_all_settings_on(monkeypatch):
    settings = {"steps": 3, "cond_scale": 2.0, "temperature": 5.0, "token_temperature": (1.5, 0.5), "critic_scale": 3.0}
    settings |= {"guided_until": 0.4, "critic_from": 0.6}
    model, passed, inside = tiny_phenaki(critic=SelfCritic), [], MaskGit.generate
    monkeypatch.setattr(MaskGit, "generate", lambda *args, **kw: passed.append(kw) or inside(*args, **kw))
    for call in calls(model):
        passed.clear()
        call(**settings)
        assert passed and all(settings.items() <= each.items() for each in passed)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("steps", 0, "at least 1, got 0"),
        ("cond_scale", -1.0, "at least 0, got -1"),
        ("temperature", -1.0, "at least 0, got -1"),
        ("critic_scale", -1.0, "at least 0, got -1"),
        ("token_temperature", 0.0, "above 0"),
        ("cond_scale", float("nan"), "finite, got nan"),
        ("temperature", float("inf"), "finite, got inf"),
        ("critic_scale", float("inf"), "finite, got inf"),
        ("token_temperature", (1.0, float("nan")), "above 0"),
        ("token_temperature", float("inf"), "above 0"),
        ("guided_until", -0.1, r"lie in \[0, 1\], got -0.1"),
        ("guided_until", 1.1, r"lie in \[0, 1\], got 1.1"),
        ("critic_from", -0.1, r"lie in \[0, 1\], got -0.1"),
        ("critic_from", float("nan"), r"lie in \[0, 1\], got nan"),
    ],
)
def test_lawless_settings_are_refused_before_any_text_is_read(name, value, message):
    model = tiny_phenaki()
    for call in (*calls(model), tiny_maskgit(dim_context=None).generate):
        with pytest.raises(ValueError, match=f"{name} must.*{message}"):
            call(**{name: value})
    assert model.text_encoder.calls == []


@pytest.mark.parametrize("name", ["guided_until", "critic_from"])
def test_settings_of_another_type_are_refused(name):
    with pytest.raises(TypeError):
        tiny_maskgit(dim_context=None).generate(**{name: "half"})
