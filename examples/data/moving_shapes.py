"""Moving shapes: captioned videos that are drawn, not downloaded, and whose captions can be checked.

Each clip shows one object with a colour, a shape and a motion. The frame is a torus: an object that leaves on one side
enters on the opposite side. Some combinations of colour and shape are in no caption of the training videos, so that
generalisation to new combinations, and from images to videos, can be measured.

    dataset = MovingShapes("captioned_video")
    item = dataset[0]  # {"video": (3, 9, 32, 32), "caption": "a red circle moves left", or the like}
    [verdict] = judge(item["video"][None], motion_start=TURN_LATEST)  # from evaluation.judge
    agree(verdict, item["caption"]).all  # True

b = clips · f = frames · h = w = size in pixels. Positions are (y, x), and y points down.
"""

import math
import random
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

BACKGROUND = (0.08, 0.08, 0.10)
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.75, 0.20),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.60, 0.20, 0.80),
    "white": (0.95, 0.95, 0.95),
}
# name -> signed distance from the outline, negative inside, at (dy, dx) from the centre; unit: the frame's side
SHAPES = {
    "circle": lambda dy, dx: (dy**2 + dx**2).sqrt() - 0.20,
    "square": lambda dy, dx: torch.maximum(dy.abs(), dx.abs()) - 0.18,
    "triangle": lambda dy, dx: torch.maximum(dy, dx.abs() * math.sqrt(0.75) - dy / 2) - 0.25 / 2,
}
MOTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
SPEED = 0.05  # sides of the frame per frame
TURN_SHARE = 0.3
TURN_LATEST = 5  # the last frame at which a clip may turn; from here on every clip moves as its caption says

IMAGE_ONLY_COLOUR = "white"
HELD_OUT_PAIRS = (("green", "triangle"), ("yellow", "circle"), ("purple", "square"))
UNSEEN_PAIR = ("red", "triangle")
EVERY_PAIR = tuple(product(COLOURS, SHAPES))
SEEN_PAIRS = tuple(
    pair for pair in EVERY_PAIR if pair not in HELD_OUT_PAIRS and pair != UNSEEN_PAIR and pair[0] != IMAGE_ONLY_COLOUR
)
# The first three are for training, the others for evaluation. "seen" has the pairs of "captioned_video" in new clips.
SPLITS = {
    "tokenizer": EVERY_PAIR,
    "captioned_video": SEEN_PAIRS,
    "captioned_images": tuple(pair for pair in EVERY_PAIR if pair != UNSEEN_PAIR),
    "seen": SEEN_PAIRS,
    "held_out": HELD_OUT_PAIRS,
    "unseen": (UNSEEN_PAIR,),
    "image_only": tuple(pair for pair in EVERY_PAIR if pair[0] == IMAGE_ONLY_COLOUR),
}


# drawing


class Clip(NamedTuple):
    """What one clip shows.

    motions  the motion of each step between two frames
    start    the centre (y, x) in the first frame, in [0, 1)
    caption  what happens, in words
    """

    colour: str
    shape: str
    motions: tuple[str, ...]
    start: tuple[float, float]
    caption: str

    def caption_after(self, frames: int) -> str:
        """The caption of the clip without its first frames: a clip that has turned before then only "moves".

        frames  how many of the first frames are given
        """
        *thing, verb, motion = self.caption.split()
        if verb == "turns" and set(self.motions[frames - 1 :]) == {motion}:
            verb = "moves"
        return " ".join((*thing, verb, motion))


def cover(shape: str, centres: Tensor, size: int) -> Tensor:
    """Centres (..., 2), in sides of the frame -> the share of each pixel that the shape covers, (..., h, w)."""
    pixels = (torch.arange(size) + 0.5) / size
    # The shortest offset on the torus.
    offsets = (pixels - centres[..., None] + 0.5).remainder(1) - 0.5  # ... 2 size
    dy, dx = offsets.unbind(-2)
    # Anti-aliasing: a ramp across the outline, one pixel wide.
    return SHAPES[shape](dy[..., :, None], dx[..., None, :]).mul_(-size).add_(0.5).clamp_(0, 1)


def draw(clips: Sequence[Clip], size: int = 32) -> Tensor:
    """Draw clips of equal length: (b, 3, f, h, w), float32 in [0, 1]. Raises ValueError for different lengths."""
    lengths = {len(clip.motions) + 1 for clip in clips}
    if len(lengths) != 1:
        raise ValueError(f"expected one or more clips of one length, got lengths {sorted(lengths)}")
    starts = torch.tensor([clip.start for clip in clips])
    steps = torch.tensor([[(0, 0), *(MOTIONS[motion] for motion in clip.motions)] for clip in clips])
    centres = starts[:, None] + SPEED * steps.cumsum(dim=1)  # b f 2
    covered = torch.empty(len(clips), *lengths, size, size)
    for shape in SHAPES:
        rows = [row for row, clip in enumerate(clips) if clip.shape == shape]
        if rows:
            covered[rows] = cover(shape, centres[rows], size)
    colours = torch.tensor([COLOURS[clip.colour] for clip in clips])
    return torch.lerp(
        rearrange(torch.tensor(BACKGROUND), "c -> 1 c 1 1 1"),
        rearrange(colours, "b c -> b c 1 1 1"),
        rearrange(covered, "b f h w -> b 1 f h w"),
    )


