"""VideoTokenizer: what the tokenizers share, which differ in their encoder, decoder and lengths.

    video -> encoder -> features -> quantizer -> ids -> codes -> decoder -> video

b = batch · c = channels · f = frames · t, h, w = grid · e = code_dim
"""

from typing import Unpack

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from phenaki_pytorch.core.checks import check_features, check_frames, check_ids, free_to_look, patches_of
from phenaki_pytorch.core.lengths import real_tokens, zero_padding
from phenaki_pytorch.core.modules import through_call
from phenaki_pytorch.core.saving import Pretrained
from phenaki_pytorch.tokenizers.losses import LossTerms, TokenizerLosses, check_terms, tokenizer_losses
from phenaki_pytorch.tokenizers.quantize import Quantizer


class VideoTokenizer(Pretrained):
    """Video (b, c, f, height, width) in [0, 1] <-> ids (b, t, h, w).

    A subclass says in `grid` and `num_frames` which lengths it takes, and sets these attributes:

    channels, code_dim, codebook_size   as in its constructor
    image_size   (height, width) that `grid` assumes where none are given
    patch_size   (height, width) in pixels of one id
    encoder      video -> features (b, t, h, w, e)
    decoder      features -> video, not clamped
    quantizer    a Quantizer

    Every method takes images (b, c, h, w) too, as clips of one frame, where the tokenizer takes that length. Raises
    ValueError for sizes that do not fit and TypeError for videos that are not floating point.
    """

    causal = False  # whether no id depends on a later frame, and no frame on a later id

    channels: int
    code_dim: int
    codebook_size: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    encoder: nn.Module
    decoder: nn.Module
    quantizer: Quantizer

    @classmethod
    def without_values(cls, config: dict) -> dict:
        """FSQ cannot be built without values, but has no weights either; any other quantizer of its width will do."""
        return config | {"quantizer": "vq", "quantizer_kwargs": None} if config.get("quantizer") == "fsq" else config

    def given(self) -> dict:
        """A quantizer of the user's own."""
        return {"quantizer": self.quantizer.quantizer} if self.config["quantizer"] == self.GIVEN else {}

    # sizes

    def grid(self, num_frames: int, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """The grid (t, h, w) of the ids of a clip; ValueError for a length or size that does not fit."""
        raise NotImplementedError

    def num_frames(self, t: int) -> int:
        """The number of frames of t time steps."""
        raise NotImplementedError

    def frame_grid(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The grid (h, w) of the ids of a time step."""
        height = self.image_size[0] if height is None else height
        width = self.image_size[1] if width is None else width
        return patches_of(height, width, self.patch_size)

    # loss

    @through_call
    def losses(self, video: Tensor, frame_mask: Tensor | None = None, **terms: Unpack[LossTerms]) -> TokenizerLosses:
        """All terms of the loss of a video (b, c, f, h, w) or images (b, c, h, w) in [0, 1].

        frame_mask  bool (b, f), True for real frames, which come first, in a number that the tokenizer takes; padding
                    has no weight. Only of causal tokenizers, because padding changes what others compute
        terms       networks and weights, see `LossTerms`; without them the loss is that of pixels and quantizer
        """
        token_mask = None
        if video.ndim == 4:
            video = rearrange(video, "b c h w -> b c 1 h w")
        if frame_mask is not None:
            if not self.causal:
                raise ValueError(
                    f"a {type(self).__name__} is not causal, so padding would change its ids: expected clips of one "
                    "length, got a frame_mask"
                )
            video = zero_padding(video, frame_mask)
            token_mask = real_tokens(frame_mask, (len(video), *self.grid(*video.shape[2:])), self)
        video = self.check_video(video)
        check_terms(video, **terms)
        if self.training:
            self.measure(video)
        quantized, quantizer_loss = self._quantize(self._encoded(video), token_mask)
        reconstruction = self._decoded(quantized)
        scale = self.pixel_scale()
        return tokenizer_losses(reconstruction, video, quantizer_loss, frame_mask, pixel_scale=scale, **terms)

    def measure(self, video: Tensor) -> None:
        """Measure what the loss has to know about the data, by the videos that it is computed of in training mode."""

    def pixel_scale(self) -> Tensor | float:
        """By how much the weight of the pixels' term is multiplied."""
        return 1.0

    # video -> ids -> video

    @torch.no_grad()
    @through_call
    def encode(self, video: Tensor) -> Tensor:
        """Video (b, c, f, h, w) or images (b, c, h, w) in [0, 1] -> ids (b, t, h, w), int64. No gradient."""
        return self.nearest(self._encoded(self.check_video(video)))

    @torch.no_grad()
    @through_call
    def decode(self, ids: Tensor) -> Tensor:
        """Ids (b, t, h, w) -> video (b, c, f, height, width), values near [0, 1], not clamped. No gradient.

        With a gradient: `decode_features(code_features(ids))`. Raises ValueError (on the CPU) for codes that the first
        batch of training has yet to initialise.
        """
        check_ids(ids, self.codebook_size)
        if free_to_look(ids):
            self.quantizer.check_initialised()
        return self.decode_features(self.code_features(ids))

    @torch.no_grad()
    def reconstruct(self, video: Tensor) -> Tensor:
        """Video or images -> the same after encoding and decoding, clamped to [0, 1]. No gradient."""
        reconstruction = self.decode(self.encode(video)).clamp(0, 1)
        return rearrange(reconstruction, "b c 1 h w -> b c h w") if video.ndim == 4 else reconstruction

    # the parts

    @through_call
    def features(self, video: Tensor) -> Tensor:
        """Video (b, c, f, h, w) or images in [0, 1] -> the features that the quantizer is given, (b, t, h, w, e)."""
        return self._encoded(self.check_video(video))

    @through_call
    def latents(self, video: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Video (b, c, f, h, w) or images in [0, 1] -> what the decoder reads, not rounded to a code, (b, t, h, w, e).

        Continuous and float32, for a model of continuous latents: `decode_features` decodes them, where it need not be
        able to decode `features`. Nothing is drawn, so `generator` is not used. See `Quantizer.continuous`.
        """
        features = self._encoded(self.check_video(video))
        b, t, h, w, _ = features.shape
        latents = self.quantizer.continuous(rearrange(features, "b t h w e -> b (t h w) e"))
        return rearrange(latents, "b (t h w) e -> b t h w e", b=b, t=t, h=h, w=w)

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
        """Quantized features or `latents` (b, t, h, w, e) -> video (b, c, f, height, width), not clamped."""
        check_features(features, self.code_dim)
        return self._decoded(features)

    # inside

    def _encoded(self, video: Tensor) -> Tensor:
        """Video (b, c, f, h, w) -> features; overridden where an encoder needs more than the video."""
        return self.encoder(video)

    def _decoded(self, features: Tensor) -> Tensor:
        """Features -> video; overridden where a decoder needs more than the features."""
        return self.decoder(features)

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

    def check_video(self, video: Tensor) -> Tensor:
        """Refuse what is not a video or batch of images; images (b, c, h, w) come back as (b, c, 1, h, w)."""
        video = self.check_frames(video)
        self.grid(*video.shape[2:])
        return video

    def check_frames(self, video: Tensor) -> Tensor:
        """Refuse what are not frames, of any number; images come back as clips of one frame."""
        return check_frames(video, self.channels, self.patch_size)
