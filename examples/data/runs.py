"""What a training leaves behind, and how to sample from it: the model, its plan.json and its curves.

OUT/model/                  what `Phenaki.from_pretrained` reads; OUT/model/cvivit is the tokenizer
OUT/plan.json               the arguments of train_prior.py, the words of its captions
OUT/tokenizer/plan.json     the arguments of train_tokenizer.py
OUT/STAGE/curves.csv        the curves of a stage, "tokenizer" or "maskgit"
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from data.word_vectors import WordVectors, words_of
from phenaki_pytorch import CViViT, Phenaki
from phenaki_pytorch.priors.decoding import DEFAULTS, SamplingOptions, sampling_options

PRETRAINED = Path(__file__).parent.parent / "pretrained" / "model"

# The options that a plan and a command line can set, and the names of those that a plan calls otherwise.
SETTABLE = tuple(name for name in DEFAULTS if name not in ("generator", "progress"))
IN_PLAN = {"steps": "sampling_steps"}


# models


def load_model(folder: Path) -> Phenaki:
    """The model of a folder, on a GPU if there is one, with the tokenizer and text encoder it was trained with.

    A model without a tokenizer of its own shares that of another: its plan says where it lies. Raises ValueError for a
    folder without a model, and for a text encoder that is unknown here.
    """
    config, prior = folder / "config.json", folder / "maskgit" / "config.json"
    if not (config.is_file() and prior.is_file()):
        raise ValueError(f"no model in {folder}: expected the folder model/ that train_prior.py left in its --out")
    saved, own = json.loads(config.read_text()), {}
    if saved["text_encoder"] == Phenaki.GIVEN:
        own["text_encoder"], width = WordVectors(), json.loads(prior.read_text())["dim_context"]
        if own["text_encoder"].dim != width:
            raise ValueError(f"the model in {folder} was trained with another text encoder, {width} wide")
    if saved["cvivit"] == Phenaki.GIVEN:
        own["cvivit"] = load_tokenizer(folder)
    return Phenaki.from_pretrained(folder, **own).eval().to("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(folder: Path) -> CViViT:
    """The tokenizer of a model's folder, its own or the one that its plan names, or in a folder of its own; on the CPU.

    Raises ValueError where there is none.
    """
    places = [folder / "cvivit", folder]
    if (folder / "maskgit").is_dir():
        shared = read_plan_file(folder).get("tokenizer")
        places = [folder / "cvivit", *([] if shared is None else [folder.resolve().parent / shared])]
    for place in places:
        if (place / "config.json").is_file():
            return CViViT.from_pretrained(place)
    raise ValueError(
        f"no tokenizer in {folder}: expected the folder model/cvivit that train_tokenizer.py left in --out"
    )


# plans


def read_plan_file(folder: Path) -> dict:
    """The plan.json beside a model's folder; empty where there is none."""
    plan = folder.resolve().parent / "plan.json"
    return json.loads(plan.read_text()) if plan.is_file() else {}


def read_plan(folder: Path) -> dict:
    """The arguments of the training that left a model's folder; empty where they are not known."""
    return read_plan_file(folder).get("arguments", {})


def unknown_words(folder: Path, prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of the prompts that the training's captions did not have, and those that they had, if that is known."""
    known = read_plan_file(folder).get("words")
    if known is None:
        return [], []
    return sorted({word for prompt in prompts for word in words_of(prompt)} - set(known)), known


# sampling


def planned_sampling(plan: dict) -> SamplingOptions:
    """The sampling options that a plan's arguments ask for, the paper's where they say nothing.

    ValueError for impossible values.
    """
    options = sampling_options({name: plan[IN_PLAN.get(name, name)] for name in SETTABLE if _in(plan, name)})
    return {name: options[name] for name in SETTABLE}


def _in(plan: dict, name: str) -> bool:
    return plan.get(IN_PLAN.get(name, name)) is not None


def add_sampling(parser: argparse.ArgumentParser, steps_flag: str = "--steps", **defaults: object) -> None:
    """Add the sampling options as arguments, None by default, if not in `defaults`.

    A program in which --steps are those of training calls its `steps_flag` "--sampling-steps", as the plan does.
    """
    add = parser.add_argument_group("sampling").add_argument
    add(steps_flag, type=int, help="passes of parallel decoding")
    add("--cond-scale", type=float, help="guidance by the text; 1 is none")
    add("--critic-scale", type=float, help="guidance of the critic, of a model that has one; 1 is none")
    guide_every = "the pass without the text, which guidance needs, is computed in every n-th step only"
    add("--guide-every", type=int, metavar="N", help=guide_every)
    inline = "the self-critic reads the ids in MaskGit's own passes"
    add("--critic-inline", action=argparse.BooleanOptionalAction, help=inline)
    add("--temperature", type=float, help="scale of the noise on the confidence in parallel decoding")
    softmax = "softmax temperature of the first and the last step"
    add("--token-temperature", type=float, nargs=2, metavar=("FIRST", "LAST"), help=softmax)
    parser.set_defaults(**defaults)


def asked_sampling(args: argparse.Namespace) -> dict:
    """The arguments of `add_sampling` by name, None where they are not given."""
    return {name: getattr(args, name) for name in SETTABLE}


# curves


def whole_curves(run: Path, stage: str) -> list[dict]:
    """The rows of a stage's curves, preceded by those of the run it started from; the steps continue.

    `run`: what a training left, or what share.py wrote, whose curves are whole already.
    """
    shared = run / f"{stage}_curves.csv"
    if shared.is_file():
        return read_rows(shared)
    before = _run_before(run, stage)
    rows = [] if before is None else whole_curves(before, stage)
    curves, done = run / stage / "curves.csv", int(rows[-1]["step"]) if rows else 0
    if curves.is_file():
        rows += [row | {"step": done + int(row["step"])} for row in read_rows(curves)]
    return rows


def _run_before(run: Path, stage: str) -> Path | None:
    """The run whose model a stage began with, or whose tokenizer the run uses; None where there is none."""
    own = run / "tokenizer" / "plan.json"
    if stage == "tokenizer" and own.is_file():
        folder = json.loads(own.read_text())["arguments"].get("model")
    else:
        plan = read_plan(run / "model")
        folder = plan.get("model") or (plan.get("tokenizer") if stage == "tokenizer" else None)
    if folder is None:
        return None
    before = Path(folder).parent.parent if Path(folder).name == "cvivit" else Path(folder).parent
    return None if before.resolve() == run.resolve() else before


def read_rows(path: Path) -> list[dict]:
    """The rows of a CSV file, by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write rows of the same columns as a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
