"""The loss of a video tokenizer: pixels, perceptual distances, a discriminator, and the quantizer's own loss.

    L = L_quantizer + 1.0 · L_pixel + 0.1 · L_image + 1.0 · L_video + 0.1 · L_adversarial      (Phenaki, section 2.1)

The networks are given with each call. Parameters of an nn.Module get no gradient from this loss; those of any other
callable have to be frozen by the caller.

b = batch · c = channels · f = frames · n = real frames
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypedDict

import torch
from einops import rearrange
from torch import Tensor

from phenaki_pytorch.core.checks import check_mask
from phenaki_pytorch.core.contracts import AnyDiscriminator
from phenaki_pytorch.core.modules import without_gradients

# (reconstruction, video) -> a distance, of any shape; the mean is taken.
Perceptual = Callable[[Tensor, Tensor], Tensor]


class LossWeights(NamedTuple):
    """The weight of each term, by default the paper's. The network of a term that weighs 0 is not run.

    An adversarial term that starts late: `LossWeights(adversarial=0.1 * min(1, max(0, step - start) / ramp))`.
    """

    pixel: float = 1.0
    image_perceptual: float = 0.1
    video_perceptual: float = 1.0
    adversarial: float = 0.1


PAPER_WEIGHTS = LossWeights()
# Those of LAION's phenaki tokenizer, https://github.com/LAION-AI/phenaki, which compares single frames only. Its 0.1
# of the commitment is in the quantizer's own loss, as `VQGAN` has it by default.
LAION_WEIGHTS = LossWeights(pixel=1.0, image_perceptual=0.1, video_perceptual=0.0, adversarial=0.1)


class LossTerms(TypedDict, total=False):
    """The terms beside pixels and quantizer, each left out where its network is not given.

    image_perceptual  (reconstruction, video), frames (n, c, h, w) -> distance
    video_perceptual  (reconstruction, video), clips (n, c, f, h, w) of more than one frame -> distance
    discriminator     judges frames; its own loss is `discriminator(video, losses.reconstruction)`
    weights           of the terms; default: the paper's
    """

    image_perceptual: Perceptual | None
    video_perceptual: Perceptual | None
    discriminator: AnyDiscriminator | None
    weights: LossWeights


class TokenizerLosses(NamedTuple):
    """The terms of a tokenizer's loss before they are weighted; 0 for those that were not given or do not apply."""

    total: Tensor  # quantizer + weights · the others
    quantizer: Tensor  # commitment, for "vq"
    pixel: Tensor  # mean squared error of the pixels in [0, 1]: PSNR = −10 log₁₀(pixel)
    image_perceptual: Tensor
    video_perceptual: Tensor
    adversarial: Tensor  # E softplus(−logit(reconstruction)): ln 2 where the discriminator cannot tell
    fake_logits: Tensor  # the discriminator's mean logit of the reconstructions
    reconstruction: Tensor  # (b, c, f, h, w), without gradient, for the discriminator's own step


def check_terms(
    video: Tensor,
    *,
    image_perceptual: Perceptual | None = None,
    video_perceptual: Perceptual | None = None,
    discriminator: AnyDiscriminator | None = None,
    weights: LossWeights = PAPER_WEIGHTS,
) -> None:
    """Refuse weights that are negative or not finite, and a discriminator of frames of another size.

    A discriminator is checked, where it has `check_frames`, also while its weight is 0: a wrong size fails at once.
    """
    for name, weight in weights._asdict().items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of a loss must be finite and at least 0, got {name}={weight}")
    if hasattr(discriminator, "check_frames"):
        discriminator.check_frames(video[:, :, 0])


def tokenizer_losses(
    reconstruction: Tensor,
    video: Tensor,
    quantizer_loss: Tensor,
    frame_mask: Tensor | None = None,
    *,
    pixel_scale: Tensor | float = 1.0,
    image_perceptual: Perceptual | None = None,
    video_perceptual: Perceptual | None = None,
    discriminator: AnyDiscriminator | None = None,
    weights: LossWeights = PAPER_WEIGHTS,
) -> TokenizerLosses:
    """All terms of the loss of a reconstruction and its video, (b, c, f, h, w); see `LossTerms` for the networks.

    frame_mask   bool (b, f), True for the real frames of each clip, which come first; padding has no weight
    pixel_scale  multiplies the weight of the pixels' term

    Raises TypeError for a distance that is no tensor.
    """
    reconstruction = reconstruction.to(video.dtype)
    fake, real = frames_of(reconstruction, frame_mask), frames_of(video, frame_mask)
    zero = quantizer_loss.new_zeros(())
    terms = {"pixel": (fake.float() - real.float()).square().mean()}
    terms["image_perceptual"] = terms["video_perceptual"] = terms["adversarial"] = fake_logits = zero
    if image_perceptual is not None and weights.image_perceptual > 0:
        terms["image_perceptual"] = mean_distance(image_perceptual, fake, real)
    if video_perceptual is not None and weights.video_perceptual > 0:
        terms["video_perceptual"] = video_distance(video_perceptual, reconstruction, video, frame_mask)
    if discriminator is not None and weights.adversarial > 0:
        terms["adversarial"], fake_logits = discriminator.generator_loss(reconstruction, frame_mask)
    scales = {"pixel": pixel_scale}
    total = quantizer_loss + sum(getattr(weights, name) * scales.get(name, 1.0) * term for name, term in terms.items())
    return TokenizerLosses(
        total=total,
        quantizer=quantizer_loss,
        fake_logits=fake_logits,
        reconstruction=reconstruction.detach(),
        **terms,
    )


def mean_distance(distance: Perceptual, fake: Tensor, real: Tensor) -> Tensor:
    """The mean of a given distance, whose own parameters get no gradient; TypeError for what is no tensor."""
    value = without_gradients(distance)(fake, real)
    if not isinstance(value, Tensor):
        raise TypeError(f"a perceptual distance must be a tensor, got {type(value).__name__}")
    return value.float().mean()


def video_distance(distance: Perceptual, fake: Tensor, real: Tensor, frame_mask: Tensor | None) -> Tensor:
    """The mean distance of the clips that have more than one frame, each without its padding; 0 if there are none."""
    lengths = [real.shape[2]] * len(real) if frame_mask is None else frame_mask.sum(dim=1).tolist()
    total, clips = fake.new_zeros((), dtype=torch.float32), 0
    for length in sorted(set(lengths) - {1}):
        rows = torch.tensor([row for row, other in enumerate(lengths) if other == length], device=fake.device)
        total = total + len(rows) * mean_distance(distance, fake[rows, :, :length], real[rows, :, :length])
        clips += len(rows)
    return total / max(clips, 1)


def frames_of(video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
    """The real frames (n, c, h, w) of videos (b, c, f, h, w) or images (b, c, h, w)."""
    if video.ndim == 4:
        video = rearrange(video, "b c h w -> b c 1 h w")
    if video.ndim != 5:
        raise ValueError(f"video must be (b, c, f, h, w), or images (b, c, h, w), got {tuple(video.shape)}")
    b, _, f, _, _ = video.shape
    if frame_mask is None:
        return rearrange(video, "b c f h w -> (b f) c h w")
    check_mask("frame_mask", frame_mask, torch.Size((b, f)))
    return rearrange(video, "b c f h w -> b f c h w")[frame_mask]
