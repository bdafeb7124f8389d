"""What a training leaves behind: the model, its plan.json and its curves.

OUT/model/                  what the `from_pretrained` of Phenaki, VideoGPT or Latte reads
OUT/model/cvivit            the tokenizer, a CViViT; OUT/model/tokenizer one of another kind, OUT/model/codec of a Latte
OUT/plan.json               the arguments of train_prior.py or train_diffusion.py, the words of the captions
OUT/tokenizer/plan.json     the arguments of train_tokenizer.py
OUT/STAGE/curves.csv        the curves of a stage, "tokenizer" or "maskgit" or "gpt" or "latte"
"""

import csv
import inspect
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from data.clip_arguments import MAX_FPS, MIN_FPS
from data.flags import integer, number
from data.outputs import written
from data.sampling import Model, planned_sampling
from data.vae import load_vae
from data.word_vectors import WordVectors, words_of
from phenaki_pytorch import GPT, CViViT, ImageVAE, Latte, LatteTransformer, MaskGit, Phenaki, VideoGPT
from phenaki_pytorch.first_stage import KINDS
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer

PRETRAINED = Path(__file__).parent.parent / "pretrained" / "model"

# The systems, and what each calls its second stage, the network of it, and its first stage.
SYSTEMS = {Phenaki: "maskgit", VideoGPT: "gpt", Latte: "latte"}
NETWORKS = {Phenaki: "maskgit", VideoGPT: "gpt", Latte: "transformer"}
PARTS = {Phenaki: "cvivit", VideoGPT: "tokenizer", Latte: "codec"}

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


def saved_config(folder: Path) -> dict:
    """The config.json of a folder, {} where there is none."""
    config = folder / "config.json"
    return read_json(config) if config.is_file() else {}


# models


def system_of(config: dict) -> type[Model] | None:
    """The system whose config this is; None for another one."""
    return next((system for system, part in PARTS.items() if part in config), None)


def load_model(folder: Path) -> Model:
    """The model of a folder, on a GPU if there is one, with the tokenizer and text encoder it was trained with.

    A model without a tokenizer of its own shares that of another, or has an image VAE: its plan says where it lies.
    Raises ValueError for a folder without a model, and for a text encoder that is unknown here.
    """
    saved, own = saved_config(folder), {}
    system = system_of(saved)
    if system is None or not (folder / NETWORKS[system] / "config.json").is_file():
        what = "the folder model/ that train_prior.py or train_diffusion.py left in its --out"
        raise ValueError(f"no model in {folder}: expected {_inside(folder) or what}")
    if saved.get("text_encoder") == system.GIVEN:
        words, width = WordVectors(), read_json(folder / NETWORKS[system] / "config.json").get("dim_context")
        if isinstance(width, int) and words.dim != width:  # other configs are refused when it is built
            raise ValueError(f"the model in {folder} was trained with another text encoder, {width} wide")
        own["text_encoder"] = words
    if saved[PARTS[system]] == system.GIVEN:
        own[PARTS[system]] = load_codec(folder)
    return system.from_pretrained(folder, **own).eval().to("cuda" if torch.cuda.is_available() else "cpu")


def save_model(model: Model, folder: Path) -> None:
    """Save a model, without a warning of what `load_model` adds again: the encoder of words, an image VAE."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="left out of the saved model")
        model.save_pretrained(folder)


def load_phenaki(folder: Path) -> Phenaki:
    """As `load_model`; ValueError for a model of another kind."""
    model = load_model(folder)
    if not isinstance(model, Phenaki):
        raise ValueError(f"{folder} holds a {type(model).__name__}, expected a Phenaki")
    return model


def tokenizer_of(model: Model) -> VideoTokenizer | ImageVAE:
    """The first stage of a model."""
    return getattr(model, PARTS[type(model)])


def network_of(model: Model) -> MaskGit | GPT | LatteTransformer:
    """The network of a model's second stage."""
    return getattr(model, NETWORKS[type(model)])


def device_of(model: Model) -> torch.device:
    """The device of a model's second stage."""
    return network_of(model).placement().device


def load_codec(folder: Path) -> VideoTokenizer | ImageVAE:
    """The first stage that the plan of a model's folder names: an image VAE or a tokenizer; on the CPU."""
    plan = read_plan(folder)
    return load_vae(Path(plan["vae"]), plan.get("size")) if plan.get("vae") else load_tokenizer(folder)


def load_tokenizer(folder: Path) -> VideoTokenizer:
    """The tokenizer of a folder, see `saved_tokenizer`; on the CPU."""
    place = saved_tokenizer(folder)
    return kind_of(place).from_pretrained(place)


def saved_tokenizer(folder: Path) -> Path:
    """Where the tokenizer of a model's folder lies: its own, or the one that its plan names; or the folder itself.

    Raises ValueError where there is none.
    """
    saved = saved_config(folder)
    places = [folder / part for part in PARTS.values() if part in saved]  # of a model, the one that it was trained with
    if places and (shared := read_plan_file(folder).get("tokenizer")) is not None:
        places.append(folder.resolve().parent / shared)
    for place in places or [folder / "cvivit", folder / "tokenizer", folder]:
        if (place / "config.json").is_file():
            return place
    what = "the folder model/ that train_tokenizer.py left in --out"
    raise ValueError(f"no tokenizer in {folder}: expected {_inside(folder) or what}")


def kind_of(folder: Path) -> type[VideoTokenizer]:
    """The class of a saved tokenizer, the one whose arguments its config holds. ValueError where there is none.

    A config that was saved before an argument was added lacks it, if it has a default.
    """
    names = read_json(folder / "config.json").keys()
    for kind in KINDS.values():
        arguments = inspect.signature(kind).parameters
        needed = {name for name, argument in arguments.items() if argument.default is argument.empty}
        if needed <= names <= arguments.keys():
            return kind
    raise ValueError(f"{folder} holds none of {', '.join(KINDS)}, but {', '.join(names) or 'an empty config'}")


def folder_of(tokenizer: VideoTokenizer) -> str:
    """The folder in model/ that a training of a tokenizer leaves."""
    return "cvivit" if isinstance(tokenizer, CViViT) else "tokenizer"


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
        *((f"arguments {name}", arguments.get(name)) for name in ("tokenizer", "model", "vae")),
    ):
        if not isinstance(value, str | None):
            raise ValueError(f"{name} must be the name of a folder, got {value!r}")
    lists = {name: plan.get(name, []) for name in ("words", "classes", "actions")}
    lists["arguments condition"] = arguments.get("condition") or []
    for name, words in lists.items():
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{name} must be a list of words")
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


class Labels(NamedTuple):
    """The names of the classes and of the actions that a model was told; empty for none."""

    classes: list[str]
    actions: list[str]


def labels_of(folder: Path, model: Model) -> Labels:
    """The names of a model's classes and actions, as its plan has them; numbers where it is not there.

    ValueError for a plan with another number of names.
    """
    plan, labels = read_plan_file(folder), getattr(model, "labels", model)  # of a VideoGPT; a Latte has classes itself
    counts = {"classes": getattr(labels, "num_classes", None) or 0, "actions": getattr(labels, "dim_action", None) or 0}
    names = {name: plan.get(name) or [str(number) for number in range(count)] for name, count in counts.items()}
    for name, count in counts.items():
        if len(names[name]) != count:
            raise ValueError(f"the model in {folder} has {count} {name}, its plan.json {len(names[name])}")
    return Labels(**names)


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
    return Path(folder).parent.parent if Path(folder).name in PARTS.values() else Path(folder).parent


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
