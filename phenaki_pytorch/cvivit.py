"""C-ViViT: a video tokenizer that is causal in time, so that images, clips and continuations share one model.

    video -> patches -> spatial -> causal temporal -> quantizer -> causal temporal -> spatial -> patches -> video

No id depends on a later frame, and no frame on a later id (Phenaki, section 2.1, https://arxiv.org/abs/2210.02399).
Temporal attention looks back a bounded number of time steps, by default as many as the longest clip trained on has:
clips of that length are the paper's full causal attention, and longer ones need no more memory.

b = batch · c = channels · f = frames = 1 + k · pt · t = 1 + k · h, w = grid · ph, pw = patch · e = code_dim
"""

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.attention import init_weights
from phenaki_pytorch.checks import check_ids, pair, real_tokens
from phenaki_pytorch.discriminator import Discriminator
from phenaki_pytorch.losses import (
    PAPER_WEIGHTS,
    LossWeights,
    Perceptual,
    TokenizerLosses,
    check_terms,
    tokenizer_losses,
)
from phenaki_pytorch.position import check_dim_head
from phenaki_pytorch.quantize import Quantizer, several_processes
from phenaki_pytorch.saving import Pretrained
from phenaki_pytorch.streaming import DecoderStream, EncoderStream
from phenaki_pytorch.vivit import Decoder, Encoder, Sizes

# Clips with more tokens than this are encoded and decoded in pieces.
TOKENS_AT_ONCE = 16_384

UNBOUNDED = 2**31


