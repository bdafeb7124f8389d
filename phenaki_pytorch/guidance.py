"""Classifier-free guidance of the features of a TokenTransformer: in every pass, or learnt once and for all.

    null + cond_scale · (cond − null)        Ho and Salimans 2022, https://arxiv.org/abs/2207.12598

The output is linear in the features and so is guided by the same scale.

b = batch · t, h, w = grid · n = t · h · w · p = places · m = text tokens · c = dim_context · d = dim
"""

import copy

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.attention import take
from phenaki_pytorch.checks import check_same
from phenaki_pytorch.sampling import check_scales, masked_places, of_masked
from phenaki_pytorch.token_transformer import TokenTransformer


class GuidedFeatures:
    """A callable (ids, hidden, places, step) -> guided features, for many passes.

    What does not change from pass to pass is computed once, both sides go through the transformer as one batch, which
    parts where the first context is read, and with a scale of 1 or without a context the null side is not computed at
    all. Nor is it in the steps that `every` leaves out: these take cond − null as it was when a place was last hidden.

    reader      the transformer
    grid        (t, h, w) of the ids
    context     (b, m, c) and context_mask, bool (b, m), or None: there is nothing to guide
    cond_scale  1 is no guidance; may be set anew between passes, if it was not 1 at first
    every       the null side is computed in each so-manieth step, the first included
    token_mask  bool (b, n), False where nobody may look

    `conditional` holds what the last pass made of the ids under their text, unguided: (b, p, d) of the places that were
    asked for, or, with `everywhere` set, (b, n, d) of all. Raises ValueError where the context does not fit.
    """

    def __init__(
        self,
        reader: TokenTransformer,
        grid: tuple[int, int, int],
        context: Tensor | None,
        context_mask: Tensor | None,
        cond_scale: float,
        *,
        every: int = 1,
        token_mask: Tensor | None = None,
    ):
        b = 0 if context is None else len(context)
        context_mask = reader.check_context(context, context_mask, b)
        self.reader, self.cond_scale, self.every, self.everywhere = reader, cond_scale, every, False
        self.layout, self.token_mask = reader.layout(grid), token_mask
        self.knows_null = context is not None and cond_scale != 1
        both = plain = (None, None)  # keys and values, and the context's mask
        if context is not None:
            context = reader.context_norm(context)
            if self.knows_null:
                dropped = torch.ones(b, dtype=torch.bool, device=context.device)
                null, null_mask = reader.with_null(context, context_mask, dropped)
                context, context_mask = torch.cat((context, null)), torch.cat((context_mask, null_mask))
            both = reader.transformer.keys_values(context), context_mask
            plain = [(keys[:b], values[:b]) for keys, values in both[0]], context_mask[:b]
        self._both, self._plain = both, plain
        self.conditional: Tensor | None = None
        self._apart: Tensor | None = None  # cond − null where it was last hidden, float32 (b, n, d)

    def __call__(self, ids: Tensor, hidden: Tensor | None, places: Tensor | None, step: int) -> Tensor:
        """Features (b, p, d) of ids (b, n), of which those in `hidden`, bool (b, n), are not shown.

        places  int64 (b, p), where they are wanted; None: everywhere, (b, n, d)
        step    of the generation, counted from 0
        """
        guides = self.knows_null and self.cond_scale != 1
        both_sides = guides and (step % self.every == 0 or self._apart is None)
        keys_values, context_mask = self._both if both_sides else self._plain
        computed = None if self.everywhere else places
        x = self.reader.features(
            ids,
            hidden,
            layout=self.layout,
            token_mask=self.token_mask,
            keys_values=keys_values,
            context_mask=context_mask,
            places=computed,
        )
        self.conditional = x[: len(ids)]
        if not guides:
            return self._of(x, places)
        if both_sides:
            cond, null = x.float().chunk(2)
            apart = cond - null
            guided = null + self.cond_scale * apart
            if self.every > 1:
                self._keep(apart, hidden, computed)
        else:
            apart = self._apart if computed is None else take(self._apart, computed)
            guided = x.float() + (self.cond_scale - 1) * apart
        return self._of(guided.to(x.dtype), places)

    def _of(self, x: Tensor, places: Tensor | None) -> Tensor:
        """The features that were asked for."""
        return take(x, places) if self.everywhere and places is not None else x

    def _keep(self, apart: Tensor, hidden: Tensor, places: Tensor | None) -> None:
        """What lies between the sides at the hidden places; at those that are shown, what lay there before, stays."""
        if places is not None:
            everywhere = apart.new_zeros(*hidden.shape, apart.shape[-1])
            apart = everywhere.scatter(1, places[..., None].expand_as(apart), apart)
        before = torch.zeros_like(apart) if self._apart is None else self._apart
        self._apart = torch.where(hidden[..., None], apart, before)


class GuidedTeacher(nn.Module):
    """What a trained MaskGit says under guidance, for another to learn to say in one pass.

    Guidance distillation (Meng et al. 2023, https://arxiv.org/abs/2210.03142): `MaskGit(ids, context, teacher=...)`.
    What has learnt from it is to be asked with a `cond_scale` of 1.

    maskgit     the trained model, of any size, that reads texts; a copy is kept, frozen and in eval mode
    cond_scale  its guidance, as in `MaskGit.generate`

    Raises ValueError for a model without texts and for what is no guidance.
    """

    def __init__(self, maskgit: TokenTransformer, *, cond_scale: float):
        super().__init__()
        check_scales(cond_scale=cond_scale)
        if maskgit.dim_context is None:
            raise ValueError("expected a maskgit that reads texts, got an unconditional one: there is nothing to guide")
        self.maskgit = copy.deepcopy(maskgit).requires_grad_(False).eval()
        self.cond_scale = cond_scale

    def train(self, mode: bool = True) -> "GuidedTeacher":
        """It has learnt: the mode stays eval."""
        return super().train(False)

    def check_fits(self, maskgit: TokenTransformer) -> None:
        """Refuse, with a ValueError, to teach a model of other ids or of other texts."""
        check_same(
            self.maskgit, maskgit, "num_tokens", "dim_context", expected="the teacher's {} must be the learner's"
        )

    @torch.no_grad()
    def forward(
        self,
        ids: Tensor,
        masked: Tensor,
        context: Tensor,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """The guided logits (p, k) of the masked ids, all but them as in `MaskGit.logits`."""
        grid = self.maskgit.check_grid(ids)[1:]
        ids, masked = (rearrange(part, "b t h w -> b (t h w)") for part in (ids, masked))
        if token_mask is not None:
            token_mask = rearrange(token_mask, "b t h w -> b (t h w)")
        features = GuidedFeatures(self.maskgit, grid, context, context_mask, self.cond_scale, token_mask=token_mask)
        places = masked_places(masked)
        return self.maskgit.to_logits(of_masked(features(ids, masked, places, 0), masked, places))
