"""MaskGIT's parallel decoding, as functions over any callable that gives logits.

MaskGIT (Chang et al. 2022, https://arxiv.org/abs/2202.04200) samples all masked tokens at once, keeps those with the
highest confidence, masks the others again, and repeats; the share that stays masked follows a schedule. The confidence
is a callable: the model's own, as in MaskGIT, or a critic's (Lezama et al. 2022, https://arxiv.org/abs/2209.04439),
which looks at all tokens and can have earlier ones masked again.

b = batch · n = tokens · p = masked tokens of the batch · k = number of codes
"""

import math
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_items, check_scales, stepped, with_defaults
from phenaki_pytorch.core.contracts import Progress
from phenaki_pytorch.priors.masking import check_schedule, mask_share, uniform

# ids (b, n), mask (b, n) and the number of the step -> logits (p, k) of the masked ids, in order
Logits = Callable[[Tensor, Tensor, int], Tensor]
# ids (b, n) -> logits (b, n) of each being wrong
CriticLogits = Callable[[Tensor], Tensor]
# ids (b, n), their log-probabilities (b, n), inf where known before this step, and progress -> confidence (b, n)
Confidence = Callable[[Tensor, Tensor, float], Tensor]


class SamplingOptions(TypedDict, total=False):
    """How to sample. What is not given is as in `DEFAULTS`, the paper's.

    steps        steps of parallel decoding; with guidance each takes two passes
    cond_scale   s in null + s · (cond − null) on the logits; 1 is no guidance, 0 is without the text, the paper's λ is
                 s − 1; has no effect on an unconditional model, as guide_every has none
    temperature  scale of the Gumbel noise on the confidence, annealed to 0; not a softmax temperature
    token_temperature  softmax temperature of the tokens: a number, or that of the first step and of the last
    critic_scale   guidance of the critic, as `cond_scale`; another than 1 needs a critic that reads the text
    guide_every    null is computed in every n-th step, the first included; in the others a token reuses cond − null
                   from the last such step in which it was masked
    critic_inline  a SelfCritic scores the known ids in MaskGit's own pass, without an extra one; newly sampled ids are
                   scored by their log-probability until the next step
    generator      source of all randomness; on the model's device
    progress       tqdm, or anything that wraps the steps
    """

    steps: int
    cond_scale: float
    temperature: float
    token_temperature: float | Sequence
    critic_scale: float
    guide_every: int
    critic_inline: bool
    generator: torch.Generator | None
    progress: Progress | None


DEFAULTS = SamplingOptions(
    steps=24,
    cond_scale=7.0,
    temperature=4.0,
    token_temperature=1.0,
    critic_scale=1.0,
    guide_every=1,
    critic_inline=False,
    generator=None,
    progress=None,
)


