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
https://arxiv.org/abs/2503.17076). A way is left out, and named, for models without the critic that it needs.

Every row is written as soon as it is measured. Rows of an earlier study in the same --csv are replaced; a file with
other columns is not.

b = batch · n = tokens · t, h, w = grid
"""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from einops import rearrange
from tqdm import tqdm

from data.flags import integer, mistakes_in_one_line, path
from data.media import write_plots
from data.moving_shapes import prompts
from data.runs import PRETRAINED, SEED, load_phenaki, read_plan
from data.sampling import planned_sampling
from data.targets import check_targets, png
from evaluation.measures import BATCH, judge_each, judged_shares
from evaluation.ways import Way, first_and_last, passes_of, scales_of, way_of
from phenaki_pytorch import Phenaki
from phenaki_pytorch.priors.decoding import parallel_decode

COLUMNS = ("model", "way", "budget", "steps", "passes", "guidance", "all", "low", "high", "colour", "shape", "motion")


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


def load_models(folders: Sequence[Path]) -> dict[Path, Phenaki]:
    """The models by their folders. Raises ValueError for unconditional ones, and for two that would have one name."""
    models = {}
    for folder in dict.fromkeys(folders):
        if name_of(folder) in map(name_of, models):
            raise ValueError(f"expected models of runs with different names, got two of {name_of(folder)}")
        models[folder] = load_phenaki(folder)
        if models[folder].text_encoder is None:
            raise ValueError(f"expected a model that reads prompts, that in {folder} is unconditional")
    return models


def name_of(folder: Path) -> str:
    """The name of a model in the table: that of its run."""
    return folder.resolve().parent.name


def ways_of(args: argparse.Namespace, models: dict[Path, Phenaki]) -> dict[Path, list[Way]]:
    """The ways that each model can be sampled in; the others are named. Raises ValueError where there is none."""
    ways = {}
    for folder, phenaki in models.items():
        ways[folder] = []
        for way in (way_of(text, read_plan(folder)) for text in args.ways):
            if way.is_for(phenaki):
                ways[folder].append(way)
            else:
                print(f"left out: {way.name}, for which the model in {folder} has no critic", file=sys.stderr)
    if not any(ways.values()):
        raise ValueError(f"expected a model with a critic, as {', '.join(args.ways)} needs one")
    return ways


def study(
    args: argparse.Namespace, models: dict[Path, Phenaki], ways: dict[Path, list[Way]], done: Callable[[dict], None]
) -> list[dict]:
    """A row for each model, way and setting; each is handed to `done` as soon as it is measured."""
    rows = []
    for folder, phenaki in models.items():
        settings = [(way, steps, args.guidance[0]) for way in ways[folder] for steps in args.steps]
        settings += [(way, args.steps[-1], text) for way in ways[folder] for text in args.guidance[1:]]
        for way, budget, text in tqdm(settings, desc=name_of(folder)):
            ends = first_and_last(text)
            steps = way.steps_within(passes_of(budget, ends), ends)
            setting = {
                "model": name_of(folder),
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
    add("models", type=path, nargs="*", default=[PRETRAINED], help="the folders model/ of trainings")
    ways = "an order and options: critic,temperature=8"
    add("--ways", type=way, nargs="+", default=["confidence", "critic"], help=ways)
    add(
        "--steps",
        type=integer(),
        nargs="+",
        default=[1, 2, 4, 8, 12, 24, 48],
        help="each a budget: that of so many guided steps without a critic",
    )
    add(
        "--guidance",
        type=guidance,
        nargs="+",
        default=["2"],
        help="the first is measured at all --steps, others at the last; 1:3 rises from step to step",
    )
    add("--prompts", type=integer(), default=200, help="default: %(default)s")
    add("--seed", type=SEED, default=0, help="of the prompts and of all sampling; default: %(default)s")
    add("--csv", type=path, default=Path("sampling_study.csv"), help="all figures; default: %(default)s")
    add("--plot", type=png, help="a PNG: all right against passes, and against guidance")
    return parser.parse_args(argv)


def way(text: str) -> str:
    """A `type` for argparse: what `way_of` reads."""
    try:
        way_of(text, {})
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def guidance(text: str) -> str:
    """A `type` for argparse: a scale, or 1:3 from the first step to the last."""
    try:
        for scale in first_and_last(text):
            planned_sampling({"cond_scale": scale})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a scale, such as 2, or two, such as 1:3: {error}") from None
    return text


def check_csv(path: Path) -> None:
    """Refuse, with a ValueError, to replace a file that is no earlier study."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        head = file.readline(1000).rstrip("\r\n")
    if head != ",".join(COLUMNS):
        raise ValueError(f"--csv: {path} would be replaced, but its columns are not those of a study: expected another")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with mistakes_in_one_line(__file__):
        check_targets({"--csv": args.csv, "--plot": args.plot})
        check_csv(args.csv)
        models = load_models(args.models)
        ways = ways_of(args, models)
        rows = write_rows(args, models, ways)
        if args.plot:
            plot(args, rows)


def write_rows(args: argparse.Namespace, models: dict[Path, Phenaki], ways: dict[Path, list[Way]]) -> list[dict]:
    """Measure everything; each row is printed and in the CSV file as soon as it is measured."""
    with args.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()

        def done(row: dict) -> None:
            writer.writerow({name: f"{row[name]:.3f}" if isinstance(row[name], float) else row[name] for name in row})
            file.flush()
            print(f"{row['model']}, {row['way']}, {row['passes']} passes, guidance {row['guidance']}: {row['all']}")

        return study(args, models, ways, done)


def plot(args: argparse.Namespace, rows: list[dict]) -> None:
    """Plot the share with all right against passes, and against guidance where any is constant."""
    usual = [row for row in rows if row["guidance"] == args.guidance[0]]
    last = [row for row in rows if row["budget"] == args.steps[-1] and ":" not in row["guidance"]]
    panels = {"forward passes": lines_of(usual, "passes"), "guidance": lines_of(last, "guidance")}
    write_plots(
        args.plot, {title: lines for title, lines in panels.items() if lines}, ylabel="all right", from_zero=True
    )


if __name__ == "__main__":
    main()
