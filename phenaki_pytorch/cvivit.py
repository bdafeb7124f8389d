"""C-ViViT: a video tokenizer that is causal in time, so that images, clips and continuations share one model.

    video -> patches -> spatial -> causal temporal -> quantizer -> causal temporal -> spatial -> patches -> video

The first frame is cut into patches, the others into tubelets of `temporal_patch_size` frames, each with an
embedding of its own (Phenaki, section 2.1, https://arxiv.org/abs/2210.02399). Spatial layers see one time step;
temporal layers see one place, now and before: no id depends on a later frame, and no frame on a later id.

Positions are rotary along every axis, so one set of weights serves any length, height and width.

b = batch · c = channels · f = frames = 1 + k · pt · t = 1 + k · h, w = grid · ph, pw = patch · d = dim · e = code_dim
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from phenaki_pytorch.attention import Transformer, init_weights
from phenaki_pytorch.checks import check_ids
from phenaki_pytorch.position import rotary
from phenaki_pytorch.quantize import Quantizer
from phenaki_pytorch.saving import Pretrained


class CViViTLosses(NamedTuple):
    """The parts of the tokenizer's loss, each weighted as it enters `total`."""

    total: Tensor
    pixel: Tensor  # mean squared error of the pixels in [0, 1]: PSNR = −10 log₁₀(pixel)
    quantizer: Tensor  # commitment, for "vq"


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
        }
        for name in (
            "dim",
            "temporal_patch_size",
            "codebook_size",
            "code_dim",
            "heads",
            "dim_head",
            "channels",
        ):
            if self.config[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.config[name]}")
        if spatial_depth < 0 or temporal_depth < 0:
            raise ValueError(f"depths must be at least 0, got spatial {spatial_depth}, temporal {temporal_depth}")
        self.channels = channels
        self.dim_head = dim_head
        self.code_dim = code_dim
        self.codebook_size = codebook_size
        self.image_size = pair(image_size)
        self.patch_size = pair(patch_size)
        self.temporal_patch_size = temporal_patch_size
        self._check_image_size(*self.image_size)

        ph, pw = self.patch_size
        frame_values = channels * ph * pw
        tubelet_values = frame_values * temporal_patch_size
        layers = {"dim": dim, "heads": heads, "dim_head": dim_head}

        self.embed_first = nn.Linear(frame_values, dim)
        self.embed_rest = nn.Linear(tubelet_values, dim)
        self.encode_spatial = Transformer(depth=spatial_depth, **layers)
        self.encode_temporal = Transformer(depth=temporal_depth, causal=True, **layers)
        self.to_code = nn.Linear(dim, code_dim)

        self.from_code = nn.Linear(code_dim, dim)
        self.decode_temporal = Transformer(depth=temporal_depth, causal=True, **layers)
        self.decode_spatial = Transformer(depth=spatial_depth, **layers)
        self.pixels_first = nn.Linear(dim, frame_values)
        self.pixels_rest = nn.Linear(dim, tubelet_values)
        init_weights(self)
        for pixels in (self.pixels_first, self.pixels_rest):
            pixels.weight.data.mul_(0.1)  # start near grey, not at noise

        self.quantizer = Quantizer(quantizer, dim=code_dim, codebook_size=codebook_size, kwargs=quantizer_kwargs)

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

    def forward(self, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """The loss, a scalar: mean squared error of the pixels + the quantizer's loss. See `losses`."""
        return self.losses(video, frame_mask).total

    def losses(self, video: Tensor, frame_mask: Tensor | None = None) -> CViViTLosses:
        """All parts of the loss of a video (b, c, f, h, w) or images (b, c, h, w) in [0, 1].

        `frame_mask`: bool (b, f), True for real frames, which come first and number 1 + k · temporal_patch_size.
        Padded frames weigh nothing.
        """
        video = self._check_video(video)
        token_mask = None
        if frame_mask is not None:
            ids_shape = (len(video), *self.grid(*video.shape[2:]))
            token_mask = real_tokens(frame_mask, ids_shape, self.temporal_patch_size)
        features = self.features(video)  # (b, t, h, w, e)
        if token_mask is None:
            flat = rearrange(features, "b t h w e -> b (t h w) e")
            quantized, _, quantizer_loss = self.quantizer(flat)
            quantized = quantized.reshape(features.shape)
        else:
            # Only real tokens meet the codebook, whose averages padding must not move.
            quantized = torch.zeros_like(features, dtype=torch.float32)
            real, _, quantizer_loss = self.quantizer(features[token_mask][None])
            quantized[token_mask] = real[0]
        error = (self.decode_features(quantized).float() - video.float()) ** 2
        if frame_mask is not None:
            error = rearrange(error, "b c f h w -> b f c h w")[frame_mask]
        pixel = error.mean()
        return CViViTLosses(total=pixel + quantizer_loss, pixel=pixel, quantizer=quantizer_loss)

    # video -> ids -> video

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video (b, c, f, h, w) or images (b, c, h, w) in [0, 1] -> ids (b, t, h, w), int64. No gradient."""
        features = self.features(video)
        b, t, h, w, _ = features.shape
        ids = self.quantizer.ids(rearrange(features, "b t h w e -> b (t h w) e"))
        return rearrange(ids, "b (t h w) -> b t h w", b=b, t=t, h=h, w=w)

    def decode(self, ids: Tensor) -> Tensor:
        """Ids (b, t, h, w) -> video (b, c, f, h · ph, w · pw); values near [0, 1], not clamped."""
        check_ids(ids, self.codebook_size)
        b, t, h, w = ids.shape
        features = self.quantizer.features(rearrange(ids, "b t h w -> b (t h w)"))
        return self.decode_features(rearrange(features, "b (t h w) e -> b t h w e", b=b, t=t, h=h, w=w))

    @torch.no_grad()
    def reconstruct(self, video: Tensor) -> Tensor:
        """Video or images -> what is left of it after encoding and decoding, clamped to [0, 1]. No gradient."""
        image = video.ndim == 4
        reconstruction = self.decode(self.encode(video)).clamp(0, 1)
        return rearrange(reconstruction, "b c 1 h w -> b c h w") if image else reconstruction

    def features(self, video: Tensor) -> Tensor:
        """Video (b, c, f, h, w) or images in [0, 1] -> what the quantizer is given, (b, t, h, w, e)."""
        video = self._check_video(video)
        video = video.to(self.embed_first.weight.dtype) * 2 - 1
        ph, pw = self.patch_size
        first = rearrange(video[:, :, :1], "b c f (h ph) (w pw) -> b f h w (c ph pw)", ph=ph, pw=pw)
        x = self.embed_first(first)  # (b, 1, h, w, d)
        if video.shape[2] > 1:
            rest = rearrange(
                video[:, :, 1:],
                "b c (t pt) (h ph) (w pw) -> b t h w (c pt ph pw)",
                pt=self.temporal_patch_size,
                ph=ph,
                pw=pw,
            )
            x = torch.cat((x, self.embed_rest(rest)), dim=1)  # (b, t, h, w, d)
        x = self._temporal(self.encode_temporal, self._spatial(self.encode_spatial, x))
        return self.to_code(x)

    def decode_features(self, features: Tensor) -> Tensor:
        """What the quantizer returns, (b, t, h, w, e) -> video (b, c, f, h · ph, w · pw), not clamped."""
        if features.ndim != 5 or features.shape[-1] != self.code_dim or 0 in features.shape:
            raise ValueError(f"features must be (b, t, h, w, {self.code_dim}), none empty, got {tuple(features.shape)}")
        x = self.from_code(features.to(self.from_code.weight.dtype))  # (b, t, h, w, d)
        x = self._spatial(self.decode_spatial, self._temporal(self.decode_temporal, x))
        ph, pw = self.patch_size
        sizes = {"c": self.channels, "ph": ph, "pw": pw}
        first = self.pixels_first(x[:, :1])
        video = rearrange(first, "b f h w (c ph pw) -> b c f (h ph) (w pw)", **sizes)
        if x.shape[1] > 1:
            rest = self.pixels_rest(x[:, 1:])
            rest = rearrange(
                rest,
                "b t h w (c pt ph pw) -> b c (t pt) (h ph) (w pw)",
                pt=self.temporal_patch_size,
                **sizes,
            )
            video = torch.cat((video, rest), dim=2)
        return (video + 1) / 2

    # inside

    def _spatial(self, transformer: Transformer, x: Tensor) -> Tensor:
        """Each time step by itself: (b, t, h, w, d) -> (b, t, h, w, d)."""
        b, t, h, w, _ = x.shape
        tokens = rearrange(x, "b t h w d -> (b t) (h w) d")
        tokens = transformer(tokens, rotary=rotary((h, w), self.dim_head, x.device))
        return rearrange(tokens, "(b t) (h w) d -> b t h w d", b=b, t=t, h=h, w=w)

    def _temporal(self, transformer: Transformer, x: Tensor) -> Tensor:
        """Each place by itself, looking back only: (b, t, h, w, d) -> (b, t, h, w, d)."""
        b, t, h, w, _ = x.shape
        tokens = rearrange(x, "b t h w d -> (b h w) t d")
        tokens = transformer(tokens, rotary=rotary((t,), self.dim_head, x.device))
        return rearrange(tokens, "(b h w) t d -> b t h w d", b=b, h=h, w=w)

    def _check_video(self, video: Tensor) -> Tensor:
        """Refuse what is not a video or batch of images; images (b, c, h, w) come back as (b, c, 1, h, w)."""
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
        self.grid(*video.shape[2:])
        return video

    def _check_image_size(self, height: int, width: int) -> None:
        ph, pw = self.patch_size
        if height < 1 or width < 1 or height % ph or width % pw:
            raise ValueError(f"height and width must be multiples of the patch {ph}×{pw}, got {height}×{width}")


def real_tokens(frame_mask: Tensor, ids_shape: Sequence[int], temporal_patch_size: int) -> Tensor:
    """Which ids are real, bool (b, t, h, w), given which frames are: bool (b, f), f = 1 + (t - 1) · pt.

    The real frames of a clip come first and number 1 + k · pt; raises ValueError where they do not.
    """
    b, t, h, w = ids_shape
    f = 1 + (t - 1) * temporal_patch_size
    if frame_mask.dtype != torch.bool or frame_mask.shape != (b, f):
        raise ValueError(f"frame_mask must be bool ({b}, {f}), got {frame_mask.dtype} {tuple(frame_mask.shape)}")
    if frame_mask.device.type == "cpu":
        counts = frame_mask.sum(dim=1)
        first = torch.arange(f) < counts[:, None]
        if (frame_mask != first).any() or ((counts - 1) % temporal_patch_size).any() or (counts < 1).any():
            raise ValueError(
                f"frame_mask must be True for the first 1 + k · {temporal_patch_size} frames of each clip "
                f"and False after, got {counts.tolist()} real frames"
            )
    return repeat(frame_mask[:, ::temporal_patch_size], "b t -> b t h w", h=h, w=w)


def pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """One number for both, or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
