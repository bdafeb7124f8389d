"""Ways of parallel decoding: which tokens are kept, guidance that changes from step to step, and the passes they take.

b = batch · n = tokens · p = masked tokens · t, h, w = grid
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor

from data.sampling import planned_sampling
from phenaki_pytorch import Phenaki
from phenaki_pytorch.layers.attention import Context
from phenaki_pytorch.priors.decoding import Confidence, Logits, by_confidence, by_critic
from phenaki_pytorch.priors.guidance import Guidance
from phenaki_pytorch.priors.masking import uniform
from phenaki_pytorch.priors.token_transformer import on_grid

ORDERS = ("confidence", "critic", "random", "halton")


# orders


def at_random(generator: torch.Generator) -> Confidence:
    """A random confidence for the tokens of this step; known tokens are never masked again."""
    return lambda ids, log_probs, progress: torch.where(
        log_probs.isinf(), log_probs, uniform(ids.shape, ids.device, generator)
    )


def halton(count: int, base: int) -> Tensor:
    """The first `count` numbers of the Halton sequence of a base, in [0, 1): the digits of 0, 1, 2, ... reversed."""
    numbers, value, share = torch.arange(count), torch.zeros(count), 1.0 / base
    while numbers.any():
        value += share * (numbers % base)
        numbers, share = numbers // base, share / base
    return value


def by_halton(grid: tuple[int, int, int], device: torch.device) -> Confidence:
    """Keep the tokens of this step in the order in which a Halton sequence reaches their positions.

    The order is the same in all time steps. Known tokens are never masked again.
    """
    t, h, w = grid
    points = 8 * h * w
    positions = (halton(points, 2) * h).long() * w + (halton(points, 3) * w).long()
    first = torch.full((h * w,), points)
    first = first.scatter_reduce(0, positions, torch.arange(points), "amin")
    order = repeat(first.float(), "s -> (t s)", t=t).to(device)
    return lambda ids, log_probs, progress: torch.where(log_probs.isinf(), log_probs, -order)


# guidance


def null_steps(scales: Sequence[float], every: int) -> list[int]:
    """The steps that compute the null context: every n-th with a scale other than 1, and the first of these."""
    guided = [step for step, scale in enumerate(scales) if scale != 1]
    return [step for step in guided if step % every == 0 or step == guided[0]]


def scales_of(ends: tuple[float, float], steps: int) -> list[float]:
    """The scale of each step, on the line from that of the first step to that of the last."""
    return torch.linspace(*ends, steps).tolist()


class LinearGuidance(Guidance):
    """Guidance with a scale of its own for each step."""

    def __init__(self, context: Context, null: Context, *, scales: Sequence[float], every: int = 1):
        guided = [scale for scale in scales if scale != 1]
        super().__init__(context, null, cond_scale=guided[0] if guided else 1.0, every=every)
        self.scales = scales
        self.null_steps = set(null_steps(scales, every))

    def context(self, step: int = 0) -> Context:
        """The text, and in the steps that compute it the null context after it."""
        return self._both if step in self.null_steps else self._context

    def __call__(self, features: Tensor, mask: Tensor | None = None, step: int = 0) -> Tensor:
        """The guided features of a step."""
        if self.scales[step] == 1:
            return features
        self.cond_scale = self.scales[step]
        # The base class computes null in step 0 and not in step 1, with `every` above 1.
        return super().__call__(features, mask, 0 if step in self.null_steps else 1)


def passes_of(steps: int, ends: tuple[float, float], every: int = 1) -> int:
    """The number of forward passes of `steps` steps of MaskGit."""
    return steps + len(null_steps(scales_of(ends, steps), every))


# ways


@dataclass(frozen=True)
class Way:
    """An order and its sampling options; `token_temperature` is that of the first step and of the last."""

    name: str
    order: str
    temperature: float
    token_temperature: tuple[float, float]
    critic_scale: float
    guide_every: int
    critic_inline: bool

    @property
    def inline(self) -> bool:
        """Whether a critic reads MaskGit's own passes."""
        return self.order == "critic" and self.critic_inline

    def is_for(self, phenaki: Phenaki) -> bool:
        """Whether the model has the critic that this way needs."""
        if self.order != "critic":
            return True
        return phenaki.critic is not None and (not self.inline or phenaki.critic.backbone is phenaki.maskgit)

    def passes(self, steps: int, ends: tuple[float, float]) -> int:
        """The number of forward passes of `steps` steps, the critic's included."""
        of_critic = 0
        if self.order == "critic" and not self.inline:
            of_critic = 1 if self.critic_scale in (0, 1) else 2
        return passes_of(steps, ends, self.guide_every) + of_critic * (steps - 1)

    def steps_within(self, passes: int, ends: tuple[float, float]) -> int:
        """The largest number of steps that takes at most so many passes."""
        return max(steps for steps in range(1, passes + 1) if self.passes(steps, ends) <= passes)

    def sampler(
        self, phenaki: Phenaki, text: tuple[Tensor, Tensor], scales: Sequence[float], generator: torch.Generator
    ) -> tuple[Logits, Confidence]:
        """The two callables of `parallel_decode`: the logits of the masked tokens, and which tokens to keep."""
        maskgit, critic, grid = phenaki.maskgit, phenaki.critic, phenaki.maskgit.grid
        context = maskgit.read_context(*text)
        guidance = LinearGuidance(context, maskgit.null_context_like(context), scales=scales, every=self.guide_every)
        noise = self.temperature, generator
        if self.inline:
            inline = critic.inline(grid, guidance, *noise)
            return inline.logits, inline.confidence

        def logits(ids: Tensor, mask: Tensor, step: int) -> Tensor:
            return maskgit.masked_logits(on_grid(ids, grid), on_grid(mask, grid), guidance, step)

        confidence = {
            "confidence": lambda: by_confidence(*noise),
            "critic": lambda: by_critic(critic.critic_logits(grid, *text, self.critic_scale), *noise),
            "random": lambda: at_random(generator),
            "halton": lambda: by_halton(grid, generator.device),
        }
        return logits, confidence[self.order]()