def sampling_options(given: SamplingOptions) -> SamplingOptions:
    """All options; missing ones get their defaults. TypeError for wrong names and kinds, ValueError for values."""
    options = with_defaults(given, DEFAULTS, SamplingOptions)
    check_scales(**{name: options[name] for name in ("cond_scale", "temperature", "critic_scale")})
    for name in ("steps", "guide_every"):
        if options[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {options[name]}")
    ends = first_and_last(options["token_temperature"])
    if len(ends) != 2 or not all(0 < end < math.inf for end in ends):
        raise ValueError(f"token_temperature must be above 0, or two such numbers, got {options['token_temperature']}")
    if options["critic_inline"] and options["critic_scale"] != 1:
        raise ValueError(f"with critic_inline, critic_scale must be 1, got {options['critic_scale']}")
    return options


def check_critic_options(options: SamplingOptions, critic: nn.Module | None) -> None:
    """Refuse, with a ValueError, options of a critic that would have no effect: its own values are not looked at."""
    if critic is None and options["critic_inline"]:
        raise ValueError("critic_inline needs a critic, got none")
    if options["critic_scale"] == 1:
        return
    if critic is None:
        raise ValueError(f"critic_scale needs a critic, got {options['critic_scale']} without one")
    if critic.backbone.dim_context is None:
        raise ValueError(f"this critic reads no text, so critic_scale must be 1, got {options['critic_scale']}")


def first_and_last(value: float | Sequence) -> tuple:
    """The value at the first step and at the last."""
    if not isinstance(value, Sequence):
        return value, value
    check_items("token_temperature", value, int, float)
    return tuple(value)


# confidence


def by_confidence(temperature: float, generator: torch.Generator | None = None) -> Confidence:
    """MaskGIT's confidence: log-probability + temperature · (1 − progress) · Gumbel noise.

    Known tokens have infinite confidence and are never masked again.
    """
    return lambda ids, log_probs, progress: log_probs + temperature * (1 - progress) * gumbel(log_probs, generator)


def by_critic(critic_logits: CriticLogits, temperature: float, generator: torch.Generator | None = None) -> Confidence:
    """The critic's log-probability that an id is right, with the noise of `by_confidence`, for known ids as well."""
    with_noise = by_confidence(temperature, generator)
    return lambda ids, log_probs, progress: with_noise(ids, F.logsigmoid(-critic_logits(ids).float()), progress)


def gumbel(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel(0, 1) noise of the shape and device of a float32 tensor."""
    exponential = -uniform(like.shape, like.device, generator).clamp(min=1e-20).log()
    return -exponential.clamp(min=1e-20).log()


# decoding


@torch.no_grad()
def parallel_decode(
    logits: Logits,
    ids: Tensor,
    mask: Tensor,
    *,
    confidence: Confidence,
    steps: int,
    token_temperature: float | Sequence = 1.0,
    schedule: str = "cosine",
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Fill in the masked ids in `steps` passes, as google-research/maskgit's parallel_decode.py does.

    logits      callable (ids (b, n), mask (b, n), step) -> logits (p, k) of the masked ids; what `ids` holds at
                masked positions must not matter to it
    ids         int64 (b, n); those that are not masked are given and never change
    mask        bool (b, n), True where an id is to be sampled
    confidence  which ids to keep, `by_confidence` or `by_critic`
    schedule    the share that stays masked, a key of `SCHEDULES`
    other arguments  as in `SamplingOptions`

    Of U ids masked at first, max(1, ⌊U · γ((step + 1) / steps)⌋) stay masked after a step: those with the lowest
    confidence. The result is what the last step fills in.

    Returns ids (b, n).
    """
    check_schedule(schedule)
    given, masked_at_first = ~mask, mask.sum(dim=1)
    first, last = first_and_last(token_temperature)
    for step in stepped(steps, progress):
        divisor = first + (last - first) * step / max(1, steps - 1)
        # One random number per token, masked or not, so that the result does not depend on how many are masked.
        chance = uniform(ids.shape, ids.device, generator)
        sampled, log_probs = sample(logits(ids, mask, step), chance[mask], divisor)
        if not log_probs.isfinite().all():
            raise ValueError(f"expected finite logits, got others in sampling step {step}")
        ids = ids.masked_scatter(mask, sampled)
        if step + 1 < steps:
            r = (step + 1) / steps
            log_probs = torch.full_like(chance, torch.inf).masked_scatter(mask, log_probs)
            scores = confidence(ids, log_probs, r).masked_fill(given, torch.inf)
            mask = _lowest(scores, count=_masked_after(masked_at_first, mask, r, schedule))
    return ids


def _masked_after(masked_at_first: Tensor, mask: Tensor, r: float, schedule: str) -> Tensor:
    """How many ids of each sample stay masked at progress r: at most one fewer than now, but at least 1, (b,)."""
    # On the CPU, where there is double precision: in single, cos(π / 3) or a product may fall on the wrong side.
    share = mask_share(torch.tensor(r, dtype=torch.float64, device="cpu"), schedule).clamp(1e-6, 1)
    count = (masked_at_first.cpu() * share).floor().long().to(mask.device)
    return torch.minimum(count, mask.sum(dim=1) - 1).clamp(min=1)


def _lowest(scores: Tensor, *, count: Tensor) -> Tensor:
    """The `count` (b,) lowest finite scores of each sample: (b, n) -> bool (b, n)."""
    rank = scores.argsort(dim=1).argsort(dim=1)
    return (rank < count[:, None]) & (scores < torch.inf)


def sample(logits: Tensor, chance: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits (p, k) and uniform numbers (p,) -> ids (p,) sampled from their softmax, and the log-probabilities."""
    probs = (logits.float() / temperature).softmax(dim=-1)
    ids = categorical(probs, chance)
    return ids, probs.gather(-1, ids[..., None])[..., 0].log()


def categorical(probs: Tensor, chance: Tensor) -> Tensor:
    """Probabilities (..., k), not necessarily normalised, and uniform numbers (...,) in [0, 1) -> ids (...,).

    By inversion of the cumulative sum, with one random number per id.
    """
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[..., -1:]
    # Where rounding makes the point equal the total, the search would return an index past the last id. NaN still
    # does; the clamp then gives the last id.
    point = torch.minimum(chance[..., None] * total, total.nextafter(total.new_zeros(())))
    return torch.searchsorted(cumulative, point, right=True)[..., 0].clamp(max=probs.shape[-1] - 1)
