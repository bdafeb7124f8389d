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

from data.clip_arguments import MAX_FPS, MIN_FPS
from data.flags import flag_of, integer, number
from data.outputs import written
from data.word_vectors import WordVectors, words_of
from phenaki_pytorch import CViViT, Phenaki, SelfCritic
from phenaki_pytorch.priors.decoding import DEFAULTS, SamplingOptions, sampling_options

PRETRAINED = Path(__file__).parent.parent / "pretrained" / "model"

# The options that a plan and a command line can set, and the names of those that a plan calls otherwise.
SETTABLE = tuple(name for name in DEFAULTS if name not in ("generator", "progress"))
IN_PLAN = {"steps": "sampling_steps"}

RATE = number(at_least=MIN_FPS, at_most=MAX_FPS)  # a `type` for argparse: frames per second
SEED = integer(at_least=0, at_most=2**63 - 1)  # a `type` for argparse: the seeds that torch and Python both take


# files


def read_json(path: Path) -> dict:
    """The object in a JSON file. ValueError, with the file's name, where it holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(value).__name__}")
    return value


# models


def load_model(folder: Path) -> Phenaki:
    """The model of a folder, on a GPU if there is one, with the tokenizer and text encoder it was trained with.

    A model without a tokenizer of its own shares that of another: its plan says where it lies. Raises ValueError for a
    folder without a model, and for a text encoder that is unknown here.
    """
    config, prior = folder / "config.json", folder / "maskgit" / "config.json"
    if not (config.is_file() and prior.is_file()):
        what = "the folder model/ that train_prior.py left in its --out"
        raise ValueError(f"no model in {folder}: expected {_inside(folder) or what}")
    saved, own = read_json(config), {}
    if saved.get("text_encoder") == Phenaki.GIVEN:
        own["text_encoder"], width = WordVectors(), read_json(prior).get("dim_context")
        if isinstance(width, int) and own["text_encoder"].dim != width:  # other configs are refused when it is built
            raise ValueError(f"the model in {folder} was trained with another text encoder, {width} wide")
    if saved.get("cvivit") == Phenaki.GIVEN:
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
    what = "the folder model/cvivit that train_tokenizer.py left in --out"
    raise ValueError(f"no tokenizer in {folder}: expected {_inside(folder) or what}")


def _inside(folder: Path) -> Path | None:
    """The folder model/ of an --out that was given in its place; None where there is none."""
    return folder / "model" if (folder / "model").is_dir() else None


# plans


def read_plan_file(folder: Path) -> dict:
    """The plan.json beside a model's folder; empty where there is none. ValueError where it is not what a plan is."""
    path = folder.resolve().parent / "plan.json"
    if not path.exists():
        return {}
    plan = read_json(path)
    try:
        check_plan(plan)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return plan


