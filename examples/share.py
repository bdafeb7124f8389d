"""Make what train.py left small enough to give away: the weights in half precision, the plan and the curves.

    python examples/share.py runs/reference examples/pretrained

`from_pretrained` puts the weights back into float32. What was not trained in this run has no curves and is left out.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from generate import load_model


def share(run: Path, folder: Path) -> None:
    """Write model/, plan.json and the curves of both stages; ValueError where there is no model."""
    load_model(run / "model").cpu().half().save_pretrained(folder / "model")
    shutil.copy(run / "plan.json", folder)
    for stage in ("tokenizer", "maskgit"):
        for curves in sorted((run / stage).glob("curves.*")):
            shutil.copy(curves, folder / f"{stage}_{curves.name}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the --out of train.py")
    parser.add_argument("folder", type=Path, help="where to write; files that are there are replaced")
    args = parser.parse_args(argv)
    try:
        share(args.run, args.folder)
    except (ValueError, OSError) as error:
        raise SystemExit(f"share.py: {error}") from error
    for path in sorted(args.folder.rglob("*.safetensors")):
        print(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
