"""MaskGit: a transformer that fills in the masked ones among a video's ids, given a text.

Training masks a random share of the ids and learns the masked ones by cross-entropy; generation starts from
nothing but masks and fills them in a few parallel steps (Phenaki, section 2.2; MaskGIT,
https://arxiv.org/abs/2202.04200). A share of the captions is replaced by a learned null context in training, so
that generation can push away from what it would draw without a text (classifier-free guidance,
https://arxiv.org/abs/2207.12598).

b = batch · t, h, w = grid · n = t · h · w · m = text tokens · c = dim_context · d = dim · k = num_tokens · p = masked
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.checks import batch_of, check_mask, check_prime_steps
from phenaki_pytorch.cross_entropy import cross_entropy
from phenaki_pytorch.guidance import GuidedFeatures, GuidedTeacher
from phenaki_pytorch.sampling import (
    Progress,
    Settings,
    by_confidence,
    by_critic,
    draw_mask,
    draw_prime_steps,
    first_steps,
    mask_share,
    masked_places,
    of_masked,
    parallel_decode,
    real_steps,
)
from phenaki_pytorch.token_transformer import TokenTransformer


class MaskGitLosses(NamedTuple):
    """The loss, and what it was read off: which ids were masked, bool (b, t, h, w), and their logits (p, k)."""

    total: Tensor
    masked: Tensor
    logits: Tensor


class MaskGit(TokenTransformer):
    """Masked-token model of ids (b, t, h, w), of any tokenizer, given a context (b, m, c) or none at all.

    num_tokens       number of codes of the tokenizer
    grid             the largest (t, h, w) it is to see: the window of a video
    dim, depth       width and number of layers
    heads, dim_head  attention heads and their width
    dim_context      width of the text embeddings; None makes an unconditional model
    cond_drop_prob   share of the captions that training replaces by the null context
    prime_prob       share of the clips that training gives the first time steps of, as a continuation is
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
        super().__init__(
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
            outputs=num_tokens,
        )
        self.config |= {"prime_prob": prime_prob, "label_smoothing": label_smoothing, "schedule": schedule}
        self._check_shares("prime_prob", "label_smoothing")
        mask_share(torch.zeros(()), schedule)  # refuses unknown schedules
        self.prime_prob = prime_prob
        self.label_smoothing = label_smoothing
        self.schedule = schedule

    # loss

    def forward(
        self,
        ids: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
        prime_steps: Tensor | None = None,
        teacher: GuidedTeacher | None = None,
    ) -> Tensor:
        """The loss, a scalar: mean cross-entropy, in nats, of the masked tokens of the batch.

        ids           int64 (b, t, h, w), of a grid up to the window; images are t = 1
        context       text embeddings (b, m, c); context_mask: bool (b, m), True where real
        token_mask    bool (b, t, h, w), True where real; others are neither attended to, nor masked, nor counted
        prime_steps   int64 (b,), how many first time steps of each clip are given, fewer than it has real; in place
                      of what `prime_prob` draws, where the text is to speak of what comes after them
        teacher       whose guided distributions are to be learnt, in place of the ids, wherever a caption is not
                      dropped: the cross-entropy is then that of its distributions

        Raises ValueError where a shape, a size or (on the CPU) a value does not fit.
        """
        return self.losses(ids, context, context_mask, token_mask, prime_steps, teacher).total

    def losses(
        self,
        ids: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
        prime_steps: Tensor | None = None,
        teacher: GuidedTeacher | None = None,
    ) -> MaskGitLosses:
        """What `forward` gives, with the mask that was drawn and the logits: all that a critic learns from."""
        b, t, h, w = self.check_grid(ids)
        context_mask = self.check_context(context, context_mask, b)
        if token_mask is None:
            real = torch.ones(b, t * h * w, dtype=torch.bool, device=ids.device)
        else:
            check_mask("token_mask", token_mask, ids.shape)
            real = rearrange(token_mask, "b t h w -> b (t h w)")
        if teacher is not None:
            teacher.check_fits(self)
        dropped = self.draw_dropped(context)
        keys_values, seen = self.read_context(context, context_mask, dropped)
        flat = rearrange(ids, "b t h w -> b (t h w)")
        if prime_steps is None:
            prime_steps = draw_prime_steps(real, t, share=self.prime_prob if self.training else 0.0)
        else:
            check_prime_steps(prime_steps, real_steps(real, t))
        masked = draw_mask(real & ~first_steps(prime_steps, t, t * h * w), schedule=self.schedule)
        # Only what the loss looks at goes through the last block and through the output projection, the widest product.
        places = masked_places(masked)
        x = self.features(
            flat,
            masked,
            layout=self.layout((t, h, w)),
            token_mask=None if token_mask is None else real,
            keys_values=keys_values,
            context_mask=seen,
            places=places,
        )
        logits = self.to_logits(of_masked(x, masked, places))
        hidden = rearrange(masked, "b (t h w) -> b t h w", t=t, h=h, w=w)
        if teacher is None:
            loss = cross_entropy(logits, flat[masked], label_smoothing=self.label_smoothing)
        else:
            told = teacher(ids, hidden, context, context_mask, token_mask).float().softmax(dim=-1)
            if dropped is not None:
                of_null = dropped[:, None].expand_as(masked)[masked]
                told[of_null] = F.one_hot(flat[masked][of_null], self.num_tokens).to(told.dtype)
            loss = F.cross_entropy(logits.float(), told)
        return MaskGitLosses(loss, hidden, logits)

    def logits(
        self,
        ids: Tensor,
        masked: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """What the model makes of ids of which the masked ones, bool (b, t, h, w), are hidden: (b, t, h, w, k)."""
        b, t, h, w = self.check_grid(ids)
        context_mask = self.check_context(context, context_mask, b)
        if masked.dtype != torch.bool or masked.shape != ids.shape:
            raise ValueError(f"masked must be bool {tuple(ids.shape)}, got {masked.dtype} {tuple(masked.shape)}")
        if token_mask is not None:
            check_mask("token_mask", token_mask, ids.shape)
        x = self.features(
            rearrange(ids, "b t h w -> b (t h w)"),
            rearrange(masked, "b t h w -> b (t h w)"),
            layout=self.layout((t, h, w)),
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
        critic: nn.Module | None = None,
        critic_scale: float = 1.0,
        guide_every: int = 1,
        critic_inline: bool = False,
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
        temperature  scale of the Gumbel noise on the confidence, annealed to 0; not a softmax temperature
        token_temperature  softmax temperature of the tokens: a number, or the first step's and the last's
        critic       TokenCritic or SelfCritic, which says in place of the confidence what to draw again
        critic_scale  its guidance, as `cond_scale`
        guide_every  null is computed in each so-manieth step, the first included; the others take cond − null as it
                     was when a place was last masked
        critic_inline  a SelfCritic looks at the ids in the very pass that fills in the masked ones, instead of one of
                     its own; what was just drawn it judges a step later, and until then its confidence counts
        generator    source of all randomness; its device is the model's
        progress     tqdm, or anything that wraps the steps

        Dropout is off, whatever the mode of the module. Raises ValueError where a size or value does not fit.
        """
        Settings(steps, cond_scale, temperature, token_temperature, critic_scale, guide_every, critic_inline)
        t, h, w = grid = self.grid if grid is None else grid
        if min(grid) < 1 or any(got > most for got, most in zip(grid, self.grid)):
            raise ValueError(f"grid must lie between (1, 1, 1) and the window {self.grid}, got {grid}")
        batch_size = batch_of(batch_size, context)
        context_mask = self.check_context(context, context_mask, batch_size, values=True)

        device = self.to_logits.weight.device
        ids = torch.zeros(batch_size, t, h, w, dtype=torch.int64, device=device)
        masked = torch.ones_like(ids, dtype=torch.bool)
        if prime_ids is not None:
            self._check_prime_ids(prime_ids, batch_size, grid)
            ids[:, : prime_ids.shape[1]] = prime_ids
            masked[:, : prime_ids.shape[1]] = False

        modules = [self]
        if critic is not None:
            if not hasattr(critic, "doubts"):
                raise TypeError(f"critic must be a TokenCritic or a SelfCritic, got a {type(critic).__name__}")
            critic.check_fits(self)
            modules += [critic, critic.reader]
        training = [module.training for module in modules]
        for module in modules:
            module.eval()
        try:
            features = GuidedFeatures(self, grid, context, context_mask, cond_scale, every=guide_every)
            if critic is None:
                trust = by_confidence(temperature, generator)
            elif critic_inline:
                trust = critic.inline_trust(features, temperature, generator)
            else:
                doubts = critic.doubts(grid, context, context_mask, critic_scale)
                trust = by_critic(doubts, temperature, generator)
            drawn = parallel_decode(
                lambda *asked: self.to_logits(features(*asked)),
                rearrange(ids, "b t h w -> b (t h w)"),
                rearrange(masked, "b t h w -> b (t h w)"),
                trust=trust,
                steps=steps,
                token_temperature=token_temperature,
                schedule=self.schedule,
                generator=generator,
                progress=progress,
            )
        finally:
            for module, mode in zip(modules, training):
                module.train(mode)
        return rearrange(drawn, "b (t h w) -> b t h w", t=t, h=h, w=w)

    def _check_prime_ids(self, prime_ids: Tensor, batch_size: int, grid: tuple[int, int, int]) -> None:
        b, s, h, w = self.check_grid(prime_ids, values=True)
        if b != batch_size or (h, w) != grid[1:] or s >= grid[0]:
            raise ValueError(
                f"prime_ids must be ({batch_size}, fewer than {grid[0]}, {grid[1]}, {grid[2]}), "
                f"got {tuple(prime_ids.shape)}"
            )
