"""Video from a trained model: a Phenaki, a VideoGPT or a Latte, told by texts, classes, actions, a picture or nothing.

    python examples/generate.py
    python examples/generate.py "a red circle moves left" --out circle
    python examples/generate.py "a red circle moves left" "a red circle turns up" --out story
    python examples/generate.py "a red circle moves left" --image picture.png --out moved
    python examples/generate.py "a red circle turns up" --video clip.mp4 --out longer
    python examples/generate.py --model runs/doom/model --image picture.png --actions turn_left --out left

One prompt gives a clip, several prompts give a story. Prompts of a model that reads classes are their names.
Writes OUT.mp4, OUT.gif and OUT.png, a sheet of the frames with the prompts above them. With --image or --video the
result begins with the picture, or with the last frames of the file, and goes on with generated frames. With --count
above 1 there is one OUT-1.mp4 and OUT-1.gif for each sample, and one sheet of all. Arguments that would have no effect
are refused, and so are prompts without a word, or without a word that the model knows.

The default of --model is the model in pretrained/, which was trained on moving shapes, and without prompts a story of
three scenes. The plan.json beside the model's folder, if there is one, gives the defaults: those of the training.

b = batch, the samples · c = channels · f = frames · h, w = pixels
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import repeat
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm import tqdm

from data.clip_arguments import writable_rate
from data.flags import integer, mistakes_in_one_line, path
from data.image_reader import read_image
from data.media import write_gif, write_mp4, write_sheet
from data.outputs import check_writable, together
from data.runs import (
    PRETRAINED,
    RATE,
    SEED,
    device_of,
    labels_of,
    load_model,
    read_plan,
    tokenizer_of,
    unknown_words,
)
from data.sampling import (
    Model,
    add_sampling,
    asked_sampling,
    check_sampling,
    kind_of,
    planned_sampling,
    refuse_without_effect,
)
from data.timeline import read_timeline
from data.video_reader import read_video
from data.word_vectors import words_of
from phenaki_pytorch import VideoGPT
from phenaki_pytorch.core.contracts import Lengths
from phenaki_pytorch.core.lengths import lengths_up_to, usable_frames

STORY = ("a red circle moves right", "a red circle turns up", "a red circle turns left")
SHOWN_SIZE = 128  # pixels; smaller videos are enlarged to about this size
LARGEST = 16384  # pixels of a side that H.264 takes
NAMED_WORDS = 50  # of a training's captions, in a message

Scene = tuple[str, Tensor]  # the prompt, or "given", and frames (b, c, f, h, w)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prompts", nargs="*", help="one for each scene: a text or a class; none for a model that reads neither")
    add("--model", type=path, default=PRETRAINED, help="the folder model/ that a training left")
    add("--out", type=path, default=Path("runs/video"), help="OUT.mp4, OUT.gif, OUT.png; default: %(default)s")
    add("--count", type=integer(), default=1, help="number of samples")
    add("--seed", type=SEED, default=0)
    given = parser.add_mutually_exclusive_group().add_argument
    given("--image", type=path, help="a picture to animate: the first frame of the result")
    given("--video", type=path, help="a video to continue: the result begins with its last --overlap frames")
    actions = "for a model that reads actions: what is done in the new frames, each for an equal share of them"
    add("--actions", nargs="+", metavar="NAME", help=actions)
    length = parser.add_argument_group("length").add_argument
    length(
        "--frames", type=integer(), nargs="+", help="new frames of all scenes, or of each; default: those of one pass"
    )
    length("--overlap", type=integer(), help="frames that each scene shares with those before; default: half a window")
    add_sampling(parser)
    look = parser.add_argument_group("picture").add_argument
    rate = "frame rate, 0.01 to 1000; default: the training's --fps, or the rate of --video, or 8; a gif has at most 50"
    look("--fps", type=RATE, help=rate)
    look("--scale", type=integer(), help="enlarge by a whole number; default: to about 128 pixels")

    args = parser.parse_args(argv)
    if args.model == PRETRAINED and not (args.prompts or args.image or args.video or args.actions):
        args.prompts = list(STORY)
    if args.out.suffix.lower() in (".mp4", ".gif", ".png"):
        args.out = args.out.with_suffix("")
    if args.out.name in ("", ".."):
        parser.error(f"--out must be the name of files, got {args.out}")
    return args


def out_files(args: argparse.Namespace) -> tuple[list[tuple[Path, Path]], Path]:
    """The mp4 and the gif of each sample, and the sheet."""
    names = [args.out.name] if args.count == 1 else [f"{args.out.name}-{k}" for k in range(1, args.count + 1)]
    videos = [(args.out.with_name(f"{name}.mp4"), args.out.with_name(f"{name}.gif")) for name in names]
    return videos, args.out.with_name(f"{args.out.name}.png")


def check_out(args: argparse.Namespace) -> None:
    """Refuse files that cannot be written, or that would replace the file that is given."""
    videos, sheet = out_files(args)
    given = args.image or args.video
    for file in [*(file for pair in videos for file in pair), sheet]:
        check_writable(file)
        if given is not None and file.resolve() == given.resolve():
            raise ValueError(f"{file} is the file that is given and would be replaced: expected another --out")


def check_told(args: argparse.Namespace, model: Model) -> None:
    """Refuse prompts, actions and pictures that do not go with the model."""
    names = labels_of(args.model, model)
    if bool(args.prompts) == (model.text_encoder is None and not names.classes):
        expected = "no prompts, as the model reads neither texts nor classes" if args.prompts else "a prompt"
        raise ValueError(f"expected {expected}, got {len(args.prompts) or 'none'}")
    for name, given, known in (("prompts", args.prompts, names.classes), ("--actions", args.actions, names.actions)):
        if known and (foreign := sorted(set(given or ()) - set(known))):
            raise ValueError(f"{name} must be among {', '.join(known)}, got {', '.join(foreign)}")
    if bool(args.actions) != bool(names.actions):
        expected = f"--actions, some of {', '.join(names.actions)}" if names.actions else "no --actions"
        raise ValueError(f"expected {expected}, got {'none' if names.actions else 'some'}: see what the model was told")
    first = tokenizer_of(model).num_frames(1)
    if args.image and first > 1 and not reads_frames(model):
        raise ValueError(f"the model goes on from {first} frames or more: expected --video, got --image")
    if reads_frames(model) and not (args.image or args.video):
        raise ValueError("the model reads the first frame: expected --image or --video, got neither")
    if model.text_encoder is not None:
        check_words(args)


def check_words(args: argparse.Namespace) -> None:
    """Refuse prompts without a word that the training had; of the others, name the words that it did not have."""
    for prompt in args.prompts:
        if not words_of(prompt):
            raise ValueError(f"expected a word in every prompt, got {prompt!r}")
    unknown, known = unknown_words(args.model, args.prompts)
    if not unknown:
        return
    shown = ", ".join(known[:NAMED_WORDS]) + (", ..." if len(known) > NAMED_WORDS else "")
    for prompt in args.prompts:
        if set(words_of(prompt)) <= set(unknown):
            raise ValueError(f"no caption of the training has a word of {prompt!r}; the captions' words: {shown}")
    print(
        f"warning: no caption of the training has {', '.join(unknown)}; the captions' words: {shown}", file=sys.stderr
    )


# arguments that are not given


def fill_in(args: argparse.Namespace, plan: dict, model: Model) -> None:
    """Fill in the arguments that are not given: the training's, or else the paper's. ValueError for wrong ones."""
    height, width = tokenizer_of(model).image_size
    odd = height % 2 or width % 2
    scale = max(1, SHOWN_SIZE // max(height, width))
    asked = asked_sampling(args)
    defaults = {
        **planned_sampling(plan | {"prior": kind_of(model)}),
        "scale": scale + scale % 2 if odd else scale,  # h264 stores colour for 2 × 2 pixels
        "fps": plan.get("fps"),
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    check_sampling(asked, asked_sampling(args, kind_of(model)), model)
    if is_alone(args, model) and not args.image:
        refuse_without_effect(asked, ("resamples",), "on a single scene of one window with nothing before it")
    args.overlap = check_overlap(args, model)
    if args.scale * max(height, width) > LARGEST:
        raise ValueError(
            f"an mp4 has at most {LARGEST} pixels a side, got {width} × {height} with --scale {args.scale}"
        )
    if odd and args.scale % 2:
        raise ValueError(f"an mp4 of {width} × {height} pixels needs an even --scale, got {args.scale}")


def is_alone(args: argparse.Namespace, model: Model) -> bool:
    """Whether there is one scene of one window, after a picture at most."""
    frames = sum(args.frames or ()) + bool(args.image)
    return len(args.prompts) <= 1 and not args.video and frames <= model.window


def check_overlap(args: argparse.Namespace, model: Model) -> int:
    """The frames that each scene shares with those before; 0 where there is one scene and nothing before it."""
    fitting = lengths_up_to(tokenizer_of(model), model.window - 1)
    if args.overlap is not None and args.overlap not in fitting:
        raise ValueError(f"--overlap must be one of {fitting}, got {args.overlap}")
    if args.overlap is not None and is_alone(args, model):
        raise ValueError("--overlap would have no effect on a single scene of one window")
    if args.overlap is None and fitting:
        return max(usable_frames(tokenizer_of(model), (1 + model.window) // 2), fitting[0])
    picture = args.image and not reads_frames(model)
    if args.overlap is None and (len(args.prompts) > 1 or picture or args.video):
        raise ValueError(f"the model's window of {model.window} frames has no room for frames that are given")
    return args.overlap or 0


# given frames


def last_frames(file: Path, count: int, *, lengths: Lengths, size: tuple[int, int], rate: dict) -> tuple[Tensor, float]:
    """The last `count` frames of a file, or as many as it has and the tokenizer takes: (c, f, h, w), and their rate."""
    available = read_timeline(file).clip_lengths(rate.get("fps"), rate.get("stride", 1))
    count = usable_frames(lengths, min(count, int(available[0])))
    if count == 0:
        raise ValueError(f"{file} must have at least {lengths.num_frames(1)} frames, got {available[0]}")
    start = int(np.flatnonzero(available >= count)[-1])
    return read_video(file, size=size, num_frames=count, start=start, **rate)


def read_given(args: argparse.Namespace, plan: dict, model: Model) -> tuple[Tensor | None, float]:
    """The frames to begin with, (b, c, f, h, w), at the rate of the training; and the rate to write at."""
    frames, fps, size = None, args.fps or 8.0, tokenizer_of(model).image_size
    if args.image and tokenizer_of(model).num_frames(1) == 1:
        frames = read_image(args.image, size)[:, None]
    if args.video:
        rate = {"fps": plan["fps"]} if plan.get("fps") else {"stride": plan.get("stride", 1)}
        frames, own = last_frames(args.video, args.overlap, lengths=tokenizer_of(model), size=size, rate=rate)
        fps = args.fps or writable_rate(args.video, own)
    return None if frames is None else repeat(frames, "c f h w -> b c f h w", b=args.count), fps


# scenes


def frame_counts(args: argparse.Namespace, model: Model, scenes: int, known: int) -> list[int]:
    """New frames of each scene: as asked for, or those of one window that begins with `known` frames."""
    if args.frames is None:
        return [model.window - known, *[model.window - args.overlap] * (scenes - 1)]
    if len(args.frames) not in (1, scenes):
        raise ValueError(f"--frames must be one number, or one for each of {scenes} scenes, got {len(args.frames)}")
    return args.frames * scenes if len(args.frames) == 1 else args.frames


def reads_frames(model: Model) -> bool:
    """Whether the model is told the first frame."""
    return isinstance(model, VideoGPT) and model.frame_encoder is not None


def told_of(args: argparse.Namespace, model: Model, prompt: str | None, *, known: int, count: int) -> dict[str, object]:
    """What the model is told of a scene of `count` new frames after `known` ones, beside these."""
    names, told = labels_of(args.model, model), {}
    if model.text_encoder is not None:
        told["texts"] = [prompt] * args.count
    if names.classes:
        told["classes"] = torch.tensor([names.classes.index(prompt)] * args.count)
    if names.actions:
        shares = [names.actions.index(args.actions[frame * len(args.actions) // count]) for frame in range(count)]
        taken = torch.tensor([shares[0]] * known + shares)  # what led to the frames before is not known
        told["actions"] = repeat(one_hot(taken, len(names.actions)).float(), "f a -> b f a", b=args.count)
    if reads_frames(model) and known == 0:
        picture = read_image(args.image, tokenizer_of(model).image_size)
        told["frames"] = repeat(picture, "c h w -> b c h w", b=args.count)
    return told


def generate_scenes(args: argparse.Namespace, model: Model, given: Tensor | None) -> list[Scene]:
    """The given frames, if any, and the new frames of each scene, which goes on from the last --overlap frames."""
    prompts = args.prompts or [None]
    scenes = [] if given is None else [("given", given)]
    counts = frame_counts(args, model, len(prompts), 0 if given is None else given.shape[2])
    if args.actions and len(args.actions) > min(counts):
        raise ValueError(f"--actions has {len(args.actions)} names: expected at most the {min(counts)} new frames")
    generator = torch.Generator(device_of(model)).manual_seed(args.seed)
    for place, (prompt, count) in enumerate(zip(prompts, counts), start=1):
        known = torch.cat([frames for _, frames in scenes], dim=2)[:, :, -args.overlap :] if scenes else None
        new = model.generate(
            **told_of(args, model, prompt, known=0 if known is None else known.shape[2], count=count),
            num_frames=count,
            batch_size=args.count,
            prime_frames=None if known is None else known.to(generator.device),
            overlap=args.overlap or None,
            **asked_sampling(args, kind_of(model)),
            generator=generator,
            progress=partial(tqdm, desc=f"scene {place} of {len(prompts)}"),
        )
        scenes.append((prompt or "", new.float().cpu()))
    return scenes


def write(args: argparse.Namespace, scenes: list[Scene], fps: float) -> None:
    """Write OUT.mp4, OUT.gif and OUT.png, all or none of them, and print their names."""
    whole = torch.cat([frames for _, frames in scenes], dim=2)
    whole = repeat(whole, "b c f h w -> b c f (h sh) (w sw)", sh=args.scale, sw=args.scale)
    rows = [(label, frames[sample]) for sample in range(args.count) for label, frames in scenes]
    videos, sheet = out_files(args)
    with together():
        for (mp4, gif), video in zip(videos, whole):
            write_mp4(mp4, video, fps)
            write_gif(gif, video, min(fps, 50))
        write_sheet(sheet, rows, columns=max(frames.shape[2] for _, frames in scenes), scale=args.scale)
    _, _, frames, height, width = whole.shape
    for mp4, gif in videos:
        print(f"wrote {mp4} and {gif.name}: {frames} frames, {width} × {height}, {fps:g} a second")
    print(f"wrote {sheet}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with mistakes_in_one_line(__file__):
        check_out(args)
        model, plan = load_model(args.model), read_plan(args.model)
        check_told(args, model)
        fill_in(args, plan, model)
        given, fps = read_given(args, plan, model)
        write(args, generate_scenes(args, model, given), fps)


if __name__ == "__main__":
    main()
