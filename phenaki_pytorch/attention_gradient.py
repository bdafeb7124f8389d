"""Attention in bfloat16 on processors, with a gradient made of matrix products.

PyTorch's kernel is fast forwards, but its gradient takes as long in bfloat16 as in float32 (2.13, with AMX): about six
times the kernel's own time. The products below keep to bfloat16 and take half of that.

    P = exp(S − l), S = q kᵀ / √e, l = logsumexp S        softmax, l from the kernel
    dV = Pᵀ g      dS = P ∘ (g vᵀ − δ), δ = rowsum(g ∘ out)      dQ = dS k / √e      dK = dSᵀ q / √e

l and δ are numbers of a query. exp(−l) goes into g, and δ into the product g vᵀ as two more columns (it and what
bfloat16 loses of it): of the scores there is nothing left to do but exp and one product, and both are rounded once.

b = batch · h = heads · n = queries · m = keys · e = width of a head
"""

from math import prod

import torch
from torch import Tensor

# Scores at a time, of each of two matrices: 8 MB in bfloat16.
SCORES = 2**22

# exp of the scores must not overflow, nor what exp(−l) leaves of g vanish; normalised queries and keys stay far below.
LARGEST = 40.0

forwards = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
backwards = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def trains_by_products(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether this is attention on a processor, in bfloat16, that a gradient will be asked of."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal: bool) -> Tensor:
    """softmax(q kᵀ / √e) v for bfloat16 q (b, h, n, e) and k, v (b, h, m, e).

    visible  bool, broadcast to (b, h, n, m), or None for all
    causal   n = m, and none looks ahead; without `visible`
    """
    return _AttentionByProducts.apply(q, k, v, visible, causal)


class _AttentionByProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal: bool) -> Tensor:
        mask = None if visible is None else torch.zeros_like(visible, dtype=q.dtype).masked_fill(~visible, -torch.inf)
        out, log_sums = forwards(q, k, v, 0.0, causal, attn_mask=mask)
        ctx.save_for_backward(q, k, v, out, log_sums, visible, mask)
        ctx.causal = causal
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, visible, mask = ctx.saved_tensors
        if tensors[-1].abs().max() < LARGEST:
            return *gradients(grad, *tensors, visible, ctx.causal), None, None
        return *backwards(grad, *tensors, 0.0, ctx.causal, attn_mask=mask), None, None


def gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: Tensor,
    visible: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of q, k and v, given that of the output, (b, h, n, e), and l, float32 (b, h, n)."""
    b, h, n, e = q.shape
    heads, m, scale = b * h, k.shape[2], e**-0.5
    weighted = grad * (-log_sums).exp()[..., None]
    delta = (weighted * out).sum(dim=-1, keepdim=True)
    rounded = delta.to(q.dtype)
    g = torch.cat((weighted.to(q.dtype), rounded, (delta - rounded).to(q.dtype)), dim=-1)
    v = torch.cat((v, v.new_full((b, h, m, 2), -1.0)), dim=-1)
    q, k, v, g = (part.reshape(heads, *part.shape[2:]).contiguous() for part in (q * scale, k, v, g))
    hidden = None if visible is None else ~visible.expand(b, h, -1, m).reshape(heads, -1, m).mT
    q_t, g_t, g = q.mT.contiguous(), g.mT.contiguous(), g[..., :e].contiguous()

    together = min(heads, max(1, SCORES // (n * m)))
    rows = m if n * m <= SCORES else max(1, SCORES // n)
    room = [q.new_empty(together * rows * n) for _ in range(2)]
    dq, dk, dv = torch.zeros(heads, n, e) if rows < m else torch.empty_like(q), torch.empty_like(k), torch.empty_like(k)
    for first in range(0, heads, together):
        of = slice(first, first + together)
        for row in range(0, m, rows):  # scores lie with their keys as rows: two of three products need no turning
            keys, values = k[of, row : row + rows], v[of, row : row + rows]
            shape = *keys.shape[:2], n
            p, ds = (part[: prod(shape)].view(shape) for part in room)
            torch.bmm(keys, q_t[of], out=p).exp_()
            if causal:
                p.triu_(diagonal=row)
            if hidden is not None:
                p.masked_fill_(hidden[of, row : row + rows], 0)
            torch.bmm(values, g_t[of], out=ds).mul_(p)
            torch.bmm(p, g[of], out=dv[of, row : row + rows])
            torch.bmm(ds, q[of], out=dk[of, row : row + rows])
            if rows < m:
                dq[of] += ds.mT @ keys
            else:
                torch.bmm(ds.mT, keys, out=dq[of])
    return tuple(part.view(b, h, -1, e) for part in ((dq * scale).to(q.dtype), dk, dv))
