"""What the products of a pass take by themselves: how fast it would be if nothing stood between them.

The calls of matrix products and of attention, forwards and backwards, are noted while the pass runs, and made again on
numbers of the same shapes, strides and precision. What remains of the pass's time is its norms, positions, activations,
copies and casts; what these calls leave of the machine's peak, PyTorch leaves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
ATTENTION = "_scaled_dot_product_"


@dataclass(frozen=True)
class Layout:
    """All that is kept of a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def filled(self) -> Tensor:
        """A tensor like it, of other numbers."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride))
        numbers = torch.randn(1 + max(0, last), device=self.device)
        return numbers.to(self.dtype).as_strided(self.shape, self.stride)


class _Noting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict]] = []

    def __torch_dispatch__(self, called: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = called.overloadpacket.__name__, kwargs or {}
        if name in PRODUCTS or name.startswith(ATTENTION):
            self.calls.append((called, *tree_map_only(Tensor, Layout.of, (args, kwargs))))
        return called(*args, **kwargs)


def products_of(call: Callable[[], object]) -> Callable[[], None]:
    """The products of one call, as a callable that makes them, and nothing else, in their order."""
    with _Noting() as noting:
        call()
    filled = cache(Layout.filled)  # one tensor for all calls that ask for the like
    calls = [tree_map_only(Layout, filled, noted) for noted in noting.calls]

    @torch.no_grad()
    def products() -> None:
        for called, args, kwargs in calls:
            called(*args, **kwargs)

    return products
