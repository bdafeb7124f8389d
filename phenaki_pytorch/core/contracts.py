"""The protocols by which the parts meet: a module that has these members fits, whoever wrote it.

Shapes: video (b, c, f, h, w), float in [0, 1] · ids (b, t, h, w), int64 · features (b, t, h, w, e), float.
"""

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from torch import Generator, Tensor

# texts -> (embeddings (b, m, d), bool mask (b, m), True where real)
TextEncoder = Callable[[list[str]], tuple[Tensor, Tensor]]

# latents (b, t, h, w, e) and time, int64 (b,) -> ε and v (b, t, h, w, 2 e), or ε alone (b, t, h, w, e)
Denoiser = Callable[[Tensor, Tensor], Tensor]

Progress = Callable[[Iterable], Iterable]  # tqdm, or anything that wraps an iterable


@runtime_checkable
class Lengths(Protocol):
    """Which lengths a first stage takes, for example 1 + k · stride frames or k · stride.

    `grid` raises ValueError for any other length, and `num_frames` grows with t. Without height and width, `grid` is
    that of the size that the first stage was built for.
    """

    def grid(self, num_frames: int, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """The grid (t, h, w) of the latents of a clip."""

    def num_frames(self, t: int) -> int:
        """The number of frames of t time steps."""


@runtime_checkable
class Codec(Lengths, Protocol):
    """Video to continuous latents and back.

    `decode_features` reads `latents`. What `features` gives need not be decodable: a tokenizer's are what its
    quantizer is given, whose values may be of another range than its codes.
    """

    code_dim: int

    def features(self, video: Tensor) -> Tensor:
        """Video -> features (b, t, h, w, code_dim), which `decode_features` need not be able to read."""

    def latents(self, video: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Video -> what `decode_features` reads, continuous, (b, t, h, w, code_dim).

        generator: the source of randomness of a codec that draws its latents; others do not use it.
        """

    def decode_features(self, features: Tensor) -> Tensor:
        """Latents, or values near them, -> video."""


@runtime_checkable
class Tokenizer(Codec, Protocol):
    """Video to ids and back. `Phenaki` needs encode, decode, grid, num_frames and codebook_size alone."""

    codebook_size: int

    def encode(self, video: Tensor) -> Tensor:
        """Video -> ids."""

    def decode(self, ids: Tensor) -> Tensor:
        """Ids -> video, not clamped."""

    def code_features(self, ids: Tensor) -> Tensor:
        """Ids -> the features that `decode_features` reads."""


@runtime_checkable
class Prior(Protocol):
    """A model of ids: a call is its loss."""

    num_tokens: int
    grid: tuple[int, int, int]
    dim_context: int | None

    def __call__(self, ids: Tensor, context: Tensor | None = None, context_mask: Tensor | None = None) -> Tensor:
        """Ids and, if it reads a text, embeddings (b, m, c) and their mask, bool (b, m) -> the loss."""

    def generate(
        self,
        grid: tuple[int, int, int] | None = None,
        *,
        batch_size: int = 1,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        prime_ids: Tensor | None = None,
    ) -> Tensor:
        """Sample ids; the first time steps are `prime_ids`."""


@runtime_checkable
class AnyDiscriminator(Protocol):
    """What a tokenizer's adversarial loss asks of a discriminator."""

    def __call__(self, real: Tensor, fake: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Videos (b, c, f, h, w) and their reconstructions -> the discriminator's own loss."""

    def generator_loss(self, fake: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reconstructions -> the loss of the tokenizer, and the mean logit; no gradient in own parameters."""
