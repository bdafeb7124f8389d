"""The tokenizer's training step with perceptual and adversarial terms, and the discriminator's own side of it.

b = batch · c = channels · f = frames
"""

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from phenaki_pytorch import CViViT, Discriminator, LossWeights
from phenaki_pytorch.discriminator import DiscriminatorLosses
from phenaki_pytorch.losses import PAPER_WEIGHTS, TokenizerLosses, tokenizer_losses
from training_loop import Recipe, build_optimizers, update

BALANCE_EVERY = 16  # steps

# The loss of the discriminator and, apart from it, its penalty; its mean logits; the weight of its say.
SHOWN = ("discriminator_loss", "r1", "real_logits", "fake_logits", "adversarial_weight")


class TokenizerStep(nn.Module):
    """The loss of a batch, with all networks that take part in it: what DDP wraps, as it follows `forward` alone."""

    def __init__(
        self,
        cvivit: CViViT,
        *,
        weights: LossWeights,
        discriminator: Discriminator | None = None,
        **perceptual: nn.Module,
    ):
        super().__init__()
        self.cvivit = cvivit
        self.weights = weights
        self.perceptual = nn.ModuleDict(perceptual)  # image_perceptual, video_perceptual, or neither
        self.others = {"discriminator": discriminator}  # in a dict, no part of this: it has an optimizer of its own

    def forward(self, video: Tensor, frame_mask: Tensor | None = None) -> TokenizerLosses:
        return self.cvivit.losses(video, frame_mask, weights=self.weights, **self.perceptual, **self.others)

    def balance(self, made: Tensor, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Norms (2,) of the gradients at a reconstruction: of all other terms, and of the adversarial one by itself."""
        made = made.detach().requires_grad_()
        parts = tokenizer_losses(
            made,
            video,
            made.new_zeros(()),
            frame_mask,
            weights=self.weights._replace(adversarial=1.0),
            **self.perceptual,
            **self.others,
        )
        terms = (parts.total - parts.adversarial, parts.adversarial)
        return torch.stack([torch.autograd.grad(term, made, retain_graph=True)[0].norm() for term in terms])


class DiscriminatorStep(nn.Module):
    """The discriminator with every part of its loss for its result, to be wrapped by DDP."""

    def __init__(self, discriminator: Discriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, fake: Tensor, frame_mask: Tensor) -> DiscriminatorLosses:
        return self.discriminator.losses(real, fake, frame_mask)


class AdversarialOpponent:
    """The discriminator in training: it starts at step `start`, and its say in the tokenizer's loss grows from there
    to all of it over `ramp` steps, so that it is never asked before it has learnt anything.

    Its say is a `share`: how large its gradient at the reconstruction is over that of the other terms. The weight
    that makes it so is measured every BALANCE_EVERY steps, as the discriminator's gradient grows a hundredfold while
    it learns; it is never more than the paper's. VQGAN's adaptive weight (Esser et al. 2021,
    https://arxiv.org/abs/2012.09841, equation 7) is measured at the decoder's last layer instead.

    It learns from so many `frames` of each clip, as neighbours show it the same; its say is over all of them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        discriminator: Discriminator,
        tokenizer: TokenizerStep,
        recipe: Recipe,
        *,
        share: float,
        start: int,
        ramp: int,
        frames: int,
    ):
        # The penalty comes in every 16th step, sixteenfold: clipped, it would weigh a sixteenth.
        recipe = recipe._replace(clip=math.inf)
        self.accelerator, self.recipe = accelerator, recipe
        self.share, self.start, self.ramp, self.frames = share, start, ramp, frames
        self.discriminator, self.tokenizer = discriminator, tokenizer
        self.equal = 0.0  # the weight at which both gradients are equally large
        optimizers = build_optimizers(discriminator, recipe)
        self.prepared, *self.optimizers = accelerator.prepare(DiscriminatorStep(discriminator), *optimizers)
        self.prepared.train()
        self.rows: list[Tensor] = []

    def before(self, step: int) -> None:
        """Weigh the adversarial term for this step."""
        share = self.share * min(1.0, max(0.0, (step - self.start) / max(1, self.ramp)))
        weight = min(share * self.equal, PAPER_WEIGHTS.adversarial)
        self.tokenizer.weights = self.tokenizer.weights._replace(adversarial=weight)

    def after(self, step: int, batch: dict[str, Tensor], losses: TokenizerLosses) -> None:
        """The discriminator's step, on what the tokenizer has just made of the batch."""
        if step < self.start:
            return
        if (step - self.start) % BALANCE_EVERY == 0:
            norms = self.tokenizer.balance(losses.reconstruction, **batch)
            others, adversarial = self.accelerator.reduce(norms, "mean").tolist()
            self.equal = others / max(adversarial, 1e-12)
        video = batch["video"]
        mask = drawn_frames(
            batch.get("frame_mask", torch.ones_like(video[:, 0, :, 0, 0], dtype=torch.bool)), self.frames
        )
        parts = self.prepared(video, losses.reconstruction, mask)
        update(self.accelerator, self.prepared, self.optimizers, parts.total, self.recipe, step - self.start)
        weight = parts.total.new_tensor(self.tokenizer.weights.adversarial)
        self.rows.append(torch.stack((*parts[1:], weight)).detach())

    def row(self) -> dict[str, float]:
        """What the curves show of it, means since the last call."""
        rows = torch.stack(self.rows).mean(dim=0).tolist() if self.rows else [float("nan")] * len(SHOWN)
        self.rows.clear()
        return dict(zip(SHOWN, rows))

    def state_dict(self) -> dict:
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"discriminator": self.discriminator.state_dict(), "optimizers": states, "equal": self.equal}

    def load_state_dict(self, state: dict) -> None:
        self.equal = state["equal"]
        self.discriminator.load_state_dict(state["discriminator"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def drawn_frames(frame_mask: Tensor, count: int) -> Tensor:
    """Bool (b, f): of the frames of each clip that `frame_mask` has, `count` at random, or all if they are fewer."""
    order = torch.rand(frame_mask.shape, device=frame_mask.device).masked_fill(~frame_mask, -1.0)
    drawn = order.topk(min(count, frame_mask.shape[1]), dim=1).indices
    return torch.zeros_like(frame_mask).scatter(1, drawn, True) & frame_mask
