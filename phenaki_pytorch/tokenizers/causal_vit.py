"""The two halves of C-ViViT: frames to features and features to frames, causal in time.

    frames -> patches -> spatial -> causal temporal -> features
    features -> causal temporal -> spatial -> patches -> frames

The first frame is cut into patches, the others into tubelets of `temporal_patch_size` frames, each with an
embedding of its own (Phenaki, section 2.1, https://arxiv.org/abs/2210.02399). Spatial layers attend within one time
step; temporal layers attend, at one spatial position, to the current and at most `temporal_window` − 1 earlier steps.

Positions are rotary along every axis, so attention depends on relative positions: one set of weights serves any length,
height and width, and a clip may come in pieces if the keys and values of earlier pieces are cached. Learned positions,
of LAION's phenaki tokenizer (https://github.com/LAION-AI/phenaki), are tables added before each transformer: one
over space and one over time, in each half. They end at the sizes that they were built for.

b = batch · c = channels · f = frames = 1 + k · pt · t = 1 + k · h, w = grid · ph, pw = patch · d = dim · e = code_dim
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.core.modules import CastingLinear
from phenaki_pytorch.layers.attention import KeyValueCache, causal_mask
from phenaki_pytorch.layers.positions import rotary
from phenaki_pytorch.layers.transformer import Transformer


class Sizes(NamedTuple):
    """The arguments that encoder and decoder share."""

    channels: int
    patch_size: tuple[int, int]
    temporal_patch_size: int
    dim: int
    code_dim: int
    spatial_depth: int
    temporal_depth: int
    heads: int
    dim_head: int
    temporal_window: int | None
    tables: tuple[int, int, int] | None  # (t, h, w) of learned positions; None: rotary ones

    @property
    def frame_values(self) -> int:
        """The number of values in a patch of one frame."""
        return self.channels * self.patch_size[0] * self.patch_size[1]

    def spatial(self) -> Transformer:
        """Attention within each time step, (b · t, h · w, d) -> (b · t, h · w, d)."""
        return Transformer(self.dim, self.spatial_depth, heads=self.heads, dim_head=self.dim_head)

    def temporal(self) -> Transformer:
        """Causal attention over time, (b · h · w, t, d) -> (b · h · w, t, d)."""
        return Transformer(self.dim, self.temporal_depth, causal=True, heads=self.heads, dim_head=self.dim_head)

    def spatial_table(self) -> "PositionTable | None":
        """Learned positions of a time step."""
        return None if self.tables is None else PositionTable(self.dim, *self.tables[1:])

    def temporal_table(self) -> "PositionTable | None":
        """Learned positions of the time steps, where there are temporal layers."""
        return None if self.tables is None or self.temporal_depth == 0 else PositionTable(self.dim, self.tables[0])


class Encoder(nn.Module):
    """Frames (b, c, f, h · ph, w · pw) in [0, 1] -> features (b, t, h, w, e)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.embed_first = CastingLinear(sizes.frame_values, sizes.dim)
        self.embed_rest = CastingLinear(sizes.frame_values * sizes.temporal_patch_size, sizes.dim)
        self.spatial = sizes.spatial()
        self.temporal = sizes.temporal()
        self.spatial_table, self.temporal_table = sizes.spatial_table(), sizes.temporal_table()
        self.to_code = nn.Linear(sizes.dim, sizes.code_dim)

    def forward(self, frames: Tensor, *, has_first: bool = True, caches: list[KeyValueCache] | None = None) -> Tensor:
        """
        has_first  whether these frames begin with the first one of the clip, which is a time step of its own
        caches     of the temporal layers: keys and values of the earlier pieces, to which those of this one are added
        """
        frames = frames * 2 - 1
        ph, pw = self.sizes.patch_size
        steps = []
        if has_first:
            patches = rearrange(frames[:, :, :1], "b c 1 (h ph) (w pw) -> b 1 h w (c ph pw)", ph=ph, pw=pw)
            steps.append(self.embed_first(patches))  # (b, 1, h, w, d)
            frames = frames[:, :, 1:]
        if frames.shape[2] > 0 or not has_first:
            tubelets = rearrange(
                frames,
                "b c (t pt) (h ph) (w pw) -> b t h w (c pt ph pw)",
                pt=self.sizes.temporal_patch_size,
                ph=ph,
                pw=pw,
            )
            steps.append(self.embed_rest(tubelets))  # (b, t, h, w, d)
        x = torch.cat(steps, dim=1)
        if x.shape[1] > 0:  # the first pieces of a stream may complete no time step
            x = along_space(self.spatial, x, self.spatial_table)
            x = along_time(self.temporal, x, self.temporal_table, self.sizes.temporal_window, caches)
        return self.to_code(x)


