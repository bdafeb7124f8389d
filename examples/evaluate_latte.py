"""Measure a Latte of moving shapes told by texts: the judged share of its clips by steps and guidance; animation.

    python examples/evaluate_latte.py --model runs/latte/model
    python examples/evaluate_latte.py --model runs/latte/model --steps 10 25 50 250 --guidance 4 1 2 7 --plot latte.png

The model generates a clip for each of --prompts prompts, and the judge reads colour, shape and motion from it. The
first of --guidance is measured at all of --steps, the others at the steps of the plan. With the first of both,
--prompts drawn first frames are animated too. The other sampling options are those of the plan. Rows are printed as
soon as they are measured.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from data.flags import integer, mistakes_in_one_line, number, path
from data.media import write_plots
from data.runs import SEED, load_model, read_plan, write_rows
from data.sampling import check_sampling, planned_sampling
from data.targets import check_targets, png
from evaluation.claims import SHORTEST_JUDGED, animation, text_to_video
from evaluation.measures import table
from phenaki_pytorch import Latte
from phenaki_pytorch.diffusion.options import steps_of


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=path, required=True, help="the folder model/ that train_diffusion.py left")
    add("--prompts", type=integer(), default=200, help="default: %(default)s")
    add("--steps", type=integer(), nargs="+", help="of sampling, at the first --guidance; default: the training's")
    add("--guidance", type=number(at_least=0), nargs="+", help="scales; 1 is none; default: the training's")
    add("--sampler", choices=("ddpm", "ddim"), help="default: the training's")
    add("--resamples", type=integer(), help="of animation: how often each step is taken; default: the training's")
    add("--seed", type=SEED, default=1, help="of the prompts and of all sampling; default: %(default)s")
    add("--csv", type=path, help="all figures")
    add("--plot", type=png, help="a PNG: all right against steps, and against guidance")
    return parser.parse_args(argv)


def load_latte(folder: Path) -> Latte:
    """The model. ValueError for one of another kind, or that the judge cannot read."""
    model = load_model(folder)
    if not isinstance(model, Latte):
        raise ValueError(f"{folder} holds a {type(model).__name__}, expected a Latte: see evaluate.py")
    if model.text_encoder is None:
        raise ValueError(f"expected a model that reads prompts, that in {folder} reads none")
    if model.window < SHORTEST_JUDGED:
        raise ValueError(f"the judge reads clips of at least {SHORTEST_JUDGED} frames, the model has {model.window}")
    return model


def settings_of(args: argparse.Namespace, sampling: dict) -> list[tuple[int, float]]:
    """Steps and guidance of each row: the first guidance at all steps, the others at the steps of the plan."""
    guidance = args.guidance or [sampling["cond_scale"]]
    steps = args.steps or [sampling["steps"]]
    settings = [(count, guidance[0]) for count in steps] + [(sampling["steps"], scale) for scale in guidance]
    return list(dict.fromkeys(settings))


def study(args: argparse.Namespace, model: Latte, sampling: dict) -> list[dict]:
    """A row for each setting, printed as soon as it is measured."""
    rows = []
    for steps, scale in tqdm(settings_of(args, sampling), desc="settings"):
        options = sampling | {"steps": steps, "cond_scale": scale}
        shares = text_to_video(model, args.prompts, seed=args.seed, **options).shares()
        figures = dict(zip(("low", "high"), shares["all"].interval()))
        figures |= {name: float(share) for name, share in shares.items()}
        rows.append({"steps": steps, "guidance": scale, **figures})
        tqdm.write(f"{steps} steps, guidance {scale:g}: all right {shares['all']}")
    return rows


def panels_of(rows: list[dict], sampling: dict) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The share with all right against steps at the first guidance, and against guidance at the plan's steps."""
    first = rows[0]["guidance"]
    against = {
        "steps": sorted((row["steps"], row["all"]) for row in rows if row["guidance"] == first),
        "guidance": sorted((row["guidance"], row["all"]) for row in rows if row["steps"] == sampling["steps"]),
    }
    return {title: {"all right": points} for title, points in against.items()}


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with mistakes_in_one_line(__file__):
        check_targets({"--csv": args.csv, "--plot": args.plot})
        model = load_latte(args.model)
        sampling = planned_sampling(read_plan(args.model) | {"prior": "latte"})
        sampling["sampler"] = args.sampler or sampling["sampler"]
        sampling["resamples"] = args.resamples or sampling["resamples"]
        sampling["steps"] = steps_of(sampling)
        for steps, scale in settings_of(args, sampling):
            check_sampling({"resamples": args.resamples}, sampling | {"steps": steps, "cond_scale": scale}, model)
        rows = study(args, model, sampling)
        first = {"steps": rows[0]["steps"], "cond_scale": rows[0]["guidance"]}
        animated = animation(model, args.prompts, seed=args.seed, **sampling | first)
        table({f"animation: {name}": share for name, share in animated.items()})
        if args.csv:
            write_rows(args.csv, rows)
        if args.plot:
            write_plots(args.plot, panels_of(rows, sampling), ylabel="all right", from_zero=True)


if __name__ == "__main__":
    main()
