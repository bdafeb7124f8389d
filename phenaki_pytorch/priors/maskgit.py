"""MaskGit: a transformer that fills in the masked ones among a video's ids, given a text.

Training masks a random share of the ids and learns the masked ones by cross-entropy; generation starts with all ids
masked and fills them in over a few parallel steps (Phenaki, section 2.2; MaskGIT, https://arxiv.org/abs/2202.04200).
Training replaces a share of the texts by a learned null context, for classifier-free guidance
(https://arxiv.org/abs/2207.12598).

b = batch · t, h, w = grid · n = t · h · w · m = text tokens · c = dim_context · d = dim · k = num_tokens · p = masked
"""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.core.checks import batch_of, check_bool, check_prime_ids, check_probabilities
from phenaki_pytorch.core.modules import in_eval_mode, through_call
from phenaki_pytorch.priors.decoding import (
    Confidence,
    Logits,
    SamplingOptions,
    by_confidence,
    by_critic,
    check_critic_options,
    parallel_decode,
    sampling_options,
)
from phenaki_pytorch.priors.distillation import GuidedTeacher
from phenaki_pytorch.priors.masking import (
    check_prime_steps,
    check_schedule,
    draw_mask,
    draw_prime_steps,
    first_steps,
    real_steps,
)
from phenaki_pytorch.priors.token_transformer import TokenTransformer, on_grid


class MaskGitLosses(NamedTuple):
    """The loss, which ids were masked, bool (b, t, h, w), and their logits (p, k)."""

    total: Tensor
    masked: Tensor
    logits: Tensor


