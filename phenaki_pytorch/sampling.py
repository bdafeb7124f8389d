"""Mask schedules and MaskGIT's parallel decoding, as functions over any callable that gives logits.

MaskGIT (Chang et al. 2022, https://arxiv.org/abs/2202.04200) draws all masked tokens at once, keeps those it trusts
most, masks the others again, and repeats; the share that stays masked falls along a schedule γ(r) from 1 at r = 0 to
0 at r = 1. Training draws r uniformly and masks the same share.

What is trusted is the sampler's choice, a callable: the model's own confidence, as in MaskGIT, or a critic
(Lezama et al. 2022, https://arxiv.org/abs/2209.04439), which looks at all tokens and may take earlier ones back.

b = batch · n = tokens · m = places that are drawn · k = number of codes
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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

# ids (b, n), which are masked (b, n), which places to give logits for (b, m), or None for all, and the step, from 0
# -> (b, m or n, k)
Logits = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
Doubts = Callable[[Tensor], Tensor]  # ids (b, n) -> logits (b, n) of each of them being wrong
# ids (b, n), log-probabilities (b, n) of those just drawn, infinite for the others, and the progress after the step
# -> trust in each (b, n)
Trust = Callable[[Tensor, Tensor, float], Tensor]
Progress = Callable[[Iterable], Iterable]  # tqdm, or anything that wraps an iterable

NUMBERS = 2**19  # probabilities at a time: 2 MB, which stay in the cache


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


def real_steps(token_mask: Tensor, t: int) -> Tensor:
    """How many time steps of each sample have real tokens: bool (b, n), n = t · h · w -> (b,)."""
    return rearrange(token_mask, "b (t s) -> b t s", t=t).any(dim=2).sum(dim=1)


def draw_prime_steps(token_mask: Tensor, t: int, *, share: float, generator: torch.Generator | None = None) -> Tensor:
    """How many first time steps of each clip training gives, so that some resemble continuations: int64 (b,).

    token_mask  bool (b, n), True for real tokens, n = t · h · w
    share       of the clips, drawn at random; of each, 1 to all but one of its real time steps are given

    0 of the others, and of images, which have one time step.
    """
    b, device = token_mask.shape[0], token_mask.device
    if share == 0:
        return torch.zeros(b, dtype=torch.int64, device=device)
    lengths = real_steps(token_mask, t)
    chosen = (uniform((b,), device, generator) < share) & (lengths > 1)
    return chosen * (1 + (uniform((b,), device, generator) * (lengths - 1)).long())


def first_steps(steps: Tensor, t: int, n: int) -> Tensor:
    """Which of n = t · h · w tokens lie in so many first time steps: (b,) -> bool (b, n)."""
    given = torch.arange(t, device=steps.device) < steps[:, None]
    return repeat(given, "b t -> b (t s)", s=n // t)


def masked_places(masked: Tensor) -> Tensor | None:
    """The masked places (b, m) of bool (b, n), in order; where a sample has fewer than another, others follow.

    None, which stands for all, where their number would have to be waited for, or where picking a tenth or less to
    leave out costs more than it saves.
    """
    if masked.device.type != "cpu":
        return None
    most = int(masked.sum(dim=1).max())
    if most > 0.9 * masked.shape[1]:
        return None
    return masked.int().argsort(dim=1, descending=True, stable=True)[:, :most]


def of_masked(x: Tensor, masked: Tensor, places: Tensor | None) -> Tensor:
    """Features (b, m, d) of the places that `masked_places` gave, or (b, n, d) of all -> (p, d) of the masked ones."""
    return x[masked if places is None else masked.gather(1, places)]


def gumbel(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel(0, 1) noise of the shape and device of a float32 tensor."""
    drawn = uniform(like.shape, like.device, generator)
    exponential = (-drawn.clamp(min=1e-20).log()).clamp(min=1e-20)
    return -exponential.log()


def by_confidence(temperature: float = 4.0, generator: torch.Generator | None = None) -> Trust:
    """MaskGIT's trust: the log-probability with Gumbel noise, `temperature` times (1 − progress).

    What is not masked is trusted without end, so accepted tokens stay.
    """
    check_scales(temperature=temperature)
    return lambda ids, log_probs, progress: log_probs + temperature * (1 - progress) * gumbel(log_probs, generator)


