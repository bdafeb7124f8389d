"""DDPM and DDIM: from noise to latents, as functions over any callable that predicts the noise; and their guidance.

    DDPM    x_{k−1} ~ N((x_k − β_k / √(1 − ᾱ_k) · ε) / √(1 − β_k), σ²_k)         https://arxiv.org/abs/2006.11239
    DDIM    x_{k−1} ~ N(√ᾱ_{k−1} · x_0 + √(1 − ᾱ_{k−1} − σ²) · ε, σ²)            https://arxiv.org/abs/2010.02502
            x_0 = (x_k − √(1 − ᾱ_k) · ε) / √ᾱ_k, not clipped

Given first time steps of the latents can be pinned: a clip is continued, or an image animated. At each sampling step
they take the place of the sample's, with new noise, as much as the sample has then. This is ours, not Latte's, and
needs no training of its own. The other time steps follow them better with more sampling steps, with more given, and
with `resamples`: a step is undone by new noise and taken again, as RePaint does for the unknown part of an image
(https://arxiv.org/abs/2201.09865, section 4.2, one step back at a time).

b = batch · t, h, w = grid of latents · e = channels of latents · s = given time steps
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from phenaki_pytorch.core.checks import check_at_least, check_finite, check_probabilities, check_scales, stepped
from phenaki_pytorch.core.contracts import Denoiser, Progress
from phenaki_pytorch.diffusion.process import (
    Diffusion,
    check_latents,
    check_output,
    computing_dtype,
    normal_like,
)

# process, k, x_k, ε and v (b, t, h, w, e) and the source of randomness -> x_{k−1}
Update = Callable[[Diffusion, int, Tensor, Tensor, Tensor, torch.Generator | None], Tensor]


def guided(model: Denoiser, cond_scale: float) -> Denoiser:
    """Classifier-free guidance: null + cond_scale · (cond − null) on all channels of ε; v is the conditional one.

    model       a denoiser of twice as many samples in one batch: first all with their conditions, then all without
    cond_scale  1 is no guidance, for which a model of the conditional half alone is half the work; Latte's is 7

    Ho and Salimans 2022, https://arxiv.org/abs/2207.12598. Raises ValueError for what is not finite or below 0.
    """
    check_scales(cond_scale=cond_scale)

    def guided_model(latents: Tensor, time: Tensor) -> Tensor:
        twice = torch.cat((latents, latents))
        output = model(twice, torch.cat((time, time)))
        check_output(output, twice)
        e = latents.shape[-1]
        cond, null = output.to(computing_dtype(output)).chunk(2)
        noise = torch.lerp(null[..., :e], cond[..., :e], cond_scale)  # exact at scales 0 and 1
        return torch.cat((noise, cond[..., e:]), dim=-1).to(output.dtype)

    return guided_model


def ddpm(
    model: Denoiser,
    noise: Tensor,
    *,
    diffusion: Diffusion,
    steps: int = 250,
    spacing: str = "linspace",
    prime_latents: Tensor | None = None,
    resamples: int = 1,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Sample latents (b, t, h, w, e) by ancestral sampling, with the variance that the model predicts.

    model          callable, see `Denoiser`; wrapped by `guided` for guidance. Without v the variance is β̃
    noise          (b, t, h, w, e), N(0, 1): what sampling starts from; it says dtype and device of all
    diffusion      the process that the model was trained with
    steps          of sampling, from 1 to all of the diffusion steps
    spacing        which diffusion steps they are, see `Diffusion.respaced`
    prime_latents  (b, s, h, w, e), s from 1 to t − 1: the first time steps, which stay as they are
    resamples      how often each sampling step but the last is taken where latents are given
    generator      source of all randomness after `noise`; on its device
    progress       tqdm, or anything that wraps the sampling steps

    Raises TypeError and ValueError for what does not fit, and (on the CPU) for outputs that are not finite.
    """
    process = diffusion.respaced(steps, spacing)
    return _sample(model, noise, process, ddpm_update, prime_latents, resamples, generator, progress)


