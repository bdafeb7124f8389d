"""Make a trained model small enough to share: weights in half precision, the plan and the curves.

    python examples/share.py runs/phenaki shared
    python examples/share.py runs/phenaki shared --temperature 8 --guide-every 3 --critic-inline
    python examples/share.py runs/distilled shared/distilled --tokenizer shared/model/cvivit

`from_pretrained` turns the weights back into float32. If a training started from another run's model,
that run's curves come first. Sampling options that are given replace those in the plan. The run itself is not changed:
FOLDER must be another.

With --tokenizer, models share one tokenizer: it is left out, and the plan says where it lies, relative to the plan's
folder. `load_model` in data/runs.py reads it there. It must be the model's own, in half precision.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from data.flags import mistakes_in_one_line, path
from data.media import write_curves
from data.outputs import check_writable, written
from data.runs import (
    PARTS,
    SYSTEMS,
    load_model,
    load_tokenizer,
    read_json,
    read_plan_file,
    save_model,
    saved_config,
    saved_tokenizer,
    system_of,
    tokenizer_of,
    whole_curves,
    write_rows,
)
from data.sampling import IN_PLAN, Model, add_sampling, asked_sampling, check_sampling, planned_sampling
from data.targets import made
from phenaki_pytorch import ImageVAE
from phenaki_pytorch.core.saving import Pretrained
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer

STAGES = ("tokenizer", *SYSTEMS.values())
LEFT = ("model", "discriminator", *STAGES)  # the folders that a training leaves


def share(run: Path, folder: Path, sampling: dict, tokenizer: Path | None = None) -> None:
    """Write model/, plan.json with the sampling options, and the curves.

    `tokenizer`: the folder of a tokenizer that is not written again. ValueError where there is no model, for impossible
    options, for weights that are not finite in half precision, and where the tokenizer is another. Everything is read
    before anything is written.
    """
    tokenizer = None if tokenizer is None else saved_tokenizer(tokenizer)
    check_folders(run, folder, tokenizer)
    model, plan = load_model(run / "model").cpu(), planned(run, sampling)
    system = type(model)
    check_replaced(folder / "model", system)
    check_sampling(sampling, planned_sampling(plan["arguments"]), model)
    if tokenizer is not None:
        check_same_tokenizer(tokenizer_of(model), tokenizer)
        plan["tokenizer"] = Path(os.path.relpath(tokenizer.resolve(), folder.resolve())).as_posix()
    stages = ("tokenizer", SYSTEMS[system]) if tokenizer is None else (SYSTEMS[system],)
    curves = {stage: rows for stage in stages if (rows := whole_curves(run, stage))}
    check_finite(model.half())
    save_model(model, folder / "model")
    if tokenizer is not None:
        leave_out_tokenizer(folder / "model", PARTS[system])
    with written(folder / "plan.json") as temporary:
        temporary.write_text(json.dumps(plan, indent=2) + "\n")
    for stage, rows in curves.items():
        write_rows(folder / f"{stage}_curves.csv", rows)
        write_curves(folder / f"{stage}_curves.png", folder / f"{stage}_curves.csv")


def check_folders(run: Path, folder: Path, tokenizer: Path | None) -> None:
    """Refuse a folder that cannot be written to, or whose files would replace a training or the tokenizer itself."""
    target, own = folder.resolve(), run.resolve()
    if target == own or any(target.is_relative_to(own / part) for part in LEFT):
        raise ValueError(f"expected another folder than the run's own, whose files would be replaced, got {folder}")
    if own.is_relative_to(target / "model"):
        raise ValueError(f"expected a run outside of {folder / 'model'}, which is replaced, got {run}")
    if any((folder / stage).is_dir() for stage in STAGES):
        raise ValueError(f"expected another folder than the --out of a training, got {folder}")
    if tokenizer is not None and tokenizer.resolve().is_relative_to((folder / "model").resolve()):
        raise ValueError(f"expected a tokenizer outside of {folder / 'model'}, which is replaced, got {tokenizer}")
    check_writable(folder / "plan.json")
    check_writable(folder / "model" / "config.json")


def check_replaced(folder: Path, system: type[Model]) -> None:
    """Refuse, with a ValueError, a folder that holds a model of another system, whose parts would stay there."""
    other = system_of(saved_config(folder))
    if other not in (None, system):
        raise ValueError(f"{folder} holds a {other.__name__}: expected another folder for a {system.__name__}")


def planned(run: Path, sampling: dict) -> dict:
    """The plan of a run with other sampling options."""
    if not (run / "plan.json").exists():
        raise FileNotFoundError(f"expected the plan of the training in {run / 'plan.json'}, found none")
    plan = read_plan_file(run / "model")
    arguments = plan.get("arguments", {}) | {IN_PLAN.get(name, name): value for name, value in sampling.items()}
    of_run = ("tokenizer", "tokenizer_sha256")
    return {name: value for name, value in plan.items() if name not in of_run} | {"arguments": arguments}


def check_same_tokenizer(tokenizer: VideoTokenizer | ImageVAE, folder: Path) -> None:
    """Refuse, with a ValueError, another kind of tokenizer, other settings, or other weights in half precision."""
    other = load_tokenizer(folder)
    weights = other.state_dict()
    same = type(tokenizer) is type(other) and tokenizer.config == other.config
    same = same and all(
        torch.equal(weight.half(), weights[name].half()) for name, weight in tokenizer.state_dict().items()
    )
    if not same:
        raise ValueError(f"the tokenizer in {folder} is not that of the model")


def check_finite(model: nn.Module) -> None:
    """Refuse, with a ValueError, weights that are not finite."""
    for name, weight in model.state_dict().items():
        if not weight.isfinite().all():
            raise ValueError(f"the weights {name} are not finite in half precision, whose largest number is 65504")


def leave_out_tokenizer(folder: Path, part: str) -> None:
    """Delete the tokenizer, `part`, of a model's folder, and mark it there as one that has to be given."""
    config = read_json(folder / "config.json") | {part: Pretrained.GIVEN}
    with written(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder / part)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=path, help="an --out of train_prior.py, train_diffusion.py or train.py, or what share.py wrote"
    )
    parser.add_argument("folder", type=path, help="where to write; files of the same names are replaced")
    left_out = "leave the tokenizer out, because it lies here: its folder, or that of a model"
    parser.add_argument("--tokenizer", type=path, help=left_out)
    add_sampling(parser)
    args = parser.parse_args(argv)
    sampling = {name: value for name, value in asked_sampling(args).items() if value is not None}
    with mistakes_in_one_line(__file__), made(args.folder), made(args.folder / "model"):
        share(args.run, args.folder, sampling, args.tokenizer)
    for file in sorted(args.folder.rglob("*.safetensors")):
        print(f"wrote {file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