def check_plan(plan: dict) -> None:
    """Refuse, with a ValueError, a plan in which the values that are read here have other kinds or ranges."""
    arguments = plan.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments must be an object, got {arguments!r}")
    for name, value in (
        ("tokenizer", plan.get("tokenizer")),
        *((f"arguments {name}", arguments.get(name)) for name in ("tokenizer", "model")),
    ):
        if not isinstance(value, str | None):
            raise ValueError(f"{name} must be the name of a folder, got {value!r}")
    words = plan.get("words", [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("words must be a list of words")
    fps, stride = arguments.get("fps"), arguments.get("stride", 1)
    if fps is not None and not (isinstance(fps, int | float) and MIN_FPS <= fps <= MAX_FPS):
        raise ValueError(f"fps must be at least {MIN_FPS} and at most {MAX_FPS}, got {fps!r}")
    if not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride must be a whole number of at least 1, got {stride!r}")
    planned_sampling(arguments)


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

    ValueError for impossible values and kinds.
    """
    names = {name: IN_PLAN.get(name, name) for name in SETTABLE}
    try:
        options = sampling_options({name: plan[planned] for name, planned in names.items() if planned in plan})
    except TypeError as error:
        raise ValueError(str(error)) from error
    return {name: options[name] for name in SETTABLE}


def add_sampling(parser: argparse.ArgumentParser, steps_flag: str = "--steps", **defaults: object) -> None:
    """Add the sampling options as arguments, None by default, if not in `defaults`.

    A program in which --steps are those of training calls its `steps_flag` "--sampling-steps", as the plan does.
    """
    add = parser.add_argument_group("sampling").add_argument
    scale = number(at_least=0)
    add(steps_flag, type=integer(), help="passes of parallel decoding")
    add("--cond-scale", type=scale, help="guidance by the text; 1 is none")
    add("--critic-scale", type=scale, help="guidance of the critic, of a model that has one; 1 is none")
    guide_every = "the pass without the text, which guidance needs, is computed in every n-th step only"
    add("--guide-every", type=integer(), metavar="N", help=guide_every)
    inline = "the self-critic reads the ids in MaskGit's own passes"
    add("--critic-inline", action=argparse.BooleanOptionalAction, help=inline)
    add("--temperature", type=scale, help="scale of the noise on the confidence in parallel decoding")
    softmax = "softmax temperature of the first and the last step"
    add("--token-temperature", type=number(above=0), nargs=2, metavar=("FIRST", "LAST"), help=softmax)
    parser.set_defaults(**defaults)


def asked_sampling(args: argparse.Namespace) -> dict:
    """The arguments of `add_sampling` by name, None where they are not given."""
    return {name: getattr(args, name) for name in SETTABLE}


def check_sampling(given: dict, options: SamplingOptions, phenaki: Phenaki) -> None:
    """Refuse, with a ValueError, sampling options that have no effect on a model, and those that it cannot have.

    given    the options that were asked for, None where they were not
    options  all of them, with what the plan says where nothing was asked for
    """
    critic, guiding = phenaki.critic, ("cond_scale", "guide_every")
    for idle, why, names in (
        (critic is None, "on a model without a critic", ("critic_scale", "critic_inline")),
        (phenaki.text_encoder is None, "on an unconditional model", (*guiding, "critic_scale")),
        (critic is not None and critic.backbone.dim_context is None, "as the critic reads no text", ("critic_scale",)),
        (options["cond_scale"] == 1, "with --cond-scale 1, which is no guidance", ("guide_every",)),
        (options["steps"] == 1, "in a single step", ("guide_every", "temperature", "critic_scale", "critic_inline")),
    ):
        if idle and (without := [flag_of(name) for name in names if given.get(name) is not None]):
            raise ValueError(f"{', '.join(without)} would have no effect {why}")
    sampling_options(options)
    if options["critic_inline"] and critic is not None and not isinstance(critic, SelfCritic):
        raise ValueError(f"--critic-inline needs a SelfCritic, the model has a {type(critic).__name__}")


# curves


def whole_curves(run: Path, stage: str) -> list[dict]:
    """The rows of a stage's curves, preceded by those of the runs it started from; the steps continue.

    `run`: what a training left, or what share.py wrote, whose curves are whole already. Where the plans of the runs
    name each other in a circle, each run counts once.
    """
    parts, seen = [], set()
    while run is not None and run.resolve() not in seen:
        seen.add(run.resolve())
        shared, own = run / f"{stage}_curves.csv", run / stage / "curves.csv"
        whole = shared.exists()
        if whole or own.exists():
            parts.append(read_rows(shared if whole else own))
        run = None if whole else _run_before(run, stage)
    rows = []
    for part in reversed(parts):
        done = int(rows[-1]["step"]) if rows else 0
        rows += [row | {"step": done + int(row["step"])} for row in part]
    return rows


def _run_before(run: Path, stage: str) -> Path | None:
    """The run whose model a stage began with, or whose tokenizer the run uses; None where there is none."""
    own = run / "tokenizer"
    if stage == "tokenizer" and (own / "plan.json").is_file():
        folder = read_plan(own / "model").get("model")
    else:
        plan = read_plan(run / "model")
        folder = plan.get("model") or (plan.get("tokenizer") if stage == "tokenizer" else None)
    if not folder:
        return None
    return Path(folder).parent.parent if Path(folder).name == "cvivit" else Path(folder).parent


def read_rows(path: Path) -> list[dict]:
    """The rows of a CSV file of curves, by column; cells may be empty, but for "step".

    ValueError, with the file's name, where it holds anything else.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if "step" not in (reader.fieldnames or ()):
                raise ValueError("expected a column step")
            rows = list(reader)
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(f"expected {len(reader.fieldnames)} values in each row, got {list(row.values())}")
            if int(row["step"]) < 0:
                raise ValueError(f"expected steps of at least 0, got {row['step']}")
            for value in filter(None, row.values()):
                float(value)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} holds no curves: {error}") from error
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write rows as a CSV file, whole or not at all; a cell is empty where a row lacks the column."""
    columns = dict.fromkeys(name for row in rows for name in row)
    with written(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
