"""The two halves of LAION's VQGAN: frames to features and features to frames, by convolutions in space and time.

    learned frame + frames -> stem -> block -> pixel unshuffle -> block -> bottleneck -> code, batch norm
    code -> bottleneck -> 4 levels of 2 blocks, each but the last upsampled -> sum of the levels' pixels -> sigmoid

One time step is 2 frames. A learned frame before the first one makes 1 + f frames even, so that one stem serves
images and clips; the decoder drops the frame that it makes there. Convolutions over time see both sides, so neither
half is causal. From LAION's phenaki tokenizer, https://github.com/LAION-AI/phenaki.

b = batch · c = channels · f = frames = 1 + 2k · t = 1 + k · h, w = grid · d = width of a layer · e = code_dim
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.core.modules import CastingConv3d, Checkpointing

LEVELS = 4  # of the decoder
MIN_WIDTH = 4
STEM = 4  # height and width of a patch of the stem


class DepthwiseConv3d(nn.Conv3d):
    """A 3×3×3 convolution of each channel by itself, beyond the edges of the nearest values: (b, d, t, h, w) -> same.

    For training on a CPU it is the sum of three 2-D convolutions, one for each frame of the kernel: the gradient of the
    3-D one (PyTorch 2.13, oneDNN) takes three to eight times as long, which was most of a training step.
    """

    def __init__(self, dim: int):
        super().__init__(dim, dim, 3, padding=1, padding_mode="replicate", groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        if not (x.is_cpu and torch.is_grad_enabled()):
            return super().forward(x)
        b, _, t, _, _ = x.shape
        x = rearrange(F.pad(x, (1,) * 6, mode="replicate"), "b d t h w -> b t d h w")
        frames = [rearrange(x[:, k : k + t], "b t d h w -> (b t) d h w") for k in range(3)]
        kernels, biases = self.weight.unbind(dim=2), (self.bias, None, None)
        out = sum(F.conv2d(*each, groups=self.groups) for each in zip(frames, kernels, biases))
        return rearrange(out, "(b t) d h w -> b d t h w", b=b)


class ResidualBlock(nn.Module):
    """(b, d, t, h, w) -> the same, with a depthwise 3×3×3 convolution at four times the width.

    skip_dim  channels of a second input, the skip; 0: there is none
    scale     of the initial weights of the last layer, its bias excepted
    """

    def __init__(self, dim: int, *, skip_dim: int = 0, scale: float):
        super().__init__()
        hidden = 4 * dim
        self.branch = nn.Sequential(
            nn.GELU(),
            nn.Conv3d(dim + skip_dim, hidden, 1),
            nn.GELU(),
            DepthwiseConv3d(hidden),
            nn.GELU(),
            nn.Conv3d(hidden, dim, 1),
        )
        self.branch[-1].weight.data.mul_(scale)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        return x + self.branch(x if skip is None else torch.cat((x, skip), dim=1))


class LearnedFrame(nn.Module):
    """The learned frame (c, 1, height, width).

    For another size than its own it is resized over the grid of the stem's patches, as tables of positions are:
    each pixel of a patch is interpolated from the same pixel of other patches.
    """

    def __init__(self, channels: int, height: int, width: int, *, std: float):
        super().__init__()
        self.frame = nn.Parameter(std * torch.randn(channels, 1, height, width))

    def forward(self, height: int, width: int) -> Tensor:
        frame = self.frame
        if frame.shape[2] == height and frame.shape[3] == width:
            return frame
        patches = rearrange(frame, "c 1 (h ph) (w pw) -> 1 (c ph pw) h w", ph=STEM, pw=STEM)
        patches = F.interpolate(patches, size=(height // STEM, width // STEM), mode="bilinear")
        return rearrange(patches, "1 (c ph pw) h w -> c 1 (h ph) (w pw)", ph=STEM, pw=STEM)


class BatchNorm(nn.BatchNorm3d):
    """Batch normalisation with the statistics of the batch in training steps only.

    These are calls in training mode that record gradients. Ids thus never depend on other clips of a batch, and
    encoding changes no state.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Encoder(Checkpointing):
    """Frames (b, c, f, 8h, 8w) in [0, 1] -> features (b, t, h, w, e)."""

    def __init__(self, *, channels: int, height: int, width: int, dim: int, depth: int, code_dim: int):
        super().__init__()
        scale = (2 + depth) ** -0.5
        fine = dim // 4
        self.first_frame = LearnedFrame(channels, height, width, std=dim**-0.5)
        self.stem = CastingConv3d(channels, fine, (2, STEM, STEM), stride=(2, STEM, STEM))
        self.fine = ResidualBlock(fine, scale=scale)
        self.coarse = ResidualBlock(dim, skip_dim=fine, scale=scale)
        self.bottleneck = nn.ModuleList(ResidualBlock(dim, scale=scale) for _ in range(depth))
        self.to_code = nn.Conv3d(dim, code_dim, 1)
        self.norm = BatchNorm(code_dim)

    def forward(self, frames: Tensor) -> Tensor:
        b, _, _, height, width = frames.shape
        first = self.first_frame(height, width).expand(b, -1, -1, -1, -1)
        x = self.stem(torch.cat((first, frames), dim=2))  # (b, d / 4, t, 2h, 2w)
        skip = x[..., ::2, ::2]  # nearest neighbours at half the size
        x = rearrange(self.run(self.fine, x), "b d t (h ph) (w pw) -> b (d ph pw) t h w", ph=2, pw=2)
        x = self.run(self.coarse, x, skip)
        for block in self.bottleneck:
            x = self.run(block, x)
        return rearrange(self.norm(self.to_code(x)), "b e t h w -> b t h w e")


