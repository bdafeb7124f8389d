"""The variance of the pixels of the training data, measured over the first batches."""

import torch
import torch.distributed as dist
from torch import Tensor

from phenaki_pytorch.tokenizers.quantize import Float32Module
from phenaki_pytorch.tokenizers.quantizer_fixes import several_processes

BATCHES = 100  # that are measured


class DataVariance(Float32Module):
    """The variance of all pixels of the first `BATCHES` batches of all processes, about their mean; saved in buffers.

    Nothing waits for a device, so later batches are measured too, to no effect. Batches with pixels that are not finite
    do not count.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        for name in ("pixels", "mean", "variance"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float32))

    @torch.no_grad()
    def forward(self, video: Tensor | None = None) -> Tensor:
        """Add the pixels of a batch, if one is given; returns 1 / variance, or 1 before the first batch."""
        if video is not None:
            self._add(video.detach().float() - 0.5)  # near a mean of 0, the mean of squares loses no digits
        # A video of one colour has no variance.
        return torch.where(self.batches > 0, 1 / self.variance.clamp(min=1e-6), 1.0)

    def _add(self, video: Tensor) -> None:
        sums = torch.stack((video.new_full((), video.numel()), video.sum(), video.square().sum()))
        if several_processes():
            dist.all_reduce(sums)
        pixels, mean, square = sums[0], sums[1] / sums[0], sums[2] / sums[0]
        variance = square - mean.square()
        # The mean and variance of two sets together (Chan et al. 1979).
        share, distance = pixels / (self.pixels + pixels), mean - self.mean
        counts = (self.batches < BATCHES) & variance.isfinite()
        values = {
            "batches": self.batches + 1,
            "pixels": self.pixels + pixels,
            "mean": self.mean + share * distance,
            "variance": (1 - share) * self.variance + share * variance + share * (1 - share) * distance.square(),
        }
        for name, value in values.items():
            buffer = getattr(self, name)
            buffer.copy_(torch.where(counts, value, buffer))
