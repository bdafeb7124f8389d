"""What the training programs refuse before they begin: arguments without effect, and those that do not go together.

`args.given` holds the names of the arguments that stand on the command line.
"""

import argparse
import os
from functools import partial
from pathlib import Path

from torch.utils.data import Dataset

from data.conditions import CONDITIONS
from data.flags import flag_of, refuse_idle
from data.runs import read_plan
from data.sampling import IN_PLAN, SETTABLE, Model, check_sampling, planned_sampling
from phenaki_pytorch import ImageVAE
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer
from training.tokenizers import KINDS, kind_of, lacking

ADVERSARIAL = (
    "adversarial_start",
    "adversarial_ramp",
    "judged_frames",
    "r1_weight",
    "discriminator_dim",
    "discriminator_lr",
)
PARTS = ("tokenizer", "maskgit", "gpt", "discriminator", "model", "model/cvivit", "model/tokenizer")
PARTS += ("model/maskgit", "model/critic", "model/gpt", "model/frame_encoder")
PARTS += ("latte", "model/transformer", "model/codec", "model/standardisation")

# The arguments of train_prior.py that a prior has, with their defaults.
SHARED = {"cond_scale": None, "prompts": 200}
PRIOR_DEFAULTS = {
    "maskgit": {
        **SHARED,
        "dim": 96,
        "depth": 4,
        "critic": "none",
        "mask_schedule": "cubic",
        "prime_prob": 0.25,
        "distil_guidance": None,
        "crossed_weight": 0.5,
        "sampling_steps": 24,
        "temperature": 4.0,
        "token_temperature": (1.2, 0.1),
        "critic_scale": 1.0,
        "guide_every": 1,
        "critic_inline": False,
        "stories": 50,
    },
    "gpt": {
        **SHARED,
        "dim": 128,
        "depth": 4,
        "positions": "learned",
        "axes": "both",
        "frame_encoder": "vector",
        "temperature": 1.0,
        "top_k": None,
        "top_p": None,
    },
}

# Those of train_diffusion.py whose defaults depend on others.
DIFFUSION_DEFAULTS = {
    "sampler": "ddim",
    "sampling_steps": 50,
    "eta": 0.0,
    "spacing": "linspace",
    "resamples": 1,
    "prompts": 200,
}
GUIDANCE = 2.0


def check_run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check what both stages have: the data, the results, the length of the training."""
    refuse = partial(refuse_idle, parser, args.given)
    for name in ("data", "model", "tokenizer", "vae"):
        if getattr(args, name, None) == "":  # of a plan, or of an unset variable of a shell
            parser.error(f"{flag_of(name)} must be the name of a folder, got ''")
    if args.minutes is not None:
        refuse("beside --minutes", "steps")
    if args.data == "moving_shapes":
        refuse("on moving shapes", "fps", "stride", "flip")
    elif not Path(args.data).is_dir():
        parser.error(f"--data must be moving_shapes or a folder, got {args.data}")
    if args.fps is not None:
        refuse("beside --fps", "stride")
    if args.video_weight == args.image_weight == 0:
        parser.error("--video-weight and --image-weight are both 0: expected one of them above 0")
    if not args.video_weight:
        refuse("without videos, at --video-weight 0", "fps", "stride")
    check_out(parser, args.out)
    if args.model is not None and Path(args.model).resolve().is_relative_to(args.out.resolve()):
        parser.error(f"--model must lie outside of --out, whose files are replaced, got {args.model}")


def check_out(parser: argparse.ArgumentParser, out: Path) -> None:
    """Refuse a folder of results in which a part is a file, or cannot be written to."""
    for path in (out, *(out / part for part in PARTS)):
        if path.exists() and not (path.is_dir() and os.access(path, os.W_OK)):
            parser.error(f"--out needs {path} to be a folder that can be written to")


def check_tokenizer(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in what the kind of tokenizer has, and check it: the quantizer, the terms of the loss, the discriminator."""
    refuse = partial(refuse_idle, parser, args.given)
    args.tokenizer = kind_of(args)
    refuse(f"on a {args.tokenizer}", *lacking(args.tokenizer))
    for name, value in KINDS[args.tokenizer].defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not args.adversarial:
        refuse("without --adversarial", *ADVERSARIAL)
    elif args.tokenizer == "vqgan":
        refuse("on LAION's discriminator", "r1_weight")
    if args.adversarial and any(size != args.size for size in args.other_sizes):
        parser.error("the discriminator reads frames of one size: expected no --other-sizes with --adversarial")
    perceptual = args.image_perceptual or args.video_perceptual
    if not perceptual:
        refuse("without --image-perceptual or --video-perceptual", "perceptual_steps")
    elif args.data != "moving_shapes":
        parser.error("the perceptual networks here learn the labels of moving shapes; for others see perceptual.py")
    if args.video_perceptual and (args.frames == 1 or not args.video_weight):
        parser.error("--video-perceptual would have no effect without videos of more than one frame")
    if args.model is None:  # else the quantizer is that of the model
        refuse(f"with --quantizer {args.quantizer}", "codebook_size" if args.quantizer == "fsq" else "levels")


