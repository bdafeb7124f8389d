"""What the training programs refuse before they begin: arguments without effect, and those that do not go together.

`args.given` holds the names of the arguments that stand on the command line.
"""

import argparse
import os
from functools import partial
from pathlib import Path

from torch.utils.data import Dataset

from data.flags import flag_of, refuse_idle
from data.runs import IN_PLAN, SETTABLE, check_sampling, planned_sampling
from phenaki_pytorch import Phenaki

ADVERSARIAL = (
    "adversarial_start",
    "adversarial_ramp",
    "judged_frames",
    "r1_weight",
    "discriminator_dim",
    "discriminator_lr",
)
PARTS = ("tokenizer", "maskgit", "discriminator", "model", "model/cvivit", "model/maskgit", "model/critic")


def check_run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check what both stages have: the data, the results, the length of the training."""
    refuse = partial(refuse_idle, parser, args.given)
    for name in ("data", "model", "tokenizer"):
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
    if not (args.video_weight or args.image_weight):
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
    """Check what the first stage has: the quantizer, the terms of the loss, the discriminator."""
    refuse = partial(refuse_idle, parser, args.given)
    if not args.adversarial:
        refuse("without --adversarial", *ADVERSARIAL)
    elif any(size != args.size for size in args.other_sizes):
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
    """Fill in the guidance, and check what the second stage has: guidance, critic, evaluation."""
    distilled = args.distil_guidance is not None
    if args.cond_scale is None:
        args.cond_scale = 1.0 if distilled else 2.0
    if distilled and args.model is None:
        parser.error("--distil-guidance needs a --model to learn from")
    if distilled and args.text_encoder == "none":
        parser.error("guidance needs texts: expected no --distil-guidance with --text-encoder none")
    if args.model is not None and args.tokenizer is not None:
        parser.error("a --model comes with its tokenizer: expected no --tokenizer")
    check_idle(parser, args)
    try:
        planned_sampling(vars(args))
        if args.model is None or args.resume or "critic" in args.given:  # else the critic is that of the model
            check_critic(args)
    except ValueError as error:
        parser.error(str(error))


def check_idle(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse arguments of the second stage that would have no effect."""
    refuse = partial(refuse_idle, parser, args.given)
    if args.distil_guidance is None:
        refuse("without --distil-guidance", "crossed_weight")
    if not (args.video_weight and args.image_weight):
        refuse("without both videos and images", "crossed_weight")
    if not args.video_weight or args.frames == 1:
        refuse("without videos of more than one frame", "prime_prob")
    measured = [name for name in ("prompts", "stories") if getattr(args, name)]
    if args.data != "moving_shapes":
        refuse("on a folder, whose clips cannot be judged", *measured)
    if args.text_encoder == "none":
        refuse("with --text-encoder none", "cond_scale", "guide_every", *measured)
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


def check_options(args: argparse.Namespace, phenaki: Phenaki) -> None:
    """Refuse, with a ValueError, sampling options that are given and that the model does not have."""
    names = {name: IN_PLAN.get(name, name) for name in SETTABLE}
    given = {name: getattr(args, asked) if asked in args.given else None for name, asked in names.items()}
    check_sampling(given, planned_sampling(vars(args)), phenaki)


def take_sizes(args: argparse.Namespace, sizes: dict[str, object]) -> None:
    """Set the arguments that name the sizes of a --model. ValueError where the command line asks for others."""
    for name, value in sizes.items():
        asked = getattr(args, name)
        if name in args.given and asked != value:
            flag, has = flag_of(name), "none" if value is None else value
            raise ValueError(f"--model was trained with other sizes: expected no {flag}, or {has}, got {asked}")
        setattr(args, name, value)
