"""C-ViViT: a video tokenizer that is causal in time, so that images, clips and continuations share one model.

    video -> patches -> spatial -> causal temporal -> quantizer -> causal temporal -> spatial -> patches -> video

No id depends on a later frame, and no frame on a later id (Phenaki, section 2.1, https://arxiv.org/abs/2210.02399).

b = batch · c = channels · f = frames = 1 + k · pt · t = 1 + k · h, w = grid · ph, pw = patch · e = code_dim
"""

import copy
from collections.abc import Sequence
from typing import Unpack

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_at_least, check_features, check_ids, check_pixels, pair
from phenaki_pytorch.core.lengths import real_tokens, zero_padding
from phenaki_pytorch.core.modules import through_call
from phenaki_pytorch.core.saving import Pretrained
from phenaki_pytorch.layers.positions import check_dim_head
from phenaki_pytorch.layers.transformer import init_weights
from phenaki_pytorch.tokenizers.causal_vit import Decoder, Encoder, Sizes
from phenaki_pytorch.tokenizers.losses import LossTerms, TokenizerLosses, check_terms, tokenizer_losses
from phenaki_pytorch.tokenizers.quantize import Quantizer
from phenaki_pytorch.tokenizers.streaming import DecoderStream, EncoderStream

MAX_TOKENS = 16_384  # of one pass; longer clips are encoded and decoded in pieces


