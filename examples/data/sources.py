"""The data of each stage: which data sets it reads, how they are mixed, and clips that are not trained on.

The programs' arguments say which: --data, --size, --frames, --video-weight, --image-weight, --batch-size and others.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from data.captions import files_below
from data.mixture import Batches, Source, stack_clips
from data.moving_shapes import MovingShapes
from data.video_folder import IMAGE_SUFFIXES, VIDEO_SUFFIXES, ImageFolder, VideoFolder

IMAGES_PER_CLIP = 4  # a batch of images has so many times the items of a batch of clips

# The videos and the images of one size; None for those whose weight is 0, and where a folder has no images.
DataSets = tuple[Dataset | None, Dataset | None]


def tokenizer_data(args: argparse.Namespace) -> list[DataSets]:
    """The data of the tokenizer: one pair for --size and one for each of --other-sizes."""
    return [_data_sets(args, size, ("tokenizer", "tokenizer")) for size in (args.size, *args.other_sizes)]


class SingleFrames(Dataset):
    """A frame of each video as an image, with the video's caption; which frame is a function of (seed, index)."""

    def __init__(self, videos: Dataset, *, seed: int):
        self.videos, self.seed = videos, seed

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        item = self.videos[index]
        frame = random.Random(f"frame {self.seed} {index}").randrange(item["video"].shape[1])
        return {"video": item["video"][:, frame : frame + 1], "caption": item["caption"]}

    def every_caption(self) -> list[str]:
        """As that of the videos."""
        return self.videos.every_caption()


def captioned_data(args: argparse.Namespace) -> DataSets:
    """The data of the second stage, with captions; with --joint-images also images, or frames of videos as such."""
    joint = getattr(args, "joint_images", 0)
    videos, images = _data_sets(args, args.size, ("captioned_video", "captioned_images"), needs_images=joint > 0)
    return videos, SingleFrames(videos, seed=args.seed) if joint and images is None else images


def _data_sets(args: argparse.Namespace, size: int, splits: tuple[str, str], *, needs_images: bool = False) -> DataSets:
    videos = images = None
    needs_images = needs_images or args.image_weight
    if args.data == "moving_shapes":
        shapes = {"size": size, "seed": args.seed}
        if args.video_weight:
            videos = MovingShapes(splits[0], num_frames=args.frames, **shapes)
        if needs_images:
            images = MovingShapes(splits[1], num_frames=1, **shapes)
        return videos, images
    found, _ = files_below(Path(args.data), leave_out=args.out)
    kinds = {path.suffix.lower() for path in found}
    pictures = not kinds.isdisjoint(IMAGE_SUFFIXES)
    if args.video_weight and pictures and kinds.isdisjoint(VIDEO_SUFFIXES):
        raise ValueError(f"{args.data} has images and no videos: expected --video-weight 0")
    files = {"size": size, "flip": args.flip, "seed": args.seed, "leave_out": args.out}
    if args.video_weight:
        rate = {"fps": args.fps} if args.fps else {"stride": args.stride}
        videos = VideoFolder(args.data, num_frames=args.frames, **rate, **files)
    if needs_images and pictures:
        images = ImageFolder(args.data, **files)
    return videos, images


def sources_of(args: argparse.Namespace, sets: DataSets) -> list[Source]:
    """Videos and images with their weights and batch sizes, without those that are None."""
    clips = args.batch_size
    both = zip(sets, (args.video_weight, args.image_weight), (clips, IMAGES_PER_CLIP * clips))
    return [Source(*source) for source in both if source[0] is not None]


def mixture(
    args: argparse.Namespace,
    sources: Sequence[Source],
    collate: Callable[[list], dict],
    accelerator: Accelerator,
    steps: int,
) -> Batches:
    """The batches of `steps` steps, each from one of the sources; every process reads its own part of them."""
    return Batches(
        sources,
        collate,
        seed=args.seed,
        steps=steps,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )


def held_out(args: argparse.Namespace, sets: DataSets, count: int) -> tuple[Tensor, list[str]]:
    """Clips to evaluate on, (b, 3, f, h, w), and their captions.

    Moving shapes are others than those of the training; of a folder they are its first, which are trained on, too.
    """
    videos, images = sets
    dataset = images if videos is None else videos
    if args.data == "moving_shapes":
        shapes = MovingShapes("tokenizer", size=args.size, num_frames=dataset.num_frames, seed=args.seed + 1)
        return shapes.told(count)
    return stack_clips([dataset[i] for i in range(min(count, len(dataset)))])
