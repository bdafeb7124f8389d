"""What the second stage leaves to look at: samples, a story, and the measures of the finished model."""

import argparse
import time

import torch

from data.encoded import Encoded
from data.media import side_by_side, write_gif, write_sheet
from data.moving_shapes import prompts, stories
from data.sources import DataSets, held_out
from evaluation.claims import OVERLAP, SHORTEST_JUDGED, SHORTEST_STORY, story, text_to_video
from evaluation.measures import judged_reconstruction, reconstruction, table
from phenaki_pytorch import Phenaki
from phenaki_pytorch.core.lengths import lengths_up_to, usable_frames
from training.arguments import fps, sampling, scale_of
from training.plans import write_object

SAMPLES = 8
MAX_SCENES = 3
MEASURED = 200  # clips whose reconstruction is measured


def check_evaluation(args: argparse.Namespace, phenaki: Phenaki) -> None:
    """Refuse, with a ValueError, --prompts and --stories that are given but could not be measured at the end."""
    if args.prompts and "prompts" in args.given and args.frames < SHORTEST_JUDGED:
        raise ValueError(f"--prompts needs clips of at least {SHORTEST_JUDGED} frames, got --frames {args.frames}")
    if args.stories and "stories" in args.given and not has_stories(args, phenaki):
        raise ValueError(
            f"--stories needs clips of at least {SHORTEST_STORY} frames, of which {OVERLAP} can be given to the next "
            f"scene, got --frames {args.frames}"
        )


def has_stories(args: argparse.Namespace, phenaki: Phenaki) -> bool:
    """Whether a window has room for the given frames and the new ones of a story's scene."""
    return args.frames >= SHORTEST_STORY and OVERLAP in lengths_up_to(phenaki.cvivit, phenaki.window - 1)


def show_samples(args: argparse.Namespace, phenaki: Phenaki, clips: Encoded) -> None:
    """Write samples and, of a model that reads texts, a story, as PNG and GIF; `clips`: those of the training."""
    if args.data == "moving_shapes":
        texts, scenes = prompts("seen", SAMPLES, seed=args.seed), list(stories(1, seed=args.seed)[0])
    else:
        texts = list(dict.fromkeys(captions[0] for captions in clips.captions))[:SAMPLES]
        scenes = texts[:MAX_SCENES]
    generator = torch.Generator(phenaki.maskgit.to_logits.weight.device).manual_seed(args.seed)
    options = {"generator": generator, **sampling(args)}
    if phenaki.text_encoder is None:
        videos = phenaki.generate(batch_size=len(texts), num_frames=args.frames, **options)
        texts = [""] * len(texts)
    else:
        videos = phenaki.generate(texts, num_frames=args.frames, **options)
    videos = videos.float().cpu()
    rows = list(zip(texts, videos))
    write_sheet(args.out / "maskgit" / "samples.png", rows, columns=args.frames, scale=scale_of(args))
    write_gif(args.out / "maskgit" / "samples.gif", side_by_side(videos), fps(args), scale_of(args))
    if phenaki.text_encoder is not None:
        show_story(args, phenaki, scenes, options)


def show_story(args: argparse.Namespace, phenaki: Phenaki, scenes: list[str], options: dict) -> None:
    """Write a story whose scenes share half a window; nothing where a window is too short for that."""
    overlap = usable_frames(phenaki.cvivit, (1 + phenaki.window) // 2)
    if not 0 < overlap < phenaki.window:
        return
    counts = [phenaki.window, *[phenaki.window - overlap] * (len(scenes) - 1)]
    whole, parts = phenaki.generate_story(scenes, num_frames=counts, overlap=overlap, **options)
    write_gif(args.out / "story.gif", whole[0].float().cpu(), fps(args), scale_of(args))
    rows = [(text, part[0].float().cpu()) for text, part in zip(scenes, parts)]
    write_sheet(args.out / "story.png", rows, columns=phenaki.window, scale=scale_of(args))


def write_results(args: argparse.Namespace, phenaki: Phenaki, sets: DataSets, *, began: float) -> None:
    """Measure the model, print the table, and write results.json, with the minutes since `began`."""
    measured = measure(args, phenaki, sets) | {"minutes": (time.time() - began) / 60}
    table(measured)
    write_object(args.out / "results.json", measured)


def measure(args: argparse.Namespace, phenaki: Phenaki, sets: DataSets) -> dict[str, float]:
    """Reconstruction and, of moving shapes, the judged shares of reconstructions, of samples and of stories."""
    videos, captions = held_out(args, sets, MEASURED)
    videos = videos.to(phenaki.maskgit.to_logits.weight.device)
    measured = reconstruction(phenaki.cvivit, videos)
    if args.data != "moving_shapes":
        return measured
    measured |= judged_reconstruction(phenaki.cvivit, videos, captions)
    if phenaki.text_encoder is None:
        return measured
    options = {"seed": args.seed, **sampling(args)}
    if args.prompts and args.frames >= SHORTEST_JUDGED:
        shares = text_to_video(phenaki, args.prompts, **options).shares()
        measured |= {f"text to video {name}": share for name, share in shares.items()}
    if args.stories and has_stories(args, phenaki):
        for verb in ("turns", "moves"):
            figures = story(phenaki, args.stories, verb=verb, **options)
            measured |= {f"story ({verb}) {name}": figure for name, figure in figures.items()}
    return measured