class CViViT(Pretrained):
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

    Every method takes images (b, c, h, w) too, as clips of one frame. Raises ValueError for sizes that do not fit
    and TypeError for videos that are not floating point.
    """

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
        }
        self.config = copy.deepcopy(config)
        check_at_least(1, **sizes, codebook_size=codebook_size)
        check_at_least(0, **depths)
        check_dim_head(dim_head, axes=2)
        self.channels = channels
        self.code_dim = code_dim
        self.codebook_size = codebook_size
        self.image_size = pair(image_size)
        self.patch_size = pair(patch_size)
        self.temporal_patch_size = temporal_patch_size
        self.temporal_window = temporal_window
        check_at_least(1, patch_size=min(self.patch_size))
        self._check_image_size(*self.image_size)

        halves = Sizes(patch_size=self.patch_size, **sizes, **depths)
        self.encoder = Encoder(halves)
        self.decoder = Decoder(halves)
        init_weights(self)
        for pixels in (self.decoder.pixels_first, self.decoder.pixels_rest):
            pixels.weight.data.mul_(0.1)  # so that the output starts near grey
        self.quantizer = Quantizer(quantizer, dim=code_dim, codebook_size=codebook_size, kwargs=quantizer_kwargs)

    @classmethod
    def without_values(cls, config: dict) -> dict:
        """FSQ cannot be built without values, but has no weights either; any other quantizer of its width will do."""
        return config | {"quantizer": "vq", "quantizer_kwargs": None} if config.get("quantizer") == "fsq" else config

    def given(self) -> dict:
        """A quantizer of the user's own."""
        return {"quantizer": self.quantizer.quantizer} if self.config["quantizer"] == self.GIVEN else {}

    # sizes

    def grid(self, num_frames: int, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """The grid (t, h, w) of the ids of a clip of `num_frames` = 1 + k · temporal_patch_size frames."""
        height = self.image_size[0] if height is None else height
        width = self.image_size[1] if width is None else width
        self._check_image_size(height, width)
        if num_frames < 1 or (num_frames - 1) % self.temporal_patch_size:
            raise ValueError(f"a clip needs 1 + k · {self.temporal_patch_size} frames, k ≥ 0, got {num_frames}")
        ph, pw = self.patch_size
        return 1 + (num_frames - 1) // self.temporal_patch_size, height // ph, width // pw

    def num_frames(self, t: int) -> int:
        """The number of frames of t time steps: 1 + (t − 1) · temporal_patch_size."""
        if t < 1:
            raise ValueError(f"ids need at least 1 time step, got {t}")
        return 1 + (t - 1) * self.temporal_patch_size

    # loss

    @through_call
    def losses(self, video: Tensor, frame_mask: Tensor | None = None, **terms: Unpack[LossTerms]) -> TokenizerLosses:
        """All terms of the loss of a video (b, c, f, h, w) or images (b, c, h, w) in [0, 1].

        frame_mask  bool (b, f), True for real frames, which come first and number 1 + k · temporal_patch_size;
                    padding has no weight
        terms       networks and weights, see `LossTerms`; without them the loss is that of pixels and quantizer

        A batch of images alone leaves the weights of tubelets without a gradient: DDP then needs
        `find_unused_parameters=True`.
        """
        token_mask = None
        if frame_mask is not None:
            video = zero_padding(video, frame_mask)
            token_mask = real_tokens(frame_mask, (len(video), *self.grid(*video.shape[2:])), self)
        video = self._check_video(video)
        check_terms(video, **terms)
        quantized, quantizer_loss = self._quantize(self.encoder(video), token_mask)
        return tokenizer_losses(self.decoder(quantized), video, quantizer_loss, frame_mask, **terms)

    # video -> ids -> video

    @torch.no_grad()
    @through_call
    def encode(self, video: Tensor) -> Tensor:
        """Video (b, c, f, h, w) or images (b, c, h, w) in [0, 1] -> ids (b, t, h, w), int64. No gradient.

        With a `temporal_window`, memory beside the video itself does not grow with its length.
        """
        video = self._check_video(video)
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

    @torch.no_grad()
    def reconstruct(self, video: Tensor) -> Tensor:
        """Video or images -> the same after encoding and decoding, clamped to [0, 1]. No gradient."""
        reconstruction = self.decode(self.encode(video)).clamp(0, 1)
        return rearrange(reconstruction, "b c 1 h w -> b c h w") if video.ndim == 4 else reconstruction

    def encoder_stream(self) -> EncoderStream:
        """Encode video of any length piece by piece."""
        return EncoderStream(self)

    def decoder_stream(self) -> DecoderStream:
        """Decode ids of any length piece by piece."""
        return DecoderStream(self)

    # the four parts

    @through_call
    def features(self, video: Tensor) -> Tensor:
        """Video (b, c, f, h, w) or images in [0, 1] -> the features that the quantizer is given, (b, t, h, w, e)."""
        return self.encoder(self._check_video(video))

    @torch.compiler.disable  # already here, so that the graph breaks once for this and the quantizer
    @through_call
    def nearest(self, features: Tensor) -> Tensor:
        """Features before quantization, (b, t, h, w, e) -> ids (b, t, h, w), int64. No gradient."""
        check_features(features, self.code_dim, least_steps=0)  # a piece of a stream may complete no time step
        b, t, h, w, _ = features.shape
        ids = self.quantizer.ids(rearrange(features, "b t h w e -> b (t h w) e"))
        return rearrange(ids, "b (t h w) -> b t h w", b=b, t=t, h=h, w=w)

    @through_call
    def code_features(self, ids: Tensor) -> Tensor:
        """Ids (b, t, h, w) -> the quantized features, (b, t, h, w, e)."""
        check_ids(ids, self.codebook_size)
        b, t, h, w = ids.shape
        features = self.quantizer.features(rearrange(ids, "b t h w -> b (t h w)"))
        return rearrange(features, "b (t h w) e -> b t h w e", b=b, t=t, h=h, w=w)

    @through_call
    def decode_features(self, features: Tensor) -> Tensor:
        """Quantized features (b, t, h, w, e) -> video (b, c, f, h · ph, w · pw), not clamped."""
        check_features(features, self.code_dim)
        return self.decoder(features)

    # inside

    @through_call
    def encode_piece(self, frames: Tensor, has_first: bool, caches: list) -> Tensor:
        """Frames (b, c, f, h, w) of whole time steps -> features; see `Encoder` for the other arguments."""
        return self.encoder(frames, has_first=has_first, caches=caches)

    @through_call
    def decode_piece(self, ids: Tensor, has_first: bool, caches: list) -> Tensor:
        """Ids (b, t, h, w) -> frames; see `Decoder` for the other arguments."""
        return self.decoder(self.code_features(ids), has_first=has_first, caches=caches)

    @torch.compiler.disable  # beside `nearest`, the only place where a compiled graph breaks
    def _quantize(self, features: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (b, t, h, w, e) -> the same, quantized, and the quantizer's loss."""
        if token_mask is None:
            quantized, _, loss = self.quantizer(rearrange(features, "b t h w e -> b (t h w) e"))
            return quantized.reshape(features.shape), loss
        # The codebook sees real tokens only, so that padding does not move its averages.
        quantized = torch.zeros_like(features, dtype=torch.float32)
        real, _, loss = self.quantizer(features[token_mask][None])
        quantized[token_mask] = real[0]
        return quantized, loss

    def _check_video(self, video: Tensor) -> Tensor:
        """Refuse what is not a video or batch of images; images (b, c, h, w) come back as (b, c, 1, h, w)."""
        video = self.check_frames(video)
        self.grid(video.shape[2])
        return video

    def check_frames(self, video: Tensor) -> Tensor:
        """Refuse what are not frames, of any number; images come back as clips of one frame."""
        if not video.is_floating_point():
            raise TypeError(f"video must be floating point in [0, 1], got {video.dtype}")
        if video.ndim == 4:
            video = rearrange(video, "b c h w -> b c 1 h w")
        if video.ndim != 5 or 0 in video.shape:
            raise ValueError(
                f"video must be (b, c, f, h, w), or images (b, c, h, w), none empty, got {tuple(video.shape)}"
            )
        if video.shape[1] != self.channels:
            raise ValueError(f"video must have {self.channels} channels, got {video.shape[1]}")
        self._check_image_size(*video.shape[3:])
        check_pixels("video", video)
        return video

    def _check_image_size(self, height: int, width: int) -> None:
        ph, pw = self.patch_size
        if height < 1 or width < 1 or height % ph or width % pw:
            raise ValueError(f"height and width must be multiples of the patch {ph}×{pw}, got {height}×{width}")
