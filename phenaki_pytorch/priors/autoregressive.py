"""Sampling one id after the other: the options, and the choice of an id from its logits.

b = batch · k = number of codes
"""

import math
from typing import TypedDict

import torch
from torch import Tensor

from phenaki_pytorch.core.checks import check_at_least, check_scales, with_defaults
from phenaki_pytorch.core.contracts import Progress
from phenaki_pytorch.priors.decoding import categorical


class RasterOptions(TypedDict, total=False):
    """How a GPT samples. What is not given is as in `DEFAULTS`: ids as likely as the model says they are.

    temperature  softmax temperature of the ids, above 0
    top_k        only the k most likely codes are drawn; None: all
    top_p        only the most likely codes are drawn, the fewest whose probabilities sum to at least p in (0, 1]
                 (https://arxiv.org/abs/1904.09751); None: all
    cond_scale   s in null + s · (cond − null) on the logits, for a model that reads a text; 1 is no guidance
    generator    source of all randomness; on the model's device
    progress     tqdm, or anything that wraps an iterable, here of the ids of a clip
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    cond_scale: float
    generator: torch.Generator | None
    progress: Progress | None


ROUNDING = 1e-6  # of sums of probabilities, so that a code more is not drawn where they are equal
TINY = torch.finfo(torch.float32).tiny  # a lower temperature would be 0 in single precision

DEFAULTS = RasterOptions(temperature=1.0, top_k=None, top_p=None, cond_scale=1.0, generator=None, progress=None)


def raster_options(given: RasterOptions) -> RasterOptions:
    """All options; missing ones get their defaults. TypeError for wrong names and kinds, ValueError for values."""
    options = with_defaults(given, DEFAULTS, RasterOptions)
    check_scales(cond_scale=options["cond_scale"])
    check_at_least(1, top_k=options["top_k"])
    if not 0 < options["temperature"] < math.inf:
        raise ValueError(f"temperature must be finite and above 0, got {options['temperature']}")
    if options["top_p"] is not None and not 0 < options["top_p"] <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {options['top_p']}")
    return options


def choose(logits: Tensor, chance: Tensor, options: RasterOptions) -> Tensor:
    """Logits (b, k) and uniform numbers (b,) -> ids (b,)."""
    logits = logits.float()
    logits = logits - logits.amax(dim=-1, keepdim=True)  # so that none overflows at a low temperature
    probs = (logits / max(options["temperature"], TINY)).softmax(dim=-1)
    return categorical(keep_likely(probs, options["top_k"], options["top_p"]), chance)


def keep_likely(probs: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities (b, k) without those that `top_k` and `top_p` leave out, which become 0; not normalised again."""
    if top_k is not None and top_k < probs.shape[-1]:
        kept = probs.topk(top_k, dim=-1)
        probs = torch.zeros_like(probs).scatter(-1, kept.indices, kept.values)
    if top_p is not None and top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1)[..., :-1]  # of those before the second, the third, ...
        enough = before >= top_p * (1 - ROUNDING) * probs.sum(dim=-1, keepdim=True)
        # The most likely one always stays, whatever rounding does.
        ordered = torch.cat((ordered[..., :1], ordered[..., 1:].masked_fill(enough, 0)), dim=-1)
        probs = torch.zeros_like(probs).scatter(-1, order, ordered)
    return probs
