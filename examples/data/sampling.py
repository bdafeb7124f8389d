"""The sampling options of the second stages, as a command line and a plan have them."""

import argparse
from collections.abc import Callable, Collection

from data.flags import flag_of, integer, number
from phenaki_pytorch import Latte, Phenaki, SamplingOptions, SelfCritic, VideoGPT
from phenaki_pytorch.diffusion import options as diffusion
from phenaki_pytorch.diffusion.options import DiffusionOptions, diffusion_options, steps_of
from phenaki_pytorch.diffusion.process import SPACINGS
from phenaki_pytorch.priors import autoregressive, decoding
from phenaki_pytorch.priors.autoregressive import RasterOptions, raster_options
from phenaki_pytorch.priors.decoding import sampling_options

NOT_SET = ("generator", "progress")  # options that no plan and no command line holds
IN_PLAN = {"steps": "sampling_steps"}  # the names of options that a plan calls otherwise
CHECKS = {"maskgit": sampling_options, "gpt": raster_options, "latte": diffusion_options}
DEFAULTS = {"maskgit": decoding.DEFAULTS, "gpt": autoregressive.DEFAULTS, "latte": diffusion.DEFAULTS}
OPTIONS = {kind: tuple(name for name in names if name not in NOT_SET) for kind, names in DEFAULTS.items()}
PRIORS = ("maskgit", "gpt")
SETTABLE = tuple(dict.fromkeys(name for names in OPTIONS.values() for name in names))


Model = Phenaki | VideoGPT | Latte
Options = SamplingOptions | RasterOptions | DiffusionOptions


def kind_of(model: Model) -> str:
    """The kind of a model's second stage, a key of `OPTIONS`."""
    return "latte" if isinstance(model, Latte) else "gpt" if isinstance(model, VideoGPT) else "maskgit"


def planned_sampling(plan: dict) -> Options:
    """The sampling options that a plan's arguments ask for, the paper's where they say nothing.

    ValueError for impossible values and kinds.
    """
    prior = plan.get("prior") or "maskgit"
    if prior not in tuple(OPTIONS):
        raise ValueError(f"prior must be one of {', '.join(OPTIONS)}, got {prior!r}")
    names = {name: IN_PLAN.get(name, name) for name in OPTIONS[prior]}
    try:
        options = CHECKS[prior]({name: plan[planned] for name, planned in names.items() if planned in plan})
    except TypeError as error:
        raise ValueError(str(error)) from error
    return {name: options[name] for name in names}


def add_sampling(
    parser: argparse.ArgumentParser, steps_flag: str = "--steps", kinds: Collection[str] = tuple(OPTIONS)
) -> None:
    """Add the sampling options of some kinds of second stages as arguments, None by default.

    A program in which --steps are those of training calls its `steps_flag` "--sampling-steps", as the plan does.
    """
    add = parser.add_argument_group("sampling").add_argument
    scale = number(at_least=0)
    add("--cond-scale", type=scale, help="guidance by the text, of a Latte also by the class; 1 is none")
    if {"maskgit", "latte"} & {*kinds}:
        add(steps_flag, type=integer(), help="passes: of parallel decoding, or of the removal of noise")
    if {*PRIORS} & {*kinds}:
        add_prior_sampling(parser, add)
    if "latte" in kinds:
        add_diffusion_sampling(parser)


def add_prior_sampling(parser: argparse.ArgumentParser, add: Callable) -> None:
    """`add_sampling` for MaskGit and GPT; `add`: adds an argument that both have."""
    scale = number(at_least=0)
    temperature = "of a MaskGit the scale of the noise on the confidence; of a GPT the softmax temperature"
    add("--temperature", type=scale, help=temperature)
    add = parser.add_argument_group("sampling with a MaskGit").add_argument
    add("--critic-scale", type=scale, help="guidance of the critic, of a model that has one; 1 is none")
    guide_every = "the pass without the text, which guidance needs, is computed in every n-th step only"
    add("--guide-every", type=integer(), metavar="N", help=guide_every)
    inline = "the self-critic reads the ids in MaskGit's own passes"
    add("--critic-inline", action=argparse.BooleanOptionalAction, help=inline)
    softmax = "softmax temperature of the first and the last step"
    add("--token-temperature", type=number(above=0), nargs=2, metavar=("FIRST", "LAST"), help=softmax)
    add = parser.add_argument_group("sampling with a GPT").add_argument
    add("--top-k", type=integer(), metavar="K", help="draw from the K most likely ids only")
    most = "draw from the most likely ids only, the fewest whose probabilities sum to at least P"
    add("--top-p", type=number(above=0, at_most=1), metavar="P", help=most)