def by_critic(
    doubts: Doubts, temperature: float = 4.0, generator: torch.Generator | None = None, *, inline: bool = False
) -> Trust:
    """The log-probability that an id is right, as a critic sees it, with the noise of `by_confidence`.

    Of all ids, wherever they stand, so that earlier choices can be taken back. `inline`: what was just drawn the
    critic has not seen yet, and its own log-probability, which is the model's of being right, counts.
    """
    with_noise = by_confidence(temperature, generator)

    def trust(ids: Tensor, log_probs: Tensor, progress: float) -> Tensor:
        right = F.logsigmoid(-doubts(ids).float())
        if inline:
            right = torch.where(log_probs == torch.inf, right, log_probs)
        return with_noise(ids, right, progress)

    return trust


def check_scales(**scales: float) -> None:
    """Refuse, with a ValueError, what is not finite or below 0."""
    for name, scale in scales.items():
        if not math.isfinite(scale):
            raise ValueError(f"{name} must be finite, got {scale}")
        if scale < 0:
            raise ValueError(f"{name} must be at least 0, got {scale}")


def _check_steps(steps: int, token_temperature: float | Sequence[float]) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    ends = _ends(token_temperature)
    if len(ends) != 2 or not all(0 < end < math.inf for end in ends):
        raise ValueError(f"token_temperature must be a number above 0, or two of them, got {token_temperature}")


@dataclass(frozen=True)
class Settings:
    """How to sample, as `MaskGit.generate` says; what no sampling can follow is refused with a ValueError."""

    steps: int
    cond_scale: float
    temperature: float
    token_temperature: float | Sequence[float]
    critic_scale: float
    guide_every: int
    critic_inline: bool

    def __post_init__(self):
        check_scales(cond_scale=self.cond_scale, temperature=self.temperature, critic_scale=self.critic_scale)
        _check_steps(self.steps, self.token_temperature)
        if self.guide_every < 1:
            raise ValueError(f"guide_every must be at least 1, got {self.guide_every}")
        if self.critic_inline and self.critic_scale != 1:
            raise ValueError(f"with critic_inline, critic_scale must be 1, got {self.critic_scale}")


def _ends(value: float | Sequence[float]) -> tuple[float, ...]:
    """What a value is at the first step and at the last."""
    return tuple(value) if isinstance(value, Sequence) else (value, value)


