"""3-D convolutions that keep the size, or halve or double any of its axes, with channels last.

Zeros are padded, so that each stride divides the length exactly (VideoGPT, section 3.1 and its released code,
https://github.com/wilson1yan/VideoGPT). With kernel 4 the padding is 1 on both sides of an axis of stride 2, and 2
before and 1 behind an axis of stride 1.

b = batch · t, h, w = grid · c = channels
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.core.modules import CastsInput

KERNEL = 4  # of the convolutions with strides


class Convolution(CastsInput, nn.Conv3d):
    """Kernel 3, (b, t, h, w, c) -> (b, t, h, w, channels_out)."""

    def __init__(self, channels: int, channels_out: int, *, bias: bool = True):
        super().__init__(channels, channels_out, kernel_size=3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(rearrange(x, "b t h w c -> b c t h w"))
        return rearrange(x, "b c t h w -> b t h w c")


class DownConvolution(CastsInput, nn.Conv3d):
    """Kernel 4, (b, t, h, w, c) -> each axis divided by its stride, 1 or 2, and other channels."""

    def __init__(self, channels: int, channels_out: int, *, stride: tuple[int, int, int]):
        super().__init__(channels, channels_out, KERNEL, stride=stride, padding=1)
        self.more = more_for_stride_1(stride)

    def forward(self, x: Tensor) -> Tensor:
        before = [length for more in reversed(self.more) for length in (more, 0)]  # `pad` begins with the last axis
        x = super().forward(F.pad(rearrange(x, "b t h w c -> b c t h w"), before))
        return rearrange(x, "b c t h w -> b t h w c")


class UpConvolution(CastsInput, nn.ConvTranspose3d):
    """Kernel 4, (b, t, h, w, c) -> each axis times its stride, 1 or 2, and other channels.

    Of the transposed convolution, an axis of stride 2 loses 1 value on both sides, one of stride 1 loses 1 before and 2
    behind.
    """

    def __init__(self, channels: int, channels_out: int, *, stride: tuple[int, int, int]):
        super().__init__(channels, channels_out, KERNEL, stride=stride, padding=1)
        self.more = more_for_stride_1(stride)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(rearrange(x, "b t h w c -> b c t h w"))
        t, h, w = (length - more for length, more in zip(x.shape[2:], self.more))
        return rearrange(x[:, :, :t, :h, :w], "b c t h w -> b t h w c")


def more_for_stride_1(stride: tuple[int, int, int]) -> tuple[int, ...]:
    """By how much each axis is padded, or cropped, beyond 1 value on both sides; ValueError for other strides."""
    if any(each not in (1, 2) for each in stride):
        raise ValueError(f"a convolution has strides of 1 or 2, got {stride}")
    return tuple(2 - each for each in stride)


def strides_of_2(strides: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The strides of the convolutions that have these strides together, powers of 2: (2, 4) -> [(2, 2), (1, 2)].

    At least one convolution, also where all strides are 1. Raises ValueError for strides that are no powers of 2.
    """
    if any(stride < 1 or stride & (stride - 1) for stride in strides):
        raise ValueError(f"strides must be powers of 2, got {strides}")
    factors = [stride.bit_length() - 1 for stride in strides]
    return [tuple(2 if layer < factor else 1 for factor in factors) for layer in range(max(1, *factors))]