def add_diffusion_sampling(parser: argparse.ArgumentParser) -> None:
    """`add_sampling` for a Latte."""
    add = parser.add_argument_group("sampling with a Latte").add_argument
    add("--sampler", choices=("ddpm", "ddim"), help="ddim needs fewer steps")
    eta = "of ddim: noise that each step adds, 0 for none, 1 for as much as ddpm"
    add("--eta", type=number(at_least=0, at_most=1), help=eta)
    add("--spacing", choices=tuple(SPACINGS), help="how the passes are spread over the 1000 noise levels of training")
    resamples = "where a video goes on from a picture, a video or the window before: how often each pass but the last"
    resamples += " is taken, so that new frames follow the given ones better; the time grows as much"
    add("--resamples", type=integer(), metavar="N", help=resamples)


def asked_sampling(args: argparse.Namespace, kind: str | None = None) -> dict:
    """The arguments of `add_sampling` by name, None where they are not given: those of a kind, or all."""
    return {name: getattr(args, name) for name in (SETTABLE if kind is None else OPTIONS[kind])}


def check_sampling(given: dict, options: Options, model: Model) -> None:
    """Refuse, with a ValueError, sampling options that have no effect on a model, and those that it cannot have.

    given    the options that were asked for, None where they were not
    options  all those of the model's kind, with what the plan says where nothing was asked for
    """
    kind = kind_of(model)
    others = tuple(name for name in SETTABLE if name not in OPTIONS[kind])
    refuse_without_effect(given, others, f"on a {type(model).__name__}")
    if model.text_encoder is None and not (kind == "latte" and model.num_classes):
        refuse_without_effect(given, ("cond_scale", "guide_every", "critic_scale"), "on a model that reads no text")
    if kind == "maskgit":
        check_maskgit_sampling(given, options, model)
    CHECKS[kind](options)
    if kind == "latte":
        check_diffusion_sampling(given, options, model)


def check_maskgit_sampling(given: dict, options: SamplingOptions, phenaki: Phenaki) -> None:
    """`check_sampling` for what a MaskGit and its critic have."""
    critic = phenaki.critic
    for idle, why, names in (
        (critic is None, "on a model without a critic", ("critic_scale", "critic_inline")),
        (critic is not None and critic.backbone.dim_context is None, "as the critic reads no text", ("critic_scale",)),
        (options["cond_scale"] == 1, "with --cond-scale 1, which is no guidance", ("guide_every",)),
        (options["steps"] == 1, "in a single step", ("guide_every", "temperature", "critic_scale", "critic_inline")),
    ):
        if idle:
            refuse_without_effect(given, names, why)
    sampling_options(options)
    if options["critic_inline"] and critic is not None and not isinstance(critic, SelfCritic):
        raise ValueError(f"--critic-inline needs a SelfCritic, the model has a {type(critic).__name__}")


def check_diffusion_sampling(given: dict, options: DiffusionOptions, latte: Latte) -> None:
    """`check_sampling` for the steps of a Latte."""
    steps = steps_of(options)
    latte.diffusion.respaced(steps, options["spacing"])
    if steps == 1:
        refuse_without_effect(given, ("resamples",), "in a single step")


def refuse_without_effect(given: dict, names: tuple[str, ...], why: str) -> None:
    """Refuse, with a ValueError, options that are given and have no effect."""
    if idle := [flag_of(name) for name in names if given.get(name) is not None]:
        raise ValueError(f"{', '.join(idle)} would have no effect {why}")
