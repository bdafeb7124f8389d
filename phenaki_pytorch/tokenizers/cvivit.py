"""C-ViViT: a video tokenizer that is causal in time, so that images, clips and continuations share one model.

    video -> patches -> spatial -> causal temporal -> quantizer -> causal temporal -> spatial -> patches -> video

No id depends on a later frame, and no frame on a later id (Phenaki, section 2.1, https://arxiv.org/abs/2210.02399).

b = batch · c = channels · f = frames = 1 + k · pt · t = 1 + k · h, w = grid · ph, pw = patch · e = code_dim
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_at_least, check_ids, pair
from phenaki_pytorch.core.modules import through_call
from phenaki_pytorch.layers.positions import check_dim_head
from phenaki_pytorch.layers.transformer import init_weights
from phenaki_pytorch.tokenizers.causal_vit import Decoder, Encoder, Sizes
from phenaki_pytorch.tokenizers.quantize import Quantizer
from phenaki_pytorch.tokenizers.streaming import DecoderStream, EncoderStream
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer

MAX_TOKENS = 16_384  # of one pass; longer clips are encoded and decoded in pieces


class CViViT(VideoTokenizer):
    """Video (b, c, f, h, w) in [0, 1] <-> ids (b, t, h / ph, w / pw), causal in time.

    dim, heads, dim_head   width of the transformers, their attention heads, width of a head
    image_size             height and width that `grid` assumes where none are given; others work as well
    patch_size             height and width of a patch
    temporal_patch_size    frames of a tubelet
    spatial_depth          layers of the spatial transformer, in encoder and decoder each
    temporal_depth         layers over time; 0 with temporal_patch_size 1 is the paper's per-frame ViT baseline
    codebook_size          number of codes
    code_dim               width of a code
    quantizer              "vq" (cosine codebook of moving averages), "lfq", "fsq", "simvq", or a module
    quantizer_kwargs       further arguments of a quantizer that is given by its name
    temporal_window        time steps that temporal attention sees, its own included; None: all before. Set
                           it to the time steps of the training clips: attention then never spans more than in
                           training, and long clips are encoded and decoded in bounded memory
    positions              "rotary", relative; or "learned", absolute tables as of LAION's phenaki tokenizer
                           (https://github.com/LAION-AI/phenaki), which end at `image_size` and `max_time_steps`
    max_time_steps         length of the learned table over time; only with positions="learned"

    Every method takes images (b, c, h, w) too, as clips of one frame. Raises ValueError for sizes that do not fit
    and TypeError for videos that are not floating point. In a loss, a batch of images alone leaves the weights of
    tubelets without a gradient: DDP then needs `find_unused_parameters=True`.
    """

    causal = True

    def __init__(
        self,
        *,
        dim: int,
        image_size: int | Sequence,
        patch_size: int | Sequence,
        temporal_patch_size: int,
        spatial_depth: int,
        temporal_depth: int,
        codebook_size: int = 8192,
        code_dim: int = 32,
        heads: int = 8,
        dim_head: int = 64,
        channels: int = 3,
        quantizer: str | nn.Module = "vq",
        quantizer_kwargs: dict | None = None,
        temporal_window: int | None = None,
        positions: str = "rotary",
        max_time_steps: int | None = None,
    ):
        super().__init__()
        sizes = {
            "dim": dim,
            "temporal_patch_size": temporal_patch_size,
            "heads": heads,
            "dim_head": dim_head,
            "channels": channels,
            "code_dim": code_dim,
            "temporal_window": temporal_window,
        }
        depths = {"spatial_depth": spatial_depth, "temporal_depth": temporal_depth}
        config = {
            **sizes,
            **depths,
            "image_size": image_size,
            "patch_size": patch_size,
            "codebook_size": codebook_size,
            "quantizer": quantizer if isinstance(quantizer, str) else self.GIVEN,
            "quantizer_kwargs": quantizer_kwargs,
            "positions": positions,
            "max_time_steps": max_time_steps,
        }
        self.config = copy.deepcopy(config)
        check_at_least(1, **sizes, codebook_size=codebook_size)
        check_at_least(0, **depths)
        _check_positions(positions, max_time_steps, temporal_window, dim_head)
        self.channels = channels
        self.code_dim = code_dim
        self.codebook_size = codebook_size
        self.image_size = pair(image_size)
        self.patch_size = pair(patch_size)
        self.temporal_patch_size = temporal_patch_size
        self.temporal_window = temporal_window
        check_at_least(1, patch_size=min(self.patch_size))
        h, w = self.frame_grid(*self.image_size)
        self.tables = None if max_time_steps is None else (max_time_steps, h, w)

        halves = Sizes(patch_size=self.patch_size, tables=self.tables, **sizes, **depths)
        self.encoder = Encoder(halves)
        self.decoder = Decoder(halves)
        init_weights(self)
        for pixels in (self.decoder.pixels_first, self.decoder.pixels_rest):
            pixels.weight.data.mul_(0.1)  # so that the output starts near grey
        self.quantizer = Quantizer(quantizer, dim=code_dim, codebook_size=codebook_size, kwargs=quantizer_kwargs)

    # sizes

    def grid(self, num_frames: int, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """The grid (t, h, w) of the ids of a clip of `num_frames` = 1 + k · temporal_patch_size frames."""
        h, w = self.frame_grid(height, width)
        if num_frames < 1 or (num_frames - 1) % self.temporal_patch_size:
            raise ValueError(f"a clip needs 1 + k · {self.temporal_patch_size} frames, k ≥ 0, got {num_frames}")
        grid = (1 + (num_frames - 1) // self.temporal_patch_size, h, w)
        if self.tables is not None and any(got > limit for got, limit in zip(grid, self.tables)):
            raise ValueError(f"the grid must fit into the learned positions, {self.tables}, got {grid}")
        return grid

    def num_frames(self, t: int) -> int:
        """The number of frames of t time steps: 1 + (t − 1) · temporal_patch_size."""
        if t < 1:
            raise ValueError(f"ids need at least 1 time step, got {t}")
        return 1 + (t - 1) * self.temporal_patch_size

    # video -> ids -> video

    @torch.no_grad()
    @through_call
    def encode(self, video: Tensor) -> Tensor:
        """Video (b, c, f, h, w) or images (b, c, h, w) in [0, 1] -> ids (b, t, h, w), int64. No gradient.

        With a `temporal_window`, memory beside the video itself does not grow with its length.
        """
        video = self.check_video(video)
        b, _, f, height, width = video.shape
        _, h, w = self.grid(1, height, width)
        piece = self.num_frames(max(1, MAX_TOKENS // (b * h * w)))
        if f <= piece:
            return self.nearest(self.encoder(video))
        stream = self.encoder_stream()
        return torch.cat([stream(frames) for frames in video.split(piece, dim=2)], dim=1)

    @torch.no_grad()
    @through_call
    def decode(self, ids: Tensor) -> Tensor:
        """Ids (b, t, h, w) -> video (b, c, f, h · ph, w · pw), values near [0, 1], not clamped. No gradient.

        Memory as in `encode`. With a gradient: `decode_features(code_features(ids))`.
        """
        check_ids(ids, self.codebook_size)
        b, t, h, w = ids.shape
        piece = max(1, MAX_TOKENS // (b * h * w))
        if t <= piece:
            return self.decode_features(self.code_features(ids))
        stream = self.decoder_stream()
        return torch.cat([stream(steps) for steps in ids.split(piece, dim=1)], dim=2)

    def encoder_stream(self) -> EncoderStream:
        """Encode video of any length piece by piece."""
        return EncoderStream(self)

    def decoder_stream(self) -> DecoderStream:
        """Decode ids of any length piece by piece."""
        return DecoderStream(self)

    # inside

    @through_call
    def encode_piece(self, frames: Tensor, has_first: bool, caches: list) -> Tensor:
        """Frames (b, c, f, h, w) of whole time steps -> features; see `Encoder` for the other arguments."""
        return self.encoder(frames, has_first=has_first, caches=caches)

    @through_call
    def decode_piece(self, ids: Tensor, has_first: bool, caches: list) -> Tensor:
        """Ids (b, t, h, w) -> frames; see `Decoder` for the other arguments."""
        return self.decoder(self.code_features(ids), has_first=has_first, caches=caches)


def _check_positions(positions: str, max_time_steps: int | None, temporal_window: int | None, dim_head: int) -> None:
    if positions not in ("rotary", "learned"):
        raise ValueError(f"positions must be 'rotary' or 'learned', got {positions!r}")
    if (positions == "learned") != (max_time_steps is not None):
        raise ValueError(f"max_time_steps goes with learned positions, got {max_time_steps} with {positions!r}")
    check_at_least(1, max_time_steps=max_time_steps)
    if positions == "rotary":
        check_dim_head(dim_head, axes=2)
    elif temporal_window is not None:
        raise ValueError(f"learned positions have no temporal_window, got {temporal_window}: use rotary ones")
