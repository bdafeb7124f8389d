"""The judge of the moving shapes: it reads colour, shape and motion from the pixels, without weights or prompts.

Each frame is read alone: is there exactly one object with the area of a shape, what is its colour, and which template
fits it best? The colour and the shape of a clip are those of all frames except at most one. The motion is that of the
object's centroid. What cannot be read is "none", which agrees with no caption.

b = clips · f = frames · h = w = size in pixels · n = frames of all clips · s = shapes · k = shifts of a template ·
v = u = side of the patch around an object. Positions are (y, x) in pixels, and y points down; (0.5, 0.5) is the centre
of the first pixel.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import einsum, rearrange, reduce, repeat
from torch import Tensor

from data.moving_shapes import BACKGROUND, COLOURS, MOTIONS, SHAPES, SPEED, cover, read_caption

NONE = "none"
FOREGROUND = 0.3  # least distance from the background's colour: six σ of noise of 0.05, under half of green's contrast
ONE_OBJECT = 0.9  # least share of the foreground that is connected
AREA = (0.7, 1.4)  # least and largest area, over that of the template
COLOUR_DISTANCE = 0.25  # largest distance from the nearest colour
FAINT = 0.25  # pixels with less than this share of the object's contrast count as background
OVERLAP = 0.7  # least soft IoU with the best template
LEAD = 0.05  # least difference between the best and the second best template's soft IoU
STEPS_RIGHT = 0.75  # least share of the steps that go the right way
OFF_AXIS = 0.25  # largest share of the way that goes along the other axis
PACE = (0.5, 1.5)  # least and largest step, over SPEED
CHUNK = 512  # frames that are read at a time, which bounds the memory


class Verdict(NamedTuple):
    """What a clip shows: names of the moving shapes, or "none"."""

    colour: str
    shape: str
    motion: str


class Agreement(NamedTuple):
    """Which attributes of a verdict agree with a caption."""

    colour: bool
    shape: bool
    motion: bool
    all: bool


def agree(verdict: Verdict, caption: str) -> Agreement:
    """Compare a verdict with a caption. Without a motion in the caption, motion agrees. ValueError for other texts."""
    colour, shape, motion = read_caption(caption)
    right = (verdict.colour == colour, verdict.shape == shape, motion is None or verdict.motion == motion)
    return Agreement(*right, all(right))


# one frame


class Objects(NamedTuple):
    """What each of n frames shows."""

    found: Tensor  # bool (n,): exactly one object with the area of a shape
    colour: Tensor  # (n,), index into COLOURS, −1 for none
    shape: Tensor  # (n,), index into SHAPES, −1 for none
    centroid: Tensor  # (n, 2); undefined where not found


def centre_of(weights: Tensor) -> Tensor:
    """The circular mean of the pixels' positions: weights (n, h, w) -> (n, 2). A torus has no plain mean."""
    size = weights.shape[-1]
    angles = (torch.arange(size, device=weights.device) + 0.5) * (2 * math.pi / size)
    marginals = torch.stack((weights.sum(dim=2), weights.sum(dim=1)), dim=1)  # n 2 size
    mean = torch.atan2(marginals @ angles.sin(), marginals @ angles.cos())
    return (mean * (size / (2 * math.pi))).remainder(size)


def spread(mask: Tensor) -> Tensor:
    """The mask and the eight neighbours of each of its pixels on the torus: bool (n, h, w)."""
    for dim in (1, 2):
        mask = mask | mask.roll(1, dim) | mask.roll(-1, dim)
    return mask


def component_at(centres: Tensor, foreground: Tensor) -> Tensor:
    """The connected component of the foreground at the centres: (n, 2) and bool (n, h, w) -> bool (n, h, w).

    All shapes cover their own centroid, so the other components need not be examined.
    """
    size = foreground.shape[-1]
    pixels = torch.arange(size, device=centres.device) + 0.5
    near_y, near_x = (wrap(pixels - centres[..., None], size).abs() <= 1).unbind(dim=1)  # n size, each
    component = near_y[:, :, None] & near_x[:, None, :] & foreground
    while True:
        wider = spread(component) & foreground
        if torch.equal(wider, component):
            return component
        component = wider


def wrap(difference: Tensor, size: int) -> Tensor:
    """The shortest difference on the torus, from −size / 2 to size / 2."""
    return (difference + size / 2).remainder(size) - size / 2


