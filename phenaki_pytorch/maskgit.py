"""MaskGit: a transformer that fills in the masked ones among a video's ids, given a text.

Training masks a random share of the ids and learns the masked ones by cross-entropy; generation starts from
nothing but masks and fills them in a few parallel steps (Phenaki, section 2.2; MaskGIT,
https://arxiv.org/abs/2202.04200). A share of the captions is replaced by a learned null context in training, so
that generation can push away from what it would draw without a text (classifier-free guidance,
https://arxiv.org/abs/2207.12598).

b = batch · t, h, w = grid · n = t · h · w · m = text tokens · c = dim_context · d = dim · k = num_tokens
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.attention import KeysValues, Transformer, init_weights
from phenaki_pytorch.checks import batch_of, check_ids, check_mask
from phenaki_pytorch.position import LearnedPositions, rotary
from phenaki_pytorch.sampling import (
    Logits,
    Progress,
    check_sampling,
    draw_mask,
    draw_primes,
    mask_share,
    parallel_decode,
)
from phenaki_pytorch.saving import Pretrained


class MaskGit(Pretrained):
    """Masked-token model of ids (b, t, h, w), of any tokenizer, given a context (b, m, c) or none at all.

    num_tokens       number of codes of the tokenizer
    grid             the largest (t, h, w) it is to see: the window of a video
    dim, depth       width and number of layers
    heads, dim_head  attention heads and their width
    dim_context      width of the text embeddings; None makes an unconditional model
    cond_drop_prob   share of the captions that training replaces by the null context
    attn_dropout, ff_dropout   dropout of the attention weights, and of what each layer adds
    label_smoothing  share of the target's probability that is spread over all codes (MaskGIT: 0.1)
    schedule         "cosine", "cubic" or "linear": which share is masked at which progress
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
        prime_prob: float = 0.0,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        label_smoothing: float = 0.0,
        schedule: str = "cosine",
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
            "prime_prob": prime_prob,
            "attn_dropout": attn_dropout,
            "ff_dropout": ff_dropout,
            "label_smoothing": label_smoothing,
            "schedule": schedule,
        }
        for name in ("num_tokens", "dim", "depth", "heads", "dim_head"):
            if self.config[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.config[name]}")
        for name in ("cond_drop_prob", "prime_prob", "attn_dropout", "ff_dropout", "label_smoothing"):
            if not 0 <= self.config[name] <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {self.config[name]}")
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"grid must be (t, h, w), each at least 1, got {tuple(grid)}")
        mask_share(torch.zeros(()), schedule)  # refuses unknown schedules
        self.num_tokens = num_tokens
        self.grid = tuple(grid)
        self.dim_head = dim_head
        self.dim_context = dim_context
        self.cond_drop_prob = cond_drop_prob
        self.prime_prob = prime_prob
        self.label_smoothing = label_smoothing
        self.schedule = schedule

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
        self.to_logits = nn.Linear(dim, num_tokens)
        init_weights(self)
        if dim_context is not None:
            # Text encoders differ in scale by orders of magnitude.
            self.context_norm = nn.LayerNorm(dim_context)
            self.null_context = nn.Parameter(torch.randn(dim_context))

    # loss

    def forward(
        self,
        ids: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar: mean cross-entropy, in nats, of the masked tokens of the batch.

        ids           int64 (b, t, h, w), of a grid up to the window; images are t = 1
        context       text embeddings (b, m, c); context_mask: bool (b, m), True where real
        token_mask    bool (b, t, h, w), True where real; others are neither attended to, nor masked, nor counted

        Raises ValueError where a shape, a size or (on the CPU) a value does not fit.
        """
        b, t, h, w = self._check_ids(ids)
        context_mask = self._check_context(context, context_mask, b)
        if token_mask is None:
            real = torch.ones(b, t * h * w, dtype=torch.bool, device=ids.device)
        else:
            check_mask("token_mask", token_mask, ids.shape)
            real = rearrange(token_mask, "b t h w -> b (t h w)")
        keys_values = None
        if context is not None:
            context, context_mask = self._drop_captions(self.context_norm(context), context_mask)
            keys_values = self.transformer.keys_values(context)
        flat = rearrange(ids, "b t h w -> b (t h w)")
        primes = draw_primes(real, t, share=self.prime_prob if self.training else 0.0)
        masked = draw_mask(real & ~primes, schedule=self.schedule)
        x = self._hidden(
            flat,
            masked,
            grid=(t, h, w),
            token_mask=None if token_mask is None else real,
            keys_values=keys_values,
            context_mask=context_mask,
        )
        # The output projection is the widest product of the model: only what the loss looks at goes through it.
        logits = self.to_logits(x[masked])
        return F.cross_entropy(logits.float(), flat[masked], label_smoothing=self.label_smoothing)

    def logits(
        self,
        ids: Tensor,
        masked: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """What the model makes of ids of which the masked ones, bool (b, t, h, w), are hidden: (b, t, h, w, k)."""
        b, t, h, w = self._check_ids(ids)
        context_mask = self._check_context(context, context_mask, b)
        if masked.dtype != torch.bool or masked.shape != ids.shape:
            raise ValueError(f"masked must be bool {tuple(ids.shape)}, got {masked.dtype} {tuple(masked.shape)}")
        if token_mask is not None:
            check_mask("token_mask", token_mask, ids.shape)
        x = self._hidden(
            rearrange(ids, "b t h w -> b (t h w)"),
            rearrange(masked, "b t h w -> b (t h w)"),
            grid=(t, h, w),
            token_mask=None if token_mask is None else rearrange(token_mask, "b t h w -> b (t h w)"),
            keys_values=None if context is None else self.transformer.keys_values(self.context_norm(context)),
            context_mask=context_mask,
        )
        return rearrange(self.to_logits(x), "b (t h w) k -> b t h w k", t=t, h=h, w=w)

    # generation

    @torch.no_grad()
    def generate(
        self,
        grid: tuple[int, int, int] | None = None,
        *,
        batch_size: int = 1,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        prime_ids: Tensor | None = None,
        steps: int = 24,
        cond_scale: float = 7.0,
        temperature: float = 4.0,
        token_temperature: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Draw ids (b, t, h, w), int64, for a context or, from an unconditional model, for none.

        grid         (t, h, w) to draw, the window by default
        batch_size   how many to draw without a context; with one, its batch counts
        context      text embeddings (b, m, c); context_mask: bool (b, m), True where real
        prime_ids    int64 (b, s, h, w) with s < t: the first time steps, which stay as they are
        steps        passes of parallel decoding
        cond_scale   s in null + s · (cond − null) on the logits; 1 is no guidance, the paper's λ is s − 1
        temperature  scale of the Gumbel noise on MaskGIT's confidence, annealed to 0; not a softmax temperature
        token_temperature  softmax temperature of the tokens: a number, or the first step's and the last's
        generator    source of all randomness; its device is the model's
        progress     tqdm, or anything that wraps the steps

        Dropout is off, whatever the mode of the module. Raises ValueError where a size or value does not fit.
        """
        check_sampling(steps, temperature, token_temperature)
        if cond_scale < 0:
            raise ValueError(f"cond_scale must be at least 0, got {cond_scale}")
        t, h, w = grid = self.grid if grid is None else grid
        if min(grid) < 1 or any(got > most for got, most in zip(grid, self.grid)):
            raise ValueError(f"grid must lie between (1, 1, 1) and the window {self.grid}, got {grid}")
        batch_size = batch_of(batch_size, context)
        context_mask = self._check_context(context, context_mask, batch_size, values=True)

        device = self.to_logits.weight.device
        ids = torch.zeros(batch_size, t, h, w, dtype=torch.int64, device=device)
        masked = torch.ones_like(ids, dtype=torch.bool)
        if prime_ids is not None:
            self._check_prime_ids(prime_ids, batch_size, grid)
            ids[:, : prime_ids.shape[1]] = prime_ids
            masked[:, : prime_ids.shape[1]] = False

        training = self.training
        self.eval()
        try:
            drawn = parallel_decode(
                self._guided_logits(grid, context, context_mask, cond_scale),
                rearrange(ids, "b t h w -> b (t h w)"),
                rearrange(masked, "b t h w -> b (t h w)"),
                steps=steps,
                temperature=temperature,
                token_temperature=token_temperature,
                schedule=self.schedule,
                generator=generator,
                progress=progress,
            )
        finally:
            self.train(training)
        return rearrange(drawn, "b (t h w) -> b t h w", t=t, h=h, w=w)

    def _guided_logits(
        self,
        grid: tuple[int, int, int],
        context: Tensor | None,
        context_mask: Tensor | None,
        cond_scale: float,
    ) -> Logits:
        """The callable that parallel decoding asks; what does not change from step to step is computed here."""
        if context is None:
            return lambda ids, masked: self.to_logits(self._hidden(ids, masked, grid=grid))
        context = self.context_norm(context)
        guided = cond_scale != 1
        if guided:
            dropped = torch.ones(len(context), dtype=torch.bool, device=context.device)
            null, null_mask = self._with_null(context, context_mask, dropped)
            context, context_mask = torch.cat((context, null)), torch.cat((context_mask, null_mask))
        keys_values = self.transformer.keys_values(context)

        def logits(ids: Tensor, masked: Tensor) -> Tensor:
            if guided:
                ids, masked = ids.repeat(2, 1), masked.repeat(2, 1)
            x = self._hidden(ids, masked, grid=grid, keys_values=keys_values, context_mask=context_mask)
            if guided:
                # Of the features in place of the logits, which are linear in them and many times as wide.
                cond, null = x.float().chunk(2)
                x = (null + cond_scale * (cond - null)).to(x.dtype)
            return self.to_logits(x)  # (b, n, k)

        return logits

    # inside

    def _hidden(
        self,
        ids: Tensor,
        masked: Tensor,
        *,
        grid: tuple[int, int, int],
        token_mask: Tensor | None = None,
        keys_values: list[KeysValues] | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """ids (b, n), of which the masked ones are hidden -> features (b, n, d)."""
        x = self.embed(ids.masked_fill(masked, self.num_tokens)) + self.positions(grid)
        angles = rotary(grid, self.dim_head, x.device)
        return self.transformer(x, rotary=angles, mask=token_mask, keys_values=keys_values, context_mask=context_mask)

    def _drop_captions(self, context: Tensor, context_mask: Tensor) -> tuple[Tensor, Tensor]:
        """In training, put the null context in the place of a random share of the captions.

        At a share of 0, too, it enters the graph: DDP takes a parameter without a gradient for a fault.
        """
        if not self.training:
            return context, context_mask
        dropped = torch.rand(len(context), device=context.device) < self.cond_drop_prob
        return self._with_null(context, context_mask, dropped)

    def _with_null(self, context: Tensor, context_mask: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """The null context, one learned token, in the place of the captions that are `dropped`, bool (b,)."""
        context = torch.where(dropped[:, None, None], self.null_context.to(context.dtype), context)
        only_first = torch.arange(context.shape[1], device=context.device) == 0
        return context, torch.where(dropped[:, None], only_first, context_mask)

    # checks

    def _check_ids(self, ids: Tensor) -> tuple[int, int, int, int]:
        check_ids(ids, self.num_tokens)
        b, *grid = ids.shape
        if any(got > most for got, most in zip(grid, self.grid)):
            raise ValueError(f"the grid of the ids must fit in the window {self.grid}, got {tuple(grid)}")
        return b, *grid

    def _check_prime_ids(self, prime_ids: Tensor, batch_size: int, grid: tuple[int, int, int]) -> None:
        b, s, h, w = self._check_ids(prime_ids)
        if b != batch_size or (h, w) != grid[1:] or s >= grid[0]:
            raise ValueError(
                f"prime_ids must be ({batch_size}, fewer than {grid[0]}, {grid[1]}, {grid[2]}), "
                f"got {tuple(prime_ids.shape)}"
            )

    def _check_context(
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
