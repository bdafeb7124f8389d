"""Classifier-free guidance over the passes of one generation.

    null + cond_scale · (cond − null)        Ho and Salimans 2022, https://arxiv.org/abs/2207.12598

It is applied to the features; the logits are linear in them and so are guided by the same scale.

b = batch · n = tokens · p = masked tokens of the batch · d = dim
"""

import torch
from torch import Tensor

from phenaki_pytorch.layers.attention import Context


class Guidance:
    """Chooses the context of each pass, and combines the features with and without the text.

    context     the text's, of b samples, or None without a text
    null        the null context of as many samples
    cond_scale  1 is no guidance: the null side is then never computed
    every       the null side is computed in every n-th step, the first included; in the others a token reuses
                cond − null from the last such step in which it was masked
    """

    def __init__(self, context: Context | None, null: Context | None, *, cond_scale: float, every: int = 1):
        self.cond_scale = cond_scale
        self.every = every
        self._guides = context is not None and cond_scale != 1
        self._context = self._both = context
        if self._guides:
            embeddings = torch.cat((context.embeddings, null.embeddings))
            self._both = Context(embeddings, torch.cat((context.mask, null.mask)))
        self._difference: Tensor | None = None  # cond − null, float32 (b, n, d)

    def context(self, step: int = 0) -> Context | None:
        """What the pass of a step reads: the text, and in some steps the null context after it, as one batch."""
        return self._both if step % self.every == 0 else self._context

    def __call__(self, features: Tensor, mask: Tensor | None = None, step: int = 0) -> Tensor:
        """The guided features of a step, from those of its context.

        features  (p, d) of the masked tokens, or (b, n, d) of all; twice as many where null was computed, cond first
        mask      bool (b, n), which tokens are masked; needed only with `every` above 1
        """
        if not self._guides:
            return features
        if step % self.every:
            cond, difference = features.float(), self._difference[mask]
        else:
            cond, null = features.float().chunk(2)
            difference = cond - null
            if self.every > 1:
                self._keep(difference, mask)
        return (cond + (self.cond_scale - 1) * difference).to(features.dtype)

    def _keep(self, difference: Tensor, mask: Tensor) -> None:
        """Keep the difference at the masked tokens; the others keep theirs from before."""
        if self._difference is None:
            self._difference = difference.new_zeros(*mask.shape, difference.shape[-1])
        self._difference = self._difference.masked_scatter(mask[..., None], difference)
