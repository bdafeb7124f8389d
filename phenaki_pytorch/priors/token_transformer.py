"""TokenTransformer: a transformer over ids, some of them masked, given a text or none; `outputs` numbers per id.

MaskGit and TokenCritic share it: the embedding of the ids, their positions and the transformer.

b = batch · t, h, w = grid · n = t · h · w · p = masked ids of the batch · m = text tokens · c = dim_context · d = dim
"""

from collections.abc import Sequence

from einops import rearrange, repeat
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_at_least, check_fitting_ids, check_mask, check_probabilities, grid_of
from phenaki_pytorch.core.modules import through_call
from phenaki_pytorch.layers.attention import Context
from phenaki_pytorch.layers.positions import LearnedPositions, check_dim_head, rotary
from phenaki_pytorch.layers.transformer import Transformer, init_weights
from phenaki_pytorch.priors.guidance import Guidance
from phenaki_pytorch.priors.masking import masked_positions
from phenaki_pytorch.priors.text_conditioned import TextConditioned


class TokenTransformer(TextConditioned):
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
        self.num_tokens = num_tokens
        self.grid = grid_of(grid)
        self.dim = dim
        self.dim_head = dim_head

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
        self.build_context(dim_context, cond_drop_prob)

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
            x, token_mask, positions = (repeated(part, len(context) // len(x)) for part in (x, token_mask, positions))
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
        return x[repeated(wanted, len(x) // len(ids))]

    @through_call
    def masked_logits(
        self, ids: Tensor, mask: Tensor, guidance: Guidance, step: int = 0, *, token_mask: Tensor | None = None
    ) -> Tensor:
        """The guided outputs (p, outputs) of the masked ids, in order. Arguments as in `features` and `Guidance`."""
        x = self.masked_features(ids, mask, context=guidance.context(step), token_mask=token_mask)
        return self.to_logits(guidance(x, rearrange(mask, "b t h w -> b (t h w)"), step))

    # checks

    def check_grid(self, ids: Tensor, *, values: bool = False) -> None:
        """Refuse ids that are not int64 (b, t, h, w), in [0, num_tokens), of a grid up to `self.grid`.

        `values`: look at them on other devices than the CPU, too.
        """
        check_fitting_ids(ids, self.num_tokens, self.grid, values=values)

    def check_token_mask(self, token_mask: Tensor | None, ids: Tensor) -> None:
        """Refuse what is not bool of the ids' shape, True somewhere in every sample."""
        if token_mask is not None:
            check_mask("token_mask", token_mask, ids.shape)


def repeated(x: Tensor | None, k: int) -> Tensor | None:
    """(b, ...) -> (k · b, ...)."""
    return x if x is None or k == 1 else repeat(x, "b ... -> (k b) ...", k=k)


def on_grid(x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Values of tokens in raster order, (b, n) -> (b, t, h, w)."""
    t, h, w = grid
    return rearrange(x, "b (t h w) -> b t h w", t=t, h=h, w=w)
