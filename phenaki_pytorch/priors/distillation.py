"""Guidance distillation: a MaskGit learns to predict in one pass what a frozen copy predicts in two, under guidance.

Meng et al. 2023, https://arxiv.org/abs/2210.03142.

b = batch · t, h, w = grid · m = text tokens · c = dim_context · p = masked · k = num_tokens
"""

import copy

import torch
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_same, check_scales
from phenaki_pytorch.core.contracts import Prior
from phenaki_pytorch.priors.token_transformer import TokenTransformer


class GuidedTeacher(nn.Module):
    """A trained MaskGit under guidance gives the training target of another: `maskgit(ids, context, teacher=...)`.

    A model that has learnt from it is sampled with a `cond_scale` of 1.

    maskgit     the trained model, of any size, that reads texts; a copy is kept, frozen and in eval mode
    cond_scale  its guidance, as in `SamplingOptions`

    Raises ValueError for an unconditional model and for a negative or infinite scale, TypeError for another module.
    """

    def __init__(self, maskgit: TokenTransformer, *, cond_scale: float):
        super().__init__()
        check_scales(cond_scale=cond_scale)
        if not isinstance(maskgit, Prior):
            raise TypeError(f"maskgit must be a MaskGit, got a {type(maskgit).__name__}")
        if maskgit.dim_context is None:
            raise ValueError("guidance needs a maskgit that reads texts, got an unconditional one")
        self.maskgit = copy.deepcopy(maskgit).requires_grad_(False).eval()
        self.cond_scale = cond_scale

    def train(self, mode: bool = True) -> "GuidedTeacher":
        """The teacher stays in eval mode."""
        return super().train(False)

    def check_fits(self, maskgit: TokenTransformer) -> None:
        """Raise ValueError where `num_tokens` or `dim_context` differ."""
        check_same(self.maskgit, maskgit, "num_tokens", "dim_context", message="the teacher's {} must be the learner's")

    @torch.no_grad()
    def forward(
        self,
        ids: Tensor,
        masked: Tensor,
        context: Tensor,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """The guided logits (p, k) of the masked ids; arguments as in `MaskGit.logits`."""
        self.maskgit.check_grid(ids)
        context_mask = self.maskgit.check_context(context, context_mask, len(ids))
        guidance = self.maskgit.guidance(context, context_mask, cond_scale=self.cond_scale)
        return self.maskgit.masked_logits(ids, masked, guidance, token_mask=token_mask)
