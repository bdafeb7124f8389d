"""Positions on a (t, h, w) grid: rotary angles (relative), and tables per axis, summed or concatenated (absolute).

Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864) rotate queries and keys by angles that grow with
their position, so attention depends on relative positions only and one set of weights works at any length and size.
Alone they cannot tell identical tokens apart: where all ids are [MASK], every position looks the same. MaskGit
therefore adds `LearnedPositions`.

n = number of positions, the product of the grid's axes · d = width
"""

from math import prod

import torch
from einops import repeat
from torch import Tensor, nn

# The slowest angle grows by little more than 1/100 radian per position: axes here have tens of positions.
THETA = 100.0


def rotary(grid: tuple[int, ...], dim_head: int, device: torch.device) -> Tensor:
    """Cosine and sine of the rotary angles of every position of a grid in raster order, float32 (n, dim_head / 2, 2).

    Each axis gets the same number of channel pairs; pairs that are left over are not rotated.
    """
    check_dim_head(dim_head, axes=len(grid))
    pairs = dim_head // 2 // len(grid)
    # Double precision where there is one: a float32 angle is off by 1e-4 radian after some thousand positions.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    frequencies = THETA ** -(torch.arange(pairs, device=device, dtype=dtype) / pairs)
    angles = torch.zeros(prod(grid), dim_head // 2, device=device, dtype=dtype)
    for axis, coordinate in enumerate(_coordinates(grid, device)):
        angles[:, axis * pairs : (axis + 1) * pairs] = coordinate[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def check_dim_head(dim_head: int, *, axes: int) -> None:
    """Refuse a width of heads without a channel pair for each axis."""
    if dim_head % 2 or dim_head // 2 < axes:
        raise ValueError(
            f"rotary positions over {axes} axes need an even dim_head of at least {2 * axes}, got {dim_head}"
        )


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate the channel pairs (2i, 2i + 1) of x (..., n, heads, e) by the angles of `rotary`, (n, e / 2, 2).

    A pair is a complex number, and one complex product rotates it: one pass over memory. There are no complex numbers
    in bfloat16 and float16, which are rotated in float32.
    """
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    rotary = rotary.to(pairs.dtype)[..., None, :, :]  # the same for all heads
    if torch.compiler.is_compiling() or x.device.type == "mps":  # no fast kernels for complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), rotary.unbind(-1)
        rotated = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary))
    return rotated.flatten(-2).to(x.dtype)


class LearnedPositions(nn.Module):
    """One learned table per axis, summed: (t, h, w) -> (n, d) in raster order, for grids up to `grid`."""

    def __init__(self, dim: int, grid: tuple[int, ...]):
        super().__init__()
        self.grid = grid
        self.tables = AxisTables([torch.randn(length, dim) for length in grid])

    def forward(self, grid: tuple[int, ...]) -> Tensor:
        if len(grid) != len(self.grid) or any(got > most for got, most in zip(grid, self.grid)):
            raise ValueError(f"the grid must fit into the tables, {self.grid}, got {grid}")
        return sum(self.tables(grid))


class AxisTables(nn.Module):
    """Learned tables, each of an axis of the grid, by default all in order; only their own call reads them."""

    def __init__(self, tables: list[Tensor], axes: tuple[int, ...] | None = None):
        super().__init__()
        self.axes = tuple(range(len(tables))) if axes is None else axes
        for number, table in enumerate(tables):
            self.register_parameter(str(number), nn.Parameter(table))

    def forward(self, grid: tuple[int, ...]) -> list[Tensor]:
        """The row of every position of a grid in raster order, (n, width) for each table."""
        tables = list(self.parameters())
        coordinates = _coordinates(grid, tables[0].device)
        return [table[coordinates[axis]] for axis, table in zip(self.axes, tables)]


class ConcatenatedPositions(nn.Module):
    """Each axis has a share of the channels, (t, h, w) -> (n, d) in raster order (VideoGPT, section 3.2).

    grid     the largest grid, for learned tables
    axes     which axes of the grid have a position, each d / len(axes) channels, the last one those left over
    learned  learned tables, σ = 0.01, or sines and cosines, which have no largest grid
    """

    def __init__(self, dim: int, grid: tuple[int, ...], *, axes: tuple[int, ...] = (0, 1, 2), learned: bool = True):
        super().__init__()
        if dim < len(axes):
            raise ValueError(f"positions over {len(axes)} axes need a width of at least {len(axes)}, got {dim}")
        self.grid, self.axes = grid, axes
        share = dim // len(axes)
        self.widths = [share] * (len(axes) - 1) + [dim - share * (len(axes) - 1)]
        self.tables = None
        if learned:
            tables = [0.01 * torch.randn(grid[axis], width) for axis, width in zip(axes, self.widths)]
            self.tables = AxisTables(tables, axes)

    def forward(self, grid: tuple[int, ...], device: torch.device) -> Tensor:
        """`device`: that of sines and cosines; learned positions are on the device of their tables."""
        if self.tables is None:
            coordinates = _coordinates(grid, device)
            return torch.cat([_sines(coordinates[axis], width) for axis, width in zip(self.axes, self.widths)], dim=-1)
        if any(grid[axis] > self.grid[axis] for axis in self.axes):
            raise ValueError(f"the grid must fit into the tables of positions, {self.grid}, got {grid}")
        return torch.cat(self.tables(grid), dim=-1)


def _sines(coordinate: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of positions (n,): float32 (n, width) (Vaswani et al. 2017, section 3.5)."""
    half = (width + 1) // 2
    frequencies = 10_000 ** -(torch.arange(half, device=coordinate.device) / half)
    angles = coordinate[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width]


def _coordinates(grid: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """The coordinate of every position along each axis, in raster order: one int64 tensor (n,) per axis."""
    coordinates = []
    for axis, length in enumerate(grid):
        before, after = prod(grid[:axis]), prod(grid[axis + 1 :])
        coordinates.append(repeat(torch.arange(length, device=device), "i -> (b i a)", b=before, a=after))
    return coordinates
