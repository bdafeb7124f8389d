"""What decides which ids are drawn again, and how often: quality against forward passes, over models of moving shapes.

    python examples/sampling_study.py runs/plain/model runs/token/model runs/self/model --plot study.png --csv study.csv
    python examples/sampling_study.py runs/plain/model --steps 8 24 --guidance 2 1 4 1:3 --ways confidence halton
    python examples/sampling_study.py --ways critic critic,critic_inline=1,guide_every=3 --steps 8 24

Each model, the one that comes with the repository where none is named, is judged by prompts of seen combinations, at
equal forward passes: those of all the steps of MaskGit, two each where the null side is computed, and of the critic,
which is asked after each step but the last, unless it looks in MaskGit's. The budget is what so many guided steps take
without a critic; every way gets as many steps as fit. A model with a critic is judged by its confidence, too.

A way is an order, and what differs from the training's settings of sampling. The orders beside the library's: "random"
keeps tokens by chance, "halton" along a low-discrepancy sequence over the places of each time step (Besnier et al.
2025, https://arxiv.org/abs/2503.17076), the same for every sample.

b = batch · n = tokens · t, h, w = grid
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

from generate import PRETRAINED, load_model, planned_sampling, read_plan
from measures import BATCH, judge_each, judged_shares
from media import write_plots
from moving_shapes import prompts
from phenaki_pytorch import MaskGit, Phenaki
from phenaki_pytorch.critic import Critic
from phenaki_pytorch.guidance import GuidedFeatures
from phenaki_pytorch.sampling import Logits, Trust, by_confidence, by_critic, parallel_decode, uniform

ORDERS = ("confidence", "critic", "random", "halton")
COLUMNS = ("model", "way", "budget", "steps", "passes", "guidance", "all", "low", "high", "colour", "shape", "motion")


def by_chance(generator: torch.Generator) -> Trust:
    """Keep any of the tokens that were just drawn, and all that were kept before."""
    return lambda ids, log_probs, progress: torch.where(
        log_probs.isinf(), log_probs, uniform(ids.shape, ids.device, generator)
    )


def halton(count: int, base: int) -> Tensor:
    """The first numbers of the sequence: digits of 0, 1, 2, ... in a base, mirrored at the point."""
    numbers, value, share = torch.arange(count), torch.zeros(count), 1.0 / base
    while numbers.any():
        value += share * (numbers % base)
        numbers, share = numbers // base, share / base
    return value


def by_halton(grid: tuple[int, int, int], device: torch.device) -> Trust:
    """Keep what was just drawn in the order in which a Halton sequence first comes to its place, in all time steps."""
    t, h, w = grid
    points = 8 * h * w
    places = (halton(points, 2) * h).long() * w + (halton(points, 3) * w).long()
    first = torch.full((h * w,), points)
    first = first.scatter_reduce(0, places, torch.arange(points), "amin")
    order = repeat(first.float(), "s -> (t s)", t=t).to(device)
    return lambda ids, log_probs, progress: torch.where(log_probs.isinf(), log_probs, -order)


def passes_of(steps: int, guidance: tuple[float, float], every: int = 1) -> int:
    """How many forward passes so many steps of MaskGit take, one whose null side is computed two."""
    guided = [step for step, scale in enumerate(torch.linspace(*guidance, steps)) if scale != 1]
    return steps + sum(step % every == 0 or step == guided[0] for step in guided)


@dataclass(frozen=True)
class Way:
    """An order and its settings; `token_temperature` as the first step's and the last's."""

    name: str
    order: str
    temperature: float
    token_temperature: tuple[float, float]
    critic_scale: float
    guide_every: int
    critic_inline: bool

    @property
    def inline(self) -> bool:
        """Whether a critic looks in MaskGit's passes."""
        return self.order == "critic" and self.critic_inline

    def is_for(self, phenaki: Phenaki) -> bool:
        """Whether the model has the critic that is asked."""
        if self.order != "critic":
            return True
        return phenaki.critic is not None and (not self.inline or phenaki.critic.reader is phenaki.maskgit)

    def passes(self, steps: int, guidance: tuple[float, float]) -> int:
        """How many forward passes so many steps take, with the critic's."""
        of_critic = 0
        if self.order == "critic" and not self.inline:
            of_critic = 1 if self.critic_scale == 1 else 2
        return passes_of(steps, guidance, self.guide_every) + of_critic * (steps - 1)

    def steps_within(self, passes: int, guidance: tuple[float, float]) -> int:
        """The most steps that take no more passes."""
        return max(steps for steps in range(1, passes + 1) if self.passes(steps, guidance) <= passes)

    def features(self, maskgit: MaskGit, text: tuple[Tensor, Tensor], guidance: tuple[float, float]) -> GuidedFeatures:
        """What the logits are read off; its scale is to be set in every step where it changes."""
        scale = guidance[1] if guidance[0] == 1 else guidance[0]
        return GuidedFeatures(maskgit, maskgit.grid, *text, scale, every=self.guide_every)

    def trust(
        self, critic: Critic | None, features: GuidedFeatures, text: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> Trust:
        """What `parallel_decode` asks which tokens to keep."""
        grid = features.reader.grid
        if self.inline:
            return critic.inline_trust(features, self.temperature, generator)
        if self.order == "critic":
            return by_critic(critic.doubts(grid, *text, self.critic_scale), self.temperature, generator)
        if self.order == "random":
            return by_chance(generator)
        if self.order == "halton":
            return by_halton(grid, generator.device)
        return by_confidence(self.temperature, generator)


def way_of(text: str, plan: dict) -> Way:
    """ "critic,temperature=8,token_temperature=1:0.4": an order, and what is not as a training's plan says."""
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


def ends(text: str) -> tuple[float, float]:
    """ "2" is 2 in all steps, "1:3" goes from 1 in the first step to 3 in the last."""
    first, _, last = text.partition(":")
    return float(first), float(last or first)


# What the settings of a way are read by, where that is not `float`.
READ = {"token_temperature": ends, "guide_every": int, "critic_inline": lambda text: bool(int(text))}


def guided(features: GuidedFeatures, guidance: tuple[float, float], steps: int) -> Logits:
    """What `parallel_decode` asks, guided by a scale that lies on the line between the first step's and the last's."""
    on_line = torch.linspace(*guidance, steps).tolist()

    def logits(ids: Tensor, masked: Tensor, places: Tensor | None, step: int) -> Tensor:
        features.cond_scale = on_line[step]
        return features.reader.to_logits(features(ids, masked, places, step))

    return logits


@torch.no_grad()
def judged(
    phenaki: Phenaki, way: Way, steps: int, guidance: tuple[float, float], args: argparse.Namespace
) -> dict[str, float]:
    """The shares of the prompts whose clips show colour, shape, motion and all of them."""
    maskgit, captions = phenaki.maskgit, prompts("seen", args.prompts, seed=args.seed)
    device = maskgit.to_logits.weight.device
    generator = torch.Generator(device).manual_seed(args.seed)
    verdicts = []
    for first in range(0, len(captions), BATCH):
        part = captions[first : first + BATCH]
        text = tuple(each.to(device) for each in phenaki.text_encoder(part))
        masked = torch.ones(len(part), *maskgit.grid, dtype=torch.bool, device=device)
        masked = rearrange(masked, "b t h w -> b (t h w)")
        features = way.features(maskgit, text, guidance)
        ids = parallel_decode(
            guided(features, guidance, steps),
            torch.zeros_like(masked, dtype=torch.int64),
            masked,
            trust=way.trust(phenaki.critic, features, text, generator),
            steps=steps,
            token_temperature=way.token_temperature,
            schedule=maskgit.schedule,
            generator=generator,
        )
        t, h, w = maskgit.grid
        videos = phenaki.cvivit.decode(rearrange(ids, "b (t h w) -> b t h w", t=t, h=h, w=w))
        verdicts += judge_each(videos.clamp(0, 1), part)
    right = judged_shares(verdicts)
    low, high = right["all"].interval()
    return {**right, "low": low, "high": high}


def study(args: argparse.Namespace, models: dict[Path, Phenaki], done: Callable[[dict], None]) -> list[dict]:
    rows = []
    for folder, phenaki in models.items():
        ways = [way_of(text, read_plan(folder)) for text in args.ways]
        ways = [way for way in ways if way.is_for(phenaki)]
        settings = [(way, steps, args.guidance[0]) for way in ways for steps in args.steps]
        settings += [(way, args.steps[-1], text) for way in ways for text in args.guidance[1:]]
        for way, budget, text in tqdm(settings, desc=folder.parent.name):
            guidance = ends(text)
            steps = way.steps_within(passes_of(budget, guidance), guidance)
            setting = {
                "model": folder.parent.name,
                "way": way.name,
                "budget": budget,
                "steps": steps,
                "passes": way.passes(steps, guidance),
                "guidance": text,
            }
            rows.append(setting | judged(phenaki, way, steps, guidance, args))
            done(rows[-1])
    return rows


def lines_of(rows: list[dict], x: str) -> dict[str, list[tuple[float, float]]]:
    """A line for each model and way: the share that is all right, against one of the columns."""
    lines = {}
    for row in rows:
        lines.setdefault(f"{row['model']}, {row['way']}", []).append((float(row[x]), row["all"]))
    return {name: sorted(points) for name, points in lines.items()}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", type=Path, nargs="*", default=[PRETRAINED], help="folders model/ that train.py left")
    add("--ways", nargs="+", default=["confidence", "critic"], help="an order each, and settings: critic,temperature=8")
    add("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 12, 24, 48], help="guided ones, without a critic")
    add("--guidance", nargs="+", default=["2"], help="the first with all steps, the others with the last; 1:3 rises")
    add("--prompts", type=int, default=200, help="default: %(default)s")
    add("--seed", type=int, default=0)
    add("--csv", type=Path, default=Path("sampling_study.csv"), help="all figures; default: %(default)s")
    add("--plot", type=Path, help="a PNG: all right against passes, and against guidance")
    args = parser.parse_args(argv)
    if min(args.prompts, *args.steps) < 1:
        parser.error("expected prompts and steps above 0")
    try:  # hours lie between the first figure and the last
        for text in args.ways:
            way_of(text, {})
        for text in args.guidance:
            for scale in ends(text):
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
