"""Axial attention (Ho et al. 2019, https://arxiv.org/abs/1912.12180) over videos, as in VideoGPT.

b = batch · t, h, w = grid · d = dim
"""

from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.layers.attention import Attention


class AxialAttention(nn.Module):
    """Attention along time, along height and along width, summed: (b, t, h, w, d) -> (b, t, h, w, d).

    Each token sees those that differ from it in one coordinate alone (VideoGPT, section 3.1). Queries and keys are not
    normalised, and a head is d / heads wide. Raises ValueError where `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, *, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim, got {heads} heads and dim {dim}")
        self.along_time, self.along_height, self.along_width = (
            Attention(dim, heads=heads, dim_head=dim // heads, qk_norm=False) for _ in range(3)
        )
        for attention in self.children():
            # As in the released code.
            nn.init.normal_(attention.to_qkv.weight, std=dim**-0.5)
            nn.init.normal_(attention.to_out.weight, std=dim**-0.5)
            nn.init.zeros_(attention.to_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, _ = x.shape
        time = self.along_time(rearrange(x, "b t h w d -> (b h w) t d"))
        height = self.along_height(rearrange(x, "b t h w d -> (b t w) h d"))
        width = self.along_width(rearrange(x, "b t h w d -> (b t h) w d"))
        return (
            rearrange(time, "(b h w) t d -> b t h w d", b=b, h=h, w=w)
            + rearrange(height, "(b t w) h d -> b t h w d", b=b, t=t, w=w)
            + rearrange(width, "(b t h) w d -> b t h w d", b=b, t=t, h=h)
        )
