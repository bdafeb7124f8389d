"""Checks of arguments: ids, masks, batches, sizes, options.

Values are looked at where that costs no device synchronisation, on the CPU, or where the caller asks for it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import get_type_hints

import torch
from beartype import BeartypeConf
from beartype.door import die_if_unbearable
from einops import rearrange
from torch import Tensor

from phenaki_pytorch.core.contracts import Progress

FLOAT32_MAX = torch.finfo(torch.float32).max
SLACK = 0.25  # of the range of pixels, for resampling that overshoots


def free_to_look(values: Tensor) -> bool:
    """Whether values can be read without waiting for a device or breaking a compiled graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_ids(ids: Tensor, codebook_size: int, *, values: bool = False) -> None:
    """Refuse what is not int64 (b, t, h, w) in [0, codebook_size)."""
    if ids.ndim != 4 or ids.dtype != torch.int64 or 0 in ids.shape:
        raise ValueError(f"ids must be int64 (b, t, h, w), none empty, got {ids.dtype} {tuple(ids.shape)}")
    if (values or free_to_look(ids)) and (ids.min() < 0 or ids.max() >= codebook_size):
        raise ValueError(
            f"ids must lie in [0, {codebook_size}), got values from {ids.min().item()} to {ids.max().item()}"
        )


def check_fitting_ids(ids: Tensor, codebook_size: int, grid: tuple[int, int, int], *, values: bool = False) -> None:
    """Refuse what is not int64 (b, t, h, w) in [0, codebook_size), of a grid up to `grid`."""
    check_ids(ids, codebook_size, values=values)
    if any(got > most for got, most in zip(ids.shape[1:], grid)):
        raise ValueError(f"the ids must fit into the grid {grid}, got {tuple(ids.shape[1:])}")


def check_prime_ids(prime_ids: Tensor, codebook_size: int, shape: Sequence) -> None:
    """Refuse what cannot be the first time steps, fewer than all, of ids of a shape (b, t, h, w)."""
    b, t, h, w = shape
    check_ids(prime_ids, codebook_size, values=True)
    s = prime_ids.shape[1]
    if prime_ids.shape != (b, s, h, w) or s >= t:
        raise ValueError(f"prime_ids must be ({b}, fewer than {t}, {h}, {w}), got {tuple(prime_ids.shape)}")


def grid_of(grid: Sequence) -> tuple[int, int, int]:
    """Refuse what is not (t, h, w), each at least 1."""
    check_items("grid", grid, int)
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"grid must be (t, h, w), each at least 1, got {tuple(grid)}")
    return tuple(grid)


def check_classes(classes: Tensor, num_classes: int, shape: tuple, *, name: str = "classes") -> None:
    """Refuse what is not int64 of the shape, in [0, num_classes)."""
    if classes.dtype != torch.int64 or tuple(classes.shape) != shape:
        raise ValueError(f"{name} must be int64 {shape}, got {classes.dtype} {tuple(classes.shape)}")
    if free_to_look(classes) and (classes.min() < 0 or classes.max() >= num_classes):
        raise ValueError(f"{name} must lie in [0, {num_classes}), got {classes.tolist()}")


def check_mask(name: str, mask: Tensor, shape: torch.Size, *, values: bool = False) -> None:
    """Refuse what is not bool of the shape (b, ...), and a sample that is all False."""
    check_bool(name, mask, shape)
    if (values or free_to_look(mask)) and not mask.flatten(1).any(dim=1).all():
        raise ValueError(f"{name} must be True somewhere in every sample, got a sample that is all False")


def check_first(name: str, mask: Tensor, shape: torch.Size) -> None:
    """Refuse what is not bool (b, ...) with True first, in raster order, and False after it in every sample."""
    check_mask(name, mask, shape)
    flat = mask.flatten(1)
    if free_to_look(mask) and (flat[:, 1:] & ~flat[:, :-1]).any():
        raise ValueError(f"{name} must be True for the first ids of every sample and False after, got True after False")


def check_bool(name: str, mask: Tensor, shape: torch.Size) -> None:
    """Refuse what is not bool of the shape."""
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(f"{name} must be bool {tuple(shape)}, got {mask.dtype} {tuple(mask.shape)}")


def check_same(module: object, other: object, *names: str, message: str) -> None:
    """Refuse modules that differ in an attribute; `message`: for example "the critic's {} must be maskgit's"."""
    for name in names:
        got, expected = getattr(module, name), getattr(other, name)
        if got != expected:
            raise ValueError(f"{message.format(name)}, {expected}, got {got}")


def check_frames(video: Tensor, channels: int, patch_size: tuple[int, int]) -> Tensor:
    """Refuse what are not frames (b, c, f, h, w) in [0, 1], h and w multiples of the patch.

    Images (b, c, h, w) come back as clips of one frame, (b, c, 1, h, w).
    """
    if not video.is_floating_point():
        raise TypeError(f"video must be floating point in [0, 1], got {video.dtype}")
    if video.ndim == 4:
        video = rearrange(video, "b c h w -> b c 1 h w")
    if video.ndim != 5 or 0 in video.shape:
        raise ValueError(f"video must be (b, c, f, h, w), or images (b, c, h, w), none empty, got {tuple(video.shape)}")
    if video.shape[1] != channels:
        raise ValueError(f"video must have {channels} channels, got {video.shape[1]}")
    patches_of(*video.shape[3:], patch_size)
    check_pixels("video", video)
    return video


