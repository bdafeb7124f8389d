"""Positions on a (t, h, w) grid: rotary angles (relative) and learned per-axis tables (absolute).

Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864) turn query and key by angles that grow
with their place, so that attention sees differences of places: any length and size can be used with one set
of weights. Alone they cannot tell identical tokens apart: a canvas of nothing but [MASK] looks the same from
everywhere. What starts from such a canvas adds `LearnedPositions`.

n = number of places = product of the grid's axes · d = width
"""

from math import prod

import torch
from einops import repeat
from torch import Tensor, nn

# The slowest angle turns by little more than 1/100 radian a place: grids here have tens of places an axis.
THETA = 100.0


def rotary(grid: tuple[int, ...], dim_head: int, device: torch.device) -> Tensor:
    """Cosine and sine of the rotary angles of every place of a grid in raster order, float32 (n, dim_head / 2, 2).

    The pairs of channels are dealt to the axes evenly; pairs left over do not turn.
    """
    check_dim_head(dim_head, axes=len(grid))
    pairs = dim_head // 2 // len(grid)
    # In double precision, where there is one: thousands of places on, a float32 angle is off by 1e-4 radian.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    frequencies = THETA ** -(torch.arange(pairs, device=device, dtype=dtype) / pairs)
    angles = torch.zeros(prod(grid), dim_head // 2, device=device, dtype=dtype)
    for axis, place in enumerate(_places(grid, device)):
        angles[:, axis * pairs : (axis + 1) * pairs] = place[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def check_dim_head(dim_head: int, *, axes: int) -> None:
    """Refuse heads of a width that has not a pair of channels for each axis."""
    if dim_head % 2 or dim_head // 2 < axes:
        raise ValueError(
            f"rotary positions over {axes} axes need an even dim_head of at least {2 * axes}, got {dim_head}"
        )


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the channel pairs (2i, 2i + 1) of x (..., n, heads, d) by angles of which `rotary` gave cosine and sine.

    A pair is a complex number, which is turned by one product: one pass over memory, and nothing kept of x for the
    gradient. There are none in bfloat16, so what is narrower is turned in float32.
    """
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    angles = angles.to(pairs.dtype)[..., None, :, :]  # the same for all heads
    if torch.compiler.is_compiling() or x.device.type == "mps":  # where complex numbers have no fast kernels
        (a, b), (cos, sin) = pairs.unbind(-1), angles.unbind(-1)
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(angles))
    return turned.flatten(-2).to(x.dtype)


class LearnedPositions(nn.Module):
    """One learned table per axis, summed: (t, h, w) -> (n, d) in raster order, for grids up to `grid`."""

    def __init__(self, dim: int, grid: tuple[int, ...]):
        super().__init__()
        self.grid = grid
        self.tables = nn.ParameterList(nn.Parameter(torch.randn(length, dim)) for length in grid)

    def forward(self, grid: tuple[int, ...]) -> Tensor:
        if len(grid) != len(self.grid) or any(got > most for got, most in zip(grid, self.grid)):
            raise ValueError(f"the grid must fit in the one that was built for, {self.grid}, got {grid}")
        places = _places(grid, self.tables[0].device)
        return sum(table[place] for table, place in zip(self.tables, places))


def _places(grid: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """The coordinate of every place along each axis, in raster order: one int64 tensor (n,) per axis."""
    places = []
    for axis, length in enumerate(grid):
        before, after = prod(grid[:axis]), prod(grid[axis + 1 :])
        places.append(repeat(torch.arange(length, device=device), "i -> (b i a)", b=before, a=after))
    return places
