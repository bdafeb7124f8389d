"""Make what train.py left small enough to give away: the weights in half precision, the plan and the curves.

    python examples/share.py runs/reference examples/pretrained
    python examples/share.py runs/reference examples/pretrained --temperature 8 --guide-every 3 --critic-inline

`from_pretrained` puts the weights back into float32. A training that began with another's model has the curves of that
one before its own; a stage that was never trained has none. With settings of sampling, the plan says these in place of
the training's.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

from generate import add_sampling, asked_sampling, load_model, planned_sampling, read_plan
from media import write_curves
from training_loop import write_rows


def whole_curves(run: Path, stage: str) -> list[dict]:
    """The rows of a stage's curves, after those of the training whose model it began with, its steps counted on.

    `run`: what train.py left, or share.py, whose curves hold what came before already.
    """
    shared = run / f"{stage}_curves.csv"
    if shared.is_file():
        return read_rows(shared)
    before = read_plan(run / "model").get("model")
    rows = [] if before is None else whole_curves(Path(before).parent, stage)
    curves, done = run / stage / "curves.csv", int(rows[-1]["step"]) if rows else 0
    if curves.is_file():
        rows += [row | {"step": done + int(row["step"])} for row in read_rows(curves)]
    return rows


def read_rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def share(run: Path, folder: Path, sampling: dict) -> None:
    """Write model/, plan.json with other settings of sampling, and the curves.

    ValueError where there is no model, and for settings that no sampling can follow.
    """
    model, plan = load_model(run / "model"), json.loads((run / "plan.json").read_text())
    plan["arguments"] |= {"sampling_steps" if name == "steps" else name: value for name, value in sampling.items()}
    planned_sampling(plan["arguments"])
    model.cpu().half().save_pretrained(folder / "model")
    (folder / "plan.json").write_text(json.dumps(plan, indent=2) + "\n")
    for stage in ("tokenizer", "maskgit"):
        if rows := whole_curves(run, stage):
            write_rows(folder / f"{stage}_curves.csv", rows)
            write_curves(folder / f"{stage}_curves.png", folder / f"{stage}_curves.csv")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the --out of train.py")
    parser.add_argument("folder", type=Path, help="where to write; files that are there are replaced")
    add_sampling(parser)
    args = parser.parse_args(argv)
    given = {name: value for name, value in asked_sampling(args).items() if value is not None}
    try:
        share(args.run, args.folder, given)
    except (ValueError, OSError) as error:
        raise SystemExit(f"share.py: {error}") from error
    for path in sorted(args.folder.rglob("*.safetensors")):
        print(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
