"""The tokenizer's training step with perceptual and adversarial terms, and the discriminator's own training.

b = batch · c = channels · f = frames
"""

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from phenaki_pytorch import LossWeights
from phenaki_pytorch.tokenizers.discriminators import DiscriminatorLosses
from phenaki_pytorch.tokenizers.losses import PAPER_WEIGHTS, TokenizerLosses, tokenizer_losses
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer
from training.loop import Recipe, build_optimizers, update

BALANCE_EVERY = 16  # steps

# The discriminator's loss, its penalty, its mean logits, and the weight of the adversarial term.
SHOWN = ("discriminator_loss", "r1", "real_logits", "fake_logits", "adversarial_weight")


class TokenizerStep(nn.Module):
    """The tokenizer's loss of a batch, as one module with all its networks: DDP wraps a module's `forward` only."""

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        *,
        weights: LossWeights,
        discriminator: nn.Module | None = None,
        **perceptual: nn.Module,
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.weights = weights
        self.perceptual = nn.ModuleDict(perceptual)  # image_perceptual, video_perceptual, or neither
        self.others = {"discriminator": discriminator}  # in a dict, no submodule: another optimizer trains it

    def forward(self, video: Tensor, frame_mask: Tensor | None = None) -> TokenizerLosses:
        return self.tokenizer.losses(video, frame_mask, weights=self.weights, **self.perceptual, **self.others)

    def balance(self, reconstruction: Tensor, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Norms (2,) of the gradients at a reconstruction: of all other terms, and of the adversarial one."""
        reconstruction = reconstruction.detach().requires_grad_()
        parts = tokenizer_losses(
            reconstruction,
            video,
            reconstruction.new_zeros(()),
            frame_mask,
            weights=self.weights._replace(adversarial=1.0),
            **self.perceptual,
            **self.others,
        )
        terms = (parts.total - parts.adversarial, parts.adversarial)
        return torch.stack([torch.autograd.grad(term, reconstruction, retain_graph=True)[0].norm() for term in terms])


class DiscriminatorStep(nn.Module):
    """The discriminator's loss in all its parts, as a module that DDP can wrap."""

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, fake: Tensor, frame_mask: Tensor) -> DiscriminatorLosses:
        return self.discriminator.losses(real, fake, frame_mask)


class DiscriminatorTraining:
    """The `Adversary` of a tokenizer: it trains the discriminator and sets the weight of the adversarial term.

    ratio   norm of the adversarial gradient at the reconstruction, over that of the other terms
    start   the step from which the discriminator is trained
    ramp    number of steps after it in which the ratio grows from 0, so that an untrained discriminator has no weight
    frames  number of frames of each clip, chosen at random, that the discriminator learns from, because neighbours
            are alike; the adversarial term is over all frames

    The weight that gives this ratio is measured every BALANCE_EVERY steps, because the discriminator's gradient grows
    a hundredfold while it learns; it never exceeds the paper's. VQGAN's adaptive weight (Esser et al. 2021,
    https://arxiv.org/abs/2012.09841, equation 7) is measured at the decoder's last layer instead.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        discriminator: nn.Module,
        tokenizer: TokenizerStep,
        recipe: Recipe,
        *,
        ratio: float,
        start: int,
        ramp: int,
        frames: int,
    ):
        # The penalty is added in every 16th step, sixteen times as large: clipping would undo that.
        recipe = recipe._replace(clip=math.inf)
        self.accelerator, self.recipe = accelerator, recipe
        self.ratio, self.start, self.ramp, self.frames = ratio, start, ramp, frames
        self.discriminator, self.tokenizer = discriminator, tokenizer
        self.equal = 0.0  # the weight at which both gradients have the same norm
        optimizers = build_optimizers(discriminator, recipe)
        self.prepared, *self.optimizers = accelerator.prepare(DiscriminatorStep(discriminator), *optimizers)
        self.prepared.train()
        self.rows: list[Tensor] = []

    def before(self, step: int) -> None:
        """Set the weight of the adversarial term in this step."""
        ratio = self.ratio * min(1.0, max(0.0, (step - self.start) / max(1, self.ramp)))
        weight = min(ratio * self.equal, PAPER_WEIGHTS.adversarial)
        self.tokenizer.weights = self.tokenizer.weights._replace(adversarial=weight)

    def after(self, step: int, batch: dict[str, Tensor], losses: TokenizerLosses) -> None:
        """The discriminator's step, on the batch and its reconstruction."""
        if step < self.start:
            return
        if (step - self.start) % BALANCE_EVERY == 0:
            norms = self.tokenizer.balance(losses.reconstruction, **batch)
            others, adversarial = self.accelerator.reduce(norms, "mean").tolist()
            self.equal = others / max(adversarial, 1e-12)
        video = batch["video"]
        every = torch.ones_like(video[:, 0, :, 0, 0], dtype=torch.bool)
        chosen = random_frames(batch.get("frame_mask", every), self.frames)
        parts = self.prepared(video, losses.reconstruction, chosen)
        update(self.accelerator, self.prepared, self.optimizers, parts.total, self.recipe, step - self.start)
        weight = parts.total.new_tensor(self.tokenizer.weights.adversarial)
        self.rows.append(torch.stack((*parts[1:], weight)).detach())

    def row(self) -> dict[str, float]:
        """Means for the curves, since the last call."""
        rows = torch.stack(self.rows).mean(dim=0).tolist() if self.rows else [float("nan")] * len(SHOWN)
        self.rows.clear()
        return dict(zip(SHOWN, rows))

    def state_dict(self) -> dict:
        """The state for a checkpoint."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"discriminator": self.discriminator.state_dict(), "optimizers": states, "equal": self.equal}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a checkpoint."""
        self.equal = state["equal"]
        self.discriminator.load_state_dict(state["discriminator"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def random_frames(frame_mask: Tensor, count: int) -> Tensor:
    """Choose `count` of the frames of each clip that `frame_mask` has, or all if they are fewer: bool (b, f)."""
    order = torch.rand(frame_mask.shape, device=frame_mask.device).masked_fill(~frame_mask, -1.0)
    chosen = order.topk(min(count, frame_mask.shape[1]), dim=1).indices
    return torch.zeros_like(frame_mask).scatter(1, chosen, True) & frame_mask