def ddim(
    model: Denoiser,
    noise: Tensor,
    *,
    diffusion: Diffusion,
    steps: int = 50,
    spacing: str = "linspace",
    eta: float = 0.0,
    prime_latents: Tensor | None = None,
    resamples: int = 1,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Sample latents (b, t, h, w, e) by DDIM, which uses ε alone.

    eta    scale of the noise that each sampling step adds: 0, none, so that without `prime_latents` the result follows
           from `noise` alone; 1, as much as DDPM with the variance β̃
    other arguments, and errors, as in `ddpm`
    """
    check_probabilities(eta=eta)
    process = diffusion.respaced(steps, spacing)
    return _sample(model, noise, process, partial(ddim_update, eta=eta), prime_latents, resamples, generator, progress)


def ddpm_update(
    process: Diffusion, k: int, x: Tensor, noise: Tensor, v: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """One step of DDPM, from x_k to x_{k−1}, (b, t, h, w, e); v may have no channels. At k = 0 no noise is added."""
    mean = x / float(1 - process.betas[k]) ** 0.5 - float(process.mean_scales[k]) * noise
    if k == 0:
        return mean
    if v.shape[-1] == 0:
        deviation = float(process.posterior_variances[k]) ** 0.5
    else:
        deviation = torch.exp(0.5 * process.log_variance(v, _time_of(x, k)))
    return mean + deviation * normal_like(x, generator)


def ddim_update(
    process: Diffusion,
    k: int,
    x: Tensor,
    noise: Tensor,
    v: Tensor,
    generator: torch.Generator | None = None,
    *,
    eta: float = 0.0,
) -> Tensor:
    """One step of DDIM, from x_k to x_{k−1}, (b, t, h, w, e); v has no effect. At k = 0 no noise is added."""
    alpha_bar = float(process.alphas_bar[k])
    before = float(process.alphas_bar[k - 1]) if k > 0 else 1.0
    deviation = eta * ((1 - before) / (1 - alpha_bar) * (1 - alpha_bar / before)) ** 0.5
    x_0 = (x - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5
    mean = before**0.5 * x_0 + (1 - before - deviation**2) ** 0.5 * noise
    return mean if deviation == 0 else mean + deviation * normal_like(x, generator)


@torch.no_grad()
def _sample(
    model: Denoiser,
    noise: Tensor,
    process: Diffusion,
    update: Update,
    prime_latents: Tensor | None,
    resamples: int,
    generator: torch.Generator | None,
    progress: Progress | None,
) -> Tensor:
    """Run through all steps of a process, from the last to the first; arguments as in `ddpm`."""
    check_latents("noise", noise)
    check_at_least(1, resamples=resamples)
    x = noise.to(computing_dtype(noise), copy=True)  # rounding to fewer bits at each step would add up
    e, steps = x.shape[-1], process.num_steps
    if prime_latents is not None:
        prime_latents = _checked_prime(prime_latents, noise)
    for step in stepped(steps, progress):
        k = steps - 1 - step
        time = _time_of(x, k)
        for again in range(resamples if prime_latents is not None and k > 0 else 1):
            if again:
                beta = float(process.betas[k])
                x = (1 - beta) ** 0.5 * x + beta**0.5 * normal_like(x, generator)
            if prime_latents is not None:
                given = process.noised(prime_latents.to(x), time, normal_like(prime_latents, generator))
                x = torch.cat((given, x[:, given.shape[1] :]), dim=1)
            output = model(x.to(noise.dtype), process.model_time(time))
            check_output(output, x)
            check_finite("the model's output", output)
            output = output.to(x.dtype)
            x = update(process, k, x, output[..., :e], output[..., e:], generator)
    x = x.to(noise.dtype)
    return x if prime_latents is None else torch.cat((prime_latents, x[:, prime_latents.shape[1] :]), dim=1)


def _time_of(x: Tensor, k: int) -> Tensor:
    """The diffusion step k for each sample of x: int64 (b,)."""
    return torch.full((len(x),), k, dtype=torch.int64, device=x.device)


def _checked_prime(prime_latents: Tensor, noise: Tensor) -> Tensor:
    """The given latents, in the dtype and on the device of the noise."""
    check_latents("prime_latents", prime_latents)
    b, t, h, w, e = noise.shape
    s = prime_latents.shape[1]
    if prime_latents.shape != (b, s, h, w, e) or s >= t:
        raise ValueError(
            f"prime_latents must be ({b}, fewer than {t}, {h}, {w}, {e}), got {tuple(prime_latents.shape)}"
        )
    return prime_latents.to(noise)
