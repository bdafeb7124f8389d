"""ImageVAE: the VAE of an image model as a codec of videos, frame by frame, as Latte uses Stable Diffusion's.

Latte (section 3.1, https://arxiv.org/abs/2401.03048) draws the latents of each frame from the posterior of a frozen VAE
and multiplies them by the VAE's scaling factor.

b = batch · c = channels · f = frames · h, w = grid · e = code_dim · n = frames of all clips
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from phenaki_pytorch.core.checks import check_at_least, check_features, check_frames, pair, patches_of

PROBE = 64  # height and width of the image by which a VAE's sizes are measured


class ImageVAE(nn.Module):
    """Video (b, c, f, height, width) in [0, 1] <-> latents (b, f, h, w, e), each frame alone; any number of frames.

    vae             a module such as diffusers' AutoencoderKL, AutoencoderTiny or VQModel: `encode(images)`, images
                    (n, c, height, width) in [-1, 1], gives `.latent_dist`, with `mode()` and `std`, or `.latents`,
                    (n, e, h, w); `decode(latents)` gives `.sample`, the images. It must take images of 64×64 pixels,
                    by one of which its sizes are measured
    image_size      height and width that `grid` assumes where none are given; None: the VAE's `config["sample_size"]`
    scale, shift    latents are (z − shift) · scale of the VAE's own z; None: the VAE's `config["scaling_factor"]` and
                    `config["shift_factor"]`, or 1 and 0 where it has none
    frames_at_once  frames that the VAE encodes or decodes in one call, for bounded memory

    The VAE is frozen: its parameters require no gradient, and it stays in eval mode. It computes in the dtype and on
    the device of its parameters; results have those of the input. Every method takes images (b, c, h, w) too, as clips
    of one frame. Raises TypeError for a VAE whose methods give something else and for videos that are not floating
    point, ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        vae: nn.Module,
        *,
        image_size: int | Sequence | None = None,
        scale: float | None = None,
        shift: float | None = None,
        frames_at_once: int = 16,
    ):
        super().__init__()
        check_at_least(1, frames_at_once=frames_at_once)
        if missing := [name for name in ("encode", "decode") if not callable(getattr(vae, name, None))]:
            raise TypeError(f"a VAE needs encode and decode, {type(vae).__name__} lacks {' and '.join(missing)}")
        config = getattr(vae, "config", None)
        config = config if isinstance(config, Mapping) else {}
        self.vae = vae.requires_grad_(False).eval()
        self.frames_at_once = frames_at_once
        self.scale = config.get("scaling_factor") or 1.0 if scale is None else scale
        self.shift = config.get("shift_factor") or 0.0 if shift is None else shift
        if not (0 < self.scale < math.inf and math.isfinite(self.shift)):
            raise ValueError(
                f"scale must be finite and above 0, shift finite, got scale {self.scale} and shift {self.shift}"
            )
        self.channels = config.get("in_channels", 3)
        self.code_dim, self.patch_size = self._measured()
        image_size = config.get("sample_size") if image_size is None else image_size
        if image_size is None:
            raise ValueError("the VAE's config has no sample_size, so image_size must be given, got None")
        self.image_size = pair(image_size)
        patches_of(*self.image_size, self.patch_size)

    def train(self, mode: bool = True) -> "ImageVAE":
        """Set the mode of this module; the VAE stays in eval mode."""
        super().train(mode)
        self.vae.eval()
        return self

    # sizes

    def grid(self, num_frames: int, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """The grid (f, h, w) of the latents of a clip; ValueError for sizes that are not multiples of the patch."""
        if num_frames < 1:
            raise ValueError(f"a clip needs at least 1 frame, got {num_frames}")
        height = self.image_size[0] if height is None else height
        width = self.image_size[1] if width is None else width
        return num_frames, *patches_of(height, width, self.patch_size)

    def num_frames(self, t: int) -> int:
        """The number of frames of t time steps: t."""
        if t < 1:
            raise ValueError(f"latents need at least 1 time step, got {t}")
        return t

    # video <-> latents

    @torch.no_grad()
    def features(self, video: Tensor) -> Tensor:
        """Video (b, c, f, h, w) or images in [0, 1] -> the mode of their latents, (b, f, h, w, e). No gradient."""
        video = check_frames(video, self.channels, self.patch_size)
        mode, _ = self._posterior(video)
        return self._scaled(mode, video)

    @torch.no_grad()
    def latents(self, video: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Video (b, c, f, h, w) or images in [0, 1] -> latents drawn from the posterior, (b, f, h, w, e). No gradient.

        generator: the source of the noise, which is drawn for all frames together, whatever `frames_at_once` is. A VAE
        without a distribution draws nothing: these are its `features`.
        """
        video = check_frames(video, self.channels, self.patch_size)
        mode, std = self._posterior(video)
        if std is None:
            return self._scaled(mode, video)
        device = mode.device if generator is None else generator.device
        noise = torch.randn(mode.shape, generator=generator, device=device, dtype=mode.dtype)
        return self._scaled(mode + std * noise.to(mode.device), video)

    def decode_features(self, features: Tensor) -> Tensor:
        """Latents (b, f, h, w, e) -> video (b, c, f, height, width), near [0, 1], not clamped.

        With a gradient to the latents.
        """
        check_features(features, self.code_dim)
        z = rearrange(features / self.scale + self.shift, "b f h w e -> (b f) e h w")
        chunks = (_images(self.vae.decode(self._as_weights(chunk))) for chunk in z.split(self.frames_at_once))
        images = torch.cat([(chunk.to(z.device, z.dtype) + 1) / 2 for chunk in chunks])
        return rearrange(images, "(b f) c h w -> b c f h w", b=len(features))

    # inside

    def _posterior(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mode and standard deviation of the VAE's own latents, (n, e, h, w); None: there is no distribution."""
        images = rearrange(video, "b c f h w -> (b f) c h w")
        chunks = (self._as_weights(2 * chunk - 1) for chunk in images.split(self.frames_at_once))
        modes, stds = zip(*(_posterior(self.vae.encode(chunk)) for chunk in chunks))
        return torch.cat(modes), None if stds[0] is None else torch.cat(stds)

    def _scaled(self, z: Tensor, video: Tensor) -> Tensor:
        """The VAE's own latents (n, e, h, w) of a video -> latents (b, f, h, w, e)."""
        z = (z.to(video.device, video.dtype) - self.shift) * self.scale
        return rearrange(z, "(b f) e h w -> b f h w e", b=len(video))

    def _as_weights(self, values: Tensor) -> Tensor:
        """The values on the device and in the dtype of the VAE's parameters, if it has any."""
        tensors = chain(self.vae.parameters(), self.vae.buffers())
        weight = next((tensor for tensor in tensors if tensor.is_floating_point()), values)
        return values.to(weight.device, weight.dtype)

    @torch.no_grad()
    def _measured(self) -> tuple[int, tuple[int, int]]:
        """The width of a latent, and height and width in pixels of one, measured by a grey image."""
        image = self._as_weights(torch.zeros(1, self.channels, PROBE, PROBE))
        z, _ = _posterior(_tried(self.vae.encode, image))
        if z.ndim != 4 or len(z) != 1 or any(size == 0 or PROBE % size for size in z.shape[2:]):
            raise ValueError(
                f"a VAE must encode images {tuple(image.shape)} to latents (1, e, h, w), h and w divisors of {PROBE}, "
                f"got {tuple(z.shape)}"
            )
        images = _images(_tried(self.vae.decode, z))
        if images.shape != image.shape:
            raise ValueError(
                f"a VAE must decode latents to the size of the images, {tuple(image.shape)}, got {tuple(images.shape)}"
            )
        return z.shape[1], (PROBE // z.shape[2], PROBE // z.shape[3])


def _tried(method: Callable[[Tensor], Any], values: Tensor) -> Any:
    """What a VAE's method gives; a ValueError where it cannot take the values."""
    try:
        return method(values)
    except Exception as error:
        what = f"a VAE must be able to encode and decode images of {PROBE}×{PROBE}"
        raise ValueError(f"{what}, got this of {tuple(values.shape)}: {error}") from error


def _posterior(encoded: Any) -> tuple[Tensor, Tensor | None]:
    """What `encode` gave -> mode and standard deviation, (n, e, h, w); None: there is no distribution."""
    distribution = getattr(encoded, "latent_dist", None)
    if callable(getattr(distribution, "mode", None)):
        return distribution.mode(), getattr(distribution, "std", None)
    for name in ("latents", "latent"):
        z = getattr(encoded, name, None)
        if isinstance(z, Tensor):
            return z, None
    raise TypeError(f"a VAE's encode must give .latent_dist or .latents, got {type(encoded).__name__}")


def _images(decoded: Any) -> Tensor:
    """What `decode` gave -> images (n, c, height, width)."""
    images = getattr(decoded, "sample", None)
    if not isinstance(images, Tensor):
        raise TypeError(f"a VAE's decode must give .sample, images, got {type(decoded).__name__}")
    return images
