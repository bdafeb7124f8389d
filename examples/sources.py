"""What the stages look at: the data sets of each, mixed by weight, and clips that are not trained on."""

import argparse
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from mixture import Batches, Source, stack_clips
from moving_shapes import MovingShapes
from video_folder import IMAGE_SUFFIXES, ImageFolder, VideoFolder


def data_sets(args: argparse.Namespace, stage: str) -> tuple[Dataset | None, Dataset | None]:
    """The videos and the images of a stage; None for what has no weight in any."""
    videos = images = None
    if args.data == "moving_shapes":
        world = {"size": args.size, "seed": args.seed}
        names = ("tokenizer", "tokenizer") if stage == "tokenizer" else ("captioned_video", "captioned_images")
        videos = MovingShapes(names[0], num_frames=args.frames, **world)
        images = MovingShapes(names[1], num_frames=1, **world)
        return (videos if args.video_weight else None), (images if any(args.image_weight) else None)
    look = {"size": args.size, "flip": args.flip, "seed": args.seed}
    if args.video_weight:
        rate = {"fps": args.fps} if args.fps else {"stride": args.stride}
        videos = VideoFolder(args.data, num_frames=args.frames, **rate, **look)
    if any(args.image_weight) and any(path.suffix.lower() in IMAGE_SUFFIXES for path in Path(args.data).rglob("*")):
        images = ImageFolder(args.data, **look)
    return videos, images


def mixture(args, stage: int, sets: tuple, collate, accelerator: Accelerator, steps: int) -> Batches:
    """Videos and images by their weights in a stage."""
    weights = args.video_weight, args.image_weight[stage]
    sizes = args.batch_size[stage], 4 * args.batch_size[stage]
    return Batches(
        [Source(*source) for source in zip(sets, weights, sizes) if source[0] is not None],
        collate,
        seed=args.seed,
        steps=steps,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )


def held_out(args: argparse.Namespace, sets: tuple, count: int) -> Tensor:
    """Clips to look at, (b, 3, f, h, w): of moving shapes others than those trained on, of a folder its first."""
    dataset = sets[0] if sets[0] is not None else sets[1]
    if args.data == "moving_shapes":
        dataset = MovingShapes("tokenizer", size=args.size, num_frames=dataset.num_frames, seed=args.seed + 1)
    return stack_clips([dataset[i] for i in range(min(count, len(dataset)))])[0]
