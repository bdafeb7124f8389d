"""Text to video with a trained model: one prompt makes a clip, several make a story.

    python examples/generate.py
    python examples/generate.py "a red circle moves left" --out circle
    python examples/generate.py "a red circle moves left" "a red circle turns up" --out story
    python examples/generate.py "a red circle moves left" --image picture.png --out moved
    python examples/generate.py "a red circle turns up" --video clip.mp4 --out longer

Writes OUT.mp4, OUT.gif and OUT.png, a sheet of the frames with the prompts above them. With --image or --video the
result begins with what was given (the picture, or the file's last frames) and goes on with the new frames. With
--count above 1 there is one OUT-1.mp4 and OUT-1.gif for each sample, and one sheet of all.

Without a --model it is the one that comes with the repository, which knows moving shapes, and without prompts a story
of three of its scenes. What the model was trained with (plan.json beside the model's folder, if it is there) gives the
defaults.

b = batch, the samples · c = channels · f = frames · h, w = pixels
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import repeat
from torch import Tensor
from tqdm import tqdm

from media import write_gif, write_mp4, write_sheet
from phenaki_pytorch import Phenaki
from phenaki_pytorch.sampling import Settings
from video_folder import read_image, read_video
from video_reader import read_timeline
from word_vectors import WordVectors, words_of

PRETRAINED = Path(__file__).parent / "pretrained" / "model"
STORY = ("a red circle moves right", "a red circle turns up", "a red circle turns left")

Scene = tuple[str, Tensor]  # the prompt, or "given", and frames (b, c, f, h, w)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prompts", nargs="*", help="one for each scene; none for an unconditional model")
    add("--model", type=Path, default=PRETRAINED, help="the folder that train.py wrote")
    add("--out", type=Path, default=Path("video"), help="OUT.mp4, OUT.gif, OUT.png; default: %(default)s")
    add("--count", type=int, default=1, help="samples to draw")
    add("--seed", type=int, default=0)
    given = parser.add_mutually_exclusive_group().add_argument
    given("--image", type=Path, help="a picture to set in motion: the first frame of the result")
    given("--video", type=Path, help="a video to continue: its last --overlap frames begin the result")
    length = parser.add_argument_group("length").add_argument
    length("--frames", type=int, nargs="+", help="new ones, of all scenes or each; default: what one pass can add")
    length("--overlap", type=int, help="frames that a scene is given of what was before; default: half the window")
    add_sampling(parser)
    look = parser.add_argument_group("picture").add_argument
    look("--fps", type=float, help="to play at; default: the training's --fps, or the rate of --video, or 8")
    look("--scale", type=int, help="enlarge by a whole number; default: to about 128 pixels")

    args = parser.parse_args(argv)
    for name in ("count", "overlap", "scale", "fps"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            parser.error(f"--{name} must be above 0, got {getattr(args, name)}")
    if args.model == PRETRAINED and not (args.prompts or args.image or args.video):
        args.prompts = list(STORY)
    if args.out.suffix in (".mp4", ".gif", ".png"):
        args.out = args.out.with_suffix("")
    return args


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The settings of `planned_sampling` as arguments, None where they are not given."""
    sampling = parser.add_argument_group("sampling").add_argument
    sampling("--steps", type=int, help="passes of parallel decoding")
    sampling("--cond-scale", type=float, help="strength of the text; 1 is no guidance")
    sampling("--critic-scale", type=float, help="guidance of the critic, of a model that has one; 1 is none")
    sampling("--guide-every", type=int, help="steps from one whose null side is computed to the next")
    inline = {"action": argparse.BooleanOptionalAction, "help": "the self-critic looks in the passes of MaskGit"}
    sampling("--critic-inline", **inline)
    sampling("--temperature", type=float, help="noise on the confidence, or the critic's, in parallel decoding")
    softmax = {"nargs": 2, "metavar": ("FIRST", "LAST"), "help": "softmax temperature of the first and the last step"}
    sampling("--token-temperature", type=float, **softmax)


