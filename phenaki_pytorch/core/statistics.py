"""The mean and variance of training data, measured over the first batches of all processes."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from phenaki_pytorch.core.modules import Float32Module

BATCHES = 100  # that are measured


def several_processes() -> bool:
    """Whether this is one process of a distributed run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Moments(NamedTuple):
    """A mean and a variance, each of the shape (channels,), or () for all values together."""

    mean: Tensor
    variance: Tensor


class Statistics(Float32Module):
    """Mean and variance over the first `BATCHES` batches of all processes, in buffers, which are saved.

    channels  of each of which they are, the last axis of the data; None: of all values together

    Nothing waits for a device, so later batches are measured too, to no effect. Batches with values that are not finite
    do not count.
    """

    def __init__(self, channels: int | None = None):
        super().__init__()
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        shape = () if channels is None else (channels,)
        for name, value in (("values", 0.0), ("mean", 0.0), ("variance", 1.0)):
            self.register_buffer(name, torch.full(shape, value, dtype=torch.float32))

    @torch.no_grad()
    def forward(self, data: Tensor | None = None) -> Moments:
        """Measure a batch, (..., channels), or of any shape where all values count together, if one is given.

        Returns the mean and variance of all that was measured; 0 and 1 before the first batch.
        """
        if data is not None:
            self._add(data.detach().float())
        return Moments(self.mean, self.variance)

    def _add(self, data: Tensor) -> None:
        dims = tuple(range(data.ndim - self.mean.ndim))
        count = self.mean.new_full(self.mean.shape, data.numel() // max(1, self.mean.numel()))
        count, total = summed(torch.stack((count, data.sum(dims))))
        mean = total / count
        variance = summed((data - mean).square().sum(dims)) / count
        # The mean and variance of two sets together (Chan et al. 1979).
        share, distance = count / (self.values + count), mean - self.mean
        counts = (self.batches < BATCHES) & variance.isfinite().all()
        new = {
            "batches": self.batches + 1,
            "values": self.values + count,
            "mean": self.mean + share * distance,
            "variance": (1 - share) * self.variance + share * variance + share * (1 - share) * distance.square(),
        }
        for name, value in new.items():
            buffer = getattr(self, name)
            buffer.copy_(torch.where(counts, value, buffer))


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if several_processes():
        dist.all_reduce(values)
    return values
