"""The matrix products and attention of a pass alone: how fast the pass would be if nothing else were computed.

All calls of matrix products and of attention, forward and backward, are recorded while the pass runs, and then repeated
on random tensors of the same shapes, strides and precision. The rest of the pass's time goes into norms, positions,
activations, copies and casts. Where these calls do not reach the machine's peak, PyTorch's kernels are the limit.
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
    """The layout of a tensor, without its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def filled(self) -> Tensor:
        """A random tensor of this layout."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride))
        numbers = torch.randn(1 + max(0, last), device=self.device)
        return numbers.to(self.dtype).as_strided(self.shape, self.stride)


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict]] = []

    def __torch_dispatch__(self, called: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = called.overloadpacket.__name__, kwargs or {}
        if name in PRODUCTS or name.startswith(ATTENTION):
            self.calls.append((called, *tree_map_only(Tensor, Layout.of, (args, kwargs))))
        return called(*args, **kwargs)


def products_of(call: Callable[[], object]) -> Callable[[], None]:
    """Record the products of one call; the result repeats them in their order and does nothing else."""
    with _Recorder() as recorder:
        call()
    filled = cache(Layout.filled)  # tensors of one layout are one tensor
    calls = [tree_map_only(Layout, filled, call) for call in recorder.calls]

    @torch.no_grad()
    def products() -> None:
        for called, args, kwargs in calls:
            called(*args, **kwargs)

    return products
