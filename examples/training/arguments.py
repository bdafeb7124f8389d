"""The command lines of train_tokenizer.py and train_prior.py, and what follows from their arguments."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.runs import add_sampling, planned_sampling
from phenaki_pytorch.priors.decoding import check_scales
from phenaki_pytorch.priors.masking import SCHEDULES
from training.loop import Recipe

SHOWN_SIZE = 128  # pixels; smaller videos are enlarged to about this size in the pictures that a training leaves


def tokenizer_arguments(argv: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """The arguments of train_tokenizer.py."""
    parser = new_parser(description)
    add_run(parser, steps=1200, model="a trained tokenizer to begin with: its folder, or that of a model")
    add = add_data(parser, size=32, frames=9, image_weight=0.02)
    add("--other-sizes", type=int, nargs="*", default=(), help="more sizes of clips, each in as many batches as --size")
    add_tokenizer_model(parser)
    add = add_recipe(parser, batch_size=4, lr=1e-3, compiled="encoder and decoder")
    add("--checkpoint-activations", action="store_true", help="less memory, for a second forward pass")
    add_loss(parser)
    args = parser.parse_args(argv)
    check_run(parser, args)
    if args.adversarial and any(size != args.size for size in args.other_sizes):
        parser.error("the discriminator reads frames of one size: expected no --other-sizes with --adversarial")
    if args.data != "moving_shapes" and (args.image_perceptual or args.video_perceptual):
        parser.error("the perceptual networks here learn the labels of moving shapes; for others see perceptual.py")
    return args


def prior_arguments(argv: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """The arguments of train_prior.py."""
    parser = new_parser(description)
    add = add_run(parser, steps=4100, model="a trained model to begin with, of the same sizes; its tokenizer is used")
    add("--tokenizer", help="a trained tokenizer: its folder, or that of a model; default: OUT/model/cvivit")
    add("--text-encoder", default="words", help="a T5 name or directory, 'words' (random vectors), or 'none'")
    add = add_data(parser, size=None, frames=None, image_weight=0.05)
    add("--encoded", type=int, default=6000, help="number of clips, and of images, to encode before training")
    add = parser.add_argument_group("model").add_argument
    add("--dim", type=int, default=96)
    add("--depth", type=int, default=4)
    add("--critic", choices=("none", "token", "self"), default="none", help="classifies which ids to mask again")
    add = add_recipe(parser, batch_size=8, lr=3e-3, compiled="the transformers")
    add_prior_recipe(add)
    add_sampling(parser, "--sampling-steps", sampling_steps=24, temperature=4.0, token_temperature=(1.2, 0.1))
    parser.set_defaults(critic_scale=1.0, guide_every=1, critic_inline=False)
    add = parser.add_argument_group("evaluation at the end, of moving shapes").add_argument
    add("--prompts", type=int, default=200, help="number of prompts; 0 for none")
    add("--stories", type=int, default=50, help="number of stories; 0 for none")
    args = parser.parse_args(argv)
    check_run(parser, args)
    check_prior(parser, args)
    return args


def new_parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_run(parser: argparse.ArgumentParser, *, steps: int, model: str):
    """Add the arguments about the run as a whole; returns the function that adds more of them."""
    add = parser.add_argument
    add("--data", default="moving_shapes", help="moving_shapes, or a folder of videos and images with captions")
    add("--out", type=Path, default=Path("runs/phenaki"), help="the folder of the results; default: %(default)s")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --out, with the same arguments")
    add("--model", help=model)
    add("--seed", type=int, default=0)
    add("--steps", type=int, default=steps, help="steps of training; default: %(default)s")
    add("--minutes", type=float, help="instead of --steps: as many as fit, by a short timed run")
    return add


def add_data(parser: argparse.ArgumentParser, *, size: int | None, frames: int | None, image_weight: float):
    """Add the arguments about the data; returns the function that adds more of them."""
    defaults = [f"default: {value or 'of the tokenizer'}" for value in (size, frames)]
    add = parser.add_argument_group("data").add_argument
    add("--size", type=int, default=size, help=f"height and width, pixels; {defaults[0]}")
    add("--frames", type=int, default=frames, help=f"frames of a clip; {defaults[1]}")
    add("--fps", type=float, help="take a folder's frames at this rate")
    add("--stride", type=int, default=1, help="take every n-th frame of a folder's videos, without --fps")
    add("--flip", action="store_true", help="mirror a folder's clips at random; captions with 'left' become wrong")
    add("--video-weight", type=float, default=1.0, help="weight of batches of videos among all batches")
    add("--image-weight", type=float, default=image_weight, help="weight of batches of images among all batches")
    add("--workers", type=int, default=0, help="processes that load data")
    return add


def add_tokenizer_model(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of the tokenizer."""
    add = parser.add_argument_group("model").add_argument
    add("--patch-size", type=int, default=4)
    add("--temporal-patch-size", type=int, default=2)
    add("--quantizer", default="fsq", choices=("vq", "lfq", "fsq", "simvq"))
    add("--levels", type=int, nargs="+", default=[4, 4, 4, 4, 4], help="of fsq")
    add("--codebook-size", type=int, default=512, help="of the other quantizers")
    add("--dim", type=int, default=128)
    add("--spatial-depth", type=int, default=2, help="layers over space, in encoder and decoder each")
    add("--temporal-depth", type=int, default=1, help="layers over time, in encoder and decoder each")