@torch.no_grad()
def parallel_decode(
    logits: Logits,
    ids: Tensor,
    masked: Tensor,
    *,
    trust: Trust,
    steps: int = 24,
    token_temperature: float | Sequence[float] = 1.0,
    schedule: str = "cosine",
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Fill the masked places of ids in `steps` passes, as google-research/maskgit's parallel_decode.py does.

    logits       callable (ids (b, n), masked (b, n), places, step) -> logits; what `ids` holds at masked
                 places must not matter to it. On the CPU it is asked for the masked places alone, (b, m) ->
                 (b, m, k), elsewhere for all, None -> (b, n, k), so that no shape depends on what is masked
    ids          int64 (b, n); tokens that are not masked are given and never change
    masked       bool (b, n), True where a token is to be drawn
    trust        which tokens to keep, `by_confidence` or `by_critic`
    token_temperature  what the logits are divided by, for the draws and the confidence; of two numbers, the first
                 step takes the one, the last step the other, those between lie on a line. MaskGIT's is 1

    With U tokens masked at first, max(1, ⌊U · γ((t + 1) / steps)⌋), the least trusted, are left masked after step t
    (fewer where that would keep none); what the last step draws is the result.

    Returns ids (b, n).
    """
    _check_steps(steps, token_temperature)
    mask_share(torch.zeros(()), schedule)  # refuses unknown schedules
    given, at_first = ~masked, masked.sum(dim=1)
    first, last = _ends(token_temperature)
    passes = range(steps)
    for step in passes if progress is None else progress(passes):
        divisor = first + (last - first) * step / max(1, steps - 1)
        places = masked_places(masked)
        made = logits(ids, masked, places, step)  # (b, m, k)
        # One random number a place of the video, drawn or not: the result does not depend on which are computed.
        chance = uniform(ids.shape, ids.device, generator)
        drawn, log_probs = draw(made, chance if places is None else chance.gather(1, places), divisor)  # (b, m)
        if places is not None:
            drawn = ids.scatter(1, places, drawn)
            log_probs = torch.zeros_like(chance).scatter(1, places, log_probs)
        ids = torch.where(masked, drawn, ids)
        if step + 1 < steps:
            r = (step + 1) / steps
            trusted = trust(ids, log_probs.masked_fill(~masked, torch.inf), r).masked_fill(given, torch.inf)
            masked = _least_trusted(trusted, keep=_left_masked(at_first, masked, r, schedule))
    return ids


def _left_masked(at_first: Tensor, masked: Tensor, r: float, schedule: str) -> Tensor:
    """How many tokens of each sample stay masked at progress r: at least 1, at least 1 fewer than now, (b,)."""
    # In double precision: cos(π / 3) must not fall below a half.
    share = mask_share(torch.tensor(r, dtype=torch.float64), schedule).clamp(1e-6, 1).item()
    return torch.minimum((at_first * share).floor(), masked.sum(dim=1) - 1).clamp(min=1)


def _least_trusted(trusted: Tensor, *, keep: Tensor) -> Tensor:
    """The `keep` (b,) least trusted tokens of each sample, but for those trusted without end: bool (b, n)."""
    rank = trusted.argsort(dim=1).argsort(dim=1)
    return (rank < keep[:, None]) & (trusted < torch.inf)


def draw(logits: Tensor, chance: Tensor, divisor: float) -> tuple[Tensor, Tensor]:
    """Logits (b, m, k) and uniform numbers (b, m) -> ids (b, m) and their log-probabilities.

    `divisor`: the softmax temperature. On the CPU some places at a time: the probabilities of all would be many times
    what a pass holds otherwise.
    """
    at_once = max(1, NUMBERS // (len(logits) * logits.shape[-1])) if logits.device.type == "cpu" else len(chance[0])
    ids, log_probs = [], []
    for some, numbers in zip(logits.split(at_once, dim=1), chance.split(at_once, dim=1)):
        probs = (some.float() / divisor).softmax(dim=-1)
        ids.append(categorical(probs, numbers))
        log_probs.append(probs.gather(-1, ids[-1][..., None])[..., 0].log())
    return torch.cat(ids, dim=1), torch.cat(log_probs, dim=1)


def categorical(probs: Tensor, chance: Tensor) -> Tensor:
    """Probabilities (..., k), which need not add up to 1, and uniform numbers (...,) in [0, 1) -> ids (...,).

    The place of each number on the line along which the probabilities lie end to end: first in which of about √k rows
    of √k ids, then at which id of that row. `multinomial` takes a random number for every probability that it is
    given, and on processors those for k = 1,024 were a third of the time of a generation.
    """
    k = probs.shape[-1]
    columns = _row_length(k)
    if missing := -k % columns:
        probs = F.pad(probs, (0, missing))
    rows = rearrange(probs, "... (r c) -> ... r c", c=columns)
    row, rest = _place_on_line(rows.sum(dim=-1), chance)
    column, _ = _place_on_line(rows.gather(-2, row[..., None, None].expand(*row.shape, 1, columns))[..., 0, :], rest)
    return row * columns + column


def _row_length(k: int) -> int:
    """About √k; a divisor of k if there is one within a factor of two, so that nothing has to be padded."""
    root = math.isqrt(k - 1) + 1
    return next((length for length in range(root, root // 2, -1) if k % length == 0), root)


def _place_on_line(lengths: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Pieces (..., p) end to end and shares (...,) of the whole line -> in which piece, and at which share of it.

    A piece of length 0 is never hit.
    """
    ends = lengths.cumsum(dim=-1)
    point = (share * ends[..., -1])[..., None]
    point = torch.minimum(point, ends[..., -1:].nextafter(ends.new_zeros(())))
    piece = (ends <= point).sum(dim=-1, keepdim=True)
    length = lengths.gather(-1, piece)
    within = (point - ends.gather(-1, piece) + length) / length
    return piece[..., 0], within[..., 0].clamp(0, 1)