def load_model(folder: Path) -> Phenaki:
    """The model of a folder, with the text encoder that it was trained with."""
    config, prior = folder / "config.json", folder / "maskgit" / "config.json"
    if not (config.is_file() and prior.is_file()):
        raise ValueError(f"no model in {folder}: expected the folder model/ that train.py left in its --out")
    own = {}
    if json.loads(config.read_text())["text_encoder"] == Phenaki.GIVEN:
        own["text_encoder"], width = WordVectors(), json.loads(prior.read_text())["dim_context"]
        if own["text_encoder"].dim != width:
            raise ValueError(f"the model in {folder} needs its owner's own text encoder, {width} wide")
    phenaki = Phenaki.from_pretrained(folder, **own).eval()
    return phenaki.to("cuda" if torch.cuda.is_available() else "cpu")


def read_note(folder: Path) -> dict:
    """The plan.json that train.py left beside the model; empty where it is not there."""
    plan = folder.resolve().parent / "plan.json"
    return json.loads(plan.read_text()) if plan.is_file() else {}


def read_plan(folder: Path) -> dict:
    """The arguments of train.py, which it left beside the model; empty where they are not there."""
    return read_note(folder).get("arguments", {})


def planned_sampling(plan: dict) -> dict:
    """The settings of `Phenaki.generate` that go with a training, the paper's where it says nothing.

    ValueError for what no sampling can follow.
    """
    settings = {
        "steps": plan.get("sampling_steps", 24),
        "cond_scale": plan.get("cond_scale", 7.0),
        "temperature": plan.get("temperature", 4.0),
        "token_temperature": plan.get("token_temperature", (1.0, 1.0)),
        "critic_scale": plan.get("critic_scale", 1.0),
        "guide_every": plan.get("guide_every", 1),
        "critic_inline": plan.get("critic_inline", False),
    }
    Settings(**settings)
    return settings


def asked_sampling(args: argparse.Namespace) -> dict:
    """The arguments of `add_sampling` by name, None where they are not given."""
    return {name: getattr(args, name) for name in planned_sampling({})}


