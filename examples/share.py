"""Make a trained model small enough to share: weights in half precision, the plan and the curves.

    python examples/share.py runs/phenaki shared
    python examples/share.py runs/phenaki shared --temperature 8 --guide-every 3 --critic-inline
    python examples/share.py runs/distilled shared/distilled --tokenizer shared/model/cvivit

`from_pretrained` turns the weights back into float32. If a training started from another run's model,
that run's curves come first. Sampling options that are given replace those in the plan.

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

from data.media import write_curves
from data.runs import (
    IN_PLAN,
    add_sampling,
    asked_sampling,
    load_model,
    load_tokenizer,
    planned_sampling,
    whole_curves,
    write_rows,
)
from phenaki_pytorch import CViViT, Phenaki


def share(run: Path, folder: Path, sampling: dict, tokenizer: Path | None = None) -> None:
    """Write model/, plan.json with the sampling options, and the curves.

    `tokenizer`: the folder of a tokenizer that is not written again. ValueError where there is no model, for impossible
    options, and where the tokenizer is another.
    """
    phenaki, plan = load_model(run / "model").cpu(), json.loads((run / "plan.json").read_text())
    plan["arguments"] |= {IN_PLAN.get(name, name): value for name, value in sampling.items()}
    planned_sampling(plan["arguments"])
    plan.pop("tokenizer", None)
    if tokenizer is not None:
        check_same_tokenizer(phenaki.cvivit, tokenizer)
        plan["tokenizer"] = Path(os.path.relpath(tokenizer.resolve(), folder.resolve())).as_posix()
    phenaki.half().save_pretrained(folder / "model")
    if tokenizer is not None:
        leave_out_tokenizer(folder / "model")
    (folder / "plan.json").write_text(json.dumps(plan, indent=2) + "\n")
    for stage in ("tokenizer", "maskgit"):
        rows = whole_curves(run, stage)
        if rows and not (stage == "tokenizer" and tokenizer is not None):
            write_rows(folder / f"{stage}_curves.csv", rows)
            write_curves(folder / f"{stage}_curves.png", folder / f"{stage}_curves.csv")


def check_same_tokenizer(cvivit: CViViT, folder: Path) -> None:
    """Refuse, with a ValueError, a folder whose tokenizer has other settings, or other weights in half precision."""
    other = load_tokenizer(folder)
    weights = other.state_dict()
    same = cvivit.config == other.config and all(
        torch.equal(weight.half(), weights[name].half()) for name, weight in cvivit.state_dict().items()
    )
    if not same:
        raise ValueError(f"the tokenizer in {folder} is not that of the model")


def leave_out_tokenizer(folder: Path) -> None:
    """Delete the tokenizer of a model's folder, and mark it there as one that has to be given."""
    shutil.rmtree(folder / "cvivit")
    config = json.loads((folder / "config.json").read_text()) | {"cvivit": Phenaki.GIVEN}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="an --out of train_prior.py or train.py, or what share.py wrote")
    parser.add_argument("folder", type=Path, help="where to write; files that are there are replaced")
    parser.add_argument("--tokenizer", type=Path, help="leave the tokenizer out, because it is in this folder already")
    add_sampling(parser)
    args = parser.parse_args(argv)
    sampling = {name: value for name, value in asked_sampling(args).items() if value is not None}
    try:
        share(args.run, args.folder, sampling, args.tokenizer)
    except (ValueError, OSError) as error:
        raise SystemExit(f"share.py: {error}") from error
    for path in sorted(args.folder.rglob("*.safetensors")):
        print(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
