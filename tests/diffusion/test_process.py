"""The diffusion process: its tables, noised latents, respacing, and the range of the learned variance."""

import copy
import math

import pytest
import torch

from conftest import seed
from phenaki_pytorch.diffusion.process import Diffusion, linear_betas

SHAPE = (2, 3, 2, 2, 4)


def make_latents(*, b=2, dtype=torch.float32):
    """N(0, 1), always the same."""
    return torch.randn(b, *SHAPE[1:], dtype=torch.float64, generator=seed(1)).to(dtype)


def at(k, b=2):
    """The diffusion step k for each of b samples."""
    return torch.full((b,), k)


# tables


def test_the_default_schedule_is_linear_in_float64():
    process = Diffusion()
    assert process.num_steps == 1000 and process.betas.dtype == torch.float64
    assert process.betas[0] == 1e-4 and process.betas[-1] == 0.02
    torch.testing.assert_close(process.betas.diff(), torch.full((999,), 0.0199 / 999, dtype=torch.float64))
    assert process.alphas_bar[0].item() == pytest.approx(0.9999, abs=1e-12)
    assert process.alphas_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-5)
    assert torch.equal(process.times, torch.arange(1000))


def test_the_posterior_variance_is_the_papers_and_its_first_value_that_of_the_next_step():
    process, k = Diffusion(), 7
    bars = [math.prod(1 - beta for beta in process.betas[: i + 1].tolist()) for i in range(k + 1)]
    expected = process.betas[k].item() * (1 - bars[k - 1]) / (1 - bars[k])
    assert process.posterior_variances[k].item() == pytest.approx(expected, rel=1e-9)
    assert process.posterior_variances[0] == process.posterior_variances[1] > 0
    assert (process.posterior_variances[1:] < process.betas[1:]).all()


def test_the_schedule_may_be_another():
    process = Diffusion(betas=linear_betas(20, 0.01, 0.3).float())
    assert process.num_steps == 20 and process.betas.dtype == torch.float64
    assert Diffusion(betas=torch.tensor([0.5])).posterior_variances.item() == 0.5


def test_it_is_built_on_the_cpu_inside_other_device_contexts_and_can_be_copied():
    with torch.device("meta"):
        process = Diffusion().respaced(10)
    for same in (process, copy.deepcopy(process)):
        assert same.betas.device.type == same.times.device.type == same.alphas_bar.device.type == "cpu"
        assert torch.equal(same.alphas_bar, Diffusion().respaced(10).alphas_bar)


# respacing


@pytest.mark.parametrize(
    "steps, spacing, first, last",
    [
        (250, "linspace", [0, 4, 8], 999),
        (50, "linspace", [0, 20, 41], 999),
        (50, "leading", [0, 20, 40], 980),
        (3, "linspace", [0, 500, 999], 999),
        (3, "leading", [0, 333, 666], 666),
        (2, "linspace", [0, 999], 999),
        (1, "linspace", [999], 999),
        (1, "leading", [0], 0),
        (300, "leading", [0, 3, 6], 996),
        (1000, "linspace", [0, 1, 2], 999),
        (1000, "leading", [0, 1, 2], 999),
    ],
)
def test_respacing_keeps_these_steps(steps, spacing, first, last):
    times = Diffusion().respaced(steps, spacing).times
    assert len(times) == steps
    assert times[:3].tolist() == first and times[-1] == last


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_every_number_of_steps_is_possible_and_none_is_taken_twice(spacing):
    process = Diffusion()
    for steps in (*range(1, 30), 251, 333, 499, 500, 501, 667, 998, 999, 1000):
        respaced = process.respaced(steps, spacing)
        assert respaced.num_steps == steps
        assert (respaced.times.diff() > 0).all() and 0 <= respaced.times[0] <= respaced.times[-1] <= 999


@pytest.mark.parametrize("steps, last, largest", [(250, 0.077519, 0.080726), (50, 0.329809, 0.337315)])
def test_respaced_steps_have_the_noise_of_the_original_ones(steps, last, largest):
    process = Diffusion()
    respaced = process.respaced(steps)
    torch.testing.assert_close(respaced.alphas_bar, process.alphas_bar[respaced.times], rtol=1e-12, atol=0)
    assert respaced.betas[-1].item() == pytest.approx(last, abs=1e-6)
    assert respaced.betas.max().item() == pytest.approx(largest, abs=1e-6)
    assert respaced.posterior_variances[-1] > 2 * process.posterior_variances[-1]  # of the respaced β


