"""Measure every claim of a model of moving shapes: ten measures, as a table, results.json and plots.

    python examples/evaluate.py                                   # the trained model in examples/pretrained
    python examples/evaluate.py --quick                           # with a tenth of the prompts
    python examples/evaluate.py --model runs/phenaki/model --out runs/phenaki/evaluation --only 1 7

Two measures need further models: measure 3 one that was trained without images, measure 6 one that was trained without
texts. They are expected beside the model's folder, in without_images/model and prediction/model; without them, what
needs them is left out. The same --seed gives the same figures on the same machine.

Writes results.json, curves.png and confusion.png into --out, each figure as soon as it is measured; "missing" there
are the measures that are asked for and not taken. A new evaluation replaces the results in --out from its first figure
on: to take single measures later, give another --out.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from data.flags import given_names, integer, mistakes_in_one_line, path, refuse_idle
from data.media import write_confusion, write_plots
from data.moving_shapes import MovingShapes
from data.outputs import alone, check_writable, written
from data.runs import PRETRAINED, SEED, load_phenaki, read_plan, whole_curves
from data.sampling import planned_sampling
from data.targets import made
from evaluation.claims import (
    Judged,
    Measured,
    animation,
    length,
    overlap_of,
    prediction,
    story,
    text_to_image,
    text_to_video,
    variety,
)
from evaluation.measures import Mean, Share, judge_each, judged_reconstruction, judged_shares, reconstruction, table
from phenaki_pytorch import Phenaki

MEASURES = range(11)  # 0 is the tokenizer
UNCONDITIONAL = {0, 6}  # the measures that need no text
LONG = {7, 8}  # the measures that need room for given frames
# The measures that each argument has an effect on.
USED = {"prompts": {0, 1, 2, 3, 4}, "others": {5, 6, 7, 8, 10}, "samples": {9}, "precision": {*MEASURES} - {0}}
PROMPTS, OTHERS = 500, 200
STEPS = (1, 2, 4, 8, 12, 24, 48)
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0)
ROWS = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # which rows of the training curves go into results.json


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=path, default=PRETRAINED, help="the folder model/ of a training; default: the pretrained model")
    add("--out", type=path, default=Path("runs/evaluation"), help="where to write; default: %(default)s")
    add("--quick", action="store_true", help="a tenth of the prompts where no number is given, fewer settings")
    add("--only", type=int, nargs="+", choices=MEASURES, default=MEASURES, help="measures; 0 is the tokenizer")
    add("--seed", type=SEED, default=0)
    add("--prompts", type=integer(), help=f"of measures 1 to 4, and clips of measure 0; default: {PROMPTS}")
    add("--others", type=integer(), help=f"prompts of measures 5 to 8, and of each setting of 10; default: {OTHERS}")
    add("--precision", choices=("no", "bf16"), default="no", help="bf16: generate under autocast to bfloat16")
    add("--samples", type=integer(at_least=3), default=64, help="of measure 9; default: %(default)s")
    args = parser.parse_args(argv)
    args.only = sorted(set(args.only))
    check_used(parser, args, given_names(parser, argv))
    part, every = (10, 2) if args.quick else (1, 1)
    args.prompts = PROMPTS // part if args.prompts is None else args.prompts
    args.others = OTHERS // part if args.others is None else args.others
    args.steps, args.guidance = STEPS[::every], GUIDANCE[::every]
    return args


def check_used(parser: argparse.ArgumentParser, args: argparse.Namespace, given: set[str]) -> None:
    """Refuse arguments that no measure asked for uses."""
    idle = [name for name, measures in USED.items() if measures.isdisjoint(args.only)]
    refuse_idle(parser, given, f"on the measures of --only, {', '.join(map(str, args.only))}", *idle)
    if 10 not in args.only and given.union(idle) >= {"prompts", "others"}:
        refuse_idle(parser, given, "where every number is given", "quick")


# models


class Model(NamedTuple):
    """A model, and the seed and the sampling options with which it is measured."""

    phenaki: Phenaki
    settings: dict


def load(folder: Path, args: argparse.Namespace) -> Model:
    """A model that generates in the precision of the arguments. The judge computes in float32 all the same."""
    phenaki, settings = load_phenaki(folder), {"seed": args.seed, **planned_sampling(read_plan(folder))}
    height, width = phenaki.cvivit.image_size
    if height != width:
        raise ValueError(f"moving shapes are square: expected such a model in {folder}, got {width} × {height} pixels")
    if args.precision == "bf16":
        lower = torch.autocast(phenaki.maskgit.to_logits.weight.device.type, torch.bfloat16)
        phenaki.generate, phenaki.generate_story = lower(phenaki.generate), lower(phenaki.generate_story)
    return Model(phenaki, settings)


def load_main(args: argparse.Namespace) -> Model:
    """The model of --model. Raises ValueError where it cannot be measured as asked."""
    model = load(args.model, args)
    if model.phenaki.text_encoder is None and not UNCONDITIONAL.issuperset(args.only):
        raise ValueError("the model is unconditional: only measure 0, and measure 6 of prediction/model, need no text")
    if not LONG.isdisjoint(args.only):
        overlap_of(model.phenaki)
    return model


def beside(args: argparse.Namespace, name: str, measure: int, *, unconditional: bool) -> Model | None:
    """The model in the folder `name` beside the model's folder; None where the measure that needs it is not asked for.

    Also None, with a message, where there is no such folder.
    """
    if measure not in args.only:
        return None
    other = args.model.resolve().parent / name / "model"
    if not other.is_dir():
        print(f"left out what needs the model {name}: no folder {other}", file=sys.stderr)
        return None
    model = load(other, args)
    if (model.phenaki.text_encoder is None) != unconditional:
        raise ValueError(f"expected {'an unconditional model' if unconditional else 'a model with texts'} in {other}")
    return model


class Models(NamedTuple):
    """All models, loaded before anything is measured; None for those that are not needed or not there."""

    main: Model
    without_images: Model | None
    prediction: Model | None


# measures, each as titles with their figures


def of_tokenizer(phenaki: Phenaki, args: argparse.Namespace) -> Iterator[tuple[str, Measured]]:
    """Measure 0."""
    size = phenaki.cvivit.image_size[0]
    world = MovingShapes("tokenizer", size=size, num_frames=phenaki.window, seed=args.seed + 1)
    videos, captions = world.told(args.prompts)
    yield "0 drawn clips", judged_shares(judge_each(videos, captions))
    videos = videos.to(phenaki.maskgit.to_logits.weight.device)
    rebuilt = reconstruction(phenaki.cvivit, videos)
    yield "0 reconstructions", rebuilt | judged_reconstruction(phenaki.cvivit, videos, captions)


def of_unseen_pairs(phenaki: Phenaki, args: argparse.Namespace, settings: dict) -> Iterator[tuple[str, Measured]]:
    """Measure 2."""
    for split, title in (("held_out", "held-out pairs"), ("unseen", "unseen pair")):
        yield f"2 {title}", text_to_video(phenaki, args.prompts, split=split, **settings).shares()


def of_white_objects(models: Models, args: argparse.Namespace) -> Iterator[tuple[str, Measured]]:
    """Measure 3."""
    titles = {"3 white objects": models.main, "3 white objects, trained without images": models.without_images}
    for title, model in titles.items():
        if model is not None:
            yield title, text_to_video(model.phenaki, args.prompts, split="image_only", **model.settings).shares()


def of_settings(phenaki: Phenaki, args: argparse.Namespace, settings: dict) -> Iterator[tuple[str, Measured]]:
    """Measure 10: one sampling option changed at a time."""
    known = {}  # the unchanged settings belong to both curves and are measured once
    for name, values in (("steps", args.steps), ("cond_scale", args.guidance)):
        shares = {}
        for value in values:
            changed = settings | {name: value}
            key = changed["steps"], changed["cond_scale"]
            if key not in known:
                known[key] = text_to_video(phenaki, args.others, **changed).shares()["all"]
            shares[f"{value:g}"] = known[key]
        yield f"10 {name}", shares


def measure(
    number: int, models: Models, args: argparse.Namespace, seen: list[Judged]
) -> Iterator[tuple[str, Measured]]:
    """The titles and the figures of a measure; the judged clips of measure 1 are added to `seen`."""
    phenaki, settings = models.main
    match number:
        case 0:
            yield from of_tokenizer(phenaki, args)
        case 1:
            seen.append(text_to_video(phenaki, args.prompts, **settings))
            yield "1 text to video", seen[0].shares()
            yield "1 text to video, captions shuffled", seen[0].shuffled(args.seed).shares()
        case 2:
            yield from of_unseen_pairs(phenaki, args, settings)
        case 3:
            yield from of_white_objects(models, args)
        case 4:
            yield "4 text to image", text_to_image(phenaki, args.prompts, **settings).shares()
        case 5:
            yield "5 animation", animation(phenaki, args.others, **settings)
        case 6:
            if models.prediction is not None:
                other = models.prediction
                yield "6 prediction", prediction(other.phenaki, args.others, **other.settings)
        case 7:
            for verb in ("turns", "moves"):
                yield f"7 story, {verb}", story(phenaki, args.others, verb=verb, **settings)
        case 8:
            yield "8 ten windows", length(phenaki, args.others, **settings)
        case 9:
            yield "9 variety", variety(phenaki, args.samples, **settings)
        case 10:
            yield from of_settings(phenaki, args, settings)


# results


def plain(value: object) -> object:
    """A value as JSON takes it: shares and means with interval and number of trials, null for what is not finite."""
    if isinstance(value, Share | Mean):
        kind, (low, high) = type(value).__name__.lower(), value.interval()
        return plain({"kind": kind, "value": float(value), "low": low, "high": high, "of": value.trials})
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def curves_of(model: Path) -> dict[str, list[dict[str, float]]]:
    """Some rows of the training curves of each stage, from the folder in which the model lies."""
    curves = {}
    for stage in ("tokenizer", "maskgit"):
        if rows := whole_curves(model.resolve().parent, stage):
            picked = {max(0, round(share * len(rows)) - 1) for share in ROWS}
            curves[stage] = [
                {name: float(value) for name, value in rows[index].items() if value != ""} for index in sorted(picked)
            ]
    return curves


class Results:
    """results.json and the plots, which grow with every figure.

    folder   --out
    results  what results.json holds
    """

    def __init__(self, args: argparse.Namespace, curves: dict):
        self.folder, self.began = args.out, time.perf_counter()
        asked = {name: getattr(args, name) for name in ("seed", "prompts", "others", "samples", "precision")}
        self.results = {"asked": asked, "minutes": 0.0, "measures": {}, "missing": list(args.only), "curves": curves}

    def add(self, title: str, figures: Measured) -> None:
        """Write the figures and print them. The first ones replace the results of an earlier evaluation."""
        if not self.results["measures"]:
            for name in ("curves.png", "confusion.png"):
                (self.folder / name).unlink(missing_ok=True)
        self.results["measures"][title] = figures
        self.write()
        print(f"\n{title}")
        table(figures, lambda line: print(f"    {line}", flush=True))

    def complete(self, number: int, seen: list[Judged]) -> None:
        """Note that a measure is taken, and write the plots that show it."""
        self.results["missing"].remove(number)
        if number == 1:
            self.results["confusion"] = seen[0].confusion()
            write_confusion(self.folder / "confusion.png", self.results["confusion"])
        if number in (8, 10):
            self.write_curves()
        self.write()

    def write(self) -> None:
        """Write results.json, whole or not at all."""
        self.results["minutes"] = (time.perf_counter() - self.began) / 60
        with written(self.folder / "results.json") as temporary:
            temporary.write_text(json.dumps(plain(self.results), indent=2, allow_nan=False) + "\n")

    def write_curves(self) -> None:
        """Plot measures 8 and 10, as far as they are taken."""
        measured = self.results["measures"]
        lines = {"steps": "10 steps", "guidance": "10 cond_scale", "window": "8 ten windows"}
        panels = {}
        for title, key in lines.items():
            points = [(float(name.removeprefix("window ")), share) for name, share in measured.get(key, {}).items()]
            panels |= {title: {"all right": points}} if points else {}
        write_plots(self.folder / "curves.png", panels, ylabel="all right", from_zero=True)


def evaluate(models: Models, args: argparse.Namespace, results: Results) -> None:
    """Take all measures; those that are missing at the end, or after an error, are named."""
    seen = []
    try:
        for number in args.only:
            before = len(results.results["measures"])
            for title, figures in measure(number, models, args, seen):
                results.add(title, figures)
            if len(results.results["measures"]) > before:
                results.complete(number, seen)
        results.write()
    finally:
        if missing := results.results["missing"]:
            names = ", ".join(map(str, missing))
            print(f"still missing in {args.out / 'results.json'}: the measures {names}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with mistakes_in_one_line(__file__), made(args.out, keep_files=True), alone(args.out):
        check_writable(args.out / "results.json")
        curves = curves_of(args.model)
        models = Models(
            load_main(args),
            without_images=beside(args, "without_images", 3, unconditional=False),
            prediction=beside(args, "prediction", 6, unconditional=True),
        )
        evaluate(models, args, Results(args, curves))


if __name__ == "__main__":
    main()
