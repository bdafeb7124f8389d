"""LayerNorm whose gain and bias depend on a condition.

b = batch · n = tokens · d = dim · s = steps of the condition, a divisor of n · c = dim_condition
"""

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
        """`condition`: (b, s, c), each step for n / s tokens in order."""
        x = self.norm(x)
        if self.to_gain_bias is None:
            return x
        gain_bias = self.to_gain_bias(condition)
        if gain_bias.shape[1] != 1:
            gain_bias = repeat(gain_bias, "b s d -> b (s r) d", r=x.shape[1] // gain_bias.shape[1])
        gain, bias = gain_bias.chunk(2, dim=-1)
        return x * (1 + gain) + bias
