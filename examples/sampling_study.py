"""Compare ways of parallel decoding at equal cost: quality against forward passes, for models of moving shapes.

    python examples/sampling_study.py runs/plain/model runs/token/model runs/self/model --plot study.png --csv study.csv
    python examples/sampling_study.py runs/plain/model --steps 8 24 --guidance 2 1 4 1:3 --ways confidence halton
    python examples/sampling_study.py --ways critic critic,critic_inline=1,guide_every=3 --steps 8 24

Each model generates clips for prompts of seen combinations, which the judge reads. Without a model it is the pretrained
one. Forward passes are counted: a step of MaskGit is one, and one more where the null context is computed too; a critic
adds one after each step but the last, two with guidance of its own, and none where it reads MaskGit's own passes. The
budget is what the given number of guided steps takes without a critic; every way gets as many steps as fit into it.

A way is an order, followed by sampling options that differ from those of the model's training. The order says which
tokens are kept: by "confidence", by the "critic" (for models that have one), at "random", or along a "halton" sequence
over the positions of each time step, the same for every sample (Besnier et al. 2025,
https://arxiv.org/abs/2503.17076).

b = batch · n = tokens · p = masked tokens · t, h, w = grid
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor
from tqdm import tqdm

from data.media import write_plots
from data.moving_shapes import prompts
from data.runs import PRETRAINED, load_model, planned_sampling, read_plan
from evaluation.measures import BATCH, judge_each, judged_shares
from phenaki_pytorch import Phenaki
from phenaki_pytorch.layers.attention import Context
from phenaki_pytorch.priors.decoding import Confidence, Logits, by_confidence, by_critic, parallel_decode
from phenaki_pytorch.priors.guidance import Guidance
from phenaki_pytorch.priors.masking import uniform
from phenaki_pytorch.priors.token_transformer import on_grid

ORDERS = ("confidence", "critic", "random", "halton")
COLUMNS = ("model", "way", "budget", "steps", "passes", "guidance", "all", "low", "high", "colour", "shape", "motion")


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
            of_critic = 1 if self.critic_scale == 1 else 2
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

    Raises ValueError for an unknown order or option, and for impossible values.
    """
    order, *changes = text.split(",")
    if order not in ORDERS:
        raise ValueError(f"a way begins with one of {', '.join(ORDERS)}, got {text!r}")
    settable = [name for name in planned_sampling({}) if name not in ("steps", "cond_scale")]
    for change in changes:
        name, _, value = change.partition("=")
        if name not in settable:
            raise ValueError(f"a way sets {', '.join(settable)}, got {change!r}")
        plan = plan | {name: READ.get(name, float)(value)}
    settings = planned_sampling(plan)
    return Way(text, order, **{name: settings[name] for name in settable})


def first_and_last(text: str) -> tuple[float, float]:
    """ "2" is 2 in all steps, "1:3" goes from 1 in the first step to 3 in the last."""
    first, _, last = text.partition(":")
    return float(first), float(last or first)


# How the options of a way are read, where not by `float`.
READ = {"token_temperature": first_and_last, "guide_every": int, "critic_inline": lambda text: bool(int(text))}


# the study


@torch.no_grad()
def judged(
    phenaki: Phenaki, way: Way, steps: int, ends: tuple[float, float], args: argparse.Namespace
) -> dict[str, float]:
    """The shares of the prompts whose clips show colour, shape, motion and all of them; the interval of the last."""
    maskgit, captions = phenaki.maskgit, prompts("seen", args.prompts, seed=args.seed)
    device = maskgit.to_logits.weight.device
    generator = torch.Generator(device).manual_seed(args.seed)
    t, h, w = maskgit.grid
    verdicts = []
    for first in range(0, len(captions), BATCH):
        part = captions[first : first + BATCH]
        text = tuple(each.to(device) for each in phenaki.text_encoder(part))
        mask = torch.ones(len(part), t * h * w, dtype=torch.bool, device=device)
        logits, confidence = way.sampler(phenaki, text, scales_of(ends, steps), generator)
        ids = parallel_decode(
            logits,
            torch.zeros_like(mask, dtype=torch.int64),
            mask,
            confidence=confidence,
            steps=steps,
            token_temperature=way.token_temperature,
            schedule=maskgit.schedule,
            generator=generator,
        )
        videos = phenaki.cvivit.decode(rearrange(ids, "b (t h w) -> b t h w", t=t, h=h, w=w))
        verdicts += judge_each(videos.clamp(0, 1), part)
    right = judged_shares(verdicts)
    low, high = right["all"].interval()
    return {**right, "low": low, "high": high}