class CViViT(Pretrained):
    """Video (b, c, f, h, w) in [0, 1] <-> ids (b, t, h / ph, w / pw), causal in time.

    dim, heads, dim_head   width of the transformers, their attention heads, width of a head
    image_size             height and width that `grid` assumes where none is given; others work as well
    patch_size             height and width of a patch
    temporal_patch_size    frames of a tubelet
    spatial_depth          layers of the spatial transformer, in encoder and decoder each
    temporal_depth         the same in time; 0 with temporal_patch_size 1 is the paper's per-frame ViT baseline
    codebook_size          number of codes
    code_dim               width of a code
    quantizer              "vq" (cosine codebook, moved by averages), "lfq", "fsq", "simvq", or a module
    quantizer_kwargs       further arguments of a quantizer that is given by its name
    temporal_window        time steps that temporal attention sees, its own included; without it as many as the longest
                           clip has that `losses` was given in training mode, or all before there was any

    Every method takes images (b, c, h, w) too, as clips of one frame. Raises ValueError for sizes that do not fit
    and TypeError for videos that are not floating point.
    """

    def __init__(
        self,
        *,
        dim: int,
        image_size: int | tuple[int, int] | list[int],
        patch_size: int | tuple[int, int] | list[int],
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
        self.config = {
            "dim": dim,
            "image_size": image_size,
            "patch_size": patch_size,
            "temporal_patch_size": temporal_patch_size,
            "spatial_depth": spatial_depth,
            "temporal_depth": temporal_depth,
            "codebook_size": codebook_size,
            "code_dim": code_dim,
            "heads": heads,
            "dim_head": dim_head,
            "channels": channels,
            "quantizer": quantizer if isinstance(quantizer, str) else self.GIVEN,
            "quantizer_kwargs": quantizer_kwargs,
            "temporal_window": temporal_window,
        }
        sizes = ("dim", "temporal_patch_size", "codebook_size", "code_dim", "heads", "dim_head", "channels")
        for name in (*sizes, "temporal_window"):
            if self.config[name] is not None and self.config[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.config[name]}")
        if spatial_depth < 0 or temporal_depth < 0:
            raise ValueError(f"depths must be at least 0, got spatial {spatial_depth}, temporal {temporal_depth}")
        self.channels = channels
        self.code_dim = code_dim
        self.codebook_size = codebook_size
        self.image_size = pair(image_size)
        self.patch_size = pair(patch_size)
        self.temporal_patch_size = temporal_patch_size
        self.temporal_window = temporal_window
        if min(self.patch_size) < 1:
            raise ValueError(f"patch_size must be at least 1, got {patch_size}")
        self._check_image_size(*self.image_size)
        check_dim_head(dim_head, axes=2)

        halves = Sizes(
            channels=channels,
            patch_size=self.patch_size,
            temporal_patch_size=temporal_patch_size,
            dim=dim,
            code_dim=code_dim,
            spatial_depth=spatial_depth,
            temporal_depth=temporal_depth,
            heads=heads,
            dim_head=dim_head,
        )
        self.encoder = Encoder(halves)
        self.decoder = Decoder(halves)
        init_weights(self)
        for pixels in (self.decoder.pixels_first, self.decoder.pixels_rest):
            pixels.weight.data.mul_(0.1)  # start near grey, not at noise
        self.quantizer = Quantizer(quantizer, dim=code_dim, codebook_size=codebook_size, kwargs=quantizer_kwargs)
        # Time steps of the longest clip trained on; 0 before there was any.
        self.register_buffer("longest_trained", torch.zeros((), dtype=torch.int64))

    # sizes

    def grid(self, num_frames: int, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """The grid (t, h, w) of ids of a clip of `num_frames` = 1 + k · temporal_patch_size frames."""
        height = self.image_size[0] if height is None else height
        width = self.image_size[1] if width is None else width
        self._check_image_size(height, width)
        if num_frames < 1 or (num_frames - 1) % self.temporal_patch_size:
            raise ValueError(f"a clip needs 1 + k · {self.temporal_patch_size} frames, k ≥ 0, got {num_frames}")
        ph, pw = self.patch_size
        return 1 + (num_frames - 1) // self.temporal_patch_size, height // ph, width // pw

    def num_frames(self, t: int) -> int:
        """The number of frames that t time steps of ids stand for: 1 + (t − 1) · temporal_patch_size."""
        if t < 1:
            raise ValueError(f"ids need at least 1 time step, got {t}")
        return 1 + (t - 1) * self.temporal_patch_size

    # loss

    def forward(
        self,
        video: Tensor,
        frame_mask: Tensor | None = None,
        *,
        image_perceptual: Perceptual | None = None,
        video_perceptual: Perceptual | None = None,
        discriminator: Discriminator | None = None,
        weights: LossWeights = PAPER_WEIGHTS,
    ) -> Tensor:
        """The loss, a scalar. See `losses`."""
        networks = {"image_perceptual": image_perceptual, "video_perceptual": video_perceptual}
        return self.losses(video, frame_mask, discriminator=discriminator, weights=weights, **networks).total

    def losses(
        self,
        video: Tensor,
        frame_mask: Tensor | None = None,
        *,
        image_perceptual: Perceptual | None = None,
        video_perceptual: Perceptual | None = None,
        discriminator: Discriminator | None = None,
        weights: LossWeights = PAPER_WEIGHTS,
    ) -> TokenizerLosses:
        """All parts of the loss of a video (b, c, f, h, w) or images (b, c, h, w) in [0, 1].

        frame_mask        bool (b, f), True for real frames, which come first and number 1 + k · temporal_patch_size;
                          padded frames weigh nothing
        image_perceptual  (made, real), frames (n, c, h, w) -> distance
        video_perceptual  (made, real), clips (n, c, f, h, w) of more than one frame -> distance
        discriminator     judges frames; its own loss is `discriminator(video, losses.reconstruction)`
        weights           of the parts, the paper's by default

        Without the networks these are the pixels and the quantizer. Modules given get no gradient from here; what
        else is called may hold parameters that do. Images alone leave the maps of tubelets without a gradient, which
        DDP has to be told: `find_unused_parameters=True`.
        """
        video = self._check_video(video)
        check_terms(video, weights, discriminator)
        token_mask = None
        ids_shape = (len(video), *self.grid(*video.shape[2:]))
        if frame_mask is not None:
            token_mask = real_tokens(frame_mask, ids_shape, self.temporal_patch_size)
        if self.training:
            steps = ids_shape[1] if token_mask is None else token_mask[:, :, 0, 0].sum(dim=1).max()
            self.longest_trained.clamp_(min=steps)
        quantized, quantizer_loss = self._quantize(self.features(video), token_mask)
        return tokenizer_losses(
            self.decode_features(quantized),
            video,
            quantizer_loss,
            frame_mask,
            image_perceptual=image_perceptual,
            video_perceptual=video_perceptual,
            discriminator=discriminator,
            weights=weights,
        )

    # video -> ids -> video

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video (b, c, f, h, w) or images (b, c, h, w) in [0, 1] -> ids (b, t, h, w), int64. No gradient.

        Beside the video itself, memory does not grow with its length, once `window` is bounded.
        """
        video = self._check_video(video)
        b, _, f, height, width = video.shape
        _, h, w = self.grid(1, height, width)
        at_once = self.num_frames(max(1, TOKENS_AT_ONCE // (b * h * w)))
        if f <= at_once:
            return self.nearest(self.features(video))
        stream = self.encoder_stream()
        return torch.cat([stream(piece) for piece in video.split(at_once, dim=2)], dim=1)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Ids (b, t, h, w) -> video (b, c, f, h · ph, w · pw); values near [0, 1], not clamped. No gradient.

        Memory as in `encode`; with a gradient: `decode_features(code_features(ids))`.
        """
        check_ids(ids, self.codebook_size)
        b, t, h, w = ids.shape
        at_once = max(1, TOKENS_AT_ONCE // (b * h * w))
        if t <= at_once:
            return self.decode_features(self.code_features(ids))
        stream = self.decoder_stream()
        return torch.cat([stream(piece) for piece in ids.split(at_once, dim=1)], dim=2)

    @torch.no_grad()
    def reconstruct(self, video: Tensor) -> Tensor:
        """Video or images -> what is left of it after encoding and decoding, clamped to [0, 1]. No gradient."""
        image = video.ndim == 4
        reconstruction = self.decode(self.encode(video)).clamp(0, 1)
        return rearrange(reconstruction, "b c 1 h w -> b c h w") if image else reconstruction

    def encoder_stream(self) -> EncoderStream:
        """What turns frames into ids piece by piece, for video of any length."""
        return EncoderStream(self)

    def decoder_stream(self) -> DecoderStream:
        """What turns ids into frames piece by piece, for video of any length."""
        return DecoderStream(self)

    @property
    def window(self) -> int | None:
        """How many time steps temporal attention sees, its own included: `temporal_window`, or what the longest clip
        trained on has. None, without bound, where neither is there. On a GPU it waits for the device.
        """
        return self.temporal_window or self.longest_trained.item() or None

    # the four halves

    def features(self, video: Tensor) -> Tensor:
        """Video (b, c, f, h, w) or images in [0, 1] -> what the quantizer is given, (b, t, h, w, e)."""
        return self.encoder(self._check_video(video), window=self._window())

    @torch.compiler.disable  # here already, so that the graph breaks once for both this and the quantizer
    def nearest(self, features: Tensor) -> Tensor:
        """What the quantizer is given, (b, t, h, w, e) -> ids (b, t, h, w), int64. No gradient."""
        b, t, h, w, _ = features.shape
        ids = self.quantizer.ids(rearrange(features, "b t h w e -> b (t h w) e"))
        return rearrange(ids, "b (t h w) -> b t h w", b=b, t=t, h=h, w=w)

    def code_features(self, ids: Tensor) -> Tensor:
        """Ids (b, t, h, w) -> what the quantizer returns for them, (b, t, h, w, e)."""
        b, t, h, w = ids.shape
        features = self.quantizer.features(rearrange(ids, "b t h w -> b (t h w)"))
        return rearrange(features, "b (t h w) e -> b t h w e", b=b, t=t, h=h, w=w)

    def decode_features(self, features: Tensor) -> Tensor:
        """What the quantizer returns, (b, t, h, w, e) -> video (b, c, f, h · ph, w · pw), not clamped."""
        if features.ndim != 5 or features.shape[-1] != self.code_dim or 0 in features.shape:
            raise ValueError(f"features must be (b, t, h, w, {self.code_dim}), none empty, got {tuple(features.shape)}")
        return self.decoder(features, window=self._window())

    # inside

    @torch.compiler.disable  # the one place where a compiled graph breaks
    def _quantize(self, features: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (b, t, h, w, e) -> the same, quantized, and the quantizer's loss."""
        if self.training and several_processes():
            # DDP overwrites buffers with those of the first process, which may have seen shorter clips.
            dist.all_reduce(self.longest_trained, op=dist.ReduceOp.MAX)
        if token_mask is None:
            flat = rearrange(features, "b t h w e -> b (t h w) e")
            quantized, _, loss = self.quantizer(flat)
            return quantized.reshape(features.shape), loss
        # Only real tokens meet the codebook, whose averages padding must not move.
        quantized = torch.zeros_like(features, dtype=torch.float32)
        real, _, loss = self.quantizer(features[token_mask][None])
        quantized[token_mask] = real[0]
        return quantized, loss

    def _window(self) -> int | Tensor | None:
        """As `window`, without waiting for a device or breaking a compiled graph."""
        if self.temporal_window is None and (
            self.longest_trained.device.type != "cpu" or torch.compiler.is_compiling()
        ):
            return torch.where(self.longest_trained > 0, self.longest_trained, UNBOUNDED)
        return self.window

    def _check_video(self, video: Tensor) -> Tensor:
        """Refuse what is not a video or batch of images; images (b, c, h, w) come back as (b, c, 1, h, w)."""
        video = self.check_frames(video)
        self.grid(video.shape[2])
        return video

    def check_frames(self, video: Tensor) -> Tensor:
        """Refuse what are not frames of this tokenizer's, of any number; images come back as clips of one frame."""
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
        return video

    def _check_image_size(self, height: int, width: int) -> None:
        ph, pw = self.patch_size
        if height < 1 or width < 1 or height % ph or width % pw:
            raise ValueError(f"height and width must be multiples of the patch {ph}×{pw}, got {height}×{width}")
