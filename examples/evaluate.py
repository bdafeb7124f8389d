"""Measure every claim again: ten measures of a model of moving shapes, as a table, results.json and plots.

    python examples/evaluate.py                                   # the trained model that comes with the repository
    python examples/evaluate.py --quick                           # with a tenth of the prompts
    python examples/evaluate.py --model runs/phenaki/model --out runs/phenaki/evaluation --only 1 7

Two measures need models that were trained beside it: 3 one without images, 6 one without texts. They are looked for at
without_images/model and prediction/model beside the model's folder, and left out where they are not there. The same
--seed gives the same figures on the same machine. Leaves results.json, curves.png and confusion.png in --out.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from claims import Judged, Measured, animation, length, prediction, story, text_to_image, text_to_video, variety
from generate import PRETRAINED, load_model, planned_sampling, read_plan
from measures import Mean, Share, judge_each, judged_reconstruction, judged_shares, reconstruction, table
from media import write_confusion, write_plots
from moving_shapes import MovingShapes
from phenaki_pytorch import Phenaki
from share import whole_curves

MEASURES = range(11)  # 0 is the tokenizer
UNCONDITIONAL = {0, 6}  # what can be asked without a text
PROMPTS, OTHERS = 500, 200
STEPS = (1, 2, 4, 8, 12, 24, 48)
PICKED = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # shares of a training's curves that are left
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, default=PRETRAINED, help="the folder that train.py wrote")
    add("--out", type=Path, default=Path("runs/evaluation"), help="what it leaves; default: %(default)s")
    add("--quick", action="store_true", help="a tenth of the prompts where no number is given, fewer settings")
    add("--only", type=int, nargs="+", choices=MEASURES, default=MEASURES, help="measures; 0 is the tokenizer")
    add("--seed", type=int, default=0)
    add("--prompts", type=int, help=f"of measures 1 to 4, and clips of 0; default: {PROMPTS}")
    add("--others", type=int, help=f"prompts of measures 5 to 8, and of each setting of 10; default: {OTHERS}")
    add("--precision", choices=("no", "bf16"), default="no", help="bf16: draw under autocast, faster where it is fast")
    add("--samples", type=int, default=64, help="of measure 9; default: %(default)s")
    args = parser.parse_args(argv)
    part, every = (10, 2) if args.quick else (1, 1)
    args.prompts = PROMPTS // part if args.prompts is None else args.prompts
    args.others = OTHERS // part if args.others is None else args.others
    args.steps, args.guidance = STEPS[::every], GUIDANCE[::every]
    if min(args.prompts, args.others) < 1 or args.samples < 3:
        parser.error("expected prompts of all measures, and at least 3 samples")
    return args


def settings_of(model: Path, seed: int) -> dict:
    """How a model is asked: as its training says, with this seed."""
    return {"seed": seed, **planned_sampling(read_plan(model))}


def beside(model: Path, name: str) -> Path | None:
    """The model that was trained beside this one under a name; None, and a line that says so, where there is none."""
    other = model.resolve().parent / name / "model"
    if other.is_dir():
        return other
    print(f"left out what asks the model {name}: there is none in {other}", file=sys.stderr)
    return None


def load(model: Path, args: argparse.Namespace) -> Phenaki:
    """A model that draws in the precision that was asked for; what judges its clips stays in float32."""
    phenaki = load_model(model)
    if args.precision == "bf16":
        lower = torch.autocast(phenaki.maskgit.to_logits.weight.device.type, torch.bfloat16)
        phenaki.generate, phenaki.generate_story = lower(phenaki.generate), lower(phenaki.generate_story)
    return phenaki


def sections(args: argparse.Namespace, seen: list[Judged]) -> Iterator[tuple[str, Measured]]:
    """Each measure's title and figures; what measure 1 judged is left in `seen`."""
    phenaki, settings = load(args.model, args), settings_of(args.model, args.seed)
    if phenaki.text_encoder is None and not UNCONDITIONAL.issuperset(args.only):
        raise ValueError("the model is unconditional: --only 0 measures it, and 6 the one in prediction/model")
    if 0 in args.only:
        size = phenaki.cvivit.image_size[0]
        world = MovingShapes("tokenizer", size=size, num_frames=phenaki.window, seed=args.seed + 1)
        videos, captions = world.told(args.prompts)
        yield "0 drawn clips", judged_shares(judge_each(videos, captions))
        videos = videos.to(phenaki.maskgit.to_logits.weight.device)
        rebuilt = reconstruction(phenaki.cvivit, videos)
        yield "0 reconstructions", rebuilt | judged_reconstruction(phenaki.cvivit, videos, captions)
    if 1 in args.only:
        seen.append(text_to_video(phenaki, args.prompts, **settings))
        yield "1 text to video", seen[0].shares()
        yield "1 text to video, captions shuffled", seen[0].shuffled(args.seed).shares()
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
        known = {}  # the usual settings are on both curves
        for name, values in (("steps", args.steps), ("cond_scale", args.guidance)):
            shares = {}
            for value in values:
                asked = settings | {name: value}
                place = asked["steps"], asked["cond_scale"]
                if place not in known:
                    known[place] = text_to_video(phenaki, args.others, **asked).shares()["all"]
                shares[f"{value:g}"] = known[place]
            yield f"10 {name}", shares


def plain(value: object) -> object:
    """What JSON can say: a share or a mean with its interval and number of trials, null for what is not finite."""
    if isinstance(value, Share | Mean):
        kind, (low, high) = type(value).__name__.lower(), value.interval()
        return plain({"kind": kind, "value": float(value), "low": low, "high": high, "of": value.trials})
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def curves_of(model: Path) -> dict[str, list[dict[str, float]]]:
    """Of the curves of its training, that train.py or share.py left beside a model, some rows of each stage."""
    curves = {}
    for stage in ("tokenizer", "maskgit"):
        if rows := whole_curves(model.resolve().parent, stage):
            picked = {max(0, round(share * len(rows)) - 1) for share in PICKED}
            curves[stage] = [{name: float(rows[index][name]) for name in rows[index]} for index in sorted(picked)]
    return curves


def write(args: argparse.Namespace, measured: dict[str, Measured], seen: list[Judged], seconds: float) -> None:
    """Write results.json and the plots of what was measured."""
    args.out.mkdir(parents=True, exist_ok=True)
    asked = {name: getattr(args, name) for name in ("seed", "prompts", "others", "samples", "precision")}
    results = {"asked": asked, "minutes": seconds / 60, "measures": measured, "curves": curves_of(args.model)}
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
