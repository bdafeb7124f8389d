"""What a video tokenizer is trained on: pixels, perceptual distances, a discriminator, and its quantizer's loss.

    L = L_quantizer + 1.0 · L_pixel + 0.1 · L_image + 1.0 · L_video + 0.1 · L_adversarial      (Phenaki, section 2.1)

Every network that takes part is given with the call. A module's parameters stay the caller's and get no gradient;
those inside any other callable are for the caller to freeze.

b = batch · c = channels · f = frames · n = real frames
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from phenaki_pytorch.discriminator import Discriminator, frames_of, without_gradients

# (made, real) -> a distance, of any shape; the mean is taken.
Perceptual = Callable[[Tensor, Tensor], Tensor]


class LossWeights(NamedTuple):
    """How much each part of the loss weighs; the paper's by default. The network of a part that weighs 0 is not run.

    An adversarial term that starts late: `LossWeights(adversarial=0.1 * min(1, max(0, step - start) / ramp))`.
    """

    pixel: float = 1.0
    image_perceptual: float = 0.1
    video_perceptual: float = 1.0
    adversarial: float = 0.1


PAPER_WEIGHTS = LossWeights()


class TokenizerLosses(NamedTuple):
    """The parts of a tokenizer's loss, before they are weighted; 0 for those that were not given or do not apply."""

    total: Tensor  # quantizer + weights · the others
    quantizer: Tensor  # commitment, for "vq"
    pixel: Tensor  # mean squared error of the pixels in [0, 1]: PSNR = −10 log₁₀(pixel)
    image_perceptual: Tensor
    video_perceptual: Tensor
    adversarial: Tensor  # E softplus(−logit(made)): ln 2 where the discriminator cannot tell
    fake_logits: Tensor  # the discriminator's mean logit of the made frames
    reconstruction: Tensor  # (b, c, f, h, w), without gradient: what the discriminator's own step is given


def check_terms(video: Tensor, weights: LossWeights, discriminator: Discriminator | None) -> None:
    """Refuse weights below 0 or not finite, and a discriminator of frames of another size than the video's."""
    for name, weight in weights._asdict().items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of a loss must be finite and at least 0, got {name}={weight}")
    if discriminator is not None:  # of whatever weight: a term that starts late must not fail late
        discriminator.check_frames(video[:, :, 0])


def tokenizer_losses(
    reconstruction: Tensor,
    video: Tensor,
    quantizer_loss: Tensor,
    frame_mask: Tensor | None = None,
    *,
    image_perceptual: Perceptual | None = None,
    video_perceptual: Perceptual | None = None,
    discriminator: Discriminator | None = None,
    weights: LossWeights = PAPER_WEIGHTS,
) -> TokenizerLosses:
    """All parts of the loss of a reconstruction and its video, (b, c, f, h, w).

    frame_mask        bool (b, f), True for the real frames of each clip, which come first; the others weigh nothing
    image_perceptual  (made, real), frames (n, c, h, w) -> distance
    video_perceptual  (made, real), clips (b, c, f, h, w) of equally many frames, more than one -> distance
    discriminator     judges frames

    Raises as `check_terms` does, and TypeError for a distance that is no tensor.
    """
    check_terms(video, weights, discriminator)
    reconstruction = reconstruction.to(video.dtype)
    made, real = frames_of(reconstruction, frame_mask), frames_of(video, frame_mask)
    zero = quantizer_loss.new_zeros(())
    parts = {"pixel": (made.float() - real.float()).square().mean()}
    parts["image_perceptual"] = parts["video_perceptual"] = parts["adversarial"] = fake_logits = zero
    if image_perceptual is not None and weights.image_perceptual > 0:
        parts["image_perceptual"] = mean_distance(image_perceptual, made, real)
    if video_perceptual is not None and weights.video_perceptual > 0:
        parts["video_perceptual"] = video_distance(video_perceptual, reconstruction, video, frame_mask)
    if discriminator is not None and weights.adversarial > 0:
        parts["adversarial"], fake_logits = discriminator.generator_loss(reconstruction, frame_mask)
    total = quantizer_loss + sum(getattr(weights, name) * part for name, part in parts.items())
    return TokenizerLosses(
        total=total,
        quantizer=quantizer_loss,
        fake_logits=fake_logits,
        reconstruction=reconstruction.detach(),
        **parts,
    )


def mean_distance(distance: Perceptual, made: Tensor, real: Tensor) -> Tensor:
    """The mean of a given distance, whose own parameters get no gradient; TypeError for what is no tensor."""
    value = without_gradients(distance)(made, real)
    if not isinstance(value, Tensor):
        raise TypeError(f"a perceptual distance must be a tensor, got {type(value).__name__}")
    return value.float().mean()


def video_distance(distance: Perceptual, made: Tensor, real: Tensor, frame_mask: Tensor | None) -> Tensor:
    """The mean distance of the clips that are not single images, each without its padding; 0 if there are none."""
    lengths = [real.shape[2]] * len(real) if frame_mask is None else frame_mask.sum(dim=1).tolist()
    total, clips = made.new_zeros((), dtype=torch.float32), 0
    for length in sorted(set(lengths) - {1}):
        rows = torch.tensor([row for row, other in enumerate(lengths) if other == length], device=made.device)
        total = total + len(rows) * mean_distance(distance, made[rows, :, :length], real[rows, :, :length])
        clips += len(rows)
    return total / max(clips, 1)
