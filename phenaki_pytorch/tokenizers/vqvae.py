"""VQVAE: VideoGPT's tokenizer, made of 3-D convolutions and axial attention.

    video -> convolutions -> attention residual blocks -> quantizer -> blocks -> transposed convolutions -> video

It is not causal: ids depend on earlier and later frames (VideoGPT, section 3.1, https://arxiv.org/abs/2104.10157). The
layers are those of the released code, https://github.com/wilson1yan/VideoGPT, but the norms are LayerNorm over the
channels and positions are learned, both as in the paper's first version.

b = batch · c = channels · f = frames · t, h, w = grid · d = dim · e = code_dim
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_at_least, check_items
from phenaki_pytorch.core.modules import CastingLinear, Checkpointing, through_call
from phenaki_pytorch.core.statistics import Statistics
from phenaki_pytorch.layers.axial_attention import AxialAttention
from phenaki_pytorch.layers.convolutions3d import Convolution, DownConvolution, UpConvolution, strides_of_2
from phenaki_pytorch.layers.positions import ConcatenatedPositions
from phenaki_pytorch.tokenizers.quantize import Quantizer
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer

LEAST_VARIANCE = 1e-6  # a video of one colour has none


class ResidualBlock(nn.Module):
    """Two convolutions and, with `heads`, axial attention: (b, t, h, w, d) -> (b, t, h, w, d)."""

    def __init__(self, dim: int, *, heads: int | None):
        super().__init__()
        self.inner_norm = nn.LayerNorm(dim)
        self.to_inner = Convolution(dim, dim // 2, bias=False)
        self.outer_norm = nn.LayerNorm(dim // 2)
        self.to_outer = nn.Linear(dim // 2, dim, bias=False)
        if heads is not None:
            self.attention_norm = nn.LayerNorm(dim)
            self.attention = AxialAttention(dim, heads=heads)

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """`positions`: (t, h, w, d), of blocks with attention."""
        out = self.to_inner(F.relu(self.inner_norm(x)))
        out = self.to_outer(F.relu(self.outer_norm(out)))
        if positions is not None:
            out = self.attention(F.relu(self.attention_norm(out)) + positions)
        return x + out


class Encoder(Checkpointing):
    """Video (b, c, f, height, width) in [0, 1] -> features (b, t, h, w, e)."""

    def __init__(self, *, channels: int, dim: int, depth: int, heads: int | None, code_dim: int, strides: list):
        super().__init__()
        widths = [channels] + [dim] * (len(strides) - 1)
        self.down = nn.ModuleList(DownConvolution(width, dim, stride=each) for width, each in zip(widths, strides))
        self.last = Convolution(dim, dim)
        self.blocks = nn.ModuleList(ResidualBlock(dim, heads=heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.to_code = nn.Linear(dim, code_dim)

    def forward(self, video: Tensor, positions: Tensor | None) -> Tensor:
        x = rearrange(video - 0.5, "b c f h w -> b f h w c")
        for convolution in self.down:
            x = F.relu(convolution(x))
        x = self.last(x)  # (b, t, h, w, d)
        for block in self.blocks:
            x = self.run(block, x, positions)
        return self.to_code(F.relu(self.norm(x)))


class Decoder(Checkpointing):
    """Features (b, t, h, w, e) -> video (b, c, f, height, width), not clamped.

    The transposed convolutions have their strides in the order of the encoder's, not in reverse.
    """

    def __init__(self, *, channels: int, dim: int, depth: int, heads: int | None, code_dim: int, strides: list):
        super().__init__()
        self.from_code = CastingLinear(code_dim, dim)
        self.blocks = nn.ModuleList(ResidualBlock(dim, heads=heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        widths = [dim] * (len(strides) - 1) + [channels]
        self.up = nn.ModuleList(UpConvolution(dim, width, stride=each) for width, each in zip(widths, strides))

    def forward(self, features: Tensor, positions: Tensor | None) -> Tensor:
        x = self.from_code(features)  # (b, t, h, w, d)
        for block in self.blocks:
            x = self.run(block, x, positions)
        x = self.norm(x)
        for convolution in self.up:
            x = convolution(F.relu(x))
        return rearrange(x, "b f h w c -> b c f h w") + 0.5


class VQVAE(VideoTokenizer):
    """Video (b, c, f, height, width) in [0, 1] <-> ids (b, t, h, w), f = k · strides[0]; not causal.

    video_shape       (frames, height, width) of the training videos: the tables of positions have this size. Smaller
                      videos work as well, and without axial_attention larger ones
    strides           pixels of one id along time, height and width: powers of 2
    dim, depth        width, and the number of blocks in encoder and decoder each
    heads             of the axial attention; they divide dim
    codebook_size     number of codes
    code_dim          width of a code
    channels          of the video
    axial_attention   whether blocks attend along each axis; without it, they have no positions either
    data_variance     of the pixels in [0, 1], by which the pixels' term is divided (0.06 for BAIR in VideoGPT); None:
                      measured over the first 100 batches in training mode and saved
    quantizer         "ema" (VideoGPT's codebook of moving averages), "vq", "lfq", "fsq", "simvq", or a module
    quantizer_kwargs  further arguments of a quantizer that is given by its name

    With stride 1 in time, every method takes images (b, c, height, width) too. Raises ValueError for sizes that do not
    fit and TypeError for videos that are not floating point. Before the first batch of training, "ema" has no codes,
    and `encode` raises ValueError.
    """

    def __init__(
        self,
        *,
        video_shape: Sequence = (16, 64, 64),
        strides: Sequence = (2, 4, 4),
        dim: int = 240,
        depth: int = 4,
        heads: int = 2,
        codebook_size: int = 2048,
        code_dim: int = 256,
        channels: int = 3,
        axial_attention: bool = True,
        data_variance: float | None = None,
        quantizer: str | nn.Module = "ema",
        quantizer_kwargs: dict | None = None,
    ):
        super().__init__()
        sizes = {"channels": channels, "dim": dim, "depth": depth, "code_dim": code_dim}
        config = {
            **sizes,
            "video_shape": video_shape,
            "strides": strides,
            "heads": heads,
            "codebook_size": codebook_size,
            "axial_attention": axial_attention,
            "data_variance": data_variance,
            "quantizer": quantizer if isinstance(quantizer, str) else self.GIVEN,
            "quantizer_kwargs": quantizer_kwargs,
        }
        self.config = copy.deepcopy(config)
        check_at_least(1, channels=channels, heads=heads, codebook_size=codebook_size, code_dim=code_dim)
        check_at_least(2, dim=dim)
        check_at_least(0, depth=depth)
        if data_variance is not None and not LEAST_VARIANCE <= data_variance < math.inf:
            raise ValueError(f"data_variance must be finite and at least {LEAST_VARIANCE}, got {data_variance}")
        self.channels = channels
        self.code_dim = code_dim
        self.codebook_size = codebook_size
        self.strides = three("strides", strides)
        layers = strides_of_2(self.strides)
        frames, *self.image_size = three("video_shape", video_shape)
        self.image_size = tuple(self.image_size)
        self.patch_size = self.strides[1:]

        self.positions = None
        trained = self.grid(frames)
        if axial_attention and depth > 0:
            self.positions = ConcatenatedPositions(dim, trained)
        heads = heads if axial_attention else None
        self.encoder = Encoder(**sizes, heads=heads, strides=layers)
        self.decoder = Decoder(**sizes, heads=heads, strides=layers)
        self.data_variance = data_variance
        self.measured_variance = Statistics() if data_variance is None else None
        self.quantizer = Quantizer(quantizer, dim=code_dim, codebook_size=codebook_size, kwargs=quantizer_kwargs)

    # sizes

    def grid(self, num_frames: int, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """The grid (t, h, w) of the ids of a clip of `num_frames` = k · strides[0] frames.

        Raises ValueError for other lengths, sizes that are no multiples of the strides, and grids larger than
        that of video_shape.
        """
        h, w = self.frame_grid(height, width)
        stride = self.strides[0]
        if num_frames < 1 or num_frames % stride:
            raise ValueError(f"a clip needs k · {stride} frames, k ≥ 1, got {num_frames}")
        grid = num_frames // stride, h, w
        if self.positions is not None and any(got > most for got, most in zip(grid, self.positions.grid)):
            raise ValueError(f"the grid of a clip must fit into that of video_shape, {self.positions.grid}, got {grid}")
        return grid

    def num_frames(self, t: int) -> int:
        """The number of frames of t time steps: t · strides[0]."""
        if t < 1:
            raise ValueError(f"ids need at least 1 time step, got {t}")
        return t * self.strides[0]

    # loss

    def measure(self, video: Tensor) -> None:
        """Add a batch to the measured variance of the data, where none was given."""
        if self.measured_variance is not None:
            self.measured_variance(video)

    @through_call
    def pixel_scale(self) -> Tensor | float:
        """1 / variance of the data: the normalised error of its mean is 1. Until the variance is measured, 1."""
        if self.measured_variance is None:
            return 1 / self.data_variance
        return 1 / self.measured_variance().variance.clamp(min=LEAST_VARIANCE)

    # inside

    def _encoded(self, video: Tensor) -> Tensor:
        return self.encoder(video, self._positions(self.grid(*video.shape[2:]), video.device))

    def _decoded(self, features: Tensor) -> Tensor:
        return self.decoder(features, self._positions(tuple(features.shape[1:4]), features.device))

    def _positions(self, grid: tuple[int, int, int], device: torch.device) -> Tensor | None:
        """The positions that all blocks add, (t, h, w, d), or none."""
        if self.positions is None:
            return None
        t, h, w = grid
        return rearrange(self.positions(grid, device), "(t h w) d -> t h w d", t=t, h=h, w=w)


def three(name: str, values: Sequence) -> tuple[int, int, int]:
    """Refuse what are not three ints of at least 1: (time, height, width)."""
    check_items(name, values, int)
    if len(values) != 3:
        raise ValueError(f"{name} must be three numbers, of time, height and width, got {tuple(values)}")
    if min(values) < 1:
        raise ValueError(f"{name} must be at least 1, got {tuple(values)}")
    return tuple(values)