def unknown_words(folder: Path, prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of the prompts that train.py's captions had none of, and those they had, where it says so."""
    known = read_note(folder).get("words")
    if known is None:
        return [], []
    return sorted({word for prompt in prompts for word in words_of(prompt)} - set(known)), known


def fill_in(args: argparse.Namespace, plan: dict, phenaki: Phenaki) -> None:
    """Put what was trained with, or else the paper's choice, in the place of arguments that are not given."""
    step = phenaki.cvivit.num_frames(2) - 1
    height, width = phenaki.cvivit.image_size
    scale = max(1, 128 // max(height, width))
    odd = height % 2 or width % 2
    defaults = {
        "overlap": 1 + (phenaki.window - 1) // step // 2 * step,
        **planned_sampling(plan),
        "scale": scale + scale % 2 if odd else scale,  # h264 stores colour for 2 × 2 pixels
        "fps": plan.get("fps"),
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if (args.overlap - 1) % step:
        raise ValueError(f"--overlap must be 1 + k · {step}, got {args.overlap}")
    if odd and args.scale % 2:
        raise ValueError(f"an mp4 of {width} × {height} pixels needs an even --scale, got {args.scale}")


def last_frames(path: Path, count: int, *, step: int, size: tuple[int, int], rate: dict) -> tuple[Tensor, float]:
    """The last `count` frames of a file, or as many, 1 + k · step, as it has: (c, f, h, w), and their rate."""
    lengths = read_timeline(path).clip_lengths(rate.get("fps"), rate.get("stride", 1))
    count = 1 + (min(count, int(lengths[0])) - 1) // step * step
    start = int(np.flatnonzero(lengths >= count)[-1])
    return read_video(path, size=size, num_frames=count, start=start, **rate)


def read_given(args: argparse.Namespace, plan: dict, phenaki: Phenaki) -> tuple[Tensor | None, float]:
    """The frames to begin with, (b, c, f, h, w), at the rate of the training; and the rate to write at."""
    frames, fps, size = None, args.fps or 8.0, phenaki.cvivit.image_size
    if args.image:
        frames = read_image(args.image, size)[:, None]
    if args.video:
        rate = {"fps": plan["fps"]} if plan.get("fps") else {"stride": plan.get("stride", 1)}
        step = phenaki.cvivit.num_frames(2) - 1
        frames, own = last_frames(args.video, args.overlap, step=step, size=size, rate=rate)
        fps = args.fps or own
    return None if frames is None else repeat(frames, "c f h w -> b c f h w", b=args.count), fps


def frame_counts(args: argparse.Namespace, phenaki: Phenaki, scenes: int, known: int) -> list[int]:
    """New frames of each scene: as asked for, or what is left of a window in which `known` frames are given."""
    if args.frames is None:
        counts = [phenaki.window - known, *[phenaki.window - args.overlap] * (scenes - 1)]
        if min(counts) < 1:
            raise ValueError(f"a window of {phenaki.window} frames is given whole: lower --overlap, or say --frames")
        return counts
    if len(args.frames) not in (1, scenes):
        raise ValueError(f"--frames must be one number, or one for each of {scenes} scenes, got {len(args.frames)}")
    return args.frames * scenes if len(args.frames) == 1 else args.frames


def draw_scenes(args: argparse.Namespace, phenaki: Phenaki, given: Tensor | None) -> list[Scene]:
    """The given frames, if any, and each scene's new ones; a scene goes on from the last --overlap frames."""
    if bool(args.prompts) == (phenaki.text_encoder is None):
        expected = "no prompts, as the model is unconditional" if args.prompts else "a prompt"
        raise ValueError(f"expected {expected}, got {len(args.prompts) or 'none'}")
    prompts = args.prompts or [None]
    scenes = [] if given is None else [("given", given)]
    counts = frame_counts(args, phenaki, len(prompts), 0 if given is None else given.shape[2])
    generator = torch.Generator(phenaki.maskgit.to_logits.weight.device).manual_seed(args.seed)
    for number, (prompt, count) in enumerate(zip(prompts, counts), start=1):
        known = torch.cat([frames for _, frames in scenes], dim=2)[:, :, -args.overlap :] if scenes else None
        new = phenaki.generate(
            None if prompt is None else [prompt] * args.count,
            num_frames=count,
            batch_size=args.count,
            prime_frames=None if known is None else known.to(generator.device),
            overlap=args.overlap,
            **asked_sampling(args),
            generator=generator,
            progress=partial(tqdm, desc=f"scene {number} of {len(prompts)}"),
        )
        scenes.append((prompt or "", new.float().cpu()))
    return scenes


def write(args: argparse.Namespace, scenes: list[Scene], fps: float) -> None:
    """Write OUT.mp4, OUT.gif and OUT.png, and say so."""
    whole = torch.cat([frames for _, frames in scenes], dim=2)
    whole = repeat(whole, "b c f h w -> b c f (h sh) (w sw)", sh=args.scale, sw=args.scale)
    for number, video in enumerate(whole, start=1):
        out = args.out if args.count == 1 else args.out.with_name(f"{args.out.name}-{number}")
        mp4, gif = (out.with_name(out.name + suffix) for suffix in (".mp4", ".gif"))
        write_mp4(mp4, video, fps)
        write_gif(gif, video, min(fps, 50))
        _, frames, height, width = video.shape
        print(f"wrote {mp4} and {gif.name}: {frames} frames, {width} × {height}, {fps:g} a second")
    sheet = args.out.with_name(args.out.name + ".png")
    rows = [(label, frames[sample]) for sample in range(args.count) for label, frames in scenes]
    write_sheet(sheet, rows, columns=max(frames.shape[2] for _, frames in scenes), scale=args.scale)
    print(f"wrote {sheet}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    try:
        phenaki, plan = load_model(args.model), read_plan(args.model)
        unknown, known = unknown_words(args.model, args.prompts)
        if unknown:
            print(f"warning: the model never read {', '.join(unknown)}; it knows: {', '.join(known)}", file=sys.stderr)
        fill_in(args, plan, phenaki)
        given, fps = read_given(args, plan, phenaki)
        write(args, draw_scenes(args, phenaki, given), fps)
    except (ValueError, OSError) as error:  # what a wrong argument or file leads to, each with its own message
        raise SystemExit(f"generate.py: {error}") from error


if __name__ == "__main__":
    main()