def way_of(text: str, plan: dict) -> Way:
    """Read a way, such as "critic,temperature=8,token_temperature=1:0.4"; other options are those of the plan.

    Raises ValueError for an unknown order or option, for impossible values, and for options that the order ignores.
    """
    order, *changes = text.split(",")
    if order not in ORDERS:
        raise ValueError(f"a way begins with one of {', '.join(ORDERS)}, got {text!r}")
    settable = [name for name in planned_sampling({}) if name not in ("steps", "cond_scale")]
    for change in changes:
        name, _, value = change.partition("=")
        if name not in settable:
            raise ValueError(f"a way sets {', '.join(settable)}, got {change!r}")
        if order not in USED_BY.get(name, ORDERS):
            raise ValueError(f"{name} would have no effect on the order {order}, got {text!r}")
        read, expected = READ.get(name, (float, "a number"))
        try:
            plan = plan | {name: read(value)}
        except ValueError:
            raise ValueError(f"{name} in a way is {expected}, got {value!r} in {text!r}") from None
    settings = planned_sampling(plan)
    return Way(text, order, **{name: settings[name] for name in settable})


def first_and_last(text: str) -> tuple[float, float]:
    """ "2" is 2 in all steps, "1:3" goes from 1 in the first step to 3 in the last."""
    first, _, last = text.partition(":")
    return float(first), float(last or first)


# How the options of a way are read, where not by `float`, and what they are.
READ = {
    "token_temperature": (first_and_last, "a number, or two as in 1:0.4"),
    "guide_every": (int, "a whole number"),
    "critic_inline": (lambda text: ["0", "1"].index(text) == 1, "0 or 1"),
}
# The orders that use an option, where not all do.
USED_BY = {"temperature": ("confidence", "critic"), "critic_scale": ("critic",), "critic_inline": ("critic",)}
