"""What the decoder reads, before it is rounded to a code: the quantizers of vector-quantize-pytorch without rounding.

A model of continuous latents is trained on these values. Features will not do: FSQ, say, bounds them before it rounds,
so the decoder has never seen values of the range of the features.

b = batch · n = tokens · d = code_dim · k = width of a code inside the quantizer
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, LFQ, SimVQ, VectorQuantize

EPS = 1e-3  # the default of `FSQ.bound`: it widens the range of tanh, so that the outermost levels are reached


def before_rounding(quantizer: nn.Module, features: Tensor) -> Tensor | None:
    """Features (b, n, d) -> what the decoder reads, not rounded to a code, (b, n, d); None for another quantizer.

    The nearest code is that of the features; where the quantizer projects codes to the width d, the one that is
    nearest before that projection.
    """
    if isinstance(quantizer, SimVQ):
        return features
    if isinstance(quantizer, VectorQuantize):
        # To unit length with cosine similarity, as the codes are; unchanged without it.
        return quantizer.project_out(quantizer._codebook.transform_input(quantizer.project_in(features)))
    if isinstance(quantizer, FSQ):
        return _with_rotation(quantizer, quantizer.project_in(features), _fsq_values)
    if isinstance(quantizer, LFQ):
        inner, limit = quantizer.project_in(features), quantizer.soft_clamp_input_value
        inner = inner if limit is None else limit * torch.tanh(inner / limit)
        return _with_rotation(quantizer, inner, _lfq_values)
    return None


def _with_rotation(quantizer: FSQ | LFQ, inner: Tensor, values: Callable[[FSQ | LFQ, Tensor], Tensor]) -> Tensor:
    """The values of projected features (b, n, k), computed behind the quantizer's rotation if it has one."""
    if quantizer.orthogonal_rotation:
        inner = values(quantizer, inner @ quantizer.orthogonal_rot) @ quantizer.orthogonal_rot.T
    else:
        inner = values(quantizer, inner)
    return quantizer.project_out(inner)


def _fsq_values(quantizer: FSQ, inner: Tensor) -> Tensor:
    """Bounded to the range of the levels (https://arxiv.org/abs/2309.15505, appendix A.1)."""
    hard = quantizer.bound_hard_clamp
    bounded = partial(torch.clamp, min=-1, max=1) if hard else torch.tanh
    if quantizer.preserve_symmetry:
        return bounded(inner)
    levels = quantizer._levels
    half = (levels - 1) * (1 + EPS) / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0)
    shift = offset / half if hard else torch.atanh(offset / half)
    return (bounded(inner + shift) * half - offset) / (levels // 2)


def _lfq_values(quantizer: LFQ, inner: Tensor) -> Tensor:
    """Clamped to the range between the codes' two values, ±scale; with spherical codes, of the codes' length."""
    scale = quantizer.codebook_scale
    return F.normalize(inner, dim=-1) * scale if quantizer.spherical else inner.clamp(-scale, scale)