def templates(size: int) -> Tensor:
    """Each shape around the middle pixel, shifted by up to one pixel in steps of a quarter: (s, k, v, u)."""
    shifts = torch.arange(-4, 5) / 4
    centres = (size // 2 + 0.5 + torch.cartesian_prod(shifts, shifts)) / size  # k 2
    # No shape reaches farther than a quarter of the side plus the shift and half a pixel of its edge.
    window = min(size, 2 * (math.ceil(size / 4) + 2) + 1)
    inside = slice(size // 2 - window // 2, size // 2 - window // 2 + window)
    return torch.stack([cover(shape, centres, size)[:, inside, inside] for shape in SHAPES])


def overlaps(coverage: Tensor, centroids: Tensor, bank: Tensor) -> Tensor:
    """The best soft IoU with each shape near the centroid: (n, h, w), (n, 2) and templates (s, k, v, u) -> (n, s)."""
    size, window = coverage.shape[-1], bank.shape[-1]
    # The middle of the patch is the centroid's pixel, as in the templates; the shifts cover the rest.
    pixels = torch.arange(window, device=coverage.device) - window // 2
    rows, columns = ((centroids.floor().long()[..., None] + pixels) % size).unbind(dim=1)  # n window, each
    frames = torch.arange(len(coverage), device=coverage.device)
    seen = coverage[frames[:, None, None], rows[:, :, None], columns[:, None, :]]  # n v u
    seen, known = rearrange(seen, "n v u -> n (v u)"), rearrange(bank, "s k v u -> (s k) (v u)")
    # Σ min(a, b) = (Σa + Σb − Σ|a − b|) / 2 and Σ max(a, b) = (Σa + Σb + Σ|a − b|) / 2; b = 0 outside the patch.
    total = reduce(coverage, "n h w -> n 1", "sum")
    outside = total - reduce(seen, "n p -> n 1", "sum")
    both, apart = total + reduce(known, "t p -> t", "sum"), torch.cdist(seen, known, p=1) + outside
    return reduce((both - apart) / (both + apart), "n (s k) -> n s", "max", s=len(bank))


def read_frames(frames: Tensor, bank: Tensor) -> Objects:
    """Frames (n, 3, h, w) in [0, 1] -> what each shows."""
    background = torch.tensor(BACKGROUND, device=frames.device)
    palette = torch.tensor(list(COLOURS.values()), device=frames.device)
    contrast = frames - rearrange(background, "c -> c 1 1")
    foreground = contrast.square().sum(dim=1) > FOREGROUND**2
    component = component_at(centre_of(foreground.float()), foreground)
    whole = component.sum(dim=(1, 2)) >= ONE_OBJECT * foreground.sum(dim=(1, 2))

    # Pixels at the edge are mixed with the background, so the colour is that of the pixels inside.
    interior = (component & ~spread(~component)).float()
    inside = reduce(interior, "n h w -> n", "sum")
    colour = einsum(contrast, interior, "n c h w, n h w -> n c") / inside.clamp(min=1)[:, None]
    distance, nearest = torch.cdist(colour, palette - background).min(dim=1)

    # The projection on the object's colour estimates the coverage with little noise.
    coverage = einsum(contrast, colour, "n c h w, n c -> n h w")
    coverage = (coverage / colour.square().sum(dim=1).clamp(min=1e-6)[:, None, None]).clamp(0, 1)
    coverage = torch.where(coverage < FAINT, 0, coverage)
    own = coverage * spread(component)
    centroid = centre_of(own)

    areas = reduce(bank, "s k v u -> s", "sum") / bank.shape[1]
    ratio = reduce(own, "n h w -> n 1", "sum") / areas  # n s
    fitting = (ratio >= AREA[0]) & (ratio <= AREA[1])
    found = whole & (inside > 0) & fitting.any(dim=1)

    best, order = overlaps(coverage, centroid, bank).sort(dim=1, descending=True)
    shape = order[:, 0]
    fits = (best[:, 0] >= OVERLAP) & (best[:, 0] - best[:, 1] >= LEAD) & fitting.gather(1, order)[:, 0]
    return Objects(
        found,
        torch.where(found & (distance <= COLOUR_DISTANCE), nearest, -1),
        torch.where(found & fits, shape, -1),
        centroid,
    )


# a clip


def check_videos(videos: Tensor) -> None:
    """Refuse what is not (b, 3, f, size, size)."""
    if videos.ndim != 5 or videos.shape[1] != 3 or videos.shape[3] != videos.shape[4]:
        raise ValueError(f"expected videos of shape (b, 3, f, size, size), got {tuple(videos.shape)}")


@torch.no_grad()
def find_objects(videos: Tensor) -> Objects:
    """Videos (b, 3, f, h, w) in [0, 1] -> what each frame shows, as tensors (b, f, ...). ValueError for others."""
    check_videos(videos)
    bank = templates(videos.shape[-1]).to(videos.device)
    frames = rearrange(videos, "b c f h w -> (b f) c h w")
    read = [read_frames(chunk.float(), bank) for chunk in frames.split(CHUNK)]
    return Objects(*(rearrange(torch.cat(part), "(b f) ... -> b f ...", f=videos.shape[2]) for part in zip(*read)))


def track(videos: Tensor) -> Tensor:
    """The centroid of the object in each frame, (b, 3, f, h, w) -> (b, f, 2) in pixels; NaN where there is none."""
    objects = find_objects(videos)
    return torch.where(objects.found[..., None], objects.centroid, math.nan)


def agreed(answers: list[int], names: Sequence[str]) -> str:
    """The answer of all frames except at most one, and of more than half of them; else "none"."""
    (answer, count) = Counter(answers).most_common(1)[0]
    enough = max(len(answers) - 1, len(answers) // 2 + 1)
    return names[answer] if answer >= 0 and count >= enough else NONE


def read_motions(found: Tensor, centroids: Tensor, size: int) -> list[str]:
    """The motion of b objects: found (b, f) and centroids (b, f, 2) -> b names."""
    frames = torch.arange(found.shape[1], device=found.device)
    # In a frame without an object it keeps its last position, so that the whole way counts.
    last = torch.where(found, frames, -1).cummax(dim=1).values  # b f
    positions = centroids.gather(1, repeat(last.clamp(min=0), "b f -> b f c", c=2))
    steps = wrap(positions.diff(dim=1), size) / (SPEED * size) * (last[:, :-1, None] >= 0)  # b f-1 2
    names = [NONE] * len(found)
    if steps.shape[1] == 0:
        return names
    seen = found[:, 1:] & found[:, :-1]
    way = steps.abs().sum(dim=1)  # b 2
    for motion, direction in MOTIONS.items():
        along = steps @ torch.tensor(direction, dtype=steps.dtype, device=steps.device)
        right = (seen & (along >= PACE[0]) & (along <= PACE[1])).float().mean(dim=1) >= STEPS_RIGHT
        off = way[:, 0 if direction[0] == 0 else 1]
        for row in (right & (off <= OFF_AXIS * way.sum(dim=1))).nonzero()[:, 0].tolist():
            names[row] = motion
    return names


def judge(videos: Tensor, start: int = 0, motion_start: int | None = None) -> list[Verdict]:
    """Read videos (b, 3, f, size, size) in [0, 1].

    start         frames before this one do not count; a continued scene is judged without its given frames
    motion_start  frames before this one do not count for the motion; None is `start`. `TURN_LATEST` leaves out all
                  motion before a turn

    The motion of a single frame is "none". Raises ValueError for other shapes, and unless
    0 ≤ start ≤ motion_start < f.
    """
    if motion_start is None:
        motion_start = start
    check_videos(videos)
    if not 0 <= start <= motion_start < videos.shape[2]:
        raise ValueError(
            f"expected 0 ≤ start ≤ motion_start < {videos.shape[2]} frames, got {start} and {motion_start}"
        )
    objects = find_objects(videos)
    moving = slice(motion_start, None)
    motions = read_motions(objects.found[:, moving], objects.centroid[:, moving], videos.shape[-1])
    return [
        Verdict(agreed(colours, tuple(COLOURS)), agreed(shapes, tuple(SHAPES)), motion)
        for colours, shapes, motion in zip(
            objects.colour[:, start:].tolist(), objects.shape[:, start:].tolist(), motions
        )
    ]


def speed(videos: Tensor, motion_start: int = 0) -> Tensor:
    """Mean speed from frame `motion_start` on, over SPEED: (b, 3, f, h, w) -> (b,); NaN where there is no object."""
    positions = track(videos)[:, motion_start:]
    steps = wrap(positions.diff(dim=1), videos.shape[-1]).norm(dim=-1)
    return steps.nanmean(dim=1) / (SPEED * videos.shape[-1])


def seam_ratio(videos: Tensor, seams: Sequence[int]) -> Tensor:
    """Mean change between frames at the seams, over that within the scenes: (b, c, f, h, w) -> (b,).

    seams  the first frames of the second and later scenes, from 1 to f − 1

    Raises ValueError for other frames, for no seams, and where every frame is a seam.
    """
    steps = videos.shape[2] - 1
    across = torch.zeros(steps, dtype=torch.bool)
    if not all(1 <= seam <= steps for seam in seams) or not 0 < len(set(seams)) < steps:
        raise ValueError(f"expected some but not all frames from 1 to {steps} as seams, got {list(seams)}")
    across[[seam - 1 for seam in seams]] = True
    change = reduce(videos.diff(dim=2).abs(), "b c f h w -> b f", "mean")
    return change[:, across].mean(dim=1) / change[:, ~across].mean(dim=1)