class Decoder(Checkpointing):
    """Features (b, t, h, w, e) -> frames (b, c, f, 8h, 8w), between 0 and 1."""

    def __init__(self, *, channels: int, dim: int, depth: int, code_dim: int):
        super().__init__()
        scale = (depth + 2 * LEVELS) ** -0.5
        widths = [max(dim // 4**level, MIN_WIDTH) for level in range(LEVELS)]
        self.from_code = CastingConv3d(code_dim, dim, 1)
        self.bottleneck = nn.ModuleList(ResidualBlock(dim, scale=scale) for _ in range(depth))
        self.levels = nn.ModuleList(
            Level(before, here, after, channels=channels, scale=scale, factors=(1 if i else 2, 2, 2))
            for i, (before, here, after) in enumerate(zip([0, *widths], widths, [*widths[1:], None]))
        )

    def forward(self, features: Tensor) -> Tensor:
        x = self.from_code(rearrange(features, "b t h w e -> b e t h w"))
        for block in self.bottleneck:
            x = self.run(block, x)
        skip, pixels = None, []
        for level in self.levels:
            x, skip, level_pixels = level(x, skip)
            pixels.append(level_pixels)
        size = pixels[-1].shape[2:]
        return sum(F.interpolate(each, size=size) for each in pixels).sigmoid()


class Level(Checkpointing):
    """Two blocks, upsampling unless it is the last level, and what the level adds to the pixels.

    The skip of a block is the input of the block before it, resized.

    skip_dim  channels of the skip from the level before; 0: there is none
    next_dim  width of the next level; None: there is none
    factors   of the upsampling in time, height and width
    """

    def __init__(
        self,
        skip_dim: int,
        dim: int,
        next_dim: int | None,
        *,
        channels: int,
        scale: float,
        factors: tuple[int, int, int],
    ):
        super().__init__()
        self.first = ResidualBlock(dim, skip_dim=skip_dim, scale=scale)
        self.second = ResidualBlock(dim, skip_dim=dim, scale=scale)
        self.to_next = None if next_dim is None else nn.Conv3d(dim, next_dim, 1)
        self.factors = factors
        self.to_pixels = nn.Conv3d(dim if next_dim is None else next_dim, channels, 1)

    def forward(self, x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """-> the input of the next level and its skip; pixels (b, c, f, height, width)."""
        between = self.run(self.first, x, skip)
        x, skip = self.run(self.second, between, x), between
        if self.to_next is not None:
            # A 1×1×1 convolution before nearest upsampling is the same as after it, at an eighth of the cost.
            x, skip = self._upsampled(self.to_next(x)), self._upsampled(skip)
        return x, skip, self.to_pixels(x)

    def _upsampled(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=self.factors)
        return x if self.factors[0] == 1 else x[:, :, 1:]  # without the learned frame's
