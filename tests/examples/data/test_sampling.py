"""The sampling options of programs and plans: their ranges, and those that have no effect on a model."""

import argparse

import pytest

from conftest import tiny_latte, tiny_phenaki, tiny_token_critic, tiny_videogpt
from data.flags import flag_of
from data.sampling import OPTIONS, SETTABLE, add_sampling, asked_sampling, check_sampling, planned_sampling
from phenaki_pytorch import SelfCritic
from phenaki_pytorch.diffusion.options import diffusion_options
from phenaki_pytorch.priors.autoregressive import raster_options
from phenaki_pytorch.priors.decoding import sampling_options


def ddim_options(given):
    return diffusion_options({"sampler": "ddim", **given})


@pytest.mark.parametrize(
    "flag, taken, refused",
    [
        ("steps", ["1", "48"], ["0", "-1", "1.5"]),
        ("guide-every", ["1", "3"], ["0", "-1", "1.5"]),
        ("cond-scale", ["0", "7.5"], ["-0.1"]),
        ("critic-scale", ["0", "2"], ["-0.1"]),
        ("temperature", ["0", "4"], ["-0.1"]),
        ("token-temperature", ["1e-6", "2"], ["0", "-1"]),
        ("top-k", ["1", "2048"], ["0", "-1", "1.5"]),
        ("top-p", ["1e-6", "1"], ["0", "-1", "1.1"]),
        ("eta", ["0", "1"], ["-1", "1.1"]),
        ("resamples", ["1", "5"], ["0", "-1", "1.5"]),
    ],
)
def test_programs_take_the_sampling_options_that_the_library_takes(capsys, flag, taken, refused):
    parser = argparse.ArgumentParser()
    add_sampling(parser)
    words = 2 if flag == "token-temperature" else 1
    kinds = {"top-k": raster_options, "top-p": raster_options, "eta": ddim_options, "resamples": ddim_options}
    options = kinds.get(flag, sampling_options)
    for text in taken:
        args = parser.parse_args([f"--{flag}", *[text] * words])
        options({name: value for name, value in asked_sampling(args).items() if value is not None})
    for text in [*refused, "nan", "inf"]:
        with pytest.raises(SystemExit):
            parser.parse_args([f"--{flag}", *[text] * words])
        assert f"--{flag}" in capsys.readouterr().err
        if text != "1.5":
            value = int(text) if text.lstrip("-").isdigit() else float(text)
            with pytest.raises((ValueError, TypeError)):
                options({flag.replace("-", "_"): value})


@pytest.mark.parametrize(
    "given, critic, dim_context, message",
    [
        ({"critic_scale": 2.0}, None, 12, "--critic-scale would have no effect on a model without a critic"),
        ({"critic_inline": False}, None, 12, "--critic-inline would have no effect on a model without a critic"),
        ({"cond_scale": 1.0}, None, None, "--cond-scale would have no effect on a model that reads no text"),
        ({"guide_every": 2}, None, None, "--guide-every would have no effect on a model that reads no text"),
        ({"guide_every": 2, "cond_scale": 1.0}, None, 12, "--guide-every would have no effect with --cond-scale 1"),
        ({"steps": 1, "temperature": 2.0}, None, 12, "--temperature would have no effect in a single step"),
        ({"critic_scale": 2.0}, lambda _: tiny_token_critic(dim_context=None), 12, "as the critic reads no text"),
        ({"critic_inline": True}, lambda _: tiny_token_critic(), 12, "--critic-inline needs a SelfCritic"),
        ({"critic_inline": True, "critic_scale": 2.0}, SelfCritic, 12, "critic_scale must be 1"),
    ],
)
def test_sampling_options_without_effect_on_a_model_are_refused(given, critic, dim_context, message):
    encoder = None if dim_context is None else lambda texts: None
    phenaki = tiny_phenaki(critic=critic, dim_context=dim_context, text_encoder=encoder)
    with pytest.raises(ValueError, match=message):
        check_sampling(given, planned_sampling({}) | given, phenaki)


@pytest.mark.parametrize(
    "prior, name", [(prior, name) for prior in OPTIONS for name in SETTABLE if name not in OPTIONS[prior]]
)
def test_sampling_options_of_other_models_are_refused(prior, name):
    model = {"maskgit": tiny_phenaki, "gpt": tiny_videogpt, "latte": tiny_latte}[prior]()
    with pytest.raises(ValueError, match=f"{flag_of(name)} would have no effect on a {type(model).__name__}"):
        check_sampling({name: 1}, planned_sampling({"prior": prior}), model)


def test_a_latte_is_guided_by_texts_and_by_classes():
    options = planned_sampling({"prior": "latte", "sampling_steps": 7}) | {"cond_scale": 2.0}
    assert options["steps"] == 7
    for conditions in ({"num_classes": 3}, {"dim_context": 5}):
        check_sampling({"cond_scale": 2.0}, options, tiny_latte(**conditions))
    with pytest.raises(ValueError, match="--cond-scale would have no effect on a model that reads no text"):
        check_sampling({"cond_scale": 2.0}, options, tiny_latte())


@pytest.mark.parametrize(
    "given, message",
    [
        ({"steps": 1001}, "steps must be from 1 to 1000, got 1001"),
        ({"steps": 1, "resamples": 3}, "--resamples would have no effect in a single step"),
    ],
)
def test_steps_that_a_latte_cannot_take_are_refused(given, message):
    options = planned_sampling({"prior": "latte"})
    check_sampling({}, options | {"steps": 1}, tiny_latte())
    check_sampling({}, options | {"steps": 1000, "resamples": 3}, tiny_latte())
    with pytest.raises(ValueError, match=message):
        check_sampling(given, options | given, tiny_latte())


def test_a_plan_asks_for_the_sampling_options_of_its_prior():
    plan = {"prior": "gpt", "temperature": 0.5, "top_k": 3, "sampling_steps": 7}
    assert planned_sampling(plan) == {"temperature": 0.5, "top_k": 3, "top_p": None, "cond_scale": 1.0}
    assert planned_sampling(plan | {"prior": "maskgit"})["steps"] == 7


def test_sampling_options_that_have_an_effect_are_taken():
    given = {"critic_inline": True, "guide_every": 2, "steps": 3, "temperature": 1.0}
    check_sampling(given, planned_sampling({}) | given, tiny_phenaki(critic=SelfCritic))
    check_sampling({}, planned_sampling({}) | {"steps": 1, "cond_scale": 1.0}, tiny_phenaki(dim_context=None))
