"""The settings of a generation: that they are passed on, and which are refused."""

import pytest

from conftest import tiny_maskgit, tiny_phenaki
from phenaki_pytorch import MaskGit, SelfCritic


def calls(model):
    """Everything that generates with a text."""
    return [
        lambda **options: model.generate("a", num_frames=12, **options),
        lambda **options: model.generate_images("a", **options),
        lambda **options: model.generate_story(["a", "b"], num_frames=6, **options)[0],
    ]


def test_whatever_generates_passes_all_settings_on(monkeypatch):
    settings = {"steps": 3, "cond_scale": 2.0, "temperature": 5.0, "token_temperature": (1.5, 0.5), "critic_scale": 1.0}
    settings |= {"guide_every": 2, "critic_inline": True}
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
        ("guide_every", 0, "at least 1, got 0"),
    ],
)
def test_lawless_settings_are_refused_before_any_text_is_read(name, value, message):
    model = tiny_phenaki()
    for call in (*calls(model), tiny_maskgit(dim_context=None).generate):
        with pytest.raises(ValueError, match=f"{name} must.*{message}"):
            call(**{name: value})
    assert model.text_encoder.calls == []


def test_settings_that_exclude_each_other_are_refused():
    for call in calls(tiny_phenaki(critic=SelfCritic)):
        with pytest.raises(ValueError, match=r"with critic_inline, critic_scale must be 1, got 2\.0"):
            call(critic_inline=True, critic_scale=2.0)


@pytest.mark.parametrize("name, value", [("guide_every", 1.5), ("guide_every", "half"), ("critic_inline", 1)])
def test_settings_of_another_type_are_refused(name, value):
    with pytest.raises(TypeError):
        tiny_maskgit(dim_context=None).generate(**{name: value})
