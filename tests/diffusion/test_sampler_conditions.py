"""What a sample is told: classifier-free guidance, and given latents that are pinned."""

from itertools import pairwise

import pytest
import torch
from sampler_models import SHAPE, Recorder, bars, every_sampler, make_noise, sampled

from conftest import seed
from phenaki_pytorch.diffusion.samplers import ddim, ddpm, guided

# guidance


def conditional(latents, time):
    """A model of a batch whose first half is conditional."""
    half = len(latents) // 2
    sign = torch.cat((torch.ones(half), -torch.ones(half))).reshape(-1, 1, 1, 1, 1).to(latents)
    return torch.cat((latents.sin() + sign * latents, sign * latents.cos()), dim=-1)


def halves(latents, time):
    return conditional(torch.cat((latents, latents)), torch.cat((time, time))).chunk(2)


def test_guidance_of_1_is_the_conditional_output_and_of_0_has_the_unconditional_noise():
    latents, time = make_noise(), torch.tensor([3, 500])
    cond, null = halves(latents, time)
    assert torch.equal(guided(conditional, 1.0)(latents, time), cond)
    assert torch.equal(guided(conditional, 0.0)(latents, time)[..., :4], null[..., :4])
    assert not torch.equal(cond, null)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 7.0, 50.0])
def test_all_channels_of_the_noise_are_guided_and_v_stays_the_conditional_one(scale):
    latents, time = make_noise(), torch.tensor([3, 500])
    cond, null = halves(latents, time)
    output = guided(conditional, scale)(latents, time)
    expected = null[..., :4] + scale * (cond - null)[..., :4]
    torch.testing.assert_close(output[..., :4], expected)
    assert torch.equal(output[..., 4:], cond[..., 4:])
    changed = (output - cond)[..., :4].abs().amax(dim=(0, 1, 2, 3)) > 0
    assert changed.all() if scale != 1 else not changed.any()


def test_both_halves_read_the_same_latents_in_one_batch():
    seen = []

    def model(latents, time):
        seen.append((latents, time))
        return conditional(latents, time)

    sampled(ddpm, model=guided(model, 7.0), steps=3)
    assert len(seen) == 3
    for latents, time in seen:
        assert len(latents) == len(time) == 4
        assert torch.equal(latents[:2], latents[2:]) and torch.equal(time[:2], time[2:])


@every_sampler
def test_a_guided_sample_depends_on_the_scale_and_at_1_is_the_conditional_one(sampler):
    plain = sampled(sampler, model=lambda latents, time: halves(latents, time)[0])
    assert torch.equal(sampled(sampler, model=guided(conditional, 1.0)), plain)
    assert not torch.equal(sampled(sampler, model=guided(conditional, 2.0)), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_guidance_keeps_the_dtype_and_works_without_v(dtype):
    latents, time = make_noise(dtype=dtype), torch.tensor([3, 500])
    output = guided(lambda x, t: conditional(x, t)[..., :4], 3.0)(latents, time)
    assert output.dtype == dtype and output.shape == SHAPE
    assert torch.equal(output, guided(conditional, 3.0)(latents, time)[..., :4])


# pinned latents


@every_sampler
@pytest.mark.parametrize("s", [1, 2])
def test_given_latents_are_noised_to_the_level_of_each_step_and_come_back_exactly(sampler, s):
    model, prime = Recorder(), 3 + make_noise(8)[:, :s]
    result = sampled(sampler, model=model, steps=10, prime_latents=prime)
    assert torch.equal(result[:, :s], prime) and result.shape == SHAPE
    drawn = []
    for latents, time in zip(model.latents, model.times):
        bar = bars(time)
        drawn.append((latents[:, :s] - bar.sqrt() * prime) / (1 - bar).sqrt())
    drawn = torch.stack(drawn)
    # Noise of N(0, 1) has been added at every step, other noise each time.
    assert drawn.mean().abs() < 0.3 and 0.75 < drawn.std() < 1.25
    assert all((one - other).abs().max() > 0.1 for one, other in pairwise(drawn))


def sum_of_time_steps(latents, time):
    """A model for latents that are the same at all time steps, N(0, 1): what it predicts depends on all of them."""
    bar, t = bars(time), latents.shape[1]
    value = bar.sqrt() * latents.sum(dim=1, keepdim=True) / (1 + (t - 1) * bar)
    return (latents - bar.sqrt() * value) / (1 - bar).sqrt()


@every_sampler
def test_the_other_latents_follow_those_given(sampler):
    prime = make_noise(8, shape=(500, 3, 1, 1, 1))[:, :1].expand(-1, 3, -1, -1, -1)
    noise = make_noise(shape=(500, 4, 1, 1, 1))
    last = sampled(sampler, model=sum_of_time_steps, noise=noise, steps=50, prime_latents=prime)[:, 3]
    alone = sampled(sampler, model=sum_of_time_steps, noise=noise, steps=50)[:, 3]
    assert (last - prime[:, 0]).abs().mean() < 0.1
    assert (alone - prime[:, 0]).abs().mean() > 0.5


@every_sampler
def test_with_few_steps_the_other_latents_follow_better_when_steps_are_taken_again(sampler):
    prime = make_noise(8, shape=(500, 1, 1, 1, 1))
    options = {"model": sum_of_time_steps, "noise": make_noise(shape=(500, 2, 1, 1, 1)), "steps": 10}
    errors = []
    for resamples in (1, 5):
        result = sampled(sampler, prime_latents=prime, resamples=resamples, **options)
        assert torch.equal(result[:, :1], prime)
        errors.append((result[:, 1:] - prime).abs().mean())
    assert errors[1] < 0.7 * errors[0]


@every_sampler
def test_steps_are_taken_again_only_where_latents_are_given(sampler):
    for given, calls in ({}, 4), ({"prime_latents": make_noise(8)[:, :1]}, 10):
        model = Recorder()
        sampled(sampler, model=model, steps=4, resamples=3, **given)
        assert len(model.times) == calls
    assert torch.equal(sampled(sampler, resamples=3), sampled(sampler))


def test_given_latents_take_the_dtype_of_the_noise():
    prime = make_noise(8, torch.float64)[:, :1]
    result = sampled(ddpm, noise=make_noise(dtype=torch.bfloat16), prime_latents=prime)
    assert result.dtype == torch.bfloat16 and torch.equal(result[:, :1], prime.bfloat16())


def test_given_latents_and_noise_stay_as_they_are():
    prime, noise = make_noise(8)[:, :1], make_noise()
    sampled(ddpm, noise=noise, prime_latents=prime)
    assert torch.equal(noise, make_noise()) and torch.equal(prime, make_noise(8)[:, :1])


def test_pinned_ddim_without_noise_repeats_with_the_same_generator():
    options = {"prime_latents": make_noise(8)[:, :1]}
    state = torch.get_rng_state()
    one, again, other = (sampled(ddim, generator=seed(number), **options) for number in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("scale", [-1.0, float("inf"), float("nan")])
def test_wrong_scales_of_guidance_are_refused(scale):
    with pytest.raises(ValueError, match=f"cond_scale must be finite and at least 0, got {scale}"):
        guided(conditional, scale)


def test_a_guided_model_of_half_the_batch_is_refused():
    with pytest.raises(ValueError, match=r"output must be \(4, 3, 2, 2, 8\).*got \(2, 3, 2, 2, 8\)"):
        sampled(ddpm, model=guided(lambda x, t: conditional(x, t)[:2], 2.0))
