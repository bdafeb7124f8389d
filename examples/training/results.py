"""What the second stage leaves to look at: samples, a story, and the measures of the finished model."""

import argparse
import time

import torch
from torch import Tensor

from data.conditions import Conditions
from data.encoded import Encoded
from data.media import side_by_side, write_gif, write_sheet
from data.moving_shapes import prompts, stories
from data.runs import device_of, tokenizer_of
from data.sampling import Model
from data.sources import DataSets, held_out
from evaluation.claims import OVERLAP, SHORTEST_JUDGED, SHORTEST_STORY, story, text_to_video
from evaluation.measures import (
    from_latents,
    judged_pictures,
    judged_reconstruction,
    picture_figures,
    reconstruction,
    table,
)
from phenaki_pytorch import Latte, Phenaki
from phenaki_pytorch.core.lengths import lengths_up_to, usable_frames
from training.arguments import fps, sampling, scale_of
from training.plans import write_object

SAMPLES = 8
MAX_SCENES = 3
MEASURED = 200  # clips whose reconstruction is measured


def check_evaluation(args: argparse.Namespace, model: Model) -> None:
    """Refuse, with a ValueError, --prompts and --stories that are given but could not be measured at the end."""
    if args.prompts and "prompts" in args.given and args.frames < SHORTEST_JUDGED:
        raise ValueError(f"--prompts needs clips of at least {SHORTEST_JUDGED} frames, got --frames {args.frames}")
    if "stories" in args.given and args.stories and not has_stories(args, model):
        raise ValueError(
            f"--stories needs clips of at least {SHORTEST_STORY} frames, of which {OVERLAP} can be given to the next "
            f"scene, got --frames {args.frames}"
        )


def has_stories(args: argparse.Namespace, model: Model) -> bool:
    """Whether a window has room for the given frames and the new ones of a story's scene."""
    return args.frames >= SHORTEST_STORY and OVERLAP in lengths_up_to(tokenizer_of(model), model.window - 1)


def show_samples(args: argparse.Namespace, model: Model, clips: Encoded, conditions: Conditions) -> None:
    """Write samples as PNG and GIF, and a story of a Phenaki that reads texts; `clips`: those of the training."""
    generator = torch.Generator(device_of(model)).manual_seed(args.seed)
    options = {"generator": generator, **sampling(args)}
    titles, given = shown_conditions(args, clips, conditions)
    videos = model.generate(**given, batch_size=len(titles), num_frames=args.frames, **options).float().cpu()
    folder = args.out / args.prior
    write_sheet(folder / "samples.png", list(zip(titles, videos)), columns=args.frames, scale=scale_of(args))
    write_gif(folder / "samples.gif", side_by_side(videos), fps(args), scale_of(args))
    if isinstance(model, Phenaki) and model.text_encoder is not None:
        show_story(args, model, story_scenes(args, titles), options)


def shown_conditions(
    args: argparse.Namespace, clips: Encoded, conditions: Conditions
) -> tuple[list[str], dict[str, Tensor]]:
    """Titles of the samples, and what the prior is told for them: new prompts, or what it was told of clips.

    A prior that is told no captions has samples without titles.
    """
    if args.condition == ["text"] and args.data == "moving_shapes":
        titles = prompts("seen", SAMPLES, seed=args.seed)
        return titles, dict(zip(("text_embeds", "text_mask"), conditions.texts(titles)))
    items = [clips[index] for index in first_of_each_caption(clips)]
    given = conditions.given(items)
    captions = {"text", "classes"} & conditions.names
    return [item["caption"] if captions else "" for item in items], given


def first_of_each_caption(clips: Encoded) -> list[int]:
    """The first clips of different captions, and then others, up to `SAMPLES`."""
    first = {captions[0]: index for index, captions in reversed(list(enumerate(clips.captions)))}
    return list(dict.fromkeys([*sorted(first.values()), *range(len(clips))]))[:SAMPLES]


def story_scenes(args: argparse.Namespace, titles: list[str]) -> list[str]:
    """The prompts of a story."""
    if args.data == "moving_shapes":
        return list(stories(1, seed=args.seed)[0])
    return list(dict.fromkeys(titles))[:MAX_SCENES]


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


def write_results(args: argparse.Namespace, model: Model, sets: DataSets, *, began: float) -> None:
    """Measure the model, print the table, and write results.json, with the minutes since `began`."""
    measured = measure(args, model, sets) | {"minutes": (time.time() - began) / 60}
    table(measured)
    write_object(args.out / "results.json", measured)


def measure(args: argparse.Namespace, model: Model, sets: DataSets) -> dict[str, float]:
    """Reconstruction and, of moving shapes, the judged shares of reconstructions, of samples and of stories."""
    videos, captions = held_out(args, sets, MEASURED)
    tokenizer = tokenizer_of(model)
    videos = videos.to(device_of(model))
    rebuilt = from_latents(tokenizer, videos) if isinstance(model, Latte) else None
    measured = reconstruction(tokenizer, videos) if rebuilt is None else picture_figures(rebuilt, videos)
    if args.data != "moving_shapes":
        return measured
    if rebuilt is None:
        measured |= judged_reconstruction(tokenizer, videos, captions)
    else:
        measured |= judged_pictures(rebuilt, captions)
    if args.condition != ["text"]:
        return measured
    options = {"seed": args.seed, **sampling(args)}
    if args.prompts and args.frames >= SHORTEST_JUDGED:
        shares = text_to_video(model, args.prompts, **options).shares()
        measured |= {f"text to video {name}": share for name, share in shares.items()}
    if getattr(args, "stories", 0) and has_stories(args, model):
        for verb in ("turns", "moves"):
            figures = story(model, args.stories, verb=verb, **options)
            measured |= {f"story ({verb}) {name}": figure for name, figure in figures.items()}
    return measured