class Decoder(nn.Module):
    """Features (b, t, h, w, e) -> frames (b, c, f, h · ph, w · pw), not clamped; the encoder in reverse."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.from_code = CastingLinear(sizes.code_dim, sizes.dim)
        self.temporal = sizes.temporal()
        self.spatial = sizes.spatial()
        self.spatial_table, self.temporal_table = sizes.spatial_table(), sizes.temporal_table()
        self.pixels_first = nn.Linear(sizes.dim, sizes.frame_values)
        self.pixels_rest = nn.Linear(sizes.dim, sizes.frame_values * sizes.temporal_patch_size)

    def forward(self, features: Tensor, *, has_first: bool = True, caches: list[KeyValueCache] | None = None) -> Tensor:
        """`has_first`, `caches`: as in `Encoder`, of time steps instead of frames."""
        x = self.from_code(features)  # (b, t, h, w, d)
        x = along_time(self.temporal, x, self.temporal_table, self.sizes.temporal_window, caches)
        x = along_space(self.spatial, x, self.spatial_table)
        ph, pw = self.sizes.patch_size
        axes = {"c": self.sizes.channels, "ph": ph, "pw": pw}
        frames = []
        if has_first:
            first = self.pixels_first(x[:, :1])
            frames.append(rearrange(first, "b 1 h w (c ph pw) -> b c 1 (h ph) (w pw)", **axes))
            x = x[:, 1:]
        if x.shape[1] > 0:
            rest = rearrange(
                self.pixels_rest(x),
                "b t h w (c pt ph pw) -> b c (t pt) (h ph) (w pw)",
                pt=self.sizes.temporal_patch_size,
                **axes,
            )
            frames.append(rest)
        return (torch.cat(frames, dim=2) + 1) / 2


class PositionTable(nn.Module):
    """A learned vector for each position of a grid; a call gives those of a grid that fits, (*grid, d)."""

    def __init__(self, dim: int, *grid: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(*grid, dim) / dim**0.5)

    def forward(self, *grid: int) -> Tensor:
        limits = tuple(self.table.shape[:-1])
        if any(got > limit for got, limit in zip(grid, limits)):
            raise ValueError(f"the grid must fit into the learned positions, {limits}, got {grid}")
        return self.table[tuple(slice(size) for size in grid)]


def along_space(transformer: Transformer, x: Tensor, table: PositionTable | None) -> Tensor:
    """Apply a transformer within each time step: (b, t, h, w, d) -> (b, t, h, w, d)."""
    b, t, h, w, _ = x.shape
    if table is not None:
        x = x + table(h, w).to(x.dtype)
    tokens = rearrange(x, "b t h w d -> (b t) (h w) d")
    angles = rotary((h, w), transformer.dim_head, x.device) if table is None else None
    tokens = transformer(tokens, rotary=angles)
    return rearrange(tokens, "(b t) (h w) d -> b t h w d", b=b, t=t, h=h, w=w)


def along_time(
    transformer: Transformer,
    x: Tensor,
    table: PositionTable | None,
    window: int | None,
    caches: list[KeyValueCache] | None,
) -> Tensor:
    """Apply a causal transformer over time at each spatial position: (b, t, h, w, d) -> (b, t, h, w, d)."""
    b, t, h, w, _ = x.shape
    past = len(caches[0]) if caches else 0
    mask = None
    if past > 0 or (window is not None and window < t):
        mask = causal_mask(t, past, past + t if window is None else window, x.device)
    if table is not None:
        x = x + table(past + t)[past:, None, None].to(x.dtype)
    tokens = rearrange(x, "b t h w d -> (b h w) t d")
    # Positions count from the first cached time step, so that the angles stay small however long the clip is.
    angles = rotary((past + t,), transformer.dim_head, x.device) if table is None else None
    tokens = transformer(tokens, rotary=angles, mask=mask, caches=caches)
    return rearrange(tokens, "(b h w) t d -> b t h w d", b=b, h=h, w=w)


def temporal_caches(transformer: Transformer, window: int | None) -> list[KeyValueCache]:
    """Empty caches, one per block, of the time steps that later ones still see."""
    return [KeyValueCache(None if window is None else window - 1) for _ in transformer.blocks]