class MaskGit(TokenTransformer):
    """Masked-token model of ids (b, t, h, w), of any tokenizer, given a context (b, m, c) or none at all.

    num_tokens       number of codes of the tokenizer
    grid             the largest (t, h, w) of ids: what one pass generates
    dim, depth       width and number of layers
    heads, dim_head  attention heads and their width
    dim_context      width of the text embeddings; None for an unconditional model
    cond_drop_prob   share of the texts that training replaces by the null context
    prime_prob       share of the training clips whose first time steps are not masked, as in a continuation
    attn_dropout, ff_dropout   dropout of the attention weights, and of what each layer adds
    label_smoothing  share of the target's probability that is spread over all codes (MaskGIT: 0.1)
    schedule         "cosine", "cubic" or "linear": the share that is masked at each progress
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
        check_probabilities(prime_prob=prime_prob, label_smoothing=label_smoothing)
        check_schedule(schedule)
        self.prime_prob = prime_prob
        self.label_smoothing = label_smoothing
        self.schedule = schedule

    # loss

    @through_call
    def losses(
        self,
        ids: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
        prime_steps: Tensor | None = None,
        teacher: GuidedTeacher | None = None,
    ) -> MaskGitLosses:
        """Mean cross-entropy, in nats, of the masked tokens of the batch, with the mask and the logits.

        ids           int64 (b, t, h, w), of a grid up to `self.grid`; images are t = 1
        context       text embeddings (b, m, c); context_mask: bool (b, m), True where real
        token_mask    bool (b, t, h, w), True where real; padding is not attended to, not masked and not counted
        prime_steps   int64 (b,), how many first time steps of each clip are not masked, fewer than its real ones, for
                      texts that describe only what follows them; replaces the random draw by `prime_prob`
        teacher       a GuidedTeacher, whose distributions are the target in place of the ids, except where the text
                      is dropped

        Raises ValueError where a shape, a size or (on the CPU) a value does not fit.
        """
        self.check_grid(ids)
        context_mask = self.check_context(context, context_mask, len(ids))
        self.check_token_mask(token_mask, ids)
        if teacher is not None:
            teacher.check_fits(self)
        dropped = self.draw_dropped(context)
        mask = self._training_mask(ids, token_mask, prime_steps)
        text = self.read_context(context, context_mask, dropped)
        logits = self.to_logits(self.masked_features(ids, mask, context=text, token_mask=token_mask)).float()
        if teacher is None:
            loss = F.cross_entropy(logits, ids[mask], label_smoothing=self.label_smoothing)
        else:
            target = teacher(ids, mask, context, context_mask, token_mask).float().softmax(dim=-1)
            if dropped is not None:
                without_text = dropped[:, None, None, None].expand_as(mask)[mask]
                target[without_text] = F.one_hot(ids[mask][without_text], self.num_tokens).to(target.dtype)
            loss = F.cross_entropy(logits, target)
        return MaskGitLosses(loss, mask, logits)

    def _training_mask(self, ids: Tensor, token_mask: Tensor | None, prime_steps: Tensor | None) -> Tensor:
        """Which ids the loss is about, bool (b, t, h, w): a random share of the real ones that are not given."""
        _, t, h, w = ids.shape
        real = torch.ones_like(ids, dtype=torch.bool) if token_mask is None else token_mask
        real = rearrange(real, "b t h w -> b (t h w)")
        if prime_steps is None:
            prime_steps = draw_prime_steps(real, t, share=self.prime_prob if self.training else 0.0)
        else:
            check_prime_steps(prime_steps, real_steps(real, t))
        mask = draw_mask(real & ~first_steps(prime_steps, t, t * h * w), schedule=self.schedule)
        return on_grid(mask, (t, h, w))

    @through_call
    def logits(
        self,
        ids: Tensor,
        masked: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
        cond_scale: float = 1.0,
    ) -> Tensor:
        """The logits (b, t, h, w, k) of ids of which some are `masked`, bool (b, t, h, w), under guidance.

        Other arguments as in `losses`; `cond_scale` as in `SamplingOptions`, where 0 gives the logits without the text.
        """
        self.check_grid(ids)
        context_mask = self.check_context(context, context_mask, len(ids))
        check_bool("masked", masked, ids.shape)
        self.check_token_mask(token_mask, ids)
        guidance = self.guidance(context, context_mask, cond_scale=cond_scale)
        x = guidance(self.features(ids, masked, context=guidance.context(), token_mask=token_mask))
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
        critic: nn.Module | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Tensor:
        """Generate ids (b, t, h, w), int64, for a context or, from an unconditional model, for none.

        grid         (t, h, w) to generate; default: `self.grid`
        batch_size   how many to generate without a context; with one, its batch counts
        context      text embeddings (b, m, c); context_mask: bool (b, m), True where real
        prime_ids    int64 (b, s, h, w) with s < t: the first time steps, which stay as they are
        critic       TokenCritic or SelfCritic, whose judgement replaces the confidence
        sampling     see `SamplingOptions`

        Dropout is off, whatever the mode of the module. Raises ValueError where a size or value does not fit.
        """
        options = sampling_options(sampling)
        t, h, w = grid = self.grid if grid is None else grid
        if min(grid) < 1 or any(got > most for got, most in zip(grid, self.grid)):
            raise ValueError(f"grid must lie between (1, 1, 1) and {self.grid}, got {grid}")
        batch_size = batch_of(batch_size, context)
        context_mask = self.check_context(context, context_mask, batch_size, values=True)
        ids = torch.zeros(batch_size, t, h, w, dtype=torch.int64, device=self.placement().device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        if prime_ids is not None:
            check_prime_ids(prime_ids, self.num_tokens, ids.shape)
            ids[:, : prime_ids.shape[1]] = prime_ids
            mask[:, : prime_ids.shape[1]] = False
        if critic is not None:
            if not hasattr(critic, "critic_logits"):
                raise TypeError(f"critic must be a TokenCritic or a SelfCritic, got a {type(critic).__name__}")
            critic.check_fits(self)
        check_critic_options(options, critic)
        with in_eval_mode(self, *([] if critic is None else [critic, critic.backbone])):
            logits, confidence = self._sampler(grid, context, context_mask, critic, options)
            ids = parallel_decode(
                logits,
                rearrange(ids, "b t h w -> b (t h w)"),
                rearrange(mask, "b t h w -> b (t h w)"),
                confidence=confidence,
                schedule=self.schedule,
                **{name: options[name] for name in ("steps", "token_temperature", "generator", "progress")},
            )
        return on_grid(ids, grid)

    def _sampler(
        self,
        grid: tuple[int, int, int],
        context: Tensor | None,
        context_mask: Tensor | None,
        critic: nn.Module | None,
        options: SamplingOptions,
    ) -> tuple[Logits, Confidence]:
        """The two callables of parallel decoding: the logits of the masked ids, and which ids to keep."""
        scale, every = options["cond_scale"], options["guide_every"]
        guidance = self.guidance(context, context_mask, cond_scale=scale, every=every)
        noise = options["temperature"], options["generator"]
        if critic is not None and options["critic_inline"]:
            inline = critic.inline(grid, guidance, *noise)
            return inline.logits, inline.confidence

        def logits(ids: Tensor, mask: Tensor, step: int) -> Tensor:
            return self.masked_logits(on_grid(ids, grid), on_grid(mask, grid), guidance, step)

        if critic is None:
            return logits, by_confidence(*noise)
        return logits, by_critic(critic.critic_logits(grid, context, context_mask, options["critic_scale"]), *noise)
