"""Latents of mean 0 and variance 1, whatever those of a first stage are, as the noise that diffusion adds has 1.

Latte scales the latents of its image VAE by one number, 0.18215, which makes their variance about 1
(https://arxiv.org/abs/2112.10752, appendix G). Other first stages have other latents, so that mean and variance of each
channel are measured here.

b = batch · t, h, w = grid of latents · e = channels of latents
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from phenaki_pytorch.core.checks import check_at_least
from phenaki_pytorch.core.saving import Pretrained
from phenaki_pytorch.core.statistics import Statistics

SMALLEST = 1e-12  # variance that counts, for channels that hardly vary


class Standardisation(Pretrained):
    """Latents (b, t, h, w, e) <-> the same with mean 0 and variance 1 in each channel.

    Mean and variance are measured over the first 100 batches of training, and saved; before the first one, latents stay
    as they are. Results have the dtype of the latents.
    """

    def __init__(self, *, code_dim: int):
        super().__init__()
        check_at_least(1, code_dim=code_dim)
        self.config = {"code_dim": code_dim}
        self.code_dim = code_dim
        self.statistics = Statistics(code_dim)

    @classmethod
    def from_pretrained(cls, directory: str | Path, **given: Any) -> "Standardisation":
        """As of any module; ValueError also for a variance or a count below 0."""
        module = super().from_pretrained(directory, **given)
        for name, value in module.statistics.state_dict().items():
            if name != "mean" and (value < 0).any():
                raise ValueError(f"the {name} of {directory} must be at least 0, got {value.min().item()}")
        return module

    def measure(self, latents: Tensor) -> None:
        """Add a batch to what is measured, if it is one of the first."""
        self.statistics(latents)

    def standardised(self, latents: Tensor) -> Tensor:
        """Latents of the first stage -> those to diffuse."""
        mean, variance = self.statistics()
        return ((latents - mean) / variance.clamp(min=SMALLEST).sqrt()).to(latents.dtype)

    def restored(self, latents: Tensor) -> Tensor:
        """Latents that were diffused -> those of the first stage."""
        mean, variance = self.statistics()
        return (latents * variance.clamp(min=SMALLEST).sqrt() + mean).to(latents.dtype)
