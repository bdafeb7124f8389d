"""TokenTransformer: so many numbers for each of a video's ids, some of which may be hidden, given a text or none.

What MaskGit, which fills in ids, and TokenCritic, which doubts them, have in common: the table of the ids, their
places, the transformer, and the null context that stands for a missing text.

b = batch · t, h, w = grid · n = t · h · w · p = places · m = text tokens · c = dim_context · d = dim
"""

import torch
from torch import Tensor, nn

from phenaki_pytorch.attention import KeysValues, Transformer, init_weights
from phenaki_pytorch.checks import check_ids, check_mask
from phenaki_pytorch.position import LearnedPositions, check_dim_head, rotary
from phenaki_pytorch.saving import Pretrained

Layout = tuple[Tensor, Tensor]  # learned positions (n, d) and rotary angles (n, e/2, 2) of the places of a grid


class TokenTransformer(Pretrained):
    """A transformer over ids (b, t, h, w), and a linear map, `to_logits`, from its features to `outputs` numbers each.

    The other arguments, and what they may be, are those of MaskGit and TokenCritic, which say what the outputs mean.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        grid: tuple[int, int, int] | list[int],
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
        self.config = {
            "num_tokens": num_tokens,
            "grid": list(grid),
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "dim_head": dim_head,
            "dim_context": dim_context,
            "cond_drop_prob": cond_drop_prob,
            "attn_dropout": attn_dropout,
            "ff_dropout": ff_dropout,
        }
        for name in ("num_tokens", "dim", "depth", "heads", "dim_head"):
            if self.config[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.config[name]}")
        self._check_shares("cond_drop_prob", "attn_dropout", "ff_dropout")
        check_dim_head(dim_head, axes=3)
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
            self.context_norm = nn.LayerNorm(dim_context)
            self.null_context = nn.Parameter(torch.randn(dim_context))

    # features

    def layout(self, grid: tuple[int, int, int]) -> Layout:
        """What is to be known of the places of a grid, in raster order."""
        positions = self.positions(grid)
        return positions, rotary(grid, self.dim_head, positions.device)

    def features(
        self,
        ids: Tensor,
        hidden: Tensor | None,
        *,
        layout: Layout,
        token_mask: Tensor | None = None,
        keys_values: list[KeysValues] | None = None,
        context_mask: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """What the output is read off: ids (b, n) of a grid, which of them are hidden, bool (b, n) -> (b, n, d).

        layout       of the grid
        token_mask   bool (b, n), False where nobody may look
        keys_values  what `read_context` made of the context; context_mask: bool (b, m), True where it is real
        places       int64 (b, p), where features are wanted, if not everywhere -> (b, p, d)
        """
        if hidden is not None:
            ids = ids.masked_fill(hidden, self.num_tokens)
        positions, angles = layout
        return self.transformer(
            self.embed(ids) + positions,
            rotary=angles,
            mask=token_mask,
            keys_values=keys_values,
            context_mask=context_mask,
            places=places,
        )

    def read_context(
        self, context: Tensor | None, context_mask: Tensor | None, dropped: Tensor | None
    ) -> tuple[list[KeysValues] | None, Tensor | None]:
        """Keys and values of a context (b, m, c) for every block, and its mask, without the captions that are dropped.

        Where none is, too, the null context enters the graph: DDP takes a parameter without a gradient for a fault.
        """
        if context is None:
            return None, None
        context = self.context_norm(context)
        if dropped is not None:
            context, context_mask = self.with_null(context, context_mask, dropped)
        return self.transformer.keys_values(context), context_mask

    # the null context

    def draw_dropped(self, context: Tensor | None) -> Tensor | None:
        """Which captions training drops, a random share of them: bool (b,); None without any, and in eval mode."""
        if context is None or not self.training:
            return None
        return torch.rand(len(context), device=context.device) < self.cond_drop_prob

    def with_null(self, context: Tensor, context_mask: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """The null context, one learned token, in the place of the captions that are `dropped`, bool (b,)."""
        context = torch.where(dropped[:, None, None], self.null_context.to(context.dtype), context)
        only_first = torch.arange(context.shape[1], device=context.device) == 0
        return context, torch.where(dropped[:, None], only_first, context_mask)

    # checks

    def _check_shares(self, *names: str) -> None:
        for name in names:
            if not 0 <= self.config[name] <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {self.config[name]}")

    def check_grid(self, ids: Tensor, *, values: bool = False) -> tuple[int, int, int, int]:
        """Refuse ids that are not int64 (b, t, h, w), of these codes, in a grid up to the window; their shape.

        `values`: look into them on other devices than the CPU, too.
        """
        check_ids(ids, self.num_tokens, values=values)
        b, *grid = ids.shape
        if any(got > most for got, most in zip(grid, self.grid)):
            raise ValueError(f"the grid of the ids must fit in the window {self.grid}, got {tuple(grid)}")
        return b, *grid

    def check_context(
        self, context: Tensor | None, context_mask: Tensor | None, batch_size: int, *, values: bool = False
    ) -> Tensor | None:
        """Refuse what does not fit; the mask to use comes back. `values`: look into it on other devices, too."""
        if self.dim_context is None:
            if context is not None or context_mask is not None:
                raise ValueError("this model is unconditional (dim_context is None): expected no context, got one")
            return None
        if context is None:
            raise ValueError(f"this model needs a context (b, m, {self.dim_context}), got none")
        if context.ndim != 3 or context.shape[-1] != self.dim_context or 0 in context.shape:
            raise ValueError(f"context must be (b, m, {self.dim_context}), none empty, got {tuple(context.shape)}")
        if len(context) != batch_size:
            raise ValueError(f"the context has a batch of {len(context)}, expected {batch_size}")
        if context_mask is None:
            return torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        check_mask("context_mask", context_mask, context.shape[:2], values=values)
        return context_mask