def study(args: argparse.Namespace, models: dict[Path, Phenaki], done: Callable[[dict], None]) -> list[dict]:
    """A row for each model, way and setting; each is handed to `done` as soon as it is measured."""
    rows = []
    for folder, phenaki in models.items():
        ways = [way_of(text, read_plan(folder)) for text in args.ways]
        ways = [way for way in ways if way.is_for(phenaki)]
        settings = [(way, steps, args.guidance[0]) for way in ways for steps in args.steps]
        settings += [(way, args.steps[-1], text) for way in ways for text in args.guidance[1:]]
        for way, budget, text in tqdm(settings, desc=folder.parent.name):
            ends = first_and_last(text)
            steps = way.steps_within(passes_of(budget, ends), ends)
            setting = {
                "model": folder.parent.name,
                "way": way.name,
                "budget": budget,
                "steps": steps,
                "passes": way.passes(steps, ends),
                "guidance": text,
            }
            rows.append(setting | judged(phenaki, way, steps, ends, args))
            done(rows[-1])
    return rows


def lines_of(rows: list[dict], x: str) -> dict[str, list[tuple[float, float]]]:
    """A line for each model and way: the share with all right, against one of the columns."""
    lines = {}
    for row in rows:
        lines.setdefault(f"{row['model']}, {row['way']}", []).append((float(row[x]), row["all"]))
    return {name: sorted(points) for name, points in lines.items()}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", type=Path, nargs="*", default=[PRETRAINED], help="the folders model/ of trainings")
    add("--ways", nargs="+", default=["confidence", "critic"], help="an order and options: critic,temperature=8")
    add(
        "--steps",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 12, 24, 48],
        help="each a budget: that of so many guided steps without a critic",
    )
    add(
        "--guidance",
        nargs="+",
        default=["2"],
        help="the first is measured at all --steps, others at the last; 1:3 rises from step to step",
    )
    add("--prompts", type=int, default=200, help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the prompts and of all sampling; default: %(default)s")
    add("--csv", type=Path, default=Path("sampling_study.csv"), help="all figures; default: %(default)s")
    add("--plot", type=Path, help="a PNG: all right against passes, and against guidance")
    args = parser.parse_args(argv)
    if min(args.prompts, *args.steps) < 1:
        parser.error("expected --prompts and --steps above 0")
    try:  # before anything is measured, since a study can take hours
        for text in args.ways:
            way_of(text, {})
        for text in args.guidance:
            for scale in first_and_last(text):
                planned_sampling({"cond_scale": scale})
    except ValueError as error:
        parser.error(str(error))
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    try:
        models = {folder: load_model(folder) for folder in args.models}
        file = args.csv.open("w", newline="")
    except (ValueError, OSError) as error:
        raise SystemExit(f"sampling_study.py: {error}") from error
    with file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()

        def done(row: dict) -> None:
            writer.writerow({name: f"{row[name]:.3f}" if isinstance(row[name], float) else row[name] for name in row})
            file.flush()
            print(f"{row['model']}, {row['way']}, {row['passes']} passes, guidance {row['guidance']}: {row['all']}")

        rows = study(args, models, done)
    if args.plot:
        usual = [row for row in rows if row["guidance"] == args.guidance[0]]
        last = [row for row in rows if row["budget"] == args.steps[-1] and ":" not in row["guidance"]]
        panels = {"forward passes": lines_of(usual, "passes"), "guidance": lines_of(last, "guidance")}
        write_plots(args.plot, panels, ylabel="all right", from_zero=True)


if __name__ == "__main__":
    main()
