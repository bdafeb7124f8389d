"""The command lines of the programs that train a stage, and what follows from their arguments."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from data.conditions import CONDITIONS
from data.flags import given_names, integer, number, path, path_text, refuse_idle
from data.runs import RATE
from data.sampling import PRIORS, add_sampling, planned_sampling
from phenaki_pytorch.diffusion.latte_transformer import CHOICES
from phenaki_pytorch.priors.masking import SCHEDULES
from training.checks import PRIOR_DEFAULTS, check_diffusion, check_prior, check_run, check_tokenizer
from training.loop import Recipe
from training.plans import resumed
from training.tokenizers import KINDS

SEED = integer(0, 2**32 - 1)  # numpy takes no larger one
WEIGHT = number(at_least=0)

EMA = {"ema": 0.999, "paper": " (Latte's: 0.9999, for hundreds of thousands of steps)"}  # for some thousand steps
SHOWN_SIZE = 128  # pixels; smaller videos are enlarged to about this size in the pictures that a training leaves


def tokenizer_arguments(argv: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """The arguments of train_tokenizer.py."""
    parser = new_parser(description)
    add_run(parser, steps=1200, model="a trained tokenizer to begin with: its folder, or that of a model")
    add = add_data(parser, size=32, frames=None)
    others = "more sizes of clips, each in as many batches as --size"
    add("--other-sizes", type=integer(), nargs="*", default=(), help=others)
    add_tokenizer_model(parser)
    add = add_recipe(parser, batch_size=4, lr=1e-3, compiled="encoder and decoder")
    add("--checkpoint-activations", action="store_true", help="less memory, for a second forward pass")
    add_loss(parser)
    return parsed(parser, argv, plan="tokenizer/plan.json", check=check_tokenizer)


def prior_arguments(argv: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """The arguments of train_prior.py."""
    parser = new_parser(description)
    add = add_second_stage(parser, steps=4100)
    add("--prior", choices=tuple(PRIOR_DEFAULTS), help="default: maskgit, or that of --model")
    told = "what the prior is told, several for gpt: captions as texts or as classes, first frames, actions; or none"
    add("--condition", nargs="+", choices=(*CONDITIONS, "none"), help=f"{told}; default: text, or that of --model")
    add = add_encoded_data(parser)
    add = parser.add_argument_group("model").add_argument
    add("--dim", type=integer(), help="width; default: 96 of a maskgit, 128 of a gpt")
    add("--depth", type=integer(), help="layers; default: 4")
    critic = "of a maskgit: classifies which ids to mask again; default: none"
    add("--critic", choices=("none", "token", "self"), help=critic)
    add("--positions", choices=("learned", "sincos"), help="of a gpt; default: learned")
    axes = "of a gpt: the axes that have positions; default: both"
    add("--axes", choices=("both", "space", "time"), help=axes)
    frames = "of a gpt that is told frames: what it reads of them, one vector or the map of their features"
    add("--frame-encoder", choices=("vector", "map"), help=f"{frames}; default: vector")
    add = add_recipe(parser, batch_size=8, lr=3e-3, compiled="the transformers")
    add_prior_recipe(add)
    add_sampling(parser, "--sampling-steps", PRIORS)
    add = parser.add_argument_group("evaluation at the end, of moving shapes").add_argument
    add("--prompts", type=integer(0), help="number of prompts; 0: reconstructions alone are measured; default: 200")
    add("--stories", type=integer(0), help="of a maskgit: number of stories; 0 for none; default: 50")
    return parsed(parser, argv, plan="plan.json", check=check_prior)


def diffusion_arguments(argv: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """The arguments of train_diffusion.py."""
    parser = new_parser(description)
    add = add_second_stage(parser, steps=10_000)
    add("--prior", choices=("latte",), default="latte", help=argparse.SUPPRESS)  # is in the plan, as of other stages
    vae = "in place of a tokenizer an image VAE: a folder of diffusers' AutoencoderKL; each latent is drawn once"
    add("--vae", type=path_text, help=vae)
    told = "what the model is told: captions as texts or as classes, or nothing; default: text, or that of --model"
    add("--condition", nargs=1, choices=("text", "classes", "none"), help=told)
    add = add_encoded_data(parser)
    joint = "images that follow each clip in training: those of the data, or else single frames of other clips"
    add("--joint-images", type=integer(0), default=0, metavar="N", help=f"{joint}; default: 0")
    add_diffusion_model(parser)
    add_recipe(parser, batch_size=16, lr=1e-3, compiled="the transformer", **EMA)
    add_sampling(parser, "--sampling-steps", ("latte",))
    add = parser.add_argument_group("evaluation at the end, of moving shapes").add_argument
    add("--prompts", type=integer(0), help="number of prompts; 0: reconstructions alone are measured; default: 200")
    return parsed(parser, argv, plan="plan.json", check=check_diffusion)


def parsed(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    *,
    plan: str,
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None],
) -> argparse.Namespace:
    """The arguments, of a run that is resumed those of its plan, with the names of the given ones as `given`."""
    args = parser.parse_args(argv)
    args.given = given_names(parser, argv)
    if args.resume:
        refuse_idle(parser, args.given, "beside --resume", "overwrite")
        args = resumed(parser, args, args.out / plan)
    check_run(parser, args)
    check(parser, args)
    return args


def new_parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_run(parser: argparse.ArgumentParser, *, steps: int, model: str):
    """Add the arguments about the run as a whole; returns the function that adds more of them."""
    add = parser.add_argument
    add(
        "--data",
        type=path_text,
        default="moving_shapes",
        help="moving_shapes, or a folder of videos and images with captions",
    )
    add("--out", type=path, default=Path("runs/phenaki"), help="the folder of the results; default: %(default)s")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --out, to more --steps if given")
    add_overwrite(add)
    add("--model", type=path_text, help=model)
    add("--seed", type=SEED, default=0)
    add("--steps", type=integer(), default=steps, help="steps of training; default: %(default)s")
    add("--minutes", type=number(above=0), help="instead of --steps: as many as fit, by a short timed run")
    return add


def add_second_stage(parser: argparse.ArgumentParser, *, steps: int):
    """Add the arguments about the run of a second stage; returns the function that adds more of them."""
    add = add_run(parser, steps=steps, model="a trained model to begin with, of the same sizes; its tokenizer is used")
    add(
        "--tokenizer",
        type=path_text,
        help="a trained tokenizer: its folder, or that of a model; default: that in OUT/model",
    )
    add("--text-encoder", default="words", help="a T5 name or directory, or 'words' (random vectors)")
    return add


def add_overwrite(add: Callable) -> None:
    """Add --overwrite."""
    add(
        "--overwrite",
        action="store_true",
        help="replace the training that --out holds; a tokenizer's, with the model that was trained on its ids",
    )


def add_data(parser: argparse.ArgumentParser, *, size: int | None, frames: int | None):
    """Add the arguments about the data; returns the function that adds more of them."""
    defaults = [f"default: {value or 'of the tokenizer'}" for value in (size, frames)]
    add = parser.add_argument_group("data").add_argument
    add("--size", type=integer(), default=size, help=f"height and width, pixels; {defaults[0]}")
    add("--frames", type=integer(), default=frames, help=f"frames of a clip; {defaults[1]}")
    add("--fps", type=RATE, help="take a folder's frames at this rate")
    add("--stride", type=integer(), default=1, help="take every n-th frame of a folder's videos, without --fps")
    add("--flip", action="store_true", help="mirror a folder's clips at random; captions with 'left' become wrong")
    add("--video-weight", type=WEIGHT, default=1.0, help="weight of batches of videos among all batches")
    images = "weight of batches of images among all batches; default: a few per cent, 0 where images are no clips"
    add("--image-weight", type=WEIGHT, help=images)
    add("--workers", type=integer(0), default=0, help="processes that load data")
    return add


def add_encoded_data(parser: argparse.ArgumentParser):
    """Add the arguments about the data of a second stage; returns the function that adds more of them."""
    add = add_data(parser, size=None, frames=None)
    add("--encoded", type=integer(), default=6000, help="number of clips, and of images, to encode before training")
    return add


def add_diffusion_model(parser: argparse.ArgumentParser) -> None:
    """Add the sizes and kinds of a LatteTransformer."""
    add = parser.add_argument_group("model").add_argument
    add("--dim", type=integer(), default=128, help="width; default: %(default)s")
    add("--depth", type=integer(), default=8, help="blocks; default: %(default)s")
    add("--heads", type=integer(), help="attention heads; default: the width over 32")
    patch = "height and width of a token, in latents; default: %(default)s"
    add("--model-patch-size", type=integer(), default=2, help=patch)
    variant = "of the blocks: space and time in turn (1), first space (2), both in each block (3), side by side (4)"
    add("--variant", type=int, choices=CHOICES["variant"], default=1, help=f"{variant}; default: %(default)s")
    compressed = "compressed: a patch has two time steps"
    add("--patches", choices=CHOICES["patches"], default="uniform", help=f"{compressed}; default: %(default)s")
    tokens = "how time, class and text are told: by shaping norms and gates, or as tokens"
    add("--conditioning", choices=CHOICES["conditioning"], default="adaln", help=f"{tokens}; default: %(default)s")
    add("--time-positions", choices=CHOICES["time_positions"], default="absolute", help="default: %(default)s")
    add("--no-learned-variance", action="store_true", help="predict the noise alone")


def add_tokenizer_model(parser: argparse.ArgumentParser) -> None:
    """Add the kind and the sizes of the tokenizer, whose defaults are those of the kind."""
    group = parser.add_argument_group("model", "Defaults are those of the tokenizer, in training/tokenizers.py.")
    add = group.add_argument
    add("--tokenizer", choices=tuple(KINDS), help="default: cvivit, or the kind of --model")
    add("--quantizer", choices=("vq", "lfq", "fsq", "simvq", "ema"))
    add("--levels", type=integer(2), nargs="+", help="of fsq")
    add("--codebook-size", type=integer(2), help="of the other quantizers")
    add("--dim", type=integer(), help="width")
    add("--patch-size", type=integer(), help="of cvivit: pixels of an id")
    add("--temporal-patch-size", type=integer(), help="of cvivit: frames of an id")
    add("--spatial-depth", type=integer(0), help="of cvivit: layers over space, in encoder and decoder each")
    add("--temporal-depth", type=integer(0), help="of cvivit: layers over time, in encoder and decoder each")
    add("--depth", type=integer(0), help="of vqvae and vqgan: blocks, in encoder and decoder each")
    strides = "of vqvae: frames and pixels of an id, powers of 2"
    add("--strides", type=integer(), nargs=3, metavar=("FRAMES", "HEIGHT", "WIDTH"), help=strides)
    add("--heads", type=integer(), help="of vqvae: attention heads")
    add("--no-axial-attention", action="store_true", default=None, help="of vqvae: convolutions alone")


def add_recipe(
    parser: argparse.ArgumentParser, *, batch_size: int, lr: float, compiled: str, ema: float = 0.99, paper: str = ""
):
    """Add the arguments about the training itself; returns the function that adds more of them."""
    add = parser.add_argument_group("recipe").add_argument
    add(
        "--batch-size",
        type=integer(),
        default=batch_size,
        help="clips of a batch; a batch of images has four times as many",
    )
    add("--optimizer", default="muon", choices=("adamw", "muon"))
    add("--lr", type=number(above=0), default=lr, help="peak learning rate; default: %(default)s")
    add("--warmup", type=integer(0), default=50, help="steps of linear warm-up")
    add("--schedule", choices=("cosine", "constant"), default="cosine", help="learning rate after the warm-up")
    add("--clip", type=number(above=0), default=1.0, help="largest norm of the gradient")
    average = f"decay of the moving average of the weights{paper}; default: %(default)s"
    add("--ema", type=number(at_least=0, below=1), default=ema, help=average)
    add("--checkpoint-every", type=integer(), default=1000, help="steps")
    add("--compile", action="store_true", help=f"torch.compile {compiled}")
    add("--precision", choices=("auto", "no", "bf16"), default="auto", help="auto: bf16 where the hardware has it")
    return add


def add_prior_recipe(add) -> None:
    """Add what is special to the training of the second stage."""
    masked = "of a maskgit: share of the ids that is masked; default: cubic"
    add("--mask-schedule", choices=tuple(SCHEDULES), help=masked)
    continued = "of a maskgit: share of the clips that are trained as continuations; default: 0.25"
    add("--prime-prob", type=number(at_least=0, at_most=1), help=continued)
    distil = "distil guidance of this scale from the MaskGit of --model"
    add("--distil-guidance", type=WEIGHT, metavar="SCALE", help=distil)
    crossed = "with --distil-guidance: weight of batches of videos under captions of images"
    add("--crossed-weight", type=WEIGHT, help=f"{crossed}; default: 0.5")


def add_loss(parser: argparse.ArgumentParser) -> None:
    """Add the terms of the tokenizer's loss beside that of the pixels."""
    add = parser.add_argument_group("loss, beside that of the pixels").add_argument
    add("--image-perceptual", type=WEIGHT, default=0.0, help="weight of the features of frames, for moving shapes")
    add("--video-perceptual", type=WEIGHT, default=0.0, help="weight of the features of clips, for moving shapes")
    add(
        "--perceptual-steps",
        type=integer(),
        default=500,
        help="training steps of the networks that compute these features",
    )
    adversarial = "norm of the discriminator's gradient at the reconstruction over that of the other terms; 0 for none"
    add("--adversarial", type=WEIGHT, default=0.0, help=adversarial)
    add(
        "--adversarial-start",
        type=number(at_least=0, below=1),
        default=0.1,
        help="share of the steps before the discriminator starts",
    )
    add(
        "--adversarial-ramp",
        type=number(at_least=0, at_most=1),
        default=0.1,
        help="share of the steps in which its weight grows from 0",
    )
    add("--discriminator-dim", type=integer(), help="channels at 32×32 and below; the paper's has 512, LAION's 256")
    add("--discriminator-lr", type=number(above=0), default=1e-3)
    add("--judged-frames", type=integer(), default=3, help="frames of each clip that the discriminator learns from")
    add("--r1-weight", type=WEIGHT, default=1.0, help="weight of the penalty on the discriminator's gradient")


def recipe_of(args: argparse.Namespace, steps: int) -> Recipe:
    """How a stage is trained."""
    names = ("lr", "optimizer", "seed", "warmup", "schedule", "clip", "ema", "checkpoint_every")
    return Recipe(steps=steps, **{name: getattr(args, name) for name in names})


def sampling(args: argparse.Namespace) -> dict:
    """The sampling options of the second stage. ValueError for impossible values."""
    return planned_sampling(vars(args))


def scale_of(args: argparse.Namespace) -> int:
    """How many times to enlarge pictures, so that small ones can be seen."""
    return max(1, SHOWN_SIZE // args.size)


def fps(args: argparse.Namespace) -> float:
    """The frame rate of the GIFs."""
    return min(max(args.fps or 8.0, 1.0), 50.0)  # a GIF has no higher rate, and no frame of minutes
