"""Mask schedules and MaskGIT's parallel decoding, as functions over any callable that gives logits.

MaskGIT (Chang et al. 2022, https://arxiv.org/abs/2202.04200) draws all masked tokens at once, keeps those it is
surest of, masks the others again, and repeats; the share that stays masked falls along a schedule γ(r) from 1 at
r = 0 to 0 at r = 1. Training draws r uniformly and masks the same share.

b = batch · n = tokens · k = number of codes
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

# γ(r): the share of tokens that is masked at progress r.
SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda r: torch.cos(r * (math.pi / 2)),
    "cubic": lambda r: 1 - r**3,
    "linear": lambda r: 1 - r,
}

Logits = Callable[[Tensor, Tensor], Tensor]  # ids (b, n), masked (b, n) -> logits (b, n, k)
Progress = Callable[[Iterable], Iterable]  # tqdm, or anything that wraps an iterable


def mask_share(progress: Tensor, schedule: str = "cosine") -> Tensor:
    """γ(r) for progress r in [0, 1], any shape. Raises ValueError for an unknown schedule."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {tuple(SCHEDULES)}, got {schedule!r}")
    return SCHEDULES[schedule](progress)


def uniform(shape: tuple, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Uniform in [0, 1), float32. Compiled for any size, `torch.rand` refuses to be given a generator, even None."""
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

    Returns bool (b, n), True where the token is to be masked.
    """
    b, device = token_mask.shape[0], token_mask.device
    if progress is None:
        progress = uniform((b,), device, generator)
    real = token_mask.sum(dim=1)
    count = (mask_share(progress, schedule) * real).ceil().clamp(min=1)
    order = uniform(token_mask.shape, device, generator)
    rank = order.masked_fill(~token_mask, torch.inf).argsort(dim=1).argsort(dim=1)
    return (rank < count[:, None]) & token_mask


def draw_primes(token_mask: Tensor, t: int, *, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Choose what training gives, so that it resembles a continuation: the first time steps of some of the clips.

    token_mask  bool (b, n), True for real tokens, n = t · h · w
    share       of the clips, drawn at random; of each, 1 to all but one of its real time steps are given

    Returns bool (b, n), True where the token is given; nowhere in images, which have one time step.
    """
    if share == 0:
        return torch.zeros_like(token_mask)
    b, device = token_mask.shape[0], token_mask.device
    lengths = rearrange(token_mask, "b (t s) -> b t s", t=t).any(dim=2).sum(dim=1)
    chosen = (uniform((b,), device, generator) < share) & (lengths > 1)
    steps = 1 + (uniform((b,), device, generator) * (lengths - 1)).long()
    given = torch.arange(t, device=device) < (chosen * steps)[:, None]
    return repeat(given, "b t -> b (t s)", s=token_mask.shape[1] // t)


def gumbel(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel(0, 1) noise of the shape and device of a float32 tensor."""
    drawn = uniform(like.shape, like.device, generator)
    exponential = (-drawn.clamp(min=1e-20).log()).clamp(min=1e-20)
    return -exponential.log()


def check_sampling(steps: int, temperature: float, token_temperature: float | Sequence[float]) -> None:
    """Refuse steps < 1, negative temperatures, and token temperatures that are not one or two numbers above 0."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    ends = _ends(token_temperature)
    if len(ends) != 2 or min(ends) <= 0:
        raise ValueError(f"token_temperature must be a number above 0, or two of them, got {token_temperature}")


def _ends(value: float | Sequence[float]) -> tuple[float, ...]:
    """What a value is at the first step and at the last."""
    return tuple(value) if isinstance(value, Sequence) else (value, value)


@torch.no_grad()
def parallel_decode(
    logits: Logits,
    ids: Tensor,
    masked: Tensor,
    *,
    steps: int = 24,
    temperature: float = 4.0,
    token_temperature: float | Sequence[float] = 1.0,
    schedule: str = "cosine",
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Fill the masked places of ids in `steps` passes, as google-research/maskgit's parallel_decode.py does.

    logits       callable (ids (b, n), masked (b, n)) -> logits (b, n, k); what `ids` holds at masked places must
                 not matter to it
    ids          int64 (b, n); tokens that are not masked are given and never change
    masked       bool (b, n), True where a token is to be drawn
    temperature  scale of the Gumbel noise on the confidence, annealed to 0 over the steps
    token_temperature  what the logits are divided by, for the draws and the confidence; of two numbers, the first
                 step takes the one, the last step the other, those between lie on a line. MaskGIT's is 1

    With U tokens masked at first, max(1, ⌊U · γ((t + 1) / steps)⌋) are left masked after step t (fewer where that
    would keep none); what the last step draws is the result. Accepted tokens are never drawn again.

    Returns ids (b, n).
    """
    check_sampling(steps, temperature, token_temperature)
    mask_share(torch.zeros(()), schedule)  # refuses unknown schedules
    at_first = masked.sum(dim=1)
    first, last = _ends(token_temperature)
    passes = range(steps)
    for step in passes if progress is None else progress(passes):
        divisor = first + (last - first) * step / max(1, steps - 1)
        probs = (logits(ids, masked).float() / divisor).softmax(dim=-1)  # (b, n, k)
        drawn = _categorical(probs, generator)
        ids = torch.where(masked, drawn, ids)
        if step + 1 < steps:
            r = (step + 1) / steps
            confidence = probs.gather(-1, ids[..., None])[..., 0].log()  # (b, n)
            confidence = confidence + temperature * (1 - r) * gumbel(confidence, generator)
            masked = _least_confident(confidence, masked, keep=_left_masked(at_first, masked, r, schedule))
    return ids


def _left_masked(at_first: Tensor, masked: Tensor, r: float, schedule: str) -> Tensor:
    """How many tokens of each sample stay masked at progress r: at least 1, at least 1 fewer than now, (b,)."""
    # In double precision: cos(π / 3) must not fall below a half.
    share = mask_share(torch.tensor(r, dtype=torch.float64), schedule).clamp(1e-6, 1).item()
    return torch.minimum((at_first * share).floor(), masked.sum(dim=1) - 1).clamp(min=1)


def _least_confident(confidence: Tensor, masked: Tensor, *, keep: Tensor) -> Tensor:
    """The `keep` (b,) least confident of the masked tokens of each sample, bool (b, n)."""
    rank = confidence.masked_fill(~masked, torch.inf).argsort(dim=1).argsort(dim=1)
    return (rank < keep[:, None]) & masked


def _categorical(probs: Tensor, generator: torch.Generator | None) -> Tensor:
    """One draw from each distribution: probabilities (b, n, k) -> ids (b, n).

    First which of about √k rows of √k ids, then which id of that row: `multinomial` takes a random number for every
    probability that it is given, and on processors those for k = 1,024 were a third of the time of a generation.
    """
    b, n, k = probs.shape
    columns = math.isqrt(k - 1) + 1
    rows = rearrange(F.pad(probs, (0, -k % columns)), "b n (r c) -> (b n) r c", c=columns)
    row = torch.multinomial(rows.sum(dim=-1), 1, generator=generator)  # (b n, 1)
    within = rows.gather(1, repeat(row, "bn 1 -> bn 1 c", c=columns))[:, 0]
    column = torch.multinomial(within, 1, generator=generator)
    return rearrange(row * columns + column, "(b n) 1 -> b n", b=b, n=n)
