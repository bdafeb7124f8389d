"""TokenTransformer: a transformer over ids, some of them masked, given a text or none; `outputs` numbers per id.

MaskGit and TokenCritic share it: the embedding of the ids, their positions, the transformer, and the null context that
stands for a missing text.

b = batch · t, h, w = grid · n = t · h · w · p = masked ids of the batch · m = text tokens · c = dim_context · d = dim
"""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from phenaki_pytorch.core.checks import (
    check_at_least,
    check_finite,
    check_ids,
    check_items,
    check_mask,
    check_probabilities,
    check_scales,
)
from phenaki_pytorch.core.modules import CastsInput, through_call
from phenaki_pytorch.core.saving import Pretrained
from phenaki_pytorch.layers.attention import Context
from phenaki_pytorch.layers.positions import LearnedPositions, check_dim_head, rotary
from phenaki_pytorch.layers.transformer import Transformer, init_weights
from phenaki_pytorch.priors.guidance import Guidance
from phenaki_pytorch.priors.masking import masked_positions


class TokenTransformer(Pretrained):
    """A transformer over ids (b, t, h, w), and a linear map `to_logits` from its features to `outputs` numbers per id.

    MaskGit and TokenCritic document the other arguments.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        grid: Sequence,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        dim_context: int | None,
        cond_drop_prob: float,
        attn_dropout: float,
        ff_dropout: float,
        outputs: int,
    ):
        super().__init__()
        sizes = {"num_tokens": num_tokens, "dim": dim, "depth": depth, "heads": heads, "dim_head": dim_head}
        shares = {"cond_drop_prob": cond_drop_prob, "attn_dropout": attn_dropout, "ff_dropout": ff_dropout}
        self.config = {**sizes, **shares, "grid": list(grid), "dim_context": dim_context}
        check_at_least(1, **sizes, dim_context=dim_context)
        check_probabilities(**shares)
        check_dim_head(dim_head, axes=3)
        check_items("grid", grid, int)
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"grid must be (t, h, w), each at least 1, got {tuple(grid)}")
        self.num_tokens = num_tokens
        self.grid = tuple(grid)
        self.dim = dim
        self.dim_head = dim_head
        self.dim_context = dim_context
        self.cond_drop_prob = cond_drop_prob

        self.embed = nn.Embedding(num_tokens + 1, dim)  # the last row is [MASK]
        self.positions = LearnedPositions(dim, self.grid)
        self.transformer = Transformer(
            dim,
            depth,
            heads=heads,
            dim_head=dim_head,
            dim_context=dim_context,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
        )
        self.to_logits = nn.Linear(dim, outputs)
        init_weights(self)
        if dim_context is not None:
            # Text encoders differ in scale by orders of magnitude.
            self.context_norm = CastingLayerNorm(dim_context)
            self.null_context = nn.Parameter(torch.randn(dim_context))

    @through_call
    def placement(self) -> Tensor:
        """A tensor on the device and of the dtype of the features."""
        return self.positions((1, 1, 1))

    # features

    @through_call
    def features(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        context: Context | None = None,
        token_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Ids (b, t, h, w) -> features (b, n, d).

        mask        bool (b, t, h, w), True for ids that are replaced by [MASK]
        context     of b texts, or of k · b: then each sample is computed with k of them -> (k · b, n, d)
        token_mask  bool (b, t, h, w), True for real tokens; the others are not attended to
        positions   int64 (b, p), the tokens whose features are wanted if not all -> (b, p, d)
        """
        if mask is not None:
            ids = ids.masked_fill(mask, self.num_tokens)
        grid = tuple(ids.shape[1:])
        x = rearrange(self.embed(ids), "b t h w d -> b (t h w) d") + self.positions(grid)
        if token_mask is not None:
            token_mask = rearrange(token_mask, "b t h w -> b 1 1 (t h w)")
        if context is not None and len(context) != len(x):
            x, token_mask, positions = (_repeated(part, len(context) // len(x)) for part in (x, token_mask, positions))
        angles = rotary(grid, self.dim_head, x.device)
        return self.transformer(x, rotary=angles, mask=token_mask, context=context, positions=positions)

    @through_call
    def masked_features(
        self, ids: Tensor, mask: Tensor, *, context: Context | None = None, token_mask: Tensor | None = None
    ) -> Tensor:
        """The features (p, d) of the masked ids, in order; (k · p, d) where there are k contexts for each sample."""
        mask_flat = rearrange(mask, "b t h w -> b (t h w)")
        positions = masked_positions(mask_flat)
        x = self.features(ids, mask, context=context, token_mask=token_mask, positions=positions)
        wanted = mask_flat if positions is None else mask_flat.gather(1, positions)
        return x[_repeated(wanted, len(x) // len(ids))]

    @through_call
    def masked_logits(
        self, ids: Tensor, mask: Tensor, guidance: Guidance, step: int = 0, *, token_mask: Tensor | None = None
    ) -> Tensor:
        """The guided outputs (p, outputs) of the masked ids, in order. Arguments as in `features` and `Guidance`."""
        x = self.masked_features(ids, mask, context=guidance.context(step), token_mask=token_mask)
        return self.to_logits(guidance(x, rearrange(mask, "b t h w -> b (t h w)"), step))

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

    # context

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
        """Replace the texts that are `dropped`, bool (b,), by the null context, which is one learned token."""
        context = torch.where(dropped[:, None, None], self.null_context.to(context.dtype), context)
        only_first = torch.arange(context.shape[1], device=context.device) == 0
        return Context(context, torch.where(dropped[:, None], only_first, context_mask))

    def draw_dropped(self, context: Tensor | None) -> Tensor | None:
        """Which texts training drops: bool (b,); None without a context, and in eval mode."""
        if context is None or not self.training:
            return None
        return torch.rand(len(context), device=context.device) < self.cond_drop_prob

    # checks

    def check_grid(self, ids: Tensor, *, values: bool = False) -> None:
        """Refuse ids that are not int64 (b, t, h, w), in [0, num_tokens), of a grid up to `self.grid`.

        `values`: look at them on other devices than the CPU, too.
        """
        check_ids(ids, self.num_tokens, values=values)
        if any(got > most for got, most in zip(ids.shape[1:], self.grid)):
            raise ValueError(f"the ids must fit into the grid {self.grid}, got {tuple(ids.shape[1:])}")

    def check_token_mask(self, token_mask: Tensor | None, ids: Tensor) -> None:
        """Refuse what is not bool of the ids' shape, True somewhere in every sample."""
        if token_mask is not None:
            check_mask("token_mask", token_mask, ids.shape)

    def check_context(
        self, context: Tensor | None, context_mask: Tensor | None, batch_size: int, *, values: bool = False
    ) -> Tensor | None:
        """Refuse what does not fit; returns the mask to use. `values`: look at it on other devices, too."""
        if self.dim_context is None:
            if context is not None or context_mask is not None:
                raise ValueError("this model is unconditional (dim_context is None): expected no context, got one")
            return None
        if context is None:
            raise ValueError(f"this model needs a context (b, m, {self.dim_context}), got none")
        if not context.is_floating_point():
            raise TypeError(f"context must be floating point, got {context.dtype}")
        if context.ndim != 3 or context.shape[-1] != self.dim_context or 0 in context.shape:
            raise ValueError(f"context must be (b, m, {self.dim_context}), none empty, got {tuple(context.shape)}")
        if len(context) != batch_size:
            raise ValueError(f"the context has a batch of {len(context)}, expected {batch_size}")
        if context_mask is None:
            context_mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        else:
            check_mask("context_mask", context_mask, context.shape[:2], values=values)
        check_finite("context", context, mask=context_mask, look=values)
        return context_mask


class CastingLayerNorm(CastsInput, nn.LayerNorm):
    """A norm whose input may have any dtype."""


def _repeated(x: Tensor | None, k: int) -> Tensor | None:
    """(b, ...) -> (k · b, ...)."""
    return x if x is None or k == 1 else repeat(x, "b ... -> (k b) ...", k=k)


def on_grid(x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Values of tokens in raster order, (b, n) -> (b, t, h, w)."""
    t, h, w = grid
    return rearrange(x, "b (t h w) -> b t h w", t=t, h=h, w=w)
