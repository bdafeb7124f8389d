"""What the stages look at: the data sets of each, mixed by weight, and clips that are not trained on."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from mixture import Batches, Source, stack_clips
from moving_shapes import MovingShapes
from video_folder import IMAGE_SUFFIXES, ImageFolder, VideoFolder

# The videos and the images of one size; None for what has no weight in any stage.
DataSets = tuple[Dataset | None, Dataset | None]


def data_sets(args: argparse.Namespace, stage: str) -> list[DataSets]:
    """What a stage learns from: in --size and, for the tokenizer, in each of --other-sizes."""
    sizes = [args.size, *(args.other_sizes if stage == "tokenizer" else ())]
    return [data_sets_of(args, stage, size) for size in sizes]


def data_sets_of(args: argparse.Namespace, stage: str, size: int) -> DataSets:
    videos = images = None
    if args.data == "moving_shapes":
        world = {"size": size, "seed": args.seed}
        names = ("tokenizer", "tokenizer") if stage == "tokenizer" else ("captioned_video", "captioned_images")
        videos = MovingShapes(names[0], num_frames=args.frames, **world)
        images = MovingShapes(names[1], num_frames=1, **world)
        return (videos if args.video_weight else None), (images if any(args.image_weight) else None)
    look = {"size": size, "flip": args.flip, "seed": args.seed}
    if args.video_weight:
        rate = {"fps": args.fps} if args.fps else {"stride": args.stride}
        videos = VideoFolder(args.data, num_frames=args.frames, **rate, **look)
    if any(args.image_weight) and any(path.suffix.lower() in IMAGE_SUFFIXES for path in Path(args.data).rglob("*")):
        images = ImageFolder(args.data, **look)
    return videos, images


def mixture(
    args: argparse.Namespace,
    stage: int,
    sets: Sequence[Sequence[Dataset | None]],
    collate,
    accelerator: Accelerator,
    steps: int,
) -> Batches:
    """Videos, images and, where they come third, crossed clips by their weights; each size as often as the others."""
    weights = args.video_weight, args.image_weight[stage], args.crossed_weight
    clips = args.batch_size[stage]
    sizes = clips, 4 * clips, clips
    return Batches(
        [Source(*source) for of_size in sets for source in zip(of_size, weights, sizes) if source[0] is not None],
        collate,
        seed=args.seed,
        steps=steps,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )


def held_out(args: argparse.Namespace, sets: Sequence[DataSets], count: int) -> tuple[Tensor, list[str]]:
    """Clips to look at, (b, 3, f, h, w): of moving shapes others than those trained on, of a folder its first.

    With what they show, in words.
    """
    videos, images = sets[0]
    dataset = images if videos is None else videos
    if args.data == "moving_shapes":
        shapes = MovingShapes("tokenizer", size=args.size, num_frames=dataset.num_frames, seed=args.seed + 1)
        return shapes.told(count)
    return stack_clips([dataset[i] for i in range(min(count, len(dataset)))])