def patches_of(height: int, width: int, patch_size: tuple[int, int]) -> tuple[int, int]:
    """The patches (h, w) of a frame; refuses, with a ValueError, sizes that are not multiples of the patch."""
    ph, pw = patch_size
    if height < 1 or width < 1 or height % ph or width % pw:
        raise ValueError(f"height and width must be multiples of the patch {ph}×{pw}, got {height}×{width}")
    return height // ph, width // pw


def check_pixels(name: str, pixels: Tensor) -> None:
    """Refuse pixels that are not finite, or so far outside [0, 1] that they must be of another range."""
    if free_to_look(pixels):
        low, high = pixels.aminmax()
        if not (low >= -SLACK and high <= 1 + SLACK):
            raise ValueError(f"{name} must be finite and in [0, 1], got values from {low:.4g} to {high:.4g}")


def check_finite(name: str, values: Tensor, *, mask: Tensor | None = None, look: bool = False) -> None:
    """Refuse vectors (..., d) that are not finite, among all or where a mask, bool (...), is True.

    `look`: on other devices than the CPU, too.
    """
    if look or free_to_look(values):
        wrong = ~values.isfinite() if mask is None else ~values.isfinite() & mask[..., None]
        if wrong.any():
            raise ValueError(f"{name} must be finite, got {values[wrong][0]} in {int(wrong.sum())} of its values")


def check_features(features: Tensor, code_dim: int, *, least_steps: int = 1, name: str = "features") -> None:
    """Refuse what are not features (b, t, h, w, code_dim), floating point, finite, t at least `least_steps`."""
    if not features.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {features.dtype}")
    shape = features.shape
    fits = len(shape) == 5 and shape[4] == code_dim and shape[1] >= least_steps and 0 not in (shape[0], *shape[2:4])
    if not fits:
        raise ValueError(f"{name} must be (b, t, h, w, {code_dim}), none empty, got {tuple(features.shape)}")
    check_finite(name, features)


def check_items(name: str, values: Iterable, *kinds: type) -> None:
    """Refuse a sequence with an item of another kind. All items are looked at, where a type hint would look at one."""
    for value in values:
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"{name} must hold {' or '.join(kind.__name__ for kind in kinds)}, got {value!r}")


def check_at_least(least: int, **sizes: int | None) -> None:
    """Refuse sizes below `least`; None is not checked."""
    for name, size in sizes.items():
        if size is not None and size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}")


def check_probabilities(**probabilities: float) -> None:
    """Refuse what does not lie in [0, 1]."""
    for name, probability in probabilities.items():
        if not 0 <= probability <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {probability}")


def check_scales(**scales: float) -> None:
    """Refuse, with a ValueError, what is not finite or below 0."""
    for name, scale in scales.items():
        if not 0 <= scale < FLOAT32_MAX:
            raise ValueError(f"{name} must be finite and at least 0, got {scale}")


def one_of(**given: Tensor | None) -> Tensor:
    """The one that is given of two. ValueError for none and for both."""
    values = [value for value in given.values() if value is not None]
    if len(values) != 1:
        raise ValueError(f"expected either {' or '.join(given)}, got {'both' if values else 'none'}")
    return values[0]


def batch_of(batch_size: int, context: Tensor | None) -> int:
    """How many samples to generate: the context's batch, or without a context what is asked for."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if context is None or len(context) == batch_size:
        return batch_size
    if batch_size != 1:
        raise ValueError(f"batch_size is {batch_size}, the text has a batch of {len(context)}")
    return len(context)


def common_batch(batch_size: int, *given: Tensor | None) -> int:
    """How many samples to generate: as many as what is given is for, or what is asked for."""
    sizes = [len(each) for each in given if each is not None and each.ndim > 0]
    if sizes and batch_size not in (1, max(sizes)):
        raise ValueError(f"batch_size is {batch_size}, what is given has a batch of {max(sizes)}")
    return max(sizes, default=batch_size)


def stepped(steps: int, progress: Progress | None) -> Iterator[int]:
    """The steps 0, 1, ..., as `progress` yields them. ValueError as soon as it yields another one, or ends early."""
    shown = range(steps) if progress is None else progress(range(steps))
    if not isinstance(shown, Iterable):
        raise TypeError(f"progress must return an iterable of the steps, got a {type(shown).__name__}")
    expected = 0
    for step in shown:
        if step != expected or expected == steps:
            got = f"{step!r} as number {expected + 1}"
            raise ValueError(f"progress must yield the {steps} steps that it is given, in order, got {got}")
        yield step
        expected += 1
    if expected != steps:
        raise ValueError(f"progress must yield the {steps} steps that it is given, in order, got {expected} of them")


def pair(size: int | Sequence) -> tuple[int, int]:
    """One number for both, or (height, width)."""
    if isinstance(size, int):
        return size, size
    check_items("a size", size, int)
    if len(size) != 2:
        raise ValueError(f"a size must be one number or (height, width), got {tuple(size)}")
    return tuple(size)


def with_defaults(given: Mapping, defaults: Mapping, kind: type) -> dict:
    """The defaults and, over them, what is given. TypeError for names and kinds that are not those of `kind`."""
    if unknown := sorted(given.keys() - defaults.keys()):
        raise TypeError(f"got the unknown sampling options {', '.join(unknown)}; expected {', '.join(defaults)}")
    conf = BeartypeConf(is_pep484_tower=True, violation_door_type=TypeError)
    hints = get_type_hints(kind)
    for name, value in given.items():
        die_if_unbearable(value, hints[name], conf=conf, exception_prefix=f"sampling option {name}: ")
    return {**defaults, **given}
