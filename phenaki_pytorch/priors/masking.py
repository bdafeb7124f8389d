"""Which tokens training masks, and which first time steps it gives.

MaskGIT (Chang et al. 2022, https://arxiv.org/abs/2202.04200) masks a share γ(r) of the tokens at progress r, which
falls from 1 at r = 0 to 0 at r = 1. Training draws r uniformly; sampling follows r from 0 to 1, in decoding.py.

b = batch · t = time steps · n = tokens = t · h · w · m = masked tokens
"""

import math
from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor

from phenaki_pytorch.core.checks import free_to_look

SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda r: torch.cos(r * (math.pi / 2)),
    "cubic": lambda r: 1 - r**3,
    "linear": lambda r: 1 - r,
}


def mask_share(progress: Tensor, schedule: str = "cosine") -> Tensor:
    """γ(r) for progress r in [0, 1], any shape. Raises ValueError for an unknown schedule."""
    check_schedule(schedule)
    return SCHEDULES[schedule](progress)


def check_schedule(schedule: str) -> None:
    """Refuse unknown schedules."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {tuple(SCHEDULES)}, got {schedule!r}")


def uniform(shape: tuple, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Uniform in [0, 1), float32. A compiled `torch.rand` takes no generator, not even None."""
    return torch.empty(shape, device=device, dtype=torch.float32).uniform_(generator=generator)


def draw_mask(
    token_mask: Tensor,
    *,
    schedule: str = "cosine",
    progress: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose ⌈γ(r) · N⌉ of each sample's N real tokens, at least one, uniformly at random: the training mask.

    token_mask  bool (b, n), True for real tokens
    progress    r in [0, 1), (b,); drawn uniformly if not given

    Returns bool (b, n), True where the token is masked.
    """
    b, device = token_mask.shape[0], token_mask.device
    if progress is None:
        progress = uniform((b,), device, generator)
    real = token_mask.sum(dim=1)
    count = (mask_share(progress, schedule) * real).ceil().clamp(min=1)
    order = uniform(token_mask.shape, device, generator)
    rank = order.masked_fill(~token_mask, torch.inf).argsort(dim=1).argsort(dim=1)
    return (rank < count[:, None]) & token_mask


def real_steps(token_mask: Tensor, t: int) -> Tensor:
    """How many time steps of each sample have real tokens: bool (b, n) -> (b,)."""
    return rearrange(token_mask, "b (t s) -> b t s", t=t).any(dim=2).sum(dim=1)


def draw_prime_steps(token_mask: Tensor, t: int, *, share: float, generator: torch.Generator | None = None) -> Tensor:
    """How many first time steps of each clip training gives, so that some clips are continuations: int64 (b,).

    token_mask  bool (b, n), True for real tokens
    share       of the clips, drawn at random, that get from 1 to (real time steps − 1) given time steps

    0 for the others, and for images, which have one time step.
    """
    b, device = token_mask.shape[0], token_mask.device
    if share == 0:
        return torch.zeros(b, dtype=torch.int64, device=device)
    lengths = real_steps(token_mask, t)
    chosen = (uniform((b,), device, generator) < share) & (lengths > 1)
    return chosen * (1 + (uniform((b,), device, generator) * (lengths - 1)).long())


def check_prime_steps(prime_steps: Tensor, real: Tensor) -> None:
    """Refuse what is not int64 (b,), from 0 to one fewer than each sample's real time steps, (b,)."""
    if prime_steps.dtype != torch.int64 or prime_steps.shape != real.shape:
        expected, got = f"int64 {tuple(real.shape)}", f"{prime_steps.dtype} {tuple(prime_steps.shape)}"
        raise ValueError(f"prime_steps must be {expected}, got {got}")
    if free_to_look(prime_steps) and ((prime_steps < 0) | (prime_steps >= real)).any():
        raise ValueError(
            f"prime_steps must be from 0 to one fewer than the real time steps, {real.tolist()}, "
            f"got {prime_steps.tolist()}"
        )


def first_steps(prime_steps: Tensor, t: int, n: int) -> Tensor:
    """Which tokens lie in the first `prime_steps` time steps: (b,) -> bool (b, n)."""
    given = torch.arange(t, device=prime_steps.device) < prime_steps[:, None]
    return repeat(given, "b t -> b (t s)", s=n // t)


def masked_positions(mask: Tensor) -> Tensor | None:
    """The positions of the masked tokens, int64 (b, m), in order, padded with positions that are not masked.

    None means all positions. It is returned off the CPU, where reading their number would synchronise, and where over
    90 % are masked, so that picking them costs more than it saves.
    """
    if mask.device.type != "cpu":
        return None
    most = int(mask.sum(dim=1).max())
    if most > 0.9 * mask.shape[1]:
        return None
    return mask.int().argsort(dim=1, descending=True, stable=True)[:, :most]
