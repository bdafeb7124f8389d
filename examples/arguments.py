"""What train.py can be told on the command line, and what follows from it for both stages."""

import argparse
from pathlib import Path

from generate import planned_sampling
from phenaki_pytorch.sampling import SCHEDULES, check_scales
from training_loop import Recipe


def parse_arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="moving_shapes", help="moving_shapes, or a folder of videos and images with captions")
    add("--out", type=Path, default=Path("runs/phenaki"), help="what it leaves; default: %(default)s")
    add("--stage", choices=("both", "tokenizer", "maskgit"), default="both")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --out, with the arguments of before")
    add("--model", help="a folder that train.py wrote: begin with what it learnt; sizes as when it was trained")
    add("--seed", type=int, default=0)
    add("--steps", type=int, nargs=2, default=(1200, 4100), help="of the tokenizer and of MaskGit")
    add("--minutes", type=float, help="in place of --steps: as many of both as fit, by the time that one takes now")
    add("--text-encoder", default="words", help="a T5 name or directory; 'words' needs no file, 'none' no captions")

    data = parser.add_argument_group("data").add_argument
    data("--size", type=int, default=32, help="height and width, pixels")
    data("--other-sizes", type=int, nargs="*", default=(), help="more sizes of the tokenizer's clips, each as often")
    data("--frames", type=int, default=9, help="frames of a clip, 1 + k · --temporal-patch-size")
    data("--fps", type=float, help="take a folder's frames at this rate")
    data("--stride", type=int, default=1, help="take every n-th frame of a folder's videos, without --fps")
    data("--flip", action="store_true", help="mirror a folder's clips at random: makes 'left' wrong")
    data("--video-weight", type=float, default=1.0, help="weight of the videos among the batches")
    data("--image-weight", type=float, nargs=2, default=(0.02, 0.05), help="of the images, beside it, in each stage")
    data("--workers", type=int, default=0, help="processes that load data")
    data("--encoded", type=int, default=6000, help="clips, and as many images, to encode for the second stage")

    model = parser.add_argument_group("model").add_argument
    model("--patch-size", type=int, default=4)
    model("--temporal-patch-size", type=int, default=2)
    model("--quantizer", default="fsq", choices=("vq", "lfq", "fsq", "simvq"))
    model("--levels", type=int, nargs="+", default=[4, 4, 4, 4, 4], help="of fsq")
    model("--codebook-size", type=int, default=512, help="of the other quantizers")
    model("--dim", type=int, nargs=2, default=(128, 96), help="of the tokenizer and of MaskGit")
    model("--depth", type=int, nargs=3, default=(2, 1, 4), help="spatial, temporal, MaskGit")
    model("--critic", choices=("none", "token", "self"), default="none", help="what decides which ids to draw again")

    recipe = parser.add_argument_group("recipe").add_argument
    recipe("--batch-size", type=int, nargs=2, default=(4, 8), help="clips; image batches have four times as many")
    recipe("--optimizer", nargs=2, default=("muon", "muon"), choices=("adamw", "muon"), help="of each stage")
    recipe("--lr", type=float, nargs=2, default=(1e-3, 3e-3), help="of the tokenizer and of MaskGit")
    recipe("--warmup", type=int, default=50)
    recipe("--mask-schedule", choices=tuple(SCHEDULES), default="cubic", help="which share MaskGit masks, and when")
    distil = "learn what the MaskGit of --model says under this guidance, so that it is drawn without"
    recipe("--distil-guidance", type=float, metavar="SCALE", help=distil)
    crossed = "weight of clips under captions of images, beside --video-weight, for the teacher to tell"
    recipe("--crossed-weight", type=float, default=0.5, help=crossed)
    recipe("--prime-prob", type=float, default=0.25, help="share of MaskGit's clips that are trained as continuations")
    recipe("--schedule", choices=("cosine", "constant"), default="cosine", help="after the warm-up")
    recipe("--clip", type=float, default=1.0, help="largest norm of the gradient")
    recipe("--ema", type=float, default=0.99)
    recipe("--checkpoint-every", type=int, default=1000)
    recipe("--share", type=float, default=0.2, help="the tokenizer's share of --minutes")
    recipe("--checkpoint-activations", action="store_true", help="less memory, for a second forward pass")
    recipe("--compile", action="store_true", help="torch.compile encoder, decoder and MaskGit")
    recipe("--precision", choices=("auto", "no", "bf16"), default="auto")

    loss = parser.add_argument_group("the tokenizer's loss, beside the pixels")
    loss = loss.add_argument
    loss("--image-perceptual", type=float, default=0.0, help="weight of features of frames, for moving shapes")
    loss("--video-perceptual", type=float, default=0.0, help="weight of features of clips, for moving shapes")
    loss("--perceptual-steps", type=int, default=500, help="of the networks that give these features")
    loss("--adversarial", type=float, default=0.0, help="the discriminator's gradient over that of the other terms")
    loss("--adversarial-start", type=float, default=0.1, help="share of the steps before the discriminator starts")
    loss("--adversarial-ramp", type=float, default=0.1, help="share of the steps in which its say grows from 0")
    loss("--discriminator-dim", type=int, default=32, help="channels at 32×32 and below; the paper's has 512")
    loss("--discriminator-lr", type=float, default=1e-3)
    loss("--judged-frames", type=int, default=3, help="of each clip, for the discriminator to learn from")
    loss("--r1-weight", type=float, default=1.0, help="of the penalty on the discriminator's gradient")

    drawing = parser.add_argument_group("sampling").add_argument
    drawing("--sampling-steps", type=int, default=24)
    drawing("--cond-scale", type=float, help="default: 2, or 1 with --distil-guidance")
    drawing("--temperature", type=float, default=4.0)
    drawing("--token-temperature", type=float, nargs=2, default=(1.2, 0.1), metavar=("FIRST", "LAST"))
    drawing("--critic-scale", type=float, default=1.0, help="guidance of the critic; 1 is none")
    drawing("--guide-every", type=int, default=1, help="steps from one whose null side is computed to the next")
    drawing("--critic-inline", action="store_true", help="the self-critic looks in the passes of MaskGit")
    drawing("--prompts", type=int, default=200, help="prompts to judge at the end, for moving shapes")
    drawing("--stories", type=int, default=50, help="stories to judge at the end, for moving shapes")
    args = parser.parse_args()
    if args.cond_scale is None:
        args.cond_scale = 2.0 if args.distil_guidance is None else 1.0
    if args.distil_guidance is not None and not args.resume:
        if args.stage != "maskgit" or args.model is None:
            parser.error("--distil-guidance needs --stage maskgit and a --model to learn from")
        if args.text_encoder == "none":
            parser.error("without texts there is nothing to guide: expected no --distil-guidance")
    if args.adversarial and any(size != args.size for size in args.other_sizes):
        parser.error("the discriminator judges frames of one size: --adversarial and --other-sizes exclude each other")
    if args.data != "moving_shapes" and (args.image_perceptual or args.video_perceptual):
        parser.error("the perceptual networks here learn the labels of the moving shapes; wrap your own: perceptual.py")
    try:
        check_scales(distil_guidance=args.distil_guidance or 0.0, crossed_weight=args.crossed_weight)
        sampling(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def recipe_of(args: argparse.Namespace, stage: int, steps: int) -> Recipe:
    return Recipe(
        steps=steps,
        lr=args.lr[stage],
        optimizer=args.optimizer[stage],
        seed=args.seed,
        warmup=args.warmup,
        schedule=args.schedule,
        clip=args.clip,
        ema=args.ema,
        checkpoint_every=args.checkpoint_every,
    )


def sampling(args: argparse.Namespace) -> dict:
    return planned_sampling(vars(args))


def scale_of(args: argparse.Namespace) -> int:
    """How much to enlarge pictures, so that small ones can be seen."""
    return max(1, 128 // args.size)


def fps(args: argparse.Namespace) -> float:
    """The rate of the pictures that are left."""
    return min(args.fps or 8.0, 50.0)  # more than a GIF can say