def add_recipe(parser: argparse.ArgumentParser, *, batch_size: int, lr: float, compiled: str):
    """Add the arguments about the training itself; returns the function that adds more of them."""
    add = parser.add_argument_group("recipe").add_argument
    add("--batch-size", type=int, default=batch_size, help="clips of a batch; a batch of images has four times as many")
    add("--optimizer", default="muon", choices=("adamw", "muon"))
    add("--lr", type=float, default=lr, help="peak learning rate; default: %(default)s")
    add("--warmup", type=int, default=50, help="steps of linear warm-up")
    add("--schedule", choices=("cosine", "constant"), default="cosine", help="learning rate after the warm-up")
    add("--clip", type=float, default=1.0, help="largest norm of the gradient")
    add("--ema", type=float, default=0.99, help="decay of the moving average of the weights")
    add("--checkpoint-every", type=int, default=1000, help="steps")
    add("--compile", action="store_true", help=f"torch.compile {compiled}")
    add("--precision", choices=("auto", "no", "bf16"), default="auto", help="auto: bf16 where the hardware has it")
    return add


def add_prior_recipe(add) -> None:
    """Add what is special to the training of the second stage."""
    add("--mask-schedule", choices=tuple(SCHEDULES), default="cubic", help="share of the ids that is masked")
    add("--prime-prob", type=float, default=0.25, help="share of the clips that are trained as continuations")
    distil = "distil guidance of this scale from the MaskGit of --model"
    add("--distil-guidance", type=float, metavar="SCALE", help=distil)
    crossed = "with --distil-guidance: weight of batches of videos under captions of images"
    add("--crossed-weight", type=float, default=0.5, help=crossed)


def add_loss(parser: argparse.ArgumentParser) -> None:
    """Add the terms of the tokenizer's loss beside that of the pixels."""
    add = parser.add_argument_group("loss, beside that of the pixels").add_argument
    add("--image-perceptual", type=float, default=0.0, help="weight of the features of frames, for moving shapes")
    add("--video-perceptual", type=float, default=0.0, help="weight of the features of clips, for moving shapes")
    add("--perceptual-steps", type=int, default=500, help="training steps of the networks that compute these features")
    adversarial = "norm of the discriminator's gradient at the reconstruction over that of the other terms; 0 for none"
    add("--adversarial", type=float, default=0.0, help=adversarial)
    add("--adversarial-start", type=float, default=0.1, help="share of the steps before the discriminator starts")
    add("--adversarial-ramp", type=float, default=0.1, help="share of the steps in which its weight grows from 0")
    add("--discriminator-dim", type=int, default=32, help="channels at 32×32 and below; the paper's has 512")
    add("--discriminator-lr", type=float, default=1e-3)
    add("--judged-frames", type=int, default=3, help="frames of each clip that the discriminator learns from")
    add("--r1-weight", type=float, default=1.0, help="weight of the penalty on the discriminator's gradient")


def check_run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse lengths of training that are not positive, and a --model that the run would overwrite."""
    for name in ("steps", "minutes", "batch_size", "checkpoint_every"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {value}")
    if args.model is not None and Path(args.model).resolve().is_relative_to(args.out.resolve()):
        parser.error(f"--model must lie outside of --out, whose files are replaced, got {args.model}")


def check_prior(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in the guidance, and refuse what does not go together."""
    distilled = args.distil_guidance is not None
    if args.cond_scale is None:
        args.cond_scale = 1.0 if distilled else 2.0
    if distilled and args.model is None and not args.resume:
        parser.error("--distil-guidance needs a --model to learn from")
    if distilled and args.text_encoder == "none":
        parser.error("guidance needs texts: expected no --distil-guidance with --text-encoder none")
    if args.model is not None and args.tokenizer is not None:
        parser.error("a --model comes with its tokenizer: expected no --tokenizer")
    try:
        check_scales(distil_guidance=args.distil_guidance or 0.0, crossed_weight=args.crossed_weight)
        sampling(args)
    except ValueError as error:
        parser.error(str(error))


def recipe_of(args: argparse.Namespace, steps: int) -> Recipe:
    """How a stage is trained."""
    names = ("lr", "optimizer", "seed", "warmup", "schedule", "clip", "ema", "checkpoint_every")
    return Recipe(steps=steps, **{name: getattr(args, name) for name in names})


def sampling(args: argparse.Namespace) -> dict:
    """The sampling options of train_prior.py. ValueError for impossible values."""
    return planned_sampling(vars(args))


def scale_of(args: argparse.Namespace) -> int:
    """How many times to enlarge pictures, so that small ones can be seen."""
    return max(1, SHOWN_SIZE // args.size)


def fps(args: argparse.Namespace) -> float:
    """The frame rate of the GIFs."""
    return min(args.fps or 8.0, 50.0)  # a GIF has no higher rate
