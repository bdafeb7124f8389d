"""TextConditioned: how a prior reads a text, with a learned null context that stands for a missing one.

Training replaces a share of the texts by the null context, for classifier-free guidance
(https://arxiv.org/abs/2207.12598).

b = batch · m = text tokens · c = dim_context
"""

import torch
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_scales
from phenaki_pytorch.core.modules import CastsInput, through_call
from phenaki_pytorch.core.saving import Pretrained
from phenaki_pytorch.layers.attention import Context
from phenaki_pytorch.layers.texts import check_context, with_null
from phenaki_pytorch.priors.guidance import Guidance


class TextConditioned(Pretrained):
    """A prior that is given a text, or none where `dim_context` is None."""

    dim_context: int | None
    cond_drop_prob: float

    def build_context(self, dim_context: int | None, cond_drop_prob: float) -> None:
        """Build what reads the text; to be called by the constructor."""
        self.dim_context = dim_context
        self.cond_drop_prob = cond_drop_prob
        if dim_context is not None:
            # Text encoders differ in scale by orders of magnitude.
            self.context_norm = CastingLayerNorm(dim_context)
            self.null_context = nn.Parameter(torch.randn(dim_context))

    @through_call
    def guidance(
        self, context: Tensor | None, context_mask: Tensor | None, *, cond_scale: float, every: int = 1
    ) -> Guidance:
        """Guidance by texts, embeddings (b, m, c) and their mask, over the passes of one generation.

        Raises ValueError for a scale that is negative or not finite.
        """
        check_scales(cond_scale=cond_scale)
        text = self.read_context(context, context_mask)
        null = self.null_context_like(text)
        if cond_scale == 0:  # one pass without the text
            return Guidance(null, null, cond_scale=1.0)
        return Guidance(text, null, cond_scale=cond_scale, every=every)

    @through_call
    def read_context(
        self, context: Tensor | None, context_mask: Tensor | None, dropped: Tensor | None = None
    ) -> Context | None:
        """What the blocks read: embeddings (b, m, c) of the texts, without those that are `dropped`, bool (b,).

        Where none is dropped the null context still enters the graph, because DDP needs a gradient of every parameter.
        """
        if context is None:
            return None
        # Padding may hold anything, and attention multiplies what it masks by 0.
        context = self.context_norm(context.masked_fill(~context_mask[..., None], 0))
        if dropped is None:
            return Context(context, context_mask)
        return self._with_null(context, context_mask, dropped)

    @through_call
    def null_context_like(self, context: Context | None) -> Context | None:
        """The null context for as many samples, of the same shape."""
        if context is None:
            return None
        dropped = torch.ones(len(context), dtype=torch.bool, device=context.embeddings.device)
        return self._with_null(context.embeddings, context.mask, dropped)

    def _with_null(self, context: Tensor, context_mask: Tensor, dropped: Tensor) -> Context:
        """Replace the texts that are `dropped`, bool (b,), by the null context."""
        return Context(*with_null(context, context_mask, self.null_context, dropped))

    def draw_dropped(self, context: Tensor | None) -> Tensor | None:
        """Which texts training drops: bool (b,); None without a context, and in eval mode."""
        if context is None or not self.training:
            return None
        return torch.rand(len(context), device=context.device) < self.cond_drop_prob

    def check_context(
        self, context: Tensor | None, context_mask: Tensor | None, batch_size: int, *, values: bool = False
    ) -> Tensor | None:
        """Refuse what does not fit; returns the mask to use. `values`: look at it on other devices, too."""
        return check_context(context, context_mask, self.dim_context, batch_size, values=values)


class CastingLayerNorm(CastsInput, nn.LayerNorm):
    """A norm whose input may have any dtype."""
