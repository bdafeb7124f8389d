"""A tiny VQVAE, for the tests of several files."""

import torch

from conftest import train
from phenaki_pytorch.tokenizers.vqvae import VQVAE


def tiny_vqvae(**changes):
    """Videos of (4, 16, 16) <-> (2, 4, 4) ids of 16 codes."""
    sizes = {
        "video_shape": (4, 16, 16),
        "strides": (2, 4, 4),
        "dim": 12,
        "depth": 1,
        "heads": 2,
        "codebook_size": 16,
        "code_dim": 8,
    }
    return VQVAE(**{**sizes, **changes})


def videos(model, batch=2):
    frames, (height, width) = 2 * model.strides[0], model.image_size
    return torch.rand(batch, model.channels, frames, height, width)


def trained_vqvae(**changes):
    """The tiny model after two steps of training, and its video."""
    model = tiny_vqvae(**changes)
    video = videos(model)
    train(model, lambda: model(video), 2)
    return model, video
