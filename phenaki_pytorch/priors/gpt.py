"""GPT: a causal transformer over ids in raster order, each predicted from the ids before it (VideoGPT, section 3.2,
https://arxiv.org/abs/2104.10157).

    ids -> vectors -> shifted by one, a learned start first -> + positions -> blocks -> logits

Beside ids it may be given a text, as MaskGit is; a vector or a map of features of frames; and a condition that shapes
the norms, for classes and for actions.

b = batch · t, h, w = grid · n = t · h · w · m = text tokens · c = dim_context · d = dim · k = num_tokens
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Unpack

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from phenaki_pytorch.core.checks import (
    batch_of,
    check_at_least,
    check_first,
    check_fitting_ids,
    check_prime_ids,
    check_probabilities,
    grid_of,
    stepped,
)
from phenaki_pytorch.core.modules import CastingLinear, in_eval_mode, through_call
from phenaki_pytorch.layers.attention import Context, PreallocatedCache
from phenaki_pytorch.layers.positions import ConcatenatedPositions
from phenaki_pytorch.priors.autoregressive import RasterOptions, choose, raster_options
from phenaki_pytorch.priors.codes import Codes
from phenaki_pytorch.priors.gpt_blocks import Conditions, Given, GPTStack, Widths, check_given
from phenaki_pytorch.priors.guidance import Guidance
from phenaki_pytorch.priors.masking import uniform
from phenaki_pytorch.priors.text_conditioned import TextConditioned
from phenaki_pytorch.priors.token_transformer import repeated

AXES = {"both": (0, 1, 2), "space": (1, 2), "time": (0,)}


class GPTLosses(NamedTuple):
    """The loss, in nats an id, and the loss of each id, (b, t, h, w), without gradient and 0 at padding."""

    total: Tensor
    nats: Tensor


class GPT(TextConditioned):
    """Autoregressive model of ids (b, t, h, w), of any tokenizer, given a context (b, m, c) or none at all.

    num_tokens       number of codes of the tokenizer
    grid             the largest (t, h, w) of ids that it reads at once
    dim, depth       width and number of layers
    heads, dim_head  attention heads and their width, by default dim / heads
    code_dim         width of the tokenizer's codes, which it then reads (see `use_codes`, which VideoGPT calls); None:
                     an embedding of its own is learned
    dim_context      width of the text embeddings; None for none
    cond_drop_prob   share of the texts that training replaces by the null context
    dim_frame_vector, dim_frame_map, dim_condition   widths of what `Given` describes; None for none
    positions        "learned" or "sincos", one share of the channels for each axis
    axes             "both", or the ablations "space" and "time": which axes have a position
    attn_dropout, ff_dropout   dropout of the attention weights, and of what each layer adds

    Before training its loss is ln k exactly, because the last layer starts at 0.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        grid: Sequence,
        dim: int,
        depth: int,
        heads: int = 8,
        dim_head: int | None = None,
        code_dim: int | None = None,
        dim_context: int | None = None,
        cond_drop_prob: float = 0.1,
        dim_frame_vector: int | None = None,
        dim_frame_map: int | None = None,
        dim_condition: int | None = None,
        positions: str = "learned",
        axes: str = "both",
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
    ):
        super().__init__()
        shares = {"cond_drop_prob": cond_drop_prob, "attn_dropout": attn_dropout, "ff_dropout": ff_dropout}
        given = {"dim_frame_vector": dim_frame_vector, "dim_frame_map": dim_frame_map, "dim_condition": dim_condition}
        sizes = {"num_tokens": num_tokens, "dim": dim, "depth": depth, "heads": heads, "dim_head": dim_head}
        sizes |= {"code_dim": code_dim, "dim_context": dim_context}
        self.config = {**sizes, **shares, **given, "grid": list(grid), "positions": positions, "axes": axes}
        check_at_least(1, **sizes, **given)
        check_probabilities(**shares)
        if dim_head is None and dim % heads:
            raise ValueError(f"heads must divide dim where no dim_head is given, got {heads} heads for {dim}")
        if positions not in ("learned", "sincos"):
            raise ValueError(f"positions must be 'learned' or 'sincos', got {positions!r}")
        if axes not in AXES:
            raise ValueError(f"axes must be one of {tuple(AXES)}, got {axes!r}")
        self.num_tokens = num_tokens
        self.grid = grid_of(grid)
        self.code_dim = code_dim
        self.given_widths = given

        if code_dim is None:
            self.embed = nn.Embedding(num_tokens, dim)
            nn.init.normal_(self.embed.weight, std=0.02)
        else:
            self.embed = nn.Sequential(Codes(num_tokens, code_dim), CastingLinear(code_dim, dim, bias=False))
            nn.init.normal_(self.embed[1].weight, std=0.02)
        self.start = nn.Parameter(0.02 * torch.randn(dim))
        self.positions = ConcatenatedPositions(dim, self.grid, axes=AXES[axes], learned=positions == "learned")
        widths = Widths(
            dim=dim,
            heads=heads,
            dim_head=dim // heads if dim_head is None else dim_head,
            dim_context=dim_context,
            dim_frame_map=dim_frame_map,
            dim_vector=dim_frame_vector,
            dim_condition=dim_condition,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
        )
        self.transformer = GPTStack(widths, depth)
        self.to_logits = nn.Linear(dim, num_tokens, bias=False)
        nn.init.zeros_(self.to_logits.weight)
        self.build_context(dim_context, cond_drop_prob)

    @through_call
    def use_codes(self, tokenizer: nn.Module) -> None:
        """Read the codes of a tokenizer from now on, once it is trained; they are saved along.

        Nothing happens without `code_dim`, or where the tokenizer has not been trained.
        Raises TypeError for a tokenizer without code_dim and code_features, ValueError for codes of another number or
        width, and where this GPT was trained with other codes.
        """
        if self.code_dim is not None:
            self.embed[0].take(tokenizer)

    @property
    def needs_codes(self) -> bool:
        """Whether there are no codes yet to read."""
        return self.code_dim is not None and not self.embed[0].ready

    @through_call
    def placement(self) -> Tensor:
        """A tensor on the device and of the dtype of the features."""
        return self.start.detach()

    # loss

    @through_call
    def losses(
        self,
        ids: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
        **given: Unpack[Given],
    ) -> GPTLosses:
        """Mean cross-entropy, in nats, of all real ids of the batch.

        ids         int64 (b, t, h, w), of a grid up to `self.grid`
        context     text embeddings (b, m, c); context_mask: bool (b, m), True where real
        token_mask  bool (b, t, h, w), True for real ids, which come first; padding is not counted
        given       see `Given`

        Raises ValueError where a shape, a size or (on the CPU) a value does not fit.
        """
        check_fitting_ids(ids, self.num_tokens, self.grid)
        if token_mask is not None:
            check_first("token_mask", token_mask, ids.shape)
        if ids.is_inference():  # autograd keeps no tensors of inference mode
            ids = ids.clone()
        context_mask = self.check_context(context, context_mask, len(ids))
        text = self.read_context(context, context_mask, self.draw_dropped(context))
        logits = self._logits(ids, self._conditions(text, given, ids.shape))
        nats = F.cross_entropy(rearrange(logits, "b t h w k -> b k t h w").float(), ids, reduction="none")
        if token_mask is None:
            return GPTLosses(nats.mean(), nats.detach())
        nats = nats.masked_fill(~token_mask, 0)
        return GPTLosses(nats.sum() / token_mask.sum(), nats.detach())

    @through_call
    def logits(
        self,
        ids: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        cond_scale: float = 1.0,
        **given: Unpack[Given],
    ) -> Tensor:
        """The logits (b, t, h, w, k) of each id, read off the ids before it in raster order, under guidance.

        Arguments as in `losses`; `cond_scale` as in `RasterOptions`, and 0 gives the logits without the text.
        """
        check_fitting_ids(ids, self.num_tokens, self.grid)
        context_mask = self.check_context(context, context_mask, len(ids))
        guidance = self.guidance(context, context_mask, cond_scale=cond_scale)
        return self._logits(ids, self._conditions(guidance.context(), given, ids.shape), guidance)

    def _logits(self, ids: Tensor, conditions: Conditions, guidance: Guidance | None = None) -> Tensor:
        x = self.transformer(self._inputs(ids, conditions), conditions)
        x = x if guidance is None else guidance(x)
        _, t, h, w = ids.shape
        return rearrange(self.to_logits(x), "b (t h w) k -> b t h w k", t=t, h=h, w=w)

    # generation

    @torch.no_grad()
    @through_call
    def generate(
        self,
        grid: tuple[int, int, int] | None = None,
        *,
        batch_size: int = 1,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        prime_ids: Tensor | None = None,
        frame_vector: Tensor | None = None,
        frame_map: Tensor | None = None,
        condition: Tensor | None = None,
        **sampling: Unpack[RasterOptions],
    ) -> Tensor:
        """Generate ids (b, t, h, w), int64, one after the other in raster order.

        grid         (t, h, w) to generate; default: `self.grid`. A larger t than that of `self.grid` is generated from
                     the last time steps before it, as many as `self.grid` has
        batch_size   how many to generate without a context; with one, its batch counts
        context      text embeddings (b, m, c); context_mask: bool (b, m), True where real
        prime_ids    int64 (b, s, h, w) with s < t: the first time steps, which stay as they are
        frame_vector, frame_map, condition   see `Given`
        sampling     see `RasterOptions`

        Dropout is off, whatever the mode of the module. Raises ValueError where a size or value does not fit.
        """
        options = raster_options(sampling)
        t, h, w = grid = self.grid if grid is None else grid_of(grid)
        if h > self.grid[1] or w > self.grid[2]:
            raise ValueError(f"the height and width of grid must be at most {self.grid[1:]}, got {grid}")
        batch_size = batch_of(batch_size, context)
        context_mask = self.check_context(context, context_mask, batch_size, values=True)
        ids = torch.zeros(batch_size, t, h, w, dtype=torch.int64, device=self.placement().device)
        known = 0
        if prime_ids is not None:
            check_prime_ids(prime_ids, self.num_tokens, ids.shape)
            known = prime_ids.shape[1]
            ids[:, :known] = prime_ids
        given = Given(frame_vector=frame_vector, frame_map=frame_map, condition=condition)
        with in_eval_mode(self):
            guidance = self.guidance(context, context_mask, cond_scale=options["cond_scale"])
            conditions = self._conditions(guidance.context(), given, ids.shape)
            self._fill(ids, known, conditions, guidance, options)
        return ids

    def _fill(
        self, ids: Tensor, known: int, conditions: Conditions, guidance: Guidance, options: RasterOptions
    ) -> None:
        """Sample all time steps of ids (b, t, h, w) from `known` on, in place."""
        t, h, w = ids.shape[1:]
        ticks = stepped((t - known) * h * w, options["progress"])
        longest = self.grid[0]
        while known < t:
            # Within the first window as far as it reaches, then one time step at a time.
            last = min(t, max(longest, known + 1))
            first = max(0, last - longest)
            window = ids[:, first:last]
            self._fill_window(window, known - first, conditions.at(first, last), guidance, options, ticks)
            known = last
        next(ticks, None)  # so that a progress bar ends

    def _fill_window(
        self,
        ids: Tensor,
        known: int,
        conditions: Conditions,
        guidance: Guidance,
        options: RasterOptions,
        ticks: Iterator,
    ) -> None:
        """Sample the time steps of ids (b, t, h, w), a view, from `known` on; keys and values are computed once."""
        b, t, h, w = ids.shape
        caches = [PreallocatedCache(t * h * w) for _ in self.transformer.blocks]
        x = self._inputs(ids, conditions)  # beyond the known ids, only positions and shapes of this are used
        if known:
            self.transformer(x[:, : known * h * w], conditions.at(0, known), caches)
        positions = self.positions((t, h, w), ids.device)
        copies, finite = len(x) // b, torch.ones((), dtype=torch.bool, device=ids.device)
        token = x[:, known * h * w][:, None]  # (copies · b, 1, d)
        for position in range(known * h * w, t * h * w):
            next(ticks)
            step, row, column = position // (h * w), position // w % h, position % w
            features = guidance(self.transformer(token, conditions.at(step, step + 1), caches))
            logits = self.to_logits(features[:, 0])
            finite &= logits.isfinite().all()
            chosen = choose(logits, uniform((b,), ids.device, options["generator"]), options)
            ids[:, step, row, column] = chosen
            if position + 1 < len(positions):
                token = repeated(self.embed(chosen)[:, None] + positions[position + 1], copies).to(x.dtype)
        if not finite:
            raise ValueError("expected finite logits, got others in sampling")

    def _inputs(self, ids: Tensor, conditions: Conditions) -> Tensor:
        """What the blocks read at each position, the id before it: (b, t, h, w) -> (k · b, n, d) for k · b contexts."""
        x = rearrange(self.embed(ids), "b t h w d -> b (t h w) d")
        start = repeat(self.start.to(x.dtype), "d -> b 1 d", b=len(x))
        x = torch.cat((start, x[:, :-1]), dim=1) + self.positions(tuple(ids.shape[1:]), ids.device).to(x.dtype)
        return repeated(x, max(1, len(conditions.contexts[0]) // len(x)) if conditions.contexts else 1)

    # conditions and checks

    def _conditions(self, text: Context | None, given: Given, shape: torch.Size) -> Conditions:
        """What the blocks read for ids of a shape; where there are k · b texts, all else is repeated k times."""
        if foreign := given.keys() - Given.__annotations__.keys():
            raise TypeError(f"expected {', '.join(Given.__annotations__)}, got {', '.join(sorted(foreign))}")
        b, t = shape[:2]
        copies = 1 if text is None else max(1, len(text) // b)
        vector, frame_map, condition = (given.get(name) for name in ("frame_vector", "frame_map", "condition"))
        check_given("frame_vector", vector, self.given_widths["dim_frame_vector"], (b,))
        check_given("frame_map", frame_map, self.given_widths["dim_frame_map"], (b, None))
        check_given("condition", condition, self.given_widths["dim_condition"], (b,), (b, t))
        if condition is not None and condition.ndim == 2:
            condition = condition[:, None]
        vector, frame_map, condition = (
            None if part is None else repeated(part.to(self.start), copies) for part in (vector, frame_map, condition)
        )
        contexts = [] if text is None else [text]
        if frame_map is not None:
            contexts.append(Context(frame_map, None))
        return Conditions(tuple(contexts), vector, condition)
