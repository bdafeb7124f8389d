"""Critics: which of the ids that MaskGit has sampled are wrong, so that sampling masks those again.

MaskGIT's confidence in an id dates from the step that sampled it, and a known id is never masked again. A critic looks
at all ids together (Token-Critic, Lezama et al. 2022, https://arxiv.org/abs/2209.04439).

    training    true ids, some masked -> MaskGit samples the masked ones -> the critic classifies each id: was it
                sampled, and does it differ from the truth? (binary cross-entropy)
    sampling    the ids that are most likely wrong are masked again: `MaskGit.generate(critic=...)`

b = batch · t, h, w = grid · n = t · h · w · m = text tokens · c = dim_context · d = dim
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_bool, check_same
from phenaki_pytorch.core.modules import CastingLinear, through_call, uncompiled
from phenaki_pytorch.core.saving import Pretrained
from phenaki_pytorch.priors.decoding import CriticLogits, by_confidence, sample
from phenaki_pytorch.priors.guidance import Guidance
from phenaki_pytorch.priors.maskgit import MaskGit, MaskGitLosses
from phenaki_pytorch.priors.masking import uniform
from phenaki_pytorch.priors.token_transformer import TokenTransformer, on_grid


class Critic(Pretrained):
    """What both critics share: a transformer over ids, their `backbone`, and `to_logits`, one output per id."""

    to_logits: nn.Linear

    @property
    def backbone(self) -> TokenTransformer:
        """The transformer whose features are classified."""
        raise NotImplementedError

    def check_fits(self, maskgit: nn.Module) -> None:
        """Refuse, with a ValueError, a MaskGit of other ids or of another text than this critic's."""
        check_same(self.backbone, maskgit, "num_tokens", "grid", message="the critic's {} must be maskgit's")
        if self.backbone.dim_context is not None:
            check_same(self.backbone, maskgit, "dim_context", message="the critic's {} must be None or maskgit's")

    def loss(
        self,
        ids: Tensor,
        wrong: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar: mean binary cross-entropy, in nats, over all real ids.

        ids           int64 (b, t, h, w), true and sampled ones
        wrong         bool (b, t, h, w), True where an id was sampled and differs from the truth
        context       text embeddings (b, m, c); context_mask: bool (b, m), True where real
        token_mask    bool (b, t, h, w), True where real; padding is neither attended to nor counted

        Raises ValueError where a shape, a size or (on the CPU) a value does not fit.
        """
        backbone = self.backbone
        backbone.check_grid(ids)
        context_mask = backbone.check_context(context, context_mask, len(ids))
        check_bool("wrong", wrong, ids.shape)
        backbone.check_token_mask(token_mask, ids)
        text = backbone.read_context(context, context_mask, backbone.draw_dropped(context))
        logits = self.read(backbone.features(ids, context=text, token_mask=token_mask))
        real = torch.ones_like(wrong) if token_mask is None else token_mask
        return F.binary_cross_entropy_with_logits(on_grid(logits, ids.shape[1:])[real].float(), wrong[real].float())

    @through_call
    def read(self, features: Tensor) -> Tensor:
        """Features (..., d) of the backbone -> logits (...) of each id being wrong."""
        return rearrange(self.to_logits(features), "... 1 -> ...")

    @through_call
    def critic_logits(
        self,
        grid: tuple[int, int, int],
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        cond_scale: float = 1.0,
    ) -> CriticLogits:
        """A callable ids (b, n) of a grid -> logits (b, n) of each being wrong, under a text and guidance.

        A critic without `dim_context` ignores the text. `cond_scale`: as in `SamplingOptions`.
        """
        backbone = self.backbone
        if backbone.dim_context is None:
            context = context_mask = None
        else:
            context_mask = backbone.check_context(context, context_mask, 0 if context is None else len(context))
        guidance = backbone.guidance(context, context_mask, cond_scale=cond_scale)
        return lambda ids: self.read(guidance(backbone.features(on_grid(ids, grid), context=guidance.context())))

    def inline(
        self,
        grid: tuple[int, int, int],
        guidance: Guidance,
        temperature: float,
        generator: torch.Generator | None = None,
    ) -> "InlineCritic":
        """Sample with this critic in the passes of its own MaskGit. ValueError for a critic without one."""
        raise ValueError(f"critic_inline needs a SelfCritic, got a {type(self).__name__}")


class TokenCritic(Critic, TokenTransformer):
    """A critic with a transformer of its own, which may be smaller than MaskGit's and may read the text or not.

    num_tokens       number of codes of the tokenizer
    grid             the largest (t, h, w) of ids: MaskGit's
    dim, depth       width and number of layers
    heads, dim_head  attention heads and their width
    dim_context      width of the text embeddings; None for a critic that looks at the ids alone
    cond_drop_prob   share of the texts that training replaces by the null context, for its guidance
    attn_dropout, ff_dropout   dropout of the attention weights, and of what each layer adds
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        grid: Sequence,
        dim: int,
        depth: int,
        heads: int = 8,
        dim_head: int = 64,
        dim_context: int | None = None,
        cond_drop_prob: float = 0.1,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
    ):
        TokenTransformer.__init__(
            self,
            num_tokens=num_tokens,
            grid=grid,
            dim=dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            dim_context=dim_context,
            cond_drop_prob=cond_drop_prob,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
            outputs=1,
        )

    @property
    def backbone(self) -> TokenTransformer:
        """Itself."""
        return self


