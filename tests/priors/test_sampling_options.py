"""SamplingOptions: all that generate take every option, and refuse wrong ones before any work."""

import pytest
import torch

from conftest import seed, tiny_maskgit, tiny_phenaki, tiny_token_critic
from phenaki_pytorch import MaskGit, SamplingOptions, SelfCritic
from phenaki_pytorch.priors import maskgit as module

CALLS = {
    "MaskGit.generate": lambda model, **sampling: model.maskgit.generate(
        context=torch.randn(1, 2, 12), critic=model.critic, **sampling
    ),
    "Phenaki.generate": lambda model, **sampling: model.generate(
        "a", num_frames=12, prime_frames=torch.rand(1, 3, 3, 16, 16), **sampling
    ),
    "generate_images": lambda model, **sampling: model.generate_images("a", **sampling),
    "generate_story": lambda model, **sampling: model.generate_story(["a", "b"], num_frames=6, **sampling),
}


def all_options():
    """A value for every option, none the default."""
    return {
        "steps": 2,
        "cond_scale": 2,  # an int where a float is expected
        "temperature": 5.0,
        "token_temperature": (1.5, 0.5),
        "guide_every": 2,
        "critic_inline": True,
        "critic_scale": 1.0,
        "generator": seed(),
        "progress": lambda passes: passes,
    }


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_option_is_taken_and_passed_to_maskgit(monkeypatch, call):
    options, used, inside = all_options(), [], module.sampling_options
    assert options.keys() == SamplingOptions.__annotations__.keys()
    monkeypatch.setattr(module, "sampling_options", lambda given: used.append(inside(given)) or used[-1])
    model = tiny_phenaki(critic=SelfCritic)
    for changes in ({}, {"critic_inline": False, "critic_scale": 3.0}):
        used.clear()
        call(model, **options | changes)
        assert used and all(each == options | changes for each in used)


WRONG = [
    ("step", 3, TypeError, "unknown sampling options step;.*steps"),
    ("steps", 2.5, TypeError, "steps"),
    ("cond_scale", "high", TypeError, "cond_scale"),
    ("temperature", None, TypeError, "temperature"),
    ("token_temperature", "1.0", TypeError, "token_temperature"),
    ("critic_scale", [1.0], TypeError, "critic_scale"),
    ("guide_every", 1.5, TypeError, "guide_every"),
    ("critic_inline", 1, TypeError, "critic_inline"),
    ("generator", 0, TypeError, "generator"),
    ("progress", True, TypeError, "progress"),
    ("steps", 0, ValueError, "steps must be at least 1, got 0"),
    ("cond_scale", -1.0, ValueError, "cond_scale must be finite and at least 0, got -1"),
    ("cond_scale", float("nan"), ValueError, "cond_scale must be finite.*got nan"),
    ("temperature", -1.0, ValueError, "temperature must be finite and at least 0, got -1"),
    ("temperature", float("inf"), ValueError, "temperature must be finite.*got inf"),
    ("critic_scale", -1.0, ValueError, "critic_scale must be finite and at least 0, got -1"),
    ("critic_scale", float("inf"), ValueError, "critic_scale must be finite.*got inf"),
    ("token_temperature", 0.0, ValueError, "token_temperature must be above 0, or two such numbers, got 0"),
    ("token_temperature", (1.0, -1.0), ValueError, r"token_temperature must be above 0.*got \(1.0, -1.0\)"),
    ("token_temperature", (1.0,), ValueError, r"token_temperature must be above 0.*got \(1.0,\)"),
    ("token_temperature", (1.0, float("nan")), ValueError, "token_temperature must be above 0.*nan"),
    ("token_temperature", float("inf"), ValueError, "token_temperature must be above 0.*inf"),
    ("guide_every", 0, ValueError, "guide_every must be at least 1, got 0"),
]


@pytest.fixture(scope="module")
def idle():
    """A model of which nothing but the checks of arguments works."""
    model = tiny_phenaki(critic=SelfCritic)
    model.cvivit.encoder = model.maskgit.transformer = model._texts.encoder = None
    return model


@pytest.mark.parametrize("name, value, kind, message", WRONG)
def test_wrong_options_are_refused_before_anything_is_encoded_or_sampled(idle, name, value, kind, message):
    for call in CALLS.values():
        with pytest.raises(kind, match=message):
            call(idle, **{name: value})


def test_critic_inline_and_a_critic_scale_exclude_each_other(idle):
    for call in CALLS.values():
        with pytest.raises(ValueError, match=r"with critic_inline, critic_scale must be 1, got 2\.0"):
            call(idle, critic_inline=True, critic_scale=2.0)


NO_CRITIC, BLIND = None, lambda maskgit: tiny_token_critic(dim_context=None)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "critic, name, value, message",
    [
        (NO_CRITIC, "critic_inline", True, "critic_inline needs a critic, got none"),
        (NO_CRITIC, "critic_scale", 2.0, r"critic_scale needs a critic, got 2\.0 without one"),
        (BLIND, "critic_scale", 0.0, r"this critic reads no text, so critic_scale must be 1, got 0\.0"),
    ],
)
def test_options_of_a_critic_that_could_have_no_effect_are_refused(call, critic, name, value, message):
    model = tiny_phenaki(critic=critic)
    model.cvivit.encoder = model.maskgit.transformer = model._texts.encoder = None
    with pytest.raises(ValueError, match=message):
        call(model, **{name: value})


def test_the_neutral_value_of_every_option_is_taken_by_every_model():
    neutral = {"critic_scale": 1.0, "critic_inline": False, "guide_every": 1, "cond_scale": 7.0, "steps": 1}
    model = tiny_phenaki(dim_context=None)
    assert model.generate(num_frames=1, **neutral).shape == (1, 3, 1, 16, 16)


@pytest.mark.parametrize("name", ["prime_frames", "text_embeds", "batch_size"])
def test_a_story_takes_no_other_arguments_of_generate(idle, name):
    with pytest.raises(TypeError, match=f"unknown sampling options {name}; expected steps"):
        idle.generate_story(["a"], num_frames=6, **{name: torch.rand(1, 3, 5, 16, 16)})


def test_options_that_are_not_given_are_the_papers(monkeypatch):
    used, inside = [], module.sampling_options
    monkeypatch.setattr(module, "sampling_options", lambda given: used.append(inside(given)) or used[-1])
    monkeypatch.setattr(module, "parallel_decode", lambda logits, ids, *_, **options: ids)
    MaskGit.generate(tiny_maskgit(dim_context=None))
    assert (used[0]["steps"], used[0]["cond_scale"], used[0]["temperature"]) == (24, 7.0, 4.0)
    assert (used[0]["token_temperature"], used[0]["guide_every"], used[0]["critic_inline"]) == (1.0, 1, False)
