"""The tokenizer's training step with perceptual and adversarial terms, and the discriminator's own side of it.

b = batch · c = channels · f = frames
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from phenaki_pytorch import CViViT, Discriminator, LossWeights
from phenaki_pytorch.losses import TokenizerLosses
from training_loop import Recipe, build_optimizers, update


class TokenizerStep(nn.Module):
    """The loss of a batch, with all networks that take part in it: what DDP wraps, as it follows `forward` alone."""

    def __init__(
        self,
        cvivit: CViViT,
        *,
        weights: LossWeights,
        image_perceptual: nn.Module | None = None,
        video_perceptual: nn.Module | None = None,
        discriminator: Discriminator | None = None,
    ):
        super().__init__()
        self.cvivit = cvivit
        self.weights = weights
        self.image_perceptual = image_perceptual
        self.video_perceptual = video_perceptual
        self.others = {"discriminator": discriminator}  # in a dict, no part of this: it has an optimizer of its own

    def forward(self, video: Tensor, frame_mask: Tensor | None = None) -> TokenizerLosses:
        return self.cvivit.losses(
            video,
            frame_mask,
            image_perceptual=self.image_perceptual,
            video_perceptual=self.video_perceptual,
            weights=self.weights,
            **self.others,
        )


class AdversarialOpponent:
    """The discriminator in training: it starts at step `start`, and its say in the tokenizer's loss grows from there
    to its full weight over `ramp` steps, so that it is never asked before it has learnt anything.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        discriminator: Discriminator,
        tokenizer: TokenizerStep,
        recipe: Recipe,
        *,
        start: int,
        ramp: int,
    ):
        self.accelerator, self.recipe, self.start, self.ramp = accelerator, recipe, start, ramp
        self.discriminator, self.tokenizer = discriminator, tokenizer
        self.full = tokenizer.weights
        optimizers = build_optimizers(discriminator, recipe)
        self.prepared, *self.optimizers = accelerator.prepare(discriminator, *optimizers)
        self.prepared.train()
        self.rows: list[Tensor] = []

    def before(self, step: int) -> None:
        """Weigh the adversarial term for this step."""
        share = min(1.0, max(0.0, (step - self.start) / max(1, self.ramp)))
        self.tokenizer.weights = self.full._replace(adversarial=self.full.adversarial * share)

    def after(self, step: int, batch: dict[str, Tensor], losses: TokenizerLosses) -> None:
        """The discriminator's step, on what the tokenizer has just made of the batch."""
        if step < self.start:
            return
        loss = self.prepared(batch["video"], losses.reconstruction, batch.get("frame_mask"))
        update(self.accelerator, self.prepared, self.optimizers, loss, self.recipe, step - self.start)
        self.rows.append(torch.stack((loss.detach(), losses.adversarial.detach(), losses.fake_logits)))

    def row(self) -> dict[str, float]:
        """What the curves show of it, means since the last call."""
        rows = torch.stack(self.rows).mean(dim=0).tolist() if self.rows else [float("nan")] * 3
        self.rows.clear()
        return dict(zip(("discriminator_loss", "adversarial", "fake_logits"), rows))

    def state_dict(self) -> dict:
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"discriminator": self.discriminator.state_dict(), "optimizers": states}

    def load_state_dict(self, state: dict) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
