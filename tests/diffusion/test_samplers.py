"""DDPM and DDIM: equal to diffusers' schedulers; what they sample, their randomness, dtypes and errors."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from sampler_models import (
    PROCESS,
    SAMPLERS,
    SHAPE,
    Recorder,
    bars,
    every_sampler,
    exact_noise,
    make_noise,
    noisy_samplers,
    sampled,
)

from conftest import seed
from phenaki_pytorch.diffusion.samplers import ddim, ddim_update, ddpm, ddpm_update

# against diffusers

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False}


def relative(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def some_steps(process):
    """Original diffusion steps and their indices, from the last to the first, at most 30."""
    stride = -(-process.num_steps // 28)
    kept = sorted({0, 1, process.num_steps - 1, *range(0, process.num_steps, stride)}, reverse=True)
    return [(k, process.times[k].item()) for k in kept]


@pytest.mark.parametrize("steps", [1000, 250, 50])
def test_ddpm_steps_are_those_of_diffusers(steps):
    scheduler = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace", **BETAS)
    scheduler.set_timesteps(steps)
    process = PROCESS.respaced(steps)
    assert scheduler.timesteps.flip(0).tolist() == process.times.tolist()
    for k, time in some_steps(process):
        # With one channel its layout (b, e, t, h, w) has the order of ours, so that the same noise is drawn.
        x, noise, v = (make_noise(number, shape=(2, 3, 4, 4, 1)) for number in range(3))
        v = v.clamp(-1, 1)
        got = ddpm_update(process, k, x, noise, v, seed(4))
        output = torch.cat((noise, v), dim=-1).movedim(-1, 1)
        expected = scheduler.step(output, time, x.movedim(-1, 1), generator=seed(4)).prev_sample.movedim(1, -1)
        assert relative(got, expected) < 6e-5
        assert k == 0 or relative(ddpm_update(process, k, x, noise, v, seed(5)), expected) > 1e-3


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_steps_are_those_of_diffusers(eta):
    scheduler = DDIMScheduler(set_alpha_to_one=True, **BETAS)
    scheduler.set_timesteps(50)
    process = PROCESS.respaced(50, "leading")
    assert scheduler.timesteps.flip(0).tolist() == process.times.tolist()
    for k, time in some_steps(process):
        x, noise = (make_noise(number, shape=(2, 3, 4, 4, 1)) for number in range(2))
        got = ddim_update(process, k, x, noise, noise, seed(4), eta=eta)
        step = scheduler.step(noise.movedim(-1, 1), time, x.movedim(-1, 1), eta=eta, generator=seed(4))
        assert relative(got, step.prev_sample.movedim(1, -1)) < 1e-6


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_ddim_sample_is_that_of_diffusers(eta):
    scheduler, model = DDIMScheduler(set_alpha_to_one=True, **BETAS), Recorder(learned_variance=False)
    scheduler.set_timesteps(50)
    noise, generator = make_noise(shape=(2, 3, 4, 4, 1)), seed(3)
    x = noise.movedim(-1, 1)
    for time in scheduler.timesteps:
        output = model(x.movedim(1, -1), time.expand(2)).movedim(-1, 1)
        x = scheduler.step(output, time, x, eta=eta, generator=generator).prev_sample
    got = ddim(model, noise, diffusion=PROCESS, steps=50, spacing="leading", eta=eta, generator=seed(3))
    assert relative(got, x.movedim(1, -1)) < 1e-5


# what is sampled


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_a_model_that_knows_the_latents_gives_them_without_clipping(sampler, steps, spacing):
    latents = 5 * make_noise(7, torch.float64)
    result = sampled(
        sampler, model=exact_noise(latents), noise=make_noise(dtype=torch.float64), steps=steps, spacing=spacing
    )
    torch.testing.assert_close(result, latents, rtol=1e-9, atol=1e-9)
    assert latents.abs().max() > 5


@every_sampler
def test_samples_have_the_distribution_that_the_model_knows(sampler):
    mean, deviation = 0.7, 0.5  # of a normal distribution

    def model(x, time):
        bar = bars(time)
        return (1 - bar).sqrt() * (x - bar.sqrt() * mean) / (bar * deviation**2 + 1 - bar)

    result = sampled(sampler, model=model, noise=make_noise(shape=(10_000, 1, 1, 1, 1)), steps=250)
    assert result.mean().item() == pytest.approx(mean, abs=0.02)
    assert result.std().item() == pytest.approx(deviation, abs=0.02)


@every_sampler
@pytest.mark.parametrize("steps, times", [(4, [999, 666, 333, 0]), (1, [999])])
def test_the_model_reads_the_original_steps_from_the_last_to_the_first(sampler, steps, times):
    model = Recorder()
    sampled(sampler, model=model, steps=steps)
    assert [time.tolist() for time in model.times] == [[time, time] for time in times]
    assert all(time.dtype == torch.int64 for time in model.times)
    assert torch.equal(model.latents[0], make_noise())


def test_the_number_of_steps_is_250_for_ddpm_and_50_for_ddim_by_default():
    for sampler, steps in ((ddpm, 250), (ddim, 50)):
        model = Recorder()
        sampler(model, make_noise(), diffusion=PROCESS)
        assert len(model.times) == steps and model.times[0][0] == 999


def test_ddim_without_noise_repeats_bit_for_bit_and_draws_none():
    generator = seed(3)
    state, global_state = generator.get_state(), torch.get_rng_state()
    one, other = (sampled(ddim, generator=generator) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(generator.get_state(), state) and torch.equal(torch.get_rng_state(), global_state)
    assert not torch.equal(one, sampled(ddim, noise=make_noise(1)))
    assert not torch.equal(one, sampled(ddim, eta=0.5))


def test_ddim_ignores_v_and_ddpm_does_not():
    for sampler, same in ((ddim, True), (SAMPLERS["ddim with noise"], True), (ddpm, False)):
        with_v, without = (sampled(sampler, model=Recorder(learned)) for learned in (True, False))
        assert torch.equal(with_v, without) == same


def test_no_noise_is_added_at_step_0():
    x, noise, v = (make_noise(number) for number in range(3))
    generator = seed()
    state = generator.get_state()
    for update, options in ((ddpm_update, {}), (ddim_update, {"eta": 1.0})):
        one, other = (update(PROCESS, 0, x, noise, v, generator, **options) for _ in range(2))
        assert torch.equal(one, other) and torch.equal(generator.get_state(), state)
        one, other = (update(PROCESS, 1, x, noise, v, generator, **options) for _ in range(2))
        assert not torch.equal(one, other)
        generator.set_state(state)


def test_without_v_ddpm_is_ddim_with_all_its_noise():
    one, other = (sampled(SAMPLERS[name], model=Recorder(False), steps=20) for name in ("ddpm", "ddim with noise"))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("v", [-1.0, 1.0])
def test_the_noise_of_ddpm_has_the_predicted_variance(v):
    process = PROCESS.respaced(50)
    zeros = torch.zeros(20_000, 1, 1, 1, 1)
    for k in (1, 25, 49):
        added = ddpm_update(process, k, zeros, zeros, zeros + v, seed())
        expected = (process.betas if v == 1 else process.posterior_variances)[k].item()
        assert added.var().item() == pytest.approx(expected, rel=0.04)


# randomness, gradients, dtypes


@noisy_samplers
@pytest.mark.parametrize("pinned", [False, True])
def test_all_randomness_is_the_generators(sampler, pinned):
    options = {"prime_latents": make_noise(8)[:, :1]} if pinned else {}
    state = torch.get_rng_state()
    one, again, other = (sampled(sampler, generator=seed(number), **options) for number in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    sampler(Recorder(), make_noise(), diffusion=PROCESS, steps=5)
    assert not torch.equal(torch.get_rng_state(), state)


@every_sampler
def test_no_gradients_are_kept(sampler):
    layer, on = torch.nn.Linear(4, 8), []
    result = sampled(sampler, model=lambda latents, _: on.append(torch.is_grad_enabled()) or layer(latents).tanh())
    assert not result.requires_grad and on == [False] * 5 and torch.is_grad_enabled()


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_model_and_result_have_the_dtype_of_the_noise(sampler, dtype):
    model = Recorder()
    noise = make_noise(dtype=dtype)
    result = sampled(sampler, model=model, noise=noise, steps=10)
    assert result.dtype == dtype and all(latents.dtype == dtype for latents in model.latents)
    assert result.isfinite().all()


@every_sampler
def test_samples_are_on_the_device_of_the_noise(sampler):
    noise, prime = make_noise().to("meta"), make_noise()[:, :1]
    result = sampler(Recorder(), noise, diffusion=PROCESS, steps=3, prime_latents=prime)
    assert result.device.type == "meta" and result.shape == SHAPE


def test_between_the_steps_nothing_is_rounded_to_the_dtype_of_the_noise():
    noise = make_noise(dtype=torch.bfloat16)
    # Over 500 steps, rounding to 8 bits at each would add up to far more than one rounding.
    result = sampled(ddim, model=lambda latents, _: torch.zeros_like(latents), noise=noise, steps=500)
    expected = noise.double() / PROCESS.alphas_bar[-1].sqrt()
    torch.testing.assert_close(result.double(), expected, rtol=2**-8, atol=0)


@every_sampler
def test_outputs_of_another_dtype_are_taken(sampler):
    layer = torch.nn.Linear(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        result = sampled(sampler, model=lambda latents, _: layer(latents).tanh())
    exact = sampled(sampler, model=lambda latents, _: layer(latents).tanh())
    assert result.dtype == torch.float32
    assert relative(result, exact) < 0.05 and not torch.equal(result, exact)


# progress and errors


@every_sampler
def test_progress_wraps_the_sampling_steps(sampler):
    seen = []

    def progress(steps):
        for step in steps:
            seen.append(step)
            yield step

    assert torch.equal(sampled(sampler, progress=progress), sampled(sampler))
    assert seen == [0, 1, 2, 3, 4]


@every_sampler
@pytest.mark.parametrize(
    "progress",
    [
        lambda steps: [*steps][:-1],
        lambda steps: [*steps][::-1],
        lambda steps: itertools.cycle(steps),
        lambda steps: itertools.repeat(0),
        enumerate,
    ],
)
def test_progress_that_changes_the_steps_is_refused(sampler, progress):
    with pytest.raises(ValueError, match="progress must yield the 5 steps that it is given, in order, got "):
        sampled(sampler, progress=progress)


WRONG = [
    ({"steps": 0}, ValueError, "steps must be from 1 to 1000, got 0"),
    ({"steps": 1001}, ValueError, "steps must be from 1 to 1000, got 1001"),
    ({"steps": 2.5}, TypeError, "steps"),
    ({"spacing": "even"}, ValueError, r"spacing must be one of \('linspace', 'leading'\), got 'even'"),
    ({"noise": torch.zeros(SHAPE[1:])}, ValueError, r"noise must be \(b, t, h, w, e\).*got \(3, 2, 2, 4\)"),
    ({"noise": torch.zeros(SHAPE).long()}, TypeError, "noise must be floating point, got torch.int64"),
    ({"noise": torch.full(SHAPE, torch.nan)}, ValueError, "noise must be finite, got nan"),
    ({"prime_latents": torch.zeros(SHAPE)}, ValueError, r"must be \(2, fewer than 3, 2, 2, 4\), got \(2, 3, 2, 2, 4\)"),
    ({"prime_latents": torch.zeros(1, 1, 2, 2, 4)}, ValueError, r"prime_latents must be.*got \(1, 1, 2, 2, 4\)"),
    ({"prime_latents": torch.zeros(2, 0, 2, 2, 4)}, ValueError, r"prime_latents must be.*none empty"),
    ({"prime_latents": torch.full((2, 1, 2, 2, 4), torch.inf)}, ValueError, "prime_latents must be finite, got inf"),
    ({"prime_latents": torch.zeros(2, 1, 2, 2, 4).int()}, TypeError, "prime_latents must be floating point"),
    ({"model": lambda x, _: x[:1]}, ValueError, r"output must be \(2, 3, 2, 2, 8\) or .*, got \(1, 3, 2, 2, 4\)"),
    ({"model": lambda x, _: x * torch.nan}, ValueError, "the model's output must be finite, got nan"),
    ({"model": lambda x, _: (x, x)}, TypeError, "output"),
    ({"generator": 5}, TypeError, "generator"),
    ({"progress": 5}, TypeError, "progress"),
]


@every_sampler
@pytest.mark.parametrize("changes, kind, message", WRONG)
def test_wrong_arguments_are_refused(sampler, changes, kind, message):
    with pytest.raises(kind, match=message):
        sampled(sampler, **changes)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_must_lie_in_0_to_1(eta):
    with pytest.raises(ValueError, match=rf"eta must lie in \[0, 1\], got {eta}"):
        sampled(ddim, eta=eta)
