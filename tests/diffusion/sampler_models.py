"""Models of a few lines, and samples of them, for the tests of the samplers."""

import pytest
import torch

from conftest import seed
from phenaki_pytorch.diffusion.process import Diffusion
from phenaki_pytorch.diffusion.samplers import ddim, ddpm

SHAPE = (2, 3, 2, 2, 4)
PROCESS = Diffusion()
SAMPLERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "ddim with noise": lambda *inputs, **options: ddim(*inputs, eta=1.0, **options),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
noisy_samplers = pytest.mark.parametrize("sampler", [SAMPLERS["ddpm"], SAMPLERS["ddim with noise"]])


class Recorder:
    """A model that predicts a fixed function of what it reads, and keeps it."""

    def __init__(self, learned_variance=True):
        self.learned_variance = learned_variance
        self.latents, self.times = [], []

    def __call__(self, latents, time):
        self.latents.append(latents.clone())
        self.times.append(time.clone())
        mixed = latents + latents.mean(dim=1, keepdim=True)  # so that each time step depends on all
        noise = torch.tanh(mixed + time.reshape(-1, 1, 1, 1, 1) / 1000).to(latents.dtype)
        return torch.cat((noise, latents.cos()), dim=-1) if self.learned_variance else noise


def make_noise(number=0, dtype=torch.float32, shape=SHAPE):
    return torch.randn(shape, generator=seed(number)).to(dtype)


def sampled(sampler, *, model=None, noise=None, steps=5, generator=None, **options):
    """The sample, from a new generator by default."""
    return sampler(
        Recorder() if model is None else model,
        make_noise() if noise is None else noise,
        diffusion=PROCESS,
        steps=steps,
        generator=seed(3) if generator is None else generator,
        **options,
    )


def bars(time, dtype=torch.float32):
    """ᾱ of original diffusion steps (b,), to be multiplied with latents."""
    return PROCESS.alphas_bar[time].to(dtype).reshape(-1, 1, 1, 1, 1)


def exact_noise(latents):
    """A model that knows the latents without noise, and predicts what is between."""
    return lambda x, time: (x - bars(time, x.dtype).sqrt() * latents) / (1 - bars(time, x.dtype)).sqrt()