def check_prior(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in what the prior has, and check it: conditions, guidance, critic, evaluation."""
    try:
        fill_in_prior(parser, args)
    except ValueError as error:
        parser.error(str(error))
    distilled = args.distil_guidance is not None
    if args.cond_scale is None:
        args.cond_scale = 1.0 if distilled or "text" not in args.condition else 2.0
    if distilled and args.model is None:
        parser.error("--distil-guidance needs a --model to learn from")
    if distilled and "text" not in args.condition:
        parser.error(f"guidance needs texts: expected no --distil-guidance with --condition {told(args)}")
    if args.model is not None and args.tokenizer is not None:
        parser.error("a --model comes with its tokenizer: expected no --tokenizer")
    check_idle(parser, args)
    try:
        planned_sampling(vars(args))
        own_critic = args.model is None or args.resume or "critic" in args.given  # else it is that of the model
        if args.prior == "maskgit" and own_critic:
            check_critic(args)
    except ValueError as error:
        parser.error(str(error))


def fill_in_prior(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in the prior, its defaults, and what it is told. ValueError where it cannot be told that."""
    saved = {} if args.model is None else read_plan(Path(args.model))
    args.prior = args.prior or saved.get("prior") or "maskgit"
    lacking = {name for each in PRIOR_DEFAULTS.values() for name in each} - PRIOR_DEFAULTS[args.prior].keys()
    refuse_idle(parser, args.given, f"on a {args.prior}", *sorted(lacking))
    for name, value in PRIOR_DEFAULTS[args.prior].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    asked = args.condition or saved.get("condition") or ["text"]
    args.condition = [name for name in CONDITIONS if name in asked]
    if "none" in asked and len(asked) > 1:
        raise ValueError(f"--condition none stands alone, got {' '.join(asked)}")
    if args.prior == "maskgit" and args.condition not in (["text"], []):
        raise ValueError(f"a maskgit reads texts alone: expected --condition text or none, got {' '.join(asked)}")
    if not args.condition:
        args.condition = ["none"]
    if "actions" in args.condition and args.data == "moving_shapes":
        raise ValueError("moving shapes have no actions: expected --data for --condition actions")


def check_diffusion(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in what a diffusion model is told and how it is sampled, and check it."""
    try:
        fill_in_diffusion(args)
        planned_sampling(vars(args))
    except ValueError as error:
        parser.error(str(error))
    check_first_stage(parser, args)
    refuse = partial(refuse_idle, parser, args.given)
    measured = ["prompts"] if args.prompts else []
    if args.condition != ["text"]:
        refuse(f"with --condition {told(args)}", "text_encoder", *measured)
    if args.data != "moving_shapes":
        refuse("on a folder, whose clips cannot be judged", *measured)
    if args.condition == ["none"]:
        refuse("with --condition none", "cond_scale")
    images = args.joint_images or args.image_weight
    if images and args.patches == "compressed":
        parser.error("a patch of several time steps has no images: expected --patches uniform")
    if args.joint_images and not args.video_weight:
        parser.error("--joint-images follow videos: expected a --video-weight above 0")


def check_first_stage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse two first stages."""
    if args.model is not None and (args.tokenizer or "vae" in args.given):
        parser.error("a --model comes with its tokenizer or VAE: expected no --tokenizer and no --vae")
    if args.vae is not None and args.tokenizer is not None:
        parser.error("--vae is in place of a tokenizer: expected no --tokenizer")


def fill_in_diffusion(args: argparse.Namespace) -> None:
    """Fill in what is not given: what --model was told, its VAE, the numbers of the sampling."""
    saved = {} if args.model is None else read_plan(Path(args.model))
    args.condition = args.condition or saved.get("condition") or ["text"]
    if args.vae is None and saved.get("vae") is not None:
        args.vae, args.size = saved["vae"], args.size or saved.get("size")
    if args.heads is None and args.model is None:
        args.heads = max(1, args.dim // 32)
    if args.cond_scale is None:
        args.cond_scale = 1.0 if args.condition == ["none"] else GUIDANCE
    ddpm = {"sampling_steps": 250} if args.sampler == "ddpm" else {}
    for name, value in (DIFFUSION_DEFAULTS | ddpm).items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def told(args: argparse.Namespace) -> str:
    """What --condition says."""
    return " ".join(args.condition)


def check_idle(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse arguments of the second stage that would have no effect."""
    refuse = partial(refuse_idle, parser, args.given)
    if args.distil_guidance is None:
        refuse("without --distil-guidance", "crossed_weight")
    if not args.video_weight or args.image_weight == 0:
        refuse("without both videos and images", "crossed_weight")
    if not args.video_weight or args.frames == 1:
        refuse("without videos of more than one frame", "prime_prob")
    measured = [name for name in ("prompts", "stories") if getattr(args, name)]
    if args.condition != ["text"]:
        refuse(f"with --condition {told(args)}", *measured)
    if args.data != "moving_shapes":
        refuse("on a folder, whose clips cannot be judged", *measured)
    if "text" not in args.condition:
        refuse(f"with --condition {told(args)}", "text_encoder", "cond_scale", "guide_every")
    if "frames" not in args.condition:
        refuse(f"with --condition {told(args)}", "frame_encoder")
    if args.cond_scale == 1:
        refuse("without guidance, at a --cond-scale of 1", "guide_every")


def check_critic(args: argparse.Namespace) -> None:
    """Refuse, with a ValueError, sampling options that the critic does not have."""
    idle = [flag_of(name) for name in ("critic_scale", "critic_inline") if name in args.given]
    if args.critic == "none" and idle:
        raise ValueError(f"{', '.join(idle)} would have no effect without a critic")
    if args.critic == "token" and args.critic_inline:
        raise ValueError("--critic-inline reads the ids in MaskGit's own passes: expected --critic self, got token")


def check_data(args: argparse.Namespace, videos: Dataset | None, images: Dataset | None) -> None:
    """Refuse, with a ValueError, to train on nothing, and weights of images that --data does not have."""
    if videos is None and images is None:
        raise ValueError("there is nothing to train on: --data has no images, and --video-weight is 0")
    idle = [name for name in ("image_weight", "crossed_weight") if name in args.given and getattr(args, name)]
    if images is None and idle:
        raise ValueError(f"{', '.join(map(flag_of, idle))} would have no effect: --data has no images")


def take_image_weight(args: argparse.Namespace, tokenizer: VideoTokenizer | ImageVAE, default: float) -> None:
    """Fill in --image-weight: 0 where a tokenizer takes no single frames, where another one is a ValueError."""
    if tokenizer.num_frames(1) > 1 and getattr(args, "joint_images", 0):
        first = tokenizer.num_frames(1)
        raise ValueError(f"--joint-images must be 0: the shortest clip of the tokenizer has {first} frames, not 1")
    if tokenizer.num_frames(1) == 1:
        args.image_weight = default if args.image_weight is None else args.image_weight
    elif args.image_weight:
        first = tokenizer.num_frames(1)
        raise ValueError(f"--image-weight must be 0: the shortest clip of the tokenizer has {first} frames, not 1")
    else:
        args.image_weight = 0.0
    if not (args.video_weight or args.image_weight):
        raise ValueError("--video-weight is 0, and there are no images: expected a weight above 0")


def check_options(args: argparse.Namespace, model: Model) -> None:
    """Refuse, with a ValueError, sampling options that are given and that the model does not have."""
    names = {name: IN_PLAN.get(name, name) for name in SETTABLE}
    given = {name: getattr(args, asked) if asked in args.given else None for name, asked in names.items()}
    check_sampling(given, planned_sampling(vars(args)), model)


def take_sizes(args: argparse.Namespace, sizes: dict[str, object]) -> None:
    """Set the arguments that name the sizes of a --model. ValueError where the command line asks for others."""
    for name, value in sizes.items():
        asked = getattr(args, name)
        if name in args.given and asked != value:
            flag, has = flag_of(name), "none" if value is None else value
            raise ValueError(f"--model was trained with other sizes: expected no {flag}, or {has}, got {asked}")
        setattr(args, name, value)
