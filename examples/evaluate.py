"""Measure every claim of a model of moving shapes: ten measures, as a table, results.json and plots.

    python examples/evaluate.py                                   # the trained model in examples/pretrained
    python examples/evaluate.py --quick                           # with a tenth of the prompts
    python examples/evaluate.py --model runs/phenaki/model --out runs/phenaki/evaluation --only 1 7

Two measures need further models: measure 3 one that was trained without images, measure 6 one that was trained without
texts. They are expected beside the model's folder, in without_images/model and prediction/model; without them, what
needs them is left out. The same --seed gives the same figures on the same machine. Writes results.json, curves.png and
confusion.png into --out.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from data.media import write_confusion, write_plots
from data.moving_shapes import MovingShapes
from data.runs import PRETRAINED, load_model, planned_sampling, read_plan, whole_curves
from evaluation.claims import (
    Judged,
    Measured,
    animation,
    length,
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
PROMPTS, OTHERS = 500, 200
STEPS = (1, 2, 4, 8, 12, 24, 48)
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0)
ROWS = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # which rows of the training curves go into results.json


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, default=PRETRAINED, help="the folder model/ of a training; default: the pretrained model")
    add("--out", type=Path, default=Path("runs/evaluation"), help="where to write; default: %(default)s")
    add("--quick", action="store_true", help="a tenth of the prompts where no number is given, fewer settings")
    add("--only", type=int, nargs="+", choices=MEASURES, default=MEASURES, help="measures; 0 is the tokenizer")
    add("--seed", type=int, default=0)
    add("--prompts", type=int, help=f"of measures 1 to 4, and clips of measure 0; default: {PROMPTS}")
    add("--others", type=int, help=f"prompts of measures 5 to 8, and of each setting of 10; default: {OTHERS}")
    add("--precision", choices=("no", "bf16"), default="no", help="bf16: generate under autocast to bfloat16")
    add("--samples", type=int, default=64, help="of measure 9; default: %(default)s")
    args = parser.parse_args(argv)
    part, every = (10, 2) if args.quick else (1, 1)
    args.prompts = PROMPTS // part if args.prompts is None else args.prompts
    args.others = OTHERS // part if args.others is None else args.others
    args.steps, args.guidance = STEPS[::every], GUIDANCE[::every]
    if min(args.prompts, args.others) < 1 or args.samples < 3:
        parser.error("expected at least 1 for --prompts and --others, and at least 3 for --samples")
    return args


def settings_of(model: Path, seed: int) -> dict:
    """A seed, and the sampling options that the plan of a model's training asks for."""
    return {"seed": seed, **planned_sampling(read_plan(model))}


def beside(model: Path, name: str) -> Path | None:
    """The model in the folder `name` beside this model's folder; None, and a message, where there is none."""
    other = model.resolve().parent / name / "model"
    if other.is_dir():
        return other
    print(f"left out what needs the model {name}: no folder {other}", file=sys.stderr)
    return None


def load(model: Path, args: argparse.Namespace) -> Phenaki:
    """A model that generates in the precision of the arguments. The judge computes in float32 all the same."""
    phenaki = load_model(model)
    if args.precision == "bf16":
        lower = torch.autocast(phenaki.maskgit.to_logits.weight.device.type, torch.bfloat16)
        phenaki.generate, phenaki.generate_story = lower(phenaki.generate), lower(phenaki.generate_story)
    return phenaki


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


def of_compositions(phenaki: Phenaki, args: argparse.Namespace, settings: dict) -> Iterator[tuple[str, Measured]]:
    """Measures 2 and 3."""
    if 2 in args.only:
        for split, title in (("held_out", "held-out pairs"), ("unseen", "unseen pair")):
            yield f"2 {title}", text_to_video(phenaki, args.prompts, split=split, **settings).shares()
    if 3 in args.only:
        white = {"split": "image_only", **settings}
        yield "3 white objects", text_to_video(phenaki, args.prompts, **white).shares()
        if other := beside(args.model, "without_images"):
            white |= settings_of(other, args.seed)
            shares = text_to_video(load(other, args), args.prompts, **white).shares()
            yield "3 white objects, trained without images", shares


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


def sections(args: argparse.Namespace, seen: list[Judged]) -> Iterator[tuple[str, Measured]]:
    """The title and the figures of each measure; the judged clips of measure 1 are added to `seen`."""
    phenaki, settings = load(args.model, args), settings_of(args.model, args.seed)
    if phenaki.text_encoder is None and not UNCONDITIONAL.issuperset(args.only):
        raise ValueError("the model is unconditional: only measure 0, and measure 6 of prediction/model, need no text")
    if 0 in args.only:
        yield from of_tokenizer(phenaki, args)
    if 1 in args.only:
        seen.append(text_to_video(phenaki, args.prompts, **settings))
        yield "1 text to video", seen[0].shares()
        yield "1 text to video, captions shuffled", seen[0].shuffled(args.seed).shares()
    yield from of_compositions(phenaki, args, settings)
    if 4 in args.only:
        yield "4 text to image", text_to_image(phenaki, args.prompts, **settings).shares()
    if 5 in args.only:
        yield "5 animation", animation(phenaki, args.others, **settings)
    if 6 in args.only and (other := beside(args.model, "prediction")):
        yield "6 prediction", prediction(load(other, args), args.others, **settings_of(other, args.seed))
    if 7 in args.only:
        for verb in ("turns", "moves"):
            yield f"7 story, {verb}", story(phenaki, args.others, verb=verb, **settings)
    if 8 in args.only:
        yield "8 ten windows", length(phenaki, args.others, **settings)
    if 9 in args.only:
        yield "9 variety", variety(phenaki, args.samples, **settings)
    if 10 in args.only:
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
            curves[stage] = [{name: float(rows[index][name]) for name in rows[index]} for index in sorted(picked)]
    return curves


def write(args: argparse.Namespace, measured: dict[str, Measured], seen: list[Judged], seconds: float) -> None:
    """Write results.json and the plots."""
    args.out.mkdir(parents=True, exist_ok=True)
    arguments = {name: getattr(args, name) for name in ("seed", "prompts", "others", "samples", "precision")}
    results = {"asked": arguments, "minutes": seconds / 60, "measures": measured, "curves": curves_of(args.model)}
    if seen:
        results["confusion"] = seen[0].confusion()
        write_confusion(args.out / "confusion.png", results["confusion"])
    lines = {"steps": "10 steps", "guidance": "10 cond_scale", "window": "8 ten windows"}
    panels = {
        title: {"all right": [(float(name.removeprefix("window ")), share) for name, share in measured[key].items()]}
        for title, key in lines.items()
        if key in measured
    }
    if panels:
        write_plots(args.out / "curves.png", panels, ylabel="all right", from_zero=True)
    (args.out / "results.json").write_text(json.dumps(plain(results), indent=2, allow_nan=False) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    args, began = parse_arguments(argv), time.perf_counter()
    measured, seen = {}, []
    try:
        for title, figures in sections(args, seen):
            measured[title] = figures
            print(f"\n{title}")
            table(figures, lambda line: print(f"    {line}", flush=True))
    except ValueError as error:
        raise SystemExit(f"evaluate.py: {error}") from error
    write(args, measured, seen, time.perf_counter() - began)


if __name__ == "__main__":
    main()
