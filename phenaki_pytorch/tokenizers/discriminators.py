"""Two discriminators that judge single frames: StyleGAN's with blurred downsampling, and LAION's of patches.

    frame -> conv -> [residual block, half the size] × n -> conv -> linear -> logit: > 0 for real, < 0 for fake
    frame -> [spectrally normalised conv, half the size, instance norm] × n -> conv -> a logit for each patch

Phenaki's own is "StyleGAN with blur resampling and channel multiplier 1" (section A.1), the words of MaskGIT's
VQGAN, whose layers these are: StyleGAN2's residual discriminator (Karras et al. 2020,
https://arxiv.org/abs/1912.04958) without equalised learning rates and minibatch statistics. The losses are the
non-saturating ones (Goodfellow et al. 2014) with the R1 penalty (Mescheder et al. 2018,
https://arxiv.org/abs/1801.04406), which is taken every few steps (StyleGAN2, section 3.1).

The second is that of LAION's phenaki tokenizer, https://github.com/LAION-AI/phenaki.

b = batch · c = channels · f = frames · n = frames that are judged
"""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_at_least, check_finite, check_pixels, pair
from phenaki_pytorch.core.modules import CastingConv2d, through_call, without_gradients
from phenaki_pytorch.core.saving import Pretrained
from phenaki_pytorch.tokenizers.losses import frames_of

SLOPE = 0.2
SMOOTH = 0.1  # targets of the patches: 1 − SMOOTH for real, SMOOTH for fake


class DiscriminatorLosses(NamedTuple):
    """The terms of the discriminator's loss, and its mean logits."""

    total: Tensor
    adversarial: Tensor  # 2 ln 2 where it cannot tell real from fake, 0 where it always can; patches: ln 2 and 0.33
    r1: Tensor  # the weighted penalty; 0 in the steps that skip it, and for patches
    real_logits: Tensor  # mean of the real frames
    fake_logits: Tensor  # mean of the fake frames; far below real_logits, it separates them fully