class SelfCritic(Critic):
    """A critic that is one linear map on MaskGit's own features; its loss trains MaskGit's transformer as well.

    maskgit   the MaskGit to judge; it is no part of this module, whose state_dict is the map alone
    """

    def __init__(self, maskgit: nn.Module):
        super().__init__()
        if not isinstance(uncompiled(maskgit), MaskGit):
            raise TypeError(f"maskgit must be a MaskGit, got a {type(maskgit).__name__}")
        self.config = {"maskgit": self.GIVEN}
        self._maskgit = (maskgit,)  # in a tuple, so that it is not registered
        self.to_logits = CastingLinear(maskgit.dim, 1)  # MaskGit's features may have another dtype
        nn.init.zeros_(self.to_logits.bias)

    @property
    def backbone(self) -> TokenTransformer:
        """MaskGit."""
        return self._maskgit[0]

    def given(self) -> dict:
        """MaskGit."""
        return {"maskgit": self.backbone}

    def check_fits(self, maskgit: nn.Module) -> None:
        """Refuse, with a ValueError, any MaskGit but its own."""
        if uncompiled(maskgit) is not uncompiled(self.backbone):
            raise ValueError("expected the MaskGit that this SelfCritic was built on, got another")

    def inline(
        self,
        grid: tuple[int, int, int],
        guidance: Guidance,
        temperature: float,
        generator: torch.Generator | None = None,
    ) -> "InlineCritic":
        """See `InlineCritic`."""
        return InlineCritic(self, grid, guidance, temperature, generator)


class InlineCritic:
    """Parallel decoding with a SelfCritic that needs no pass of its own.

    The pass that gives the logits of the masked ids also gives features of the known ones. The critic scores known ids
    from these. Ids sampled in this step have no such score yet; their log-probability is used.
    """

    def __init__(
        self,
        critic: SelfCritic,
        grid: tuple[int, int, int],
        guidance: Guidance,
        temperature: float,
        generator: torch.Generator | None,
    ):
        self.critic, self.grid, self.guidance = critic, grid, guidance
        self._with_noise = by_confidence(temperature, generator)
        self._right: Tensor | None = None  # log-probabilities (b, n) of being right, of the last pass

    def logits(self, ids: Tensor, mask: Tensor, step: int) -> Tensor:
        """The `logits` of `parallel_decode`."""
        backbone, context = self.critic.backbone, self.guidance.context(step)
        x = backbone.features(on_grid(ids, self.grid), on_grid(mask, self.grid), context=context)
        self._right = F.logsigmoid(-self.critic.read(x[: len(ids)]).float())  # without guidance
        return backbone.to_logits(self.guidance(x[mask.repeat(len(x) // len(ids), 1)], mask, step))

    def confidence(self, ids: Tensor, log_probs: Tensor, progress: float) -> Tensor:
        """The `confidence` of `parallel_decode`."""
        return self._with_noise(ids, torch.where(log_probs.isinf(), self._right, log_probs), progress)


@torch.no_grad()
def fill_in(ids: Tensor, losses: MaskGitLosses) -> tuple[Tensor, Tensor]:
    """What a critic learns from: ids (b, t, h, w) whose masked ones MaskGit samples, and which of them are wrong.

    `losses` is what `MaskGit.losses` gave for these ids.
    """
    sampled, _ = sample(losses.logits, uniform(losses.logits.shape[:1], losses.logits.device))
    filled = ids.masked_scatter(losses.masked, sampled)
    return filled, filled != ids
