"""The diffusion process: how noise is added to latents, and the losses of a model that predicts it.

    q(x_k | x_0) = N(√ᾱ_k · x_0, 1 − ᾱ_k)           Ho et al. 2020, https://arxiv.org/abs/2006.11239
    log σ²_k = v' · log β_k + (1 − v') · log β̃_k     v' = (v + 1) / 2, the model predicts ε and v
    L = L_simple + L_vlb                            Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672

A diffusion step is k here, t in the papers; the argument `time` holds those of a batch.

b = batch · t, h, w = grid of latents · e = channels of latents · n = diffusion steps of the process
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from phenaki_pytorch.core.checks import check_finite, check_mask, free_to_look
from phenaki_pytorch.core.contracts import Denoiser

# Which of n diffusion steps are kept, from the first on. `linspace` ends at the last one, n − 1, where nearly all is
# noise; `leading` begins at 0 and ends before n − 1, which matters with few steps.
SPACINGS: dict[str, Callable[[int, int], list]] = {
    "linspace": lambda steps, n: [round(i * (n - 1) / (steps - 1)) for i in range(steps)] if steps > 1 else [n - 1],
    "leading": lambda steps, n: [i * n // steps for i in range(steps)],
}


class DiffusionLosses(NamedTuple):
    """The loss of a model and its two parts."""

    total: Tensor  # simple + variational
    simple: Tensor  # mean squared error of ε; no gradient in v
    variational: Tensor  # bits per dimension; no gradient in ε; 0 for a model that predicts ε alone


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """The linear noise schedule, by default the one of DDPM, DiT and Latte: float64 (n,)."""
    return torch.linspace(first, last, steps, dtype=torch.float64, device="cpu")


class Diffusion:
    """A noise schedule and what follows from it. It has no parameters, and its tables stay float64 on the CPU.

    betas  (n,), each in (0, 1): the variance of the noise that each diffusion step adds; default: `linear_betas()`
    times  int64 (n,), what the model is told of each diffusion step; default: 0, 1, 2, ...

    Latents may have any floating dtype and be on any device; time is on the same device. All is computed in float32, or
    in float64 for latents of float64.

    Raises TypeError and ValueError for what does not fit.
    """

    def __init__(self, *, betas: Tensor | None = None, times: Tensor | None = None):
        betas = linear_betas() if betas is None else betas.to("cpu", torch.float64)
        if betas.ndim != 1 or len(betas) < 1 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError(f"betas must be (n,), n at least 1, each in (0, 1), got {tuple(betas.shape)} {betas}")
        times = torch.arange(len(betas), device="cpu") if times is None else times.to("cpu")
        if times.dtype != torch.int64 or times.shape != betas.shape:
            raise ValueError(f"times must be int64 ({len(betas)},), got {times.dtype} {tuple(times.shape)}")
        self.betas, self.times = betas, times
        self.alphas_bar = (1 - betas).cumprod(dim=0)  # ᾱ
        before = torch.cat((betas.new_ones(1), self.alphas_bar[:-1]))
        self.posterior_variances = betas * (1 - before) / (1 - self.alphas_bar)  # β̃
        # β̃_0 is 0 and has no logarithm, so that the next one stands for it.
        self.posterior_variances[0] = self.posterior_variances[1] if len(betas) > 1 else betas[0]
        # The mean of x_{k−1} is x_k / √(1 − β_k) − mean_scale_k · ε.
        self.mean_scales = betas / ((1 - betas) * (1 - self.alphas_bar)).sqrt()

    @property
    def num_steps(self) -> int:
        """The number n of diffusion steps."""
        return len(self.betas)

    def respaced(self, steps: int, spacing: str = "linspace") -> "Diffusion":
        """The process through `steps` of the diffusion steps alone, 1 to n; the model is told the original ones.

        spacing  "linspace": round(i · (n − 1) / (steps − 1)), both ends included; a single step is the last one
                 "leading": ⌊i · n / steps⌋, for example 0, 20, ..., 980, as DDIM is often run. The first sampling step
                 is then not at the end of the process, so that samples of few steps lose quality

        Section 4 of Nichol and Dhariwal. Raises ValueError for other spacings and numbers.
        """
        if spacing not in SPACINGS:
            raise ValueError(f"spacing must be one of {tuple(SPACINGS)}, got {spacing!r}")
        if not 1 <= steps <= self.num_steps:
            raise ValueError(f"steps must be from 1 to {self.num_steps}, got {steps}")
        kept = SPACINGS[spacing](steps, self.num_steps)
        alphas_bar = self.alphas_bar[kept]
        before = torch.cat((alphas_bar.new_ones(1), alphas_bar[:-1]))
        return Diffusion(betas=1 - alphas_bar / before, times=self.times[kept])

    def noised(self, latents: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """x_k: √ᾱ · latents + √(1 − ᾱ) · noise, in the latents' dtype.

        latents, noise  (b, t, h, w, e)
        time            int64 (b,), each from 0 to n − 1

        Raises TypeError and ValueError for what does not fit.
        """
        check_latents("latents", latents)
        check_latents("noise", noise, latents.shape)
        self.check_time(time, len(latents))
        dtype = computing_dtype(latents)
        signal = values_at(self.alphas_bar.sqrt(), time, dtype)
        scale = values_at((1 - self.alphas_bar).sqrt(), time, dtype)
        return (signal * latents.to(dtype) + scale * noise.to(dtype)).to(latents.dtype)

    def check_time(self, time: Tensor, batch_size: int) -> None:
        """Refuse what is not int64 (b,), each (looked at on the CPU) from 0 to n − 1."""
        if time.dtype != torch.int64 or time.shape != (batch_size,):
            raise ValueError(f"time must be int64 ({batch_size},), got {time.dtype} {tuple(time.shape)}")
        if free_to_look(time) and ((time < 0) | (time >= self.num_steps)).any():
            raise ValueError(f"time must be from 0 to {self.num_steps - 1}, got {time.tolist()}")

    def model_time(self, time: Tensor) -> Tensor:
        """What the model is told: the original diffusion steps, int64 (b,) -> int64 (b,)."""
        return self.times.to(time.device)[time]

    def log_variance(self, v: Tensor, time: Tensor) -> Tensor:
        """log σ² of the model's v (b, t, h, w, e): from log β̃ at v = −1 to log β at v = 1."""
        lowest = self.posterior_variances.log()
        span = self.betas.log() - lowest
        return values_at(lowest, time, v.dtype) + (v + 1) / 2 * values_at(span, time, v.dtype)

    def losses(
        self,
        model: Denoiser,
        latents: Tensor,
        *,
        time: Tensor | None = None,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> DiffusionLosses:
        """The loss of a model that reads noised latents, averaged over all channels of all real tokens.

        model      callable, see `Denoiser`; its conditions are given before, for example by functools.partial
        latents    (b, t, h, w, e), standardised
        time       int64 (b,), each from 0 to n − 1; by default drawn uniformly, one for each sample
        noise      (b, t, h, w, e), by default drawn from N(0, 1)
        mask       bool (b, t, h, w), True for real tokens; padding is not counted, and is 0 before noise is added
        generator  source of the randomness; on the latents' device

        The variational part is the KL divergence of one diffusion step in bits per dimension; at k = 0 it is the
        negative log-likelihood of a Gaussian in bins of 2/255. It teaches v alone, since ε has no gradient there.

        The losses are float32, or float64 for such latents. Raises TypeError and ValueError for what does not fit.
        """
        if mask is not None:
            check_mask("mask", mask, latents.shape[:4])
            latents = latents.masked_fill(~mask[..., None], 0)  # padding may hold anything, even NaN
        if time is None:
            time = torch.randint(self.num_steps, latents.shape[:1], device=latents.device, generator=generator)
        noise = normal_like(latents, generator) if noise is None else noise
        output = model(self.noised(latents, time, noise), self.model_time(time))
        check_output(output, latents)

        e, dtype = latents.shape[-1], computing_dtype(latents)
        latents, noise, output = latents.to(dtype), noise.to(dtype), output.to(dtype)
        error, v = output[..., :e] - noise, output[..., e:]
        simple = token_mean(error.square(), mask)
        if v.shape[-1] == 0:
            return DiffusionLosses(simple, simple, torch.zeros_like(simple))
        variational = token_mean(self._bits(error.detach(), v, latents, time), mask)
        return DiffusionLosses(simple + variational, simple, variational)

    def _bits(self, error: Tensor, v: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        """L_vlb of each channel, in bits, of the error of ε and of v: (b, t, h, w, e)."""
        log_variance = self.log_variance(v, time)
        # How far the model's mean is from that of q(x_{k−1} | x_k, x_0), and at k = 0 from x_0.
        distance = values_at(self.mean_scales, time, v.dtype) * error
        excess = log_variance - values_at(self.posterior_variances.log(), time, v.dtype)
        kl = 0.5 * (excess + torch.expm1(-excess) + distance.square() * torch.exp(-log_variance))
        first = rearrange(time == 0, "b -> b 1 1 1 1")
        return torch.where(first, -binned_log_likelihood(latents, distance, log_variance), kl) / math.log(2)


def binned_log_likelihood(x: Tensor, distance: Tensor, log_variance: Tensor) -> Tensor:
    """The log-probability, in nats, of x's bin of width 2/255 under a Gaussian; all of one shape.

    distance  x − mean

    The first and the last bin, |x| > 0.999, have no outer end. This is DDPM's likelihood of pixels in [−1, 1], section
    3.3; Latte uses it for latents too.
    """
    inverse = torch.exp(-0.5 * log_variance)
    below_upper = normal_cdf((distance + 1 / 255) * inverse)
    below_lower = normal_cdf((distance - 1 / 255) * inverse)
    inner = below_upper - below_lower
    probability = torch.where(x < -0.999, below_upper, torch.where(x > 0.999, 1 - below_lower, inner))
    return probability.clamp(min=1e-12).log()


def normal_cdf(x: Tensor) -> Tensor:
    """The cumulative distribution of N(0, 1), by the approximation that public code of L_vlb uses."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def values_at(table: Tensor, time: Tensor, dtype: torch.dtype) -> Tensor:
    """The values of a float64 table (n,) at the diffusion steps (b,): (b, 1, 1, 1, 1)."""
    # Cast on the CPU, before it is moved: MPS has no float64.
    return rearrange(table.to(dtype).to(time.device)[time], "b -> b 1 1 1 1")


def token_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of (b, t, h, w, e) over the tokens where `mask`, bool (b, t, h, w), is True: a scalar."""
    if mask is None:
        return values.mean()
    return values.masked_fill(~mask[..., None], 0).sum() / (mask.sum() * values.shape[-1])


def computing_dtype(latents: Tensor) -> torch.dtype:
    """The dtype to compute in: at least float32."""
    return torch.promote_types(latents.dtype, torch.float32)


def normal_like(latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """N(0, 1) of the latents' shape and device, at least float32. A compiled `torch.randn` takes no generator."""
    empty = torch.empty(latents.shape, dtype=computing_dtype(latents), device=latents.device)
    return empty.normal_(generator=generator)


def check_latents(name: str, latents: Tensor, shape: torch.Size | None = None) -> None:
    """Refuse what is not floating point (b, t, h, w, e), none empty, finite (looked at on the CPU), and of `shape`."""
    if not latents.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {latents.dtype}")
    if latents.ndim != 5 or 0 in latents.shape:
        raise ValueError(f"{name} must be (b, t, h, w, e), none empty, got {tuple(latents.shape)}")
    if shape is not None and latents.shape != shape:
        raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(latents.shape)}")
    check_finite(name, latents)


def check_output(output: Tensor, latents: Tensor) -> None:
    """Refuse a model's output that is not (b, t, h, w, 2 e) or (b, t, h, w, e)."""
    *grid, e = latents.shape
    if output.shape not in ((*grid, 2 * e), (*grid, e)):
        raise ValueError(f"the model's output must be {(*grid, 2 * e)} or {(*grid, e)}, got {tuple(output.shape)}")