class Discriminator(Pretrained):
    """Judges single frames as real or fake: frames (n, c, h, w) in [0, 1] -> logits (n,).

    image_size          height and width of the frames, fixed: the last layer sees a whole frame
    dim                 channels where the smaller side is at most 32; half as many at 64, a quarter at 128, ...
    channel_multiplier  factor of the channels above 32
    r1_weight           γ of the penalty γ/2 · E‖∂logit/∂frame‖², the frame in [−1, 1]; 0 leaves it out
    r1_every            training steps from one penalty to the next, and the factor of its weight

    `discriminator(real, fake)` is its own loss, whose gradient stops at the frames; `generator_loss(fake)` is that of
    the tokenizer, whose gradient reaches the frames and no parameter here. Each side needs an optimizer of its own.
    Raises ValueError for frames of another size.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence,
        channels: int = 3,
        dim: int = 512,
        channel_multiplier: float = 1.0,
        r1_weight: float = 10.0,
        r1_every: int = 16,
    ):
        super().__init__()
        config = {
            "image_size": copy.deepcopy(image_size),
            "channels": channels,
            "dim": dim,
            "channel_multiplier": channel_multiplier,
            "r1_weight": r1_weight,
            "r1_every": r1_every,
        }
        self.config = copy.deepcopy(config)
        check_at_least(1, channels=channels, dim=dim, r1_every=r1_every)
        if not (0 < channel_multiplier < math.inf and 0 <= r1_weight < math.inf):
            raise ValueError(
                f"channel_multiplier must be above 0, r1_weight at least 0, both finite, "
                f"got {channel_multiplier}, {r1_weight}"
            )
        self.image_size = pair(image_size)
        if min(self.image_size) < 4:
            raise ValueError(f"image_size must be at least 4×4, got {self.image_size[0]}×{self.image_size[1]}")
        self.channels = channels
        self.r1_weight = r1_weight
        self.r1_every = r1_every

        sizes = [self.image_size]
        while min(sizes[-1]) > 4:
            sizes.append(tuple(math.ceil(side / 2) for side in sizes[-1]))
        widths = [_width(min(size), dim, channel_multiplier) for size in sizes]
        self.network = nn.Sequential(
            CastingConv2d(channels, widths[0], 3, padding=1),
            nn.LeakyReLU(SLOPE),
            *(ResidualBlock(*ends) for ends in pairwise(widths)),
            nn.Conv2d(widths[-1], dim, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Flatten(),
            nn.Linear(dim * math.prod(sizes[-1]), dim),
            nn.LeakyReLU(SLOPE),
            nn.Linear(dim, 1),
            nn.Flatten(0),
        )
        for part in self.network.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight, a=SLOPE)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        self.network[-2].weight.data.mul_(0.1)  # so that the logits start near 0
        # Saved, so that a resumed run has its penalty in the same steps.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @through_call
    def losses(self, real: Tensor, fake: Tensor, frame_mask: Tensor | None = None) -> DiscriminatorLosses:
        """E softplus(−logit(real)) + E softplus(logit(fake)), and R1 in every `r1_every`-th training step.

        A training step is a call in training mode that records gradients.

        real, fake  videos (b, c, f, h, w) or images (b, c, h, w) in [0, 1], of one shape; an image is a video of one
                    frame
        frame_mask  bool (b, f), True for the frames to judge; default: all
        """
        real, fake = (self.check_frames(frames) for frames in both_frames(real, fake, frame_mask))
        check_pixels("real", real)
        check_finite("fake", fake)
        real_logits, fake_logits = self.network(self._scaled(torch.cat((real, fake)))).float().chunk(2)
        adversarial = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
        r1 = adversarial.new_zeros(())
        if self.training and self.r1_weight > 0 and torch.is_grad_enabled():
            if self.steps.item() % self.r1_every == 0:
                r1 = self.r1_every * self.r1_weight / 2 * self._gradient_norm(real)
            self.steps += 1
        return DiscriminatorLosses(
            total=adversarial + r1,
            adversarial=adversarial,
            r1=r1,
            real_logits=real_logits.mean(),
            fake_logits=fake_logits.mean(),
        )

    @through_call
    def generator_loss(self, fake: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """E softplus(−logit(fake)), small where fake frames pass for real; and the mean logit.

        Frames as in `losses`. The gradient reaches them, and no parameter of the discriminator.
        """
        fake = self.check_frames(frames_of(fake, frame_mask))
        check_finite("fake", fake)
        logits = without_gradients(self.network)(self._scaled(fake)).float()
        return F.softplus(-logits).mean(), logits.detach().mean()

    @torch.compiler.disable  # compiled graphs have no second derivatives
    def _gradient_norm(self, real: Tensor) -> Tensor:
        """E ‖∂logit/∂frame‖², in float32 because the squares overflow half precision."""
        with torch.autocast(real.device.type, enabled=False):
            frames = self._scaled(real).requires_grad_()
            (gradient,) = torch.autograd.grad(self.network(frames).sum(), frames, create_graph=True)
        return gradient.float().square().sum(dim=(1, 2, 3)).mean()

    def _scaled(self, frames: Tensor) -> Tensor:
        """[0, 1] -> [−1, 1], in the channels-last memory format, which is faster for convolutions."""
        return (frames * 2 - 1).contiguous(memory_format=torch.channels_last)

    def check_frames(self, frames: Tensor) -> Tensor:
        """Refuse all but frames (n, c, h, w) of this discriminator's size."""
        if not frames.is_floating_point():
            raise TypeError(f"frames must be floating point in [0, 1], got {frames.dtype}")
        if tuple(frames.shape[1:]) != (self.channels, *self.image_size) or len(frames) == 0:
            raise ValueError(
                f"the discriminator judges frames (n, {self.channels}, {self.image_size[0]}, {self.image_size[1]}), "
                f"n ≥ 1, got {tuple(frames.shape)}"
            )
        return frames


