"""LayerNorm whose gain and bias depend on a condition, and gates of what a branch adds.

b = batch · n = tokens · d = dim · s = steps of the condition · c = dim_condition · k = number of vectors
"""

from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor, nn


class ConditionalLayerNorm(nn.Module):
    """LN(x) · (1 + W c) + W' c, (b, n, d) -> (b, n, d) (VideoGPT, section 3.3); without a condition a plain LayerNorm.

    dim_condition  width of the condition; None for a plain LayerNorm
    """

    def __init__(self, dim: int, dim_condition: int | None = None):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=dim_condition is None)
        self.to_gain_bias = None if dim_condition is None else nn.Linear(dim_condition, 2 * dim, bias=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """`condition`: (b, s, c), each step for n / s tokens in order; s divides n."""
        x = self.norm(x)
        if self.to_gain_bias is None:
            return x
        gain_bias = self.to_gain_bias(condition)
        if gain_bias.shape[1] != 1:
            gain_bias = repeat(gain_bias, "b s d -> b (s r) d", r=x.shape[1] // gain_bias.shape[1])
        gain, bias = gain_bias.chunk(2, dim=-1)
        return x * (1 + gain) + bias


class ToModulation(nn.Module):
    """SiLU and a linear layer that starts at 0, (b, s, d) -> k vectors, (b, s, k, d) (DiT's adaLN-Zero).

    https://arxiv.org/abs/2212.09748, section 3.2.
    """

    def __init__(self, dim: int, vectors: int):
        super().__init__()
        self.vectors = vectors
        self.linear = nn.Linear(dim, vectors * dim)

    def forward(self, condition: Tensor) -> Tensor:
        return self.linear(nn.functional.silu(condition)).unflatten(-1, (self.vectors, -1))


class ModulationTable(nn.Module):
    """k learned vectors, which start at 0, added to what all blocks share (PixArt-α's adaLN-single).

    (b, s, k, d), or (b, s, 1, d) for all alike -> (b, s, k, d). https://arxiv.org/abs/2310.00426, section 2.3.
    """

    def __init__(self, dim: int, vectors: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(vectors, dim))

    def forward(self, shared: Tensor) -> Tensor:
        return shared + self.table


class Modulation(NamedTuple):
    """Of one branch f of a block: x + gate · f(shift + (1 + scale) · LN(x)); where it is None, x + f(LN(x)).

    Each is broadcast to x.
    """

    shift: Tensor | None = None
    scale: Tensor | None = None
    gate: Tensor | None = None

    def modulate(self, normed: Tensor) -> Tensor:
        """LN(x) -> what the branch reads."""
        return normed if self.scale is None else torch.addcmul(self.shift, normed, 1 + self.scale)

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        """The stream x and what the branch computes -> the stream after it."""
        return x + change if self.gate is None else torch.addcmul(x, change, self.gate)