def test_all_steps_are_the_process_itself_and_respacing_twice_works():
    process = Diffusion()
    torch.testing.assert_close(process.respaced(1000).betas, process.betas, rtol=1e-10, atol=0)
    assert process.respaced(250).respaced(2).times.tolist() == [0, 999]


def test_the_model_is_told_the_original_step():
    told = []

    def model(latents, time):
        told.append(time)
        return latents

    process, time = Diffusion().respaced(50), torch.tensor([0, 49])
    process.losses(model, make_latents(), time=time)
    assert told[0].tolist() == [0, 999] and told[0].dtype == torch.int64


# noised latents


def test_noised_latents_are_the_weighted_sum_of_each_samples_step():
    process, latents, noise = Diffusion(), make_latents(), torch.randn(SHAPE)
    noised = process.noised(latents, torch.tensor([3, 800]), noise)
    for i, k in enumerate((3, 800)):
        bar = process.alphas_bar[k].item()
        torch.testing.assert_close(noised[i], bar**0.5 * latents[i] + (1 - bar) ** 0.5 * noise[i])


def test_noised_latents_have_unit_variance_and_at_the_last_step_hold_almost_nothing_of_the_latents():
    process, latents, noise = Diffusion(), torch.randn(2, 10, 10, 10, 10), torch.randn(2, 10, 10, 10, 10)
    assert process.noised(latents, at(400), noise).var().item() == pytest.approx(1, abs=0.05)
    assert (process.noised(latents, at(999), noise) - noise).abs().max() < 0.05
    assert (process.noised(latents, at(0), noise) - latents).abs().max() < 0.06


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noised_latents_of_few_bits_are_rounded_once(dtype):
    process, latents, noise = Diffusion(), make_latents(dtype=dtype), torch.randn(SHAPE)
    noised = process.noised(latents, at(300), noise)
    assert noised.dtype == dtype
    assert torch.equal(noised, process.noised(latents.float(), at(300), noise).to(dtype))


def test_noised_latents_in_float64_are_exact():
    process, latents, noise = Diffusion(), make_latents(dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    bar = process.alphas_bar[300]
    exact = bar.sqrt() * latents + (1 - bar).sqrt() * noise
    torch.testing.assert_close(process.noised(latents, at(300), noise), exact, rtol=1e-14, atol=1e-14)


# the variance


def test_the_variance_lies_between_the_posterior_variance_and_beta():
    for process in (Diffusion(), Diffusion().respaced(50)):
        n = process.num_steps
        v = torch.linspace(-1, 1, n * 5, dtype=torch.float64).reshape(n, 1, 1, 1, 5)[torch.randperm(n)]
        variance = process.log_variance(v, torch.arange(n)).exp().flatten(1)
        lowest, highest = process.posterior_variances[:, None], process.betas[:, None]
        assert (variance >= lowest * (1 - 1e-12)).all() and (variance <= highest * (1 + 1e-12)).all()


def test_v_is_the_share_of_log_beta():
    process, time = Diffusion(), torch.tensor([0, 1, 400])
    low, high = process.posterior_variances[time].log(), process.betas[time].log()
    for v, share in ((-1, 0.0), (0, 0.5), (1, 1.0), (3, 2.0)):
        expected = share * high + (1 - share) * low
        full = torch.full((3, 1, 1, 1, 1), float(v), dtype=torch.float64)
        torch.testing.assert_close(process.log_variance(full, time).flatten(), expected)


# errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Diffusion(betas=torch.tensor([0.1, 1.0])), r"betas must be \(n,\).*each in \(0, 1\), got \(2,\)"),
        (lambda: Diffusion(betas=torch.tensor([0.0, 0.1])), r"each in \(0, 1\)"),
        (lambda: Diffusion(betas=torch.tensor([torch.nan])), r"each in \(0, 1\), got \(1,\) tensor\(\[nan"),
        (lambda: Diffusion(betas=torch.full((1, 2), 0.1)), r"betas must be \(n,\).*got \(1, 2\)"),
        (lambda: Diffusion(betas=torch.zeros(0)), r"n at least 1.*got \(0,\)"),
        (lambda: Diffusion(times=torch.arange(3)), r"times must be int64 \(1000,\), got torch.int64 \(3,\)"),
        (lambda: Diffusion(times=torch.zeros(1000)), r"times must be int64 \(1000,\), got torch.float32"),
        (lambda: Diffusion().respaced(0), "steps must be from 1 to 1000, got 0"),
        (lambda: Diffusion().respaced(50).respaced(51), "steps must be from 1 to 50, got 51"),
        (lambda: Diffusion().respaced(5, "cosine"), r"spacing must be one of \('linspace', 'leading'\), got 'cosine'"),
    ],
)
def test_wrong_processes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