class ResidualBlock(nn.Module):
    """(n, i, h, w) -> (n, o, ⌈h / 2⌉, ⌈w / 2⌉)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(dim_in, dim_in, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            BlurDownsample(),
            nn.Conv2d(dim_in, dim_out, 3, padding=1),
            nn.LeakyReLU(SLOPE),
        )
        self.skip = nn.Sequential(BlurDownsample(), nn.Conv2d(dim_in, dim_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return (self.main(x) + self.skip(x)) / math.sqrt(2)


class BlurDownsample(nn.Module):
    """Blur with [1, 3, 3, 1] ⊗ [1, 3, 3, 1] and keep every second pixel."""

    def __init__(self):
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        if h % 2 or w % 2:
            x = F.pad(x, (0, w % 2, 0, h % 2))  # an odd side is rounded up
        kernel = self.kernel.to(x.dtype).expand(c, 1, 4, 4)
        return F.conv2d(x, kernel, stride=2, padding=1, groups=c)


class PatchDiscriminator(Pretrained):
    """LAION's: frames (n, c, h, w) in [0, 1] of any size -> logits (n, 1, h', w'), one for each patch.

    dim    channels of the last convolutions; a half, a quarter and an eighth of it before them
    depth  convolutions that halve the size; their last grid, h' × w', must be larger than 1×1

    Calls as of `Discriminator`. The probability that a patch is real has the targets 0.9 for real frames and 0.1 for
    fake ones in its binary cross-entropy; its own loss is the mean of both frames' terms. LAION's network gives the
    probability of fake, with targets 0.1 and 0.9: the same losses with the other sign of the logit.
    """

    def __init__(self, *, channels: int = 3, dim: int = 256, depth: int = 6):
        super().__init__()
        self.config = {"channels": channels, "dim": dim, "depth": depth}
        check_at_least(1, channels=channels, depth=depth)
        if dim < 8 or dim % 8:
            raise ValueError(f"dim must be a multiple of 8, at least 8, got {dim}")
        self.channels = channels
        self.depth = depth
        widths = [channels, *(dim // 2 ** max(3 - i, 0) for i in range(depth))]
        layers = []
        for i, ends in enumerate(pairwise(widths)):
            layers += [SpectralConv2d(*ends, 3, stride=2, padding=1)]
            layers += [nn.InstanceNorm2d(ends[1])] if i > 0 else []
            layers += [nn.LeakyReLU(SLOPE)]
        self.network = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    @through_call
    def losses(self, real: Tensor, fake: Tensor, frame_mask: Tensor | None = None) -> DiscriminatorLosses:
        """½ (BCE(logit(real), 0.9) + BCE(logit(fake), 0.1)); arguments as of `Discriminator.losses`."""
        real, fake = (self.check_frames(frames) for frames in both_frames(real, fake, frame_mask))
        check_pixels("real", real)
        check_finite("fake", fake)
        real_logits, fake_logits = self.network(torch.cat((real, fake))).float().chunk(2)
        total = (_smooth_loss(real_logits, 1 - SMOOTH) + _smooth_loss(fake_logits, SMOOTH)) / 2
        return DiscriminatorLosses(
            total=total,
            adversarial=total,
            r1=total.new_zeros(()),
            real_logits=real_logits.mean(),
            fake_logits=fake_logits.mean(),
        )

    @through_call
    def generator_loss(self, fake: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """BCE(logit(fake), 0.9), small where fake frames pass for real; and the mean logit.

        The gradient reaches the frames, and no parameter of the discriminator. (In LAION's code it reaches them too.)
        """
        fake = self.check_frames(frames_of(fake, frame_mask))
        check_finite("fake", fake)
        logits = without_gradients(self.network)(fake).float()
        return _smooth_loss(logits, 1 - SMOOTH), logits.detach().mean()

    def check_frames(self, frames: Tensor) -> Tensor:
        """Refuse all but frames (n, c, h, w) that are large enough for more than one patch."""
        if not frames.is_floating_point():
            raise TypeError(f"frames must be floating point in [0, 1], got {frames.dtype}")
        if frames.ndim != 4 or frames.shape[1] != self.channels or 0 in frames.shape:
            raise ValueError(
                f"the discriminator judges frames (n, {self.channels}, h, w), none empty, got {tuple(frames.shape)}"
            )
        smallest = 2**self.depth
        if max(frames.shape[2:]) <= smallest:
            height, width = frames.shape[2:]
            raise ValueError(f"height or width of a frame must be above {smallest}, got {height}×{width}")
        return frames


class SpectralConv2d(nn.Conv2d):
    """A convolution whose weight is divided by its largest singular value (https://arxiv.org/abs/1802.05957).

    The left singular vector is a buffer. A call that gives the weight a gradient, in training mode, brings it nearer
    by one iteration of the power method. The generator's loss gives none, so how often it is computed changes nothing.
    """

    def __init__(self, *sizes: int, **options: int):
        super().__init__(*sizes, **options)
        left = torch.randn(self.out_channels)
        for _ in range(15):  # near from the start, in eval mode too
            left = _iteration(left, self.weight.data.flatten(1))
        self.register_buffer("left", left)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight.flatten(1)
        left = self.left.to(matrix.dtype)
        with torch.autocast(x.device.type, enabled=False):
            if self.training and torch.is_grad_enabled() and self.weight.requires_grad:
                left = _iteration(left, matrix.detach())
                self.left.copy_(left)
            weight = self.weight / (left @ matrix).norm()
        return self._conv_forward(x.to(weight.dtype), weight, self.bias)


def both_frames(real: Tensor, fake: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The frames (n, c, h, w) to judge of real and fake videos or images of one shape; no gradient reaches them."""
    real, fake = (rearrange(x, "b c h w -> b c 1 h w") if x.ndim == 4 else x for x in (real, fake))
    if real.shape != fake.shape:
        raise ValueError(f"real and fake must have one shape, got {tuple(real.shape)} and {tuple(fake.shape)}")
    return frames_of(real.detach(), frame_mask), frames_of(fake.detach(), frame_mask)


def _smooth_loss(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def _iteration(left: Tensor, matrix: Tensor) -> Tensor:
    """One iteration of the power method: nearer to the left singular vector of the largest singular value."""
    return F.normalize(matrix @ F.normalize(left @ matrix, dim=0), dim=0)


def _width(side: int, dim: int, multiplier: float) -> int:
    """Channels where the smaller side of a frame is this long."""
    if side <= 32:
        return dim
    return max(1, round(multiplier * dim / 2 ** math.ceil(math.log2(side / 32))))
