"""Frames as a condition: ResNet-34, in 2-D one vector, in 3-D the tokens of its feature map (VideoGPT, section 3.3).

    frames -> stem -> 4 groups of basic blocks -> mean over the positions            -> vector  (FrameEncoder)
                                               -> + learned positions, in raster order -> tokens  (FrameMapEncoder)

The network is ResNet-34 (He et al. 2016, https://arxiv.org/abs/1512.03385, table 1): each basic block is two
convolutions with kernel 3 and a shortcut. VideoGPT (https://arxiv.org/abs/2104.10157) trains it jointly with the prior.
The map for cross-attention is that of its code, https://github.com/wilson1yan/VideoGPT.

b = batch · c = channels · f = num_frames · n = b · f · d = dim · m = f · height / 4 · width / 4
"""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_at_least, check_items, check_pixels, pair
from phenaki_pytorch.core.modules import CastingConv2d, CastingConv3d
from phenaki_pytorch.core.saving import Pretrained
from phenaki_pytorch.layers.positions import ConcatenatedPositions

MIDDLE = 0.5  # of the range of pixels, which is taken off them


class _FrameNetwork(Pretrained):
    """What both encoders share: the checks of their arguments and frames, and the first weights."""

    num_frames: int
    channels: int

    def _check_sizes(self, dims: Sequence[int], depths: Sequence[int]) -> None:
        check_items("dims", dims, int)
        check_items("depths", depths, int)
        if not dims or len(dims) != len(depths):
            raise ValueError(f"dims and depths must have one number per group, got {list(dims)} and {list(depths)}")
        check_at_least(1, dims=min(dims), depths=min(depths), channels=self.channels, num_frames=self.num_frames)

    def _initialize(self) -> None:
        """He initialisation of all convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _check_frames(self, frames: Tensor) -> Tensor:
        """Refuse what are not `num_frames` frames; images come back as clips of one frame."""
        if not frames.is_floating_point():
            raise TypeError(f"frames must be floating point in [0, 1], got {frames.dtype}")
        got = tuple(frames.shape)
        if frames.ndim == 4:
            frames = rearrange(frames, "b c h w -> b c 1 h w")
        if frames.ndim != 5 or 0 in got or frames.shape[1:3] != (self.channels, self.num_frames):
            images = f", or images (b, {self.channels}, h, w)" if self.num_frames == 1 else ""
            raise ValueError(
                f"frames must be (b, {self.channels}, {self.num_frames}, h, w){images}, none empty, got {got}"
            )
        check_pixels("frames", frames)
        return frames


class FrameEncoder(_FrameNetwork):
    """Frames (b, c, f, h, w), or images (b, c, h, w), in [0, 1] -> vectors (b, dim), by a 2-D ResNet-34.

    num_frames  how many frames the condition has: the first ones of the clip, in VideoGPT one. Each is encoded alone,
                and the vectors are concatenated, because their mean would not keep the order of the frames
    dims        channels of the groups
    depths      basic blocks of the groups

    `dim` is num_frames · the last of `dims`. Frames may have any size; VideoGPT's have 64×64 pixels. Batch norm: in
    training mode a sample's vector depends on the batch, in eval mode it does not. Raises ValueError for frames of
    another shape or range, and in training mode for a single frame so small that there is no variance to measure;
    TypeError for frames that are not floating point.
    """

    def __init__(
        self,
        *,
        num_frames: int = 1,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        channels: int = 3,
    ):
        super().__init__()
        self.config = {"num_frames": num_frames, "dims": list(dims), "depths": list(depths), "channels": channels}
        self.num_frames, self.channels = num_frames, channels
        self._check_sizes(dims, depths)
        self.dim = num_frames * dims[-1]
        self._stride = 2 ** (1 + len(dims))  # the stem halves twice, each group but the first once
        self.stem = nn.Sequential(
            CastingConv2d(channels, dims[0], 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(dims[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        strides = [(1, 1) if group == 0 else (2, 2) for group in range(len(dims))]
        self.groups = groups_of_blocks(dims, depths, strides, nn.Conv2d, nn.BatchNorm2d)
        self._initialize()

    def forward(self, frames: Tensor) -> Tensor:
        frames = self._check_frames(frames)
        images = rearrange(frames, "b c f h w -> (b f) c h w")
        if self.training and len(images) == 1 and max(images.shape[2:]) <= self._stride:
            raise ValueError(f"batch norm must see more than one frame of {self._stride} pixels or fewer, got one")
        features = self.groups(self.stem(images - MIDDLE))
        vectors = reduce(features, "n d h w -> n d", "mean")
        return rearrange(vectors, "(b f) d -> b (f d)", f=self.num_frames)


class FrameMapEncoder(_FrameNetwork):
    """Frames (b, c, f, height, width), or images, in [0, 1] -> tokens (b, m, dim) for cross-attention, in raster order.

    A 3-D ResNet-34 whose second and third group halve height and width, with LayerNorm over the channels.

    image_size  (height, width), or one number for both: the largest frames, which its positions fit
    num_frames  how many frames the condition has: the first ones of the clip
    dims        channels of the groups; the last is the width of the tokens, `dim`
    depths      basic blocks of the groups

    `grid` is the shape (t, h, w) of the map of the largest frames. Raises ValueError for frames of another shape or
    range and for larger ones, TypeError for frames that are not floating point.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence,
        num_frames: int = 1,
        dims: Sequence[int] = (64, 128, 256, 240),
        depths: Sequence[int] = (3, 4, 6, 3),
        channels: int = 3,
    ):
        super().__init__()
        self.config = {
            "image_size": image_size if isinstance(image_size, int) else list(image_size),
            "num_frames": num_frames,
            "dims": list(dims),
            "depths": list(depths),
            "channels": channels,
        }
        self.num_frames, self.channels = num_frames, channels
        self.image_size = pair(image_size)
        check_at_least(1, image_size=min(self.image_size))
        self._check_sizes(dims, depths)
        self.dim = dims[-1]
        strides = [(1, 2, 2) if group in (1, 2) else (1, 1, 1) for group in range(len(dims))]
        self._halvings = sum(stride == (1, 2, 2) for stride in strides)
        self.stem = nn.Sequential(
            CastingConv3d(channels, dims[0], 3, padding=1, bias=False), ChannelLayerNorm(dims[0]), nn.ReLU()
        )
        self.groups = groups_of_blocks(dims, depths, strides, nn.Conv3d, ChannelLayerNorm)
        self.positions = ConcatenatedPositions(self.dim, self.grid)
        self._initialize()

    @property
    def grid(self) -> tuple[int, int, int]:
        """The shape (t, h, w) of the map of the largest frames."""
        height, width = (-(-side // 2**self._halvings) for side in self.image_size)
        return self.num_frames, height, width

    def forward(self, frames: Tensor) -> Tensor:
        frames = self._check_frames(frames)
        if any(got > most for got, most in zip(frames.shape[3:], self.image_size)):
            raise ValueError(f"frames must be at most {self.image_size}, got {tuple(frames.shape[3:])}")
        features = self.groups(self.stem(frames - MIDDLE))
        grid = tuple(features.shape[2:])
        return rearrange(features, "b d t h w -> b (t h w) d") + self.positions(grid, features.device)


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position: (b, d, t, h, w) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(super().forward(rearrange(x, "b d t h w -> b t h w d")), "b t h w d -> b d t h w")


Convolution = type[nn.Conv2d] | type[nn.Conv3d]
Norm = Callable[[int], nn.Module]


def groups_of_blocks(
    dims: Sequence[int],
    depths: Sequence[int],
    strides: Sequence[tuple[int, ...]],
    convolution: Convolution,
    norm: Norm,
) -> nn.Sequential:
    """The blocks of all groups; the first block of a group changes its channels and size."""
    blocks, dim_in = [], dims[0]
    for dim, depth, stride in zip(dims, depths, strides):
        for number in range(depth):
            blocks.append(BasicBlock(dim_in, dim, stride if number == 0 else (1,) * len(stride), convolution, norm))
            dim_in = dim
    return nn.Sequential(*blocks)


class BasicBlock(nn.Module):
    """(n, dim_in, ...) -> (n, dim, ...), each axis divided by its stride, rounded up; `convolution` is 2-D or 3-D."""

    def __init__(self, dim_in: int, dim: int, stride: tuple[int, ...], convolution: Convolution, norm: Norm):
        super().__init__()
        self.main = nn.Sequential(
            convolution(dim_in, dim, 3, stride=stride, padding=1, bias=False),
            norm(dim),
            nn.ReLU(),
            convolution(dim, dim, 3, padding=1, bias=False),
            norm(dim),
        )
        self.shortcut = nn.Identity()
        if dim_in != dim or max(stride) > 1:
            self.shortcut = nn.Sequential(convolution(dim_in, dim, 1, stride=stride, bias=False), norm(dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.shortcut(x))
