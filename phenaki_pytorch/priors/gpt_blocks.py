"""The blocks of GPT: causal attention, attention to contexts, and an MLP that also reads a vector.

    x <- x + CausalAttention(LN(x))
    x <- x + CrossAttention(LN(x), context)        for each context
    x <- x + MLP(LN(x) ⊕ vector)

Every LN may be conditional (VideoGPT, section 3.3, https://arxiv.org/abs/2104.10157).

b = batch · n = tokens · d = dim · v = dim_vector · s = steps of the condition, a divisor of n · c = dim_condition
"""

from typing import NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_finite
from phenaki_pytorch.layers.attention import Attention, Context, CrossAttention, PreallocatedCache
from phenaki_pytorch.layers.modulation import ConditionalLayerNorm
from phenaki_pytorch.layers.transformer import Stack


class Widths(NamedTuple):
    """The arguments that all blocks share."""

    dim: int
    heads: int
    dim_head: int
    dim_context: int | None
    dim_frame_map: int | None
    dim_vector: int | None
    dim_condition: int | None
    attn_dropout: float
    ff_dropout: float


class Given(TypedDict, total=False):
    """What a GPT may be given beside a text, each if and only if its constructor has the width of it.

    frame_vector  (b, dim_frame_vector), features of frames, concatenated before each MLP
    frame_map     (b, j, dim_frame_map), features of frames, which every block attends to
    condition     (b, dim_condition), or (b, t, dim_condition) with one for each time step: gain and bias of the norms
    """

    frame_vector: Tensor | None
    frame_map: Tensor | None
    condition: Tensor | None


def check_given(name: str, value: Tensor | None, width: int | None, *shapes: tuple) -> None:
    """Refuse what is not of one of the shapes, followed by the width; None in a shape is any length.

    A width of None means that there must be no value.
    """
    if (value is None) != (width is None):
        raise ValueError(f"expected {'no' if width is None else 'a'} {name}, got {'none' if value is None else 'one'}")
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got a {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    shapes = [(*shape, width) for shape in shapes]
    fits = any(
        len(shape) == value.ndim and all(want in (None, got) for want, got in zip(shape, value.shape))
        for shape in shapes
    )
    if not fits or 0 in value.shape:
        raise ValueError(f"{name} must be {' or '.join(map(str, shapes))}, none empty, got {tuple(value.shape)}")
    check_finite(name, value)


class Conditions(NamedTuple):
    """What the blocks read beside the tokens.

    contexts   for cross-attention, in the order text, frame map
    vector     (b, v), concatenated before each MLP
    condition  (b, s, c), from which the norms have gain and bias; each step is for n / s tokens in order
    """

    contexts: tuple[Context, ...] = ()
    vector: Tensor | None = None
    condition: Tensor | None = None

    def at(self, first: int, last: int) -> "Conditions":
        """The same for time steps from `first` up to `last` alone."""
        if self.condition is None or self.condition.shape[1] == 1:
            return self
        return self._replace(condition=self.condition[:, first:last])


class QuickGELU(nn.Module):
    """x · σ(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CrossBranch(nn.Module):
    """Norm and cross-attention to one context."""

    def __init__(self, widths: Widths, dim_context: int, dim_value: int):
        super().__init__()
        self.norm = ConditionalLayerNorm(widths.dim, widths.dim_condition)
        self.attention = CrossAttention(
            widths.dim,
            dim_context=dim_context,
            heads=widths.heads,
            dim_head=widths.dim_head,
            dim_value=dim_value,
            dropout=widths.attn_dropout,
            qk_norm=False,
        )

    def forward(self, x: Tensor, context: Context, condition: Tensor | None) -> Tensor:
        return self.attention(self.norm(x, condition), context)


class GPTBlock(nn.Module):
    """One layer, (b, n, d) -> (b, n, d)."""

    def __init__(self, widths: Widths):
        super().__init__()
        dim, heads = widths.dim, widths.heads
        self.attention_norm = ConditionalLayerNorm(dim, widths.dim_condition)
        self.attention = Attention(
            dim, heads=heads, dim_head=widths.dim_head, causal=True, dropout=widths.attn_dropout, qk_norm=False
        )
        self.cross = nn.ModuleList()
        if widths.dim_context is not None:
            self.cross.append(CrossBranch(widths, widths.dim_context, widths.dim_head))
        if widths.dim_frame_map is not None:  # as in VideoGPT's code, its values are as wide as the map
            self.cross.append(CrossBranch(widths, widths.dim_frame_map, max(1, widths.dim_frame_map // heads)))
        self.ff_norm = ConditionalLayerNorm(dim, widths.dim_condition)
        self.ff = nn.Sequential(
            nn.Linear(dim + (widths.dim_vector or 0), 4 * dim), QuickGELU(), nn.Linear(4 * dim, dim)
        )
        self.dropout = nn.Dropout(widths.ff_dropout)

    def forward(self, x: Tensor, *, conditions: Conditions, cache: PreallocatedCache | None = None) -> Tensor:
        contexts, vector, condition = conditions
        x = x + self.dropout(self.attention(self.attention_norm(x, condition), cache=cache))
        for branch, context in zip(self.cross, contexts, strict=True):
            x = x + self.dropout(branch(x, context, condition))
        inner = self.ff_norm(x, condition)
        if vector is not None:
            inner = torch.cat((inner, vector[:, None].to(inner.dtype).expand(-1, x.shape[1], -1)), dim=-1)
        return x + self.dropout(self.ff(inner))


class GPTStack(Stack):
    """`depth` blocks and a last, conditional norm."""

    def __init__(self, widths: Widths, depth: int):
        norm = ConditionalLayerNorm(widths.dim, widths.dim_condition)
        super().__init__((GPTBlock(widths) for _ in range(depth)), norm)
        init_weights(self, depth)

    def forward(self, x: Tensor, conditions: Conditions, caches: list[PreallocatedCache] | None = None) -> Tensor:
        """`caches`: one per block; the tokens then follow those that the caches hold."""

        def options(i: int) -> dict:
            return {"conditions": conditions, "cache": None if caches is None else caches[i]}

        x = self.through_blocks(x, options, caching=caches is not None)
        return self.norm(x, conditions.condition)


def init_weights(stack: GPTStack, depth: int) -> None:
    """Queries, keys and values 1/√inputs; the last layer of attention and MLP 1/√(inputs · depth), biases 0.

    The first layer of the MLP, of which the paper says nothing, 1/√inputs; the conditions of norms 0.02.
    """
    for name, layer in stack.named_modules():
        if isinstance(layer, nn.Linear):
            std = layer.in_features**-0.5
            if name.endswith(("to_out", "ff.2")):
                std *= depth**-0.5
            if name.endswith("to_gain_bias"):
                std = 0.02
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
