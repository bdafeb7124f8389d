"""Refusing what does not fit: ids, masks, batches, stories.

Values are looked at where that costs no device synchronisation, on the CPU, or where the caller asks for it.
"""

from collections.abc import Sequence

import torch
from einops import repeat
from torch import Tensor


def _free_to_look(values: Tensor) -> bool:
    """Whether nobody has to wait: a device is not asked, and a compiled graph does not stop."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_ids(ids: Tensor, codebook_size: int, *, values: bool = False) -> None:
    """Refuse what is not int64 (b, t, h, w) in [0, codebook_size)."""
    if ids.ndim != 4 or ids.dtype != torch.int64 or 0 in ids.shape:
        raise ValueError(f"ids must be int64 (b, t, h, w), none empty, got {ids.dtype} {tuple(ids.shape)}")
    if (values or _free_to_look(ids)) and (ids.min() < 0 or ids.max() >= codebook_size):
        raise ValueError(
            f"ids must lie in [0, {codebook_size}), got values from {ids.min().item()} to {ids.max().item()}"
        )


def check_mask(name: str, mask: Tensor, shape: torch.Size, *, values: bool = False) -> None:
    """Refuse what is not bool of the shape, (b, ...), and a sample that is all False."""
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(f"{name} must be bool {tuple(shape)}, got {mask.dtype} {tuple(mask.shape)}")
    if (values or _free_to_look(mask)) and not mask.flatten(1).any(dim=1).all():
        raise ValueError(f"{name} must be True somewhere in every sample, got a sample that is all False")


def check_same(mine: object, its: object, *names: str, expected: str) -> None:
    """Refuse parts that differ in what they must have alike; `expected`: "the critic's {} must be maskgit's", say."""
    for name in names:
        got, wanted = getattr(mine, name), getattr(its, name)
        if got != wanted:
            raise ValueError(f"{expected.format(name)}, {wanted}, got {got}")


def check_prime_steps(prime_steps: Tensor, real: Tensor) -> None:
    """Refuse what is not int64 (b,), from 0 to one fewer than each sample's real time steps, (b,)."""
    if prime_steps.dtype != torch.int64 or prime_steps.shape != real.shape:
        expected, got = f"int64 {tuple(real.shape)}", f"{prime_steps.dtype} {tuple(prime_steps.shape)}"
        raise ValueError(f"prime_steps must be {expected}, got {got}")
    if _free_to_look(prime_steps) and ((prime_steps < 0) | (prime_steps >= real)).any():
        raise ValueError(
            f"prime_steps must be from 0 to one fewer than the real time steps, {real.tolist()}, "
            f"got {prime_steps.tolist()}"
        )


def real_tokens(frame_mask: Tensor, ids_shape: Sequence[int], temporal_patch_size: int) -> Tensor:
    """Which ids are real, bool (b, t, h, w), given which frames are: bool (b, f), f = 1 + (t - 1) · pt.

    The real frames of a clip come first and number 1 + k · pt; raises ValueError where they do not.
    """
    b, t, h, w = ids_shape
    f = 1 + (t - 1) * temporal_patch_size
    if frame_mask.dtype != torch.bool or frame_mask.shape != (b, f):
        raise ValueError(f"frame_mask must be bool ({b}, {f}), got {frame_mask.dtype} {tuple(frame_mask.shape)}")
    if _free_to_look(frame_mask):
        counts = frame_mask.sum(dim=1)
        first = torch.arange(f) < counts[:, None]
        if (frame_mask != first).any() or ((counts - 1) % temporal_patch_size).any() or (counts < 1).any():
            raise ValueError(
                f"frame_mask must be True for the first 1 + k · {temporal_patch_size} frames of each clip "
                f"and False after, got {counts.tolist()} real frames"
            )
    return repeat(frame_mask[:, ::temporal_patch_size], "b t -> b t h w", h=h, w=w)


def batch_of(batch_size: int, context: Tensor | None) -> int:
    """How many samples to draw: the context's batch, or without a context what is asked for."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if context is None or len(context) == batch_size:
        return batch_size
    if batch_size != 1:
        raise ValueError(f"batch_size is {batch_size}, the context has a batch of {len(context)}")
    return len(context)


def scenes_of(
    scenes: Sequence[str] | Sequence[Sequence[str]], num_frames: int | Sequence[int]
) -> tuple[list[list[str]], list[int]]:
    """What the stories ask for, scene by scene: the prompts of all of them, and how many frames."""
    if isinstance(scenes, str):
        raise TypeError(f"scenes must be a list of prompts, got one str, {scenes!r}")
    if len(scenes) == 0:
        raise ValueError("a story needs at least 1 scene, got 0")
    stories = [list(scenes)] if isinstance(scenes[0], str) else [list(story) for story in scenes]
    lengths = sorted({len(story) for story in stories})
    if len(lengths) > 1 or lengths[0] == 0:
        raise ValueError(f"stories need equally many scenes, at least 1, got {lengths}")
    counts = [num_frames] * lengths[0] if isinstance(num_frames, int) else list(num_frames)
    if len(counts) != lengths[0]:
        raise ValueError(f"expected one num_frames for each of {lengths[0]} scenes, got {len(counts)}")
    if min(counts) < 1:
        raise ValueError(f"num_frames must be at least 1, got {min(counts)}")
    return [list(prompts) for prompts in zip(*stories)], counts


def pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """One number for both, or (height, width)."""
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f"a size must be one number or (height, width), got {tuple(size)}")
    return tuple(size)
