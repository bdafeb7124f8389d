"""Critics: which of the ids that MaskGit has drawn are wrong, so that sampling draws those again.

MaskGIT keeps what it was surest of when it drew it, one place at a time, and never takes it back. A critic looks at
all of them together (Token-Critic, Lezama et al. 2022, https://arxiv.org/abs/2209.04439).

    training    true ids, some masked -> MaskGit fills those in, by its own draws -> the critic says of each id
                whether it was drawn and differs from the truth (binary cross-entropy)
    sampling    the ids it doubts most are masked again, wherever they stand: `MaskGit.generate(critic=...)`

b = batch · t, h, w = grid · n = t · h · w · m = text tokens · c = dim_context · d = dim · p = masked
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.checks import check_mask, check_same
from phenaki_pytorch.guidance import GuidedFeatures
from phenaki_pytorch.maskgit import MaskGit, MaskGitLosses
from phenaki_pytorch.sampling import Doubts, Trust, by_critic, categorical, uniform
from phenaki_pytorch.saving import Pretrained
from phenaki_pytorch.token_transformer import TokenTransformer


class Critic(Pretrained):
    """What both critics do with a transformer over ids, their `reader`, and its output `to_logits`, one an id."""

    to_logits: nn.Linear

    @property
    def reader(self) -> TokenTransformer:
        """The transformer whose features are judged."""
        raise NotImplementedError

    def check_fits(self, maskgit: MaskGit) -> None:
        """Refuse, with a ValueError, a MaskGit of other ids or of another text than this critic reads."""
        check_same(self.reader, maskgit, "num_tokens", "grid", expected="the critic's {} must be maskgit's")
        if self.reader.dim_context is not None:
            check_same(self.reader, maskgit, "dim_context", expected="the critic's {} must be None or maskgit's")

    def forward(
        self,
        ids: Tensor,
        wrong: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar: mean binary cross-entropy, in nats, over all real ids.

        ids           int64 (b, t, h, w), true ones and drawn ones
        wrong         bool (b, t, h, w), True where an id was drawn and differs from the truth
        context       text embeddings (b, m, c); context_mask: bool (b, m), True where real
        token_mask    bool (b, t, h, w), True where real; others are neither looked at nor counted

        Raises ValueError where a shape, a size or (on the CPU) a value does not fit.
        """
        b, t, h, w = self.reader.check_grid(ids)
        context_mask = self.reader.check_context(context, context_mask, b)
        if wrong.dtype != torch.bool or wrong.shape != ids.shape:
            raise ValueError(f"wrong must be bool {tuple(ids.shape)}, got {wrong.dtype} {tuple(wrong.shape)}")
        real = None
        if token_mask is not None:
            check_mask("token_mask", token_mask, ids.shape)
            real = rearrange(token_mask, "b t h w -> b (t h w)")
        dropped = self.reader.draw_dropped(context)
        keys_values, context_mask = self.reader.read_context(context, context_mask, dropped)
        x = self.reader.features(
            rearrange(ids, "b t h w -> b (t h w)"),
            None,
            layout=self.reader.layout((t, h, w)),
            token_mask=real,
            keys_values=keys_values,
            context_mask=context_mask,
        )
        target = rearrange(wrong, "b t h w -> b (t h w)")
        if real is not None:
            x, target = x[real], target[real]
        return F.binary_cross_entropy_with_logits(self.doubts_of(x).float(), target.float())

    def doubts(
        self,
        grid: tuple[int, int, int],
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        cond_scale: float = 1.0,
    ) -> Doubts:
        """A callable ids (b, n), of a grid -> logits (b, n) of each being wrong, for as many calls as are needed.

        A critic without a context leaves the one that it is given alone. `cond_scale`: as in `MaskGit.generate`.
        """
        if self.reader.dim_context is None:
            context = context_mask = None
        features = GuidedFeatures(self.reader, grid, context, context_mask, cond_scale)
        return lambda ids: self.doubts_of(features(ids, None, None, 0))

    def inline_trust(
        self, features: GuidedFeatures, temperature: float = 4.0, generator: torch.Generator | None = None
    ) -> Trust:
        """As `by_critic`, without a pass of its own: by the features of the pass that has just filled ids in.

        From then on `features` are computed everywhere. ValueError where they are not the reader's.
        """
        if features.reader is not self.reader:
            raise ValueError(f"critic_inline needs a SelfCritic, got a {type(self).__name__}")
        features.everywhere = True
        return by_critic(lambda ids: self.doubts_of(features.conditional), temperature, generator, inline=True)

    def doubts_of(self, features: Tensor) -> Tensor:
        """Features (..., d) that the reader made of ids -> logits (...) of each id being wrong."""
        return rearrange(self.to_logits(features), "... 1 -> ...")


class TokenCritic(Critic, TokenTransformer):
    """A critic with a transformer of its own, which may be smaller than MaskGit's and may read the text or not.

    num_tokens       number of codes of the tokenizer
    grid             the largest (t, h, w) it is to see: MaskGit's
    dim, depth       width and number of layers
    heads, dim_head  attention heads and their width
    dim_context      width of the text embeddings; None makes a critic that looks at the ids alone
    cond_drop_prob   share of the captions that training replaces by the null context, for its guidance
    attn_dropout, ff_dropout   dropout of the attention weights, and of what each layer adds
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        grid: tuple[int, int, int] | list[int],
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
    def reader(self) -> TokenTransformer:
        """Itself."""
        return self


class SelfCritic(Critic):
    """A critic that is one linear map on MaskGit's own features; what it learns moves MaskGit's transformer as well.

    maskgit   the MaskGit to judge; it stays no part of this module, whose state_dict is the map alone
    """

    def __init__(self, maskgit: MaskGit):
        super().__init__()
        self.config = {"maskgit": self.GIVEN}
        self._maskgit = (maskgit,)  # in a tuple, so that it is not registered
        self.to_logits = nn.Linear(maskgit.dim, 1)
        nn.init.zeros_(self.to_logits.bias)

    @property
    def reader(self) -> TokenTransformer:
        """MaskGit."""
        return self._maskgit[0]

    def check_fits(self, maskgit: MaskGit) -> None:
        """Refuse, with a ValueError, any MaskGit but its own."""
        if maskgit is not self.reader:
            raise ValueError("expected the MaskGit that this SelfCritic was built on, got another")


@torch.no_grad()
def filled_in(ids: Tensor, losses: MaskGitLosses) -> tuple[Tensor, Tensor]:
    """What a critic learns from: ids (b, t, h, w) whose masked ones are drawn by MaskGit, and which of them are wrong.

    `losses` is what `MaskGit.losses` gave for these ids. The draws are from its softmax, one a place.
    """
    probs = losses.logits.float().softmax(dim=-1)
    drawn = categorical(probs, uniform(probs.shape[:1], probs.device))
    filled = ids.masked_scatter(losses.masked, drawn)
    return filled, filled != ids