class MovingShapes(Dataset):
    """Items {"video": (3, f, h, w) in [0, 1], "caption": str}, each determined by split, seed and index.

    split       a key of `SPLITS`. Items of "captioned_images" have one frame; items of "tokenizer" have the caption "";
                items of "captioned_video" also have "captions_after", the captions without the first 1, 2, ... f − 1
                frames
    size        height and width in pixels
    num_frames  frames of a clip
    length      number of items

    Of the clips of three frames or more, 30 % turn: they start with another motion, and from frame k on they move as
    the caption says, where k is random, from 1 to `TURN_LATEST` or to the last step if that is earlier.

    Raises ValueError for an unknown split, and for a size, length or num_frames below 1.
    """

    def __init__(self, split: str, *, size: int = 32, num_frames: int = 9, length: int = 100_000, seed: int = 0):
        if split not in SPLITS:
            raise ValueError(f"expected split to be one of {', '.join(SPLITS)}, got {split!r}")
        for name, value in (("size", size), ("num_frames", num_frames), ("length", length)):
            if value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        self.split, self.size, self.length, self.seed = split, size, length, seed
        self.num_frames = 1 if split == "captioned_images" else num_frames

    def __len__(self) -> int:
        return self.length

    def clip(self, index: int) -> Clip:
        """The clip of item `index`. Raises IndexError outside 0 to length − 1."""
        if not 0 <= index < self.length:
            raise IndexError(f"expected an index from 0 to {self.length - 1}, got {index}")
        rng = random.Random(f"{self.split} {self.seed} {index}")  # strings give the same state on every machine
        colour, shape = rng.choice(SPLITS[self.split])
        start = (rng.random(), rng.random())
        motion, steps = rng.choice(tuple(MOTIONS)), self.num_frames - 1
        motions, words = (motion,) * steps, f"a {colour} {shape}"
        if steps >= 2 and rng.random() < TURN_SHARE:
            turn = rng.randint(1, min(TURN_LATEST, steps - 1))
            motions = (another_motion(rng, motion),) * turn + motions[turn:]
            words += f" turns {motion}"
        elif steps:
            words += f" moves {motion}"
        return Clip(colour, shape, motions, start, words)

    def every_caption(self) -> list[str]:
        """All captions that an item can have."""
        if self.split == "tokenizer":
            return [""]
        verbs = [""] if self.num_frames == 1 else [" moves", " turns"][: self.num_frames - 1]
        things = [f"a {colour} {shape}" for colour, shape in SPLITS[self.split]]
        return [
            f"{thing}{verb} {motion}" if verb else thing
            for thing, verb, motion in product(things, verbs, MOTIONS if verbs != [""] else [""])
        ]

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor | str]]:
        """A whole batch at once, which is faster; torch's DataLoader calls this."""
        clips = [self.clip(index) for index in indices]
        videos = draw(clips, self.size)
        captions = ["" if self.split == "tokenizer" else clip.caption for clip in clips]
        items = [{"video": video, "caption": caption} for video, caption in zip(videos, captions)]
        if self.split == "captioned_video":
            for item, clip in zip(items, clips):
                item["captions_after"] = [clip.caption_after(frames) for frames in range(1, self.num_frames)]
        return items

    def told(self, count: int) -> tuple[Tensor, list[str]]:
        """The first `count` videos, (b, 3, f, h, w), and their captions, in the split "tokenizer" as well."""
        clips = [self.clip(index) for index in range(count)]
        return draw(clips, self.size), [clip.caption for clip in clips]


def another_motion(rng: random.Random, motion: str) -> str:
    return rng.choice([other for other in MOTIONS if other != motion])


def prompts(split: str, count: int, seed: int = 0) -> list[str]:
    """The captions of a split's first `count` clips, as prompts: 70 % "moves", 30 % "turns"."""
    dataset = MovingShapes(split, length=count, seed=seed)
    return [dataset.clip(index).caption for index in range(count)]


def stories(count: int, seed: int = 0, verb: str = "turns") -> list[tuple[str, str, str]]:
    """Stories of three prompts about one object of a seen pair, each prompt with another motion than the one before.

    The first prompt says "moves", the others say `verb`: "turns", or "moves" as in the paper. Raises ValueError for
    another verb.
    """
    if verb not in ("turns", "moves"):
        raise ValueError(f"expected verb to be turns or moves, got {verb!r}")
    scripts = []
    for index in range(count):
        rng = random.Random(f"story {seed} {index}")
        colour, shape = rng.choice(SEEN_PAIRS)
        first = rng.choice(tuple(MOTIONS))
        second = another_motion(rng, first)
        third = another_motion(rng, second)
        name = f"a {colour} {shape}"
        scripts.append((f"{name} moves {first}", f"{name} {verb} {second}", f"{name} {verb} {third}"))
    return scripts


def read_caption(caption: str) -> tuple[str, str, str | None]:
    """The (colour, shape, motion) of a caption; motion is None for an image. Raises ValueError for other texts."""
    match caption.split():
        case ["a", colour, shape] if colour in COLOURS and shape in SHAPES:
            return colour, shape, None
        case ["a", colour, shape, "moves" | "turns", motion]:
            if colour in COLOURS and shape in SHAPES and motion in MOTIONS:
                return colour, shape, motion
    raise ValueError(f"expected 'a COLOUR SHAPE', with or without 'moves MOTION' or 'turns MOTION', got {caption!r}")
