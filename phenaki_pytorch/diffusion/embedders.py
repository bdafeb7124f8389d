"""What Latte's blocks read: patches of latents, time, and texts as vectors of width d; and patches back to latents.

b = batch · f = time steps of latents · h, w = grid · e = channels · p, q = patch size · s = temporal patch size
n = (h / p) · (w / q) · c = dim_context · m = text tokens · d = dim
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.core.modules import CastingLinear, CastsInput

FREQUENCIES = 128  # of the time


class PatchEmbedding(CastingLinear):
    """Latents (b, f, h, w, e) -> one vector for each patch of s × p × q of them, (b, f / s, n, d)."""

    def __init__(self, code_dim: int, dim: int, *, patch_size: int, temporal_patch_size: int):
        super().__init__(code_dim * temporal_patch_size * patch_size**2, dim)
        self.patch_size, self.temporal_patch_size = patch_size, temporal_patch_size

    def forward(self, latents: Tensor) -> Tensor:
        sizes = {"s": self.temporal_patch_size, "p": self.patch_size, "q": self.patch_size}
        return super().forward(rearrange(latents, "b (f s) (h p) (w q) e -> b f (h w) (e s p q)", **sizes))


def unpatched(patches: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """Patches (b, f, n, p · q · e), in this order, -> (b, f, height, width, e)."""
    p = patch_size
    return rearrange(patches, "b f (h w) (p q e) -> b f (h p) (w q) e", h=height // p, w=width // p, p=p, q=p)


class TimeUpsampling(CastsInput, nn.ConvTranspose3d):
    """s time steps from each one, at every place: (b, f / s, h, w, e) -> (b, f, h, w, e)."""

    def __init__(self, channels: int, temporal_patch_size: int):
        size = (temporal_patch_size, 1, 1)
        super().__init__(channels, channels, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(rearrange(x, "b f h w e -> b e f h w"))
        return rearrange(x, "b e f h w -> b f h w e")


class TimeEmbedding(nn.Module):
    """Times (b,), integers or not -> (b, d): an MLP of cosines, then sines (DiT, https://arxiv.org/abs/2212.09748)."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(CastingLinear(2 * FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, time: Tensor) -> Tensor:
        powers = torch.arange(FREQUENCIES, device=time.device, dtype=torch.float32) / FREQUENCIES
        angles = time[:, None].float() * torch.exp(-math.log(10_000) * powers)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))


class TextEmbedding(nn.Sequential):
    """The embeddings of a text (b, m, c) -> (b, m, d), by an MLP."""

    def __init__(self, dim_context: int, dim: int):
        super().__init__(CastingLinear(dim_context, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
