"""The tiny VQGAN and the clips that its tests share."""

import torch

from phenaki_pytorch.tokenizers.vqgan import VQGAN


def tiny_vqgan(**changes):
    """16×16 pixels: (t, 2, 2) ids of 32 codes."""
    sizes = {"image_size": 16, "codebook_size": 32, "code_dim": 8, "dim": 16, "depth": 1}
    return VQGAN(**{**sizes, **changes})


def clips(batch=2, frames=5):
    return torch.rand(batch, 3, frames, 16, 16)
