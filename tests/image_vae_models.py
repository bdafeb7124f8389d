"""Tiny image VAEs, and ImageVAEs over them, for the tests of several files."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import seed
from phenaki_pytorch.tokenizers.image_vae import ImageVAE


def kl_vae(**changes):
    """A random AutoencoderKL with a factor of 2 and 4 latent channels, scale 0.18215."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    sizes = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return AutoencoderKL(**{**sizes, **changes})


class PlainVAE(nn.Module):
    """A VAE without a distribution and without a config: factors 4 and 8, 6 latent channels; it counts its calls."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 6, (4, 8), stride=(4, 8))
        self.drop = nn.Dropout(0.5)
        self.up = nn.ConvTranspose2d(6, 3, (4, 8), stride=(4, 8))
        self.sizes = []

    def encode(self, images):
        self.sizes.append(len(images))
        return SimpleNamespace(latents=self.drop(self.down(images)))

    def decode(self, latents):
        self.sizes.append(len(latents))
        return SimpleNamespace(sample=self.up(latents))


def kl_codec(**changes):
    return ImageVAE(kl_vae(), **changes)


def plain_codec(**changes):
    return ImageVAE(PlainVAE(), **{"image_size": 16, **changes})


def make_video(b=2, f=3, size=16):
    return torch.rand(b, 3, f, size, size, generator=seed(1))


codecs = pytest.mark.parametrize("build", [kl_codec, plain_codec])
