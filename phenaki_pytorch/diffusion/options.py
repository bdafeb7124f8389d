"""How a model of continuous latents samples: the options, and the choice of the sampler.

b = batch · t, h, w = grid of latents · e = channels of latents · s = given time steps
"""

from typing import TypedDict

import torch
from torch import Tensor

from phenaki_pytorch.core.checks import check_at_least, check_probabilities, check_scales, with_defaults
from phenaki_pytorch.core.contracts import Denoiser, Progress
from phenaki_pytorch.diffusion.process import SPACINGS, Diffusion
from phenaki_pytorch.diffusion.samplers import ddim, ddpm

STEPS = {"ddpm": 250, "ddim": 50}  # of each sampler, where nothing is said


class DiffusionOptions(TypedDict, total=False):
    """How to sample. What is not given is as in `DEFAULTS`, the paper's.

    sampler     "ddpm", with noise in each step and the variance that the model predicts, or "ddim"
    steps       of sampling; None: 250 of "ddpm", 50 of "ddim"
    cond_scale  s in null + s · (cond − null) on the noise; 1 is no guidance; has no effect on an unconditional model
    eta         of "ddim": scale of the noise in each step, from 0 to 1
    spacing     which diffusion steps are kept, "linspace" or "leading", see `Diffusion.respaced`
    resamples   how often each step but the last is taken where frames are given, as they are from the second window
                on, so that the others follow them better; the time grows as much
    generator   source of all randomness; on the model's device
    progress    tqdm, or anything that wraps the steps
    """

    sampler: str
    steps: int | None
    cond_scale: float
    eta: float
    spacing: str
    resamples: int
    generator: torch.Generator | None
    progress: Progress | None


DEFAULTS = DiffusionOptions(
    sampler="ddpm",
    steps=None,
    cond_scale=7.0,
    eta=0.0,
    spacing="linspace",
    resamples=1,
    generator=None,
    progress=None,
)


def diffusion_options(given: DiffusionOptions) -> DiffusionOptions:
    """All options; missing ones get their defaults. TypeError for wrong names and kinds, ValueError for values."""
    options = with_defaults(given, DEFAULTS, DiffusionOptions)
    if options["sampler"] not in STEPS:
        raise ValueError(f"sampler must be one of {tuple(STEPS)}, got {options['sampler']!r}")
    if options["spacing"] not in SPACINGS:
        raise ValueError(f"spacing must be one of {tuple(SPACINGS)}, got {options['spacing']!r}")
    check_at_least(1, steps=options["steps"], resamples=options["resamples"])
    check_scales(cond_scale=options["cond_scale"])
    check_probabilities(eta=options["eta"])
    if options["eta"] and options["sampler"] != "ddim":
        raise ValueError(f"eta is of the sampler 'ddim': expected 0 with {options['sampler']!r}, got {options['eta']}")
    return options


def steps_of(options: DiffusionOptions) -> int:
    """The steps of sampling, those of the sampler where nothing is said."""
    return options["steps"] or STEPS[options["sampler"]]


def sample(
    model: Denoiser, noise: Tensor, diffusion: Diffusion, options: DiffusionOptions, prime_latents: Tensor | None
) -> Tensor:
    """Latents (b, t, h, w, e) of noise (b, t, h, w, e); the first time steps are `prime_latents` (b, s, h, w, e).

    model    with its conditions and guidance, see `Denoiser`
    options  all of them, as `diffusion_options` returns them
    """
    named = {name: options[name] for name in ("spacing", "resamples", "generator", "progress")}
    named |= {"diffusion": diffusion, "prime_latents": prime_latents}
    named["steps"] = steps_of(options)
    if options["sampler"] == "ddpm":
        return ddpm(model, noise, **named)
    return ddim(model, noise, eta=options["eta"], **named)
