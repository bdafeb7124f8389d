"""Videos, latents, sizes and VAEs that do not fit an ImageVAE are refused, with what was got and what was expected."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from image_vae_models import PlainVAE, codecs, make_video
from phenaki_pytorch.tokenizers.image_vae import ImageVAE


@codecs
@pytest.mark.parametrize(
    "change, kind, message",
    [
        (lambda video: (255 * video).to(torch.uint8), TypeError, "floating point in .0, 1., got torch.uint8"),
        (lambda video: video[:, :2], ValueError, "must have 3 channels, got 2"),
        (lambda video: video[..., :15], ValueError, r"multiples of the patch \d×\d, got 16×15"),
        (lambda video: video[0, 0], ValueError, r"must be \(b, c, f, h, w\).* got \(3, 16, 16\)"),
        (lambda video: video[:, :, :0], ValueError, "none empty"),
        (lambda video: 2 * video - 1, ValueError, r"in \[0, 1\], got values from -"),
        (lambda video: video * float("nan"), ValueError, "must be finite"),
    ],
)
def test_what_is_no_video_is_refused(build, change, kind, message):
    codec = build()
    for method in (codec.features, codec.latents):
        with pytest.raises(kind, match=message):
            method(change(make_video()))


@codecs
def test_what_are_no_latents_is_refused(build):
    codec = build()
    latents = codec.features(make_video())
    with pytest.raises(ValueError, match=rf"must be \(b, t, h, w, {codec.code_dim}\)"):
        codec.decode_features(latents[..., :3])
    with pytest.raises(ValueError, match="must be finite"):
        codec.decode_features(latents * float("nan"))
    with pytest.raises(TypeError, match=r"must be floating point, got torch\.int64"):
        codec.decode_features(latents.long())


@codecs
def test_lengths_and_sizes_that_do_not_fit_are_refused(build):
    codec = build()
    for call, message in (
        (lambda: codec.grid(0), "at least 1 frame, got 0"),
        (lambda: codec.num_frames(0), "at least 1 time step, got 0"),
        (lambda: codec.grid(1, 15, 16), "got 15×16"),
        (lambda: codec.grid(1, width=0), "got 16×0"),
        (lambda: build(image_size=15), "got 15×15"),
        (lambda: build(frames_at_once=0), "frames_at_once must be at least 1, got 0"),
        (lambda: build(scale=0.0), "got scale 0.0"),
        (lambda: build(scale=float("nan")), "got scale nan"),
        (lambda: build(shift=float("inf")), "shift inf"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_size_is_needed_where_the_config_has_none():
    with pytest.raises(ValueError, match="image_size must be given, got None"):
        ImageVAE(PlainVAE())


class Other(PlainVAE):
    """A VAE with other methods."""

    def __init__(self, **methods):
        super().__init__()
        for name, method in methods.items():
            setattr(self, name, method)


@pytest.mark.parametrize(
    "vae, kind, message",
    [
        (nn.Linear(2, 2), TypeError, "Linear lacks encode and decode"),
        (Other(decode=None), TypeError, "Other lacks decode"),
        (Other(encode=lambda images: images), TypeError, "must give .latent_dist or .latents, got Tensor"),
        (Other(encode=lambda images: (images,)), TypeError, "got tuple"),
        (Other(encode=lambda images: SimpleNamespace(latent_dist=3)), TypeError, "got SimpleNamespace"),
        (Other(decode=lambda latents: latents), TypeError, "must give .sample, images, got Tensor"),
        (Other(encode=lambda images: SimpleNamespace(latents=images.flatten(1))), ValueError, r"got \(1, 12288\)"),
        (Other(encode=lambda images: SimpleNamespace(latents=images[..., :63])), ValueError, r"got \(1, 3, 64, 63\)"),
        (Other(decode=lambda latents: SimpleNamespace(sample=latents)), ValueError, r"\(1, 3, 64, 64\), got \(1, 6,"),
        (
            Other(encode=lambda images: images[..., None] @ images),
            ValueError,
            r"encode and decode images of 64×64, got this of \(1, 3, 64, 64\)",
        ),
        ("stabilityai/sd-vae-ft-mse", TypeError, "stabilityai"),
    ],
)
def test_what_is_no_vae_is_refused(vae, kind, message):
    with pytest.raises(kind, match=message):
        ImageVAE(vae, image_size=16)
