"""Texts that a model is given, and the learned null context that stands for a missing one.

Training replaces a share of the texts by the null context, for classifier-free guidance
(https://arxiv.org/abs/2207.12598).

b = batch · m = text tokens · c = dim_context
"""

import torch
from torch import Tensor

from phenaki_pytorch.core.checks import check_finite, check_mask


def with_null(context: Tensor, context_mask: Tensor, null: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the texts that are `dropped`, bool (b,), by the null context (c,), which is one token.

    Texts (b, m, c) and their mask, bool (b, m) -> the same with some replaced. The null context enters the graph also
    where none is dropped, because DDP needs a gradient of every parameter.
    """
    context = torch.where(dropped[:, None, None], null.to(context.dtype), context)
    only_first = torch.arange(context.shape[1], device=context.device) == 0
    return context, torch.where(dropped[:, None], only_first, context_mask)


def check_context(
    context: Tensor | None,
    context_mask: Tensor | None,
    dim_context: int | None,
    batch_size: int | None,
    *,
    name: str = "context",
    mask_name: str | None = None,
    values: bool = False,
) -> Tensor | None:
    """Refuse texts that do not fit; returns the mask to use, bool (b, m).

    dim_context      width that a model reads; None where it reads no text
    batch_size       how many there must be; None: any number
    name, mask_name  what the caller calls them; None: the name of the texts and "_mask"
    values           look at the mask on other devices than the CPU, too
    """
    if dim_context is None:
        if context is not None or context_mask is not None:
            raise ValueError(f"this model is unconditional (dim_context is None): expected no {name}, got one")
        return None
    if context is None:
        raise ValueError(f"this model needs a {name} (b, m, {dim_context}), got none")
    if not context.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {context.dtype}")
    if context.ndim != 3 or context.shape[-1] != dim_context or 0 in context.shape:
        raise ValueError(f"{name} must be (b, m, {dim_context}), none empty, got {tuple(context.shape)}")
    if batch_size not in (None, len(context)):
        raise ValueError(f"the {name} has a batch of {len(context)}, expected {batch_size}")
    if context_mask is None:
        context_mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
    else:
        check_mask(mask_name or f"{name}_mask", context_mask, context.shape[:2], values=values)
    check_finite(name, context, mask=context_mask, look=values)
    return context_mask
