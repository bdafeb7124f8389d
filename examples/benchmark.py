"""How fast and how large: seconds, share of what the machine could do, memory, for every pass of training and use.

    python examples/benchmark.py                                   # the middle size, float32 and bfloat16
    python examples/benchmark.py --modes eager plain               # and beside it, what one writes first
    python examples/benchmark.py --modes eager products            # and what its matrix products take by themselves
    python examples/benchmark.py --sizes small --modes compiled    # torch.compile
    python examples/benchmark.py --cost cost.png                   # how cost grows with length, tokens and batch

Each line is measured in a process of its own: the median of its repetitions, and the share that the least work that
the pass can be done with (least_work.py) would have taken of it. The peak of matrix products, at which that work is
reckoned, is measured before and after every repetition, and the better of both counts: shared machines drift. A
training step of MaskGit masks as many ids as the mean of its schedule. With the mode "plain", the others are timed
turn by turn with it, and "× plain" is the median of how many times as long it takes. The mode "products" makes the
matrix products and attention of the eager pass once more, and nothing else: what it leaves of the peak no change
around them brings, and its "× plain" is the most that one can be ahead by. The C library keeps the memory that is
freed (`KEEP_MEMORY`, which one can set for a training as well). Memory is the most above what the imports take,
parameters and optimizer included: of the process on the CPU, of the allocator on CUDA. Under bfloat16 the weights are
cast again in every training step and once in every other pass.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmark_passes import PASSES, SIZES
from media import write_plots

COLUMNS = (
    "size",
    "pass",
    "precision",
    "mode",
    "seconds",
    "GFLOP",
    "peak GFLOP/s",
    "share",
    "× plain",
    "MiB",
    "frames/s",
)

# The allocator of Linux (glibc) otherwise returns large blocks to the system and asks for them again in every pass.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def measured(case: dict) -> dict | None:
    """One case in a process of its own; None, and a line that says why, where it does not come through."""
    command = [sys.executable, str(Path(__file__).parent / "benchmark_passes.py"), json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, env=KEEP_MEMORY | os.environ)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        print(f"{case['size']}, {case['pass']}, {case['precision']}, {case['mode']}: {reason}", file=sys.stderr)
        return None
    return {**case, **json.loads(done.stdout.splitlines()[-1])}


def line(row: dict) -> str:
    """A row of the table, in Markdown."""
    shown = [
        *(row[name] for name in ("size", "pass", "precision", "mode")),
        f"{row['seconds']:.3g}",
        f"{row['GFLOP']:.4g}",
        f"{row['peak GFLOP/s']:.0f}",
        f"{row['share']:.0%}",
        f"{row['× plain']:.2f}" if row["× plain"] else "",
        f"{row['MiB']:.0f}",
        f"{row['frames/s']:.3g}",
    ]
    return f"| {' | '.join(shown)} |"


def cost(args: argparse.Namespace) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Seconds and memory against the length of a video, seconds against the ids of a window and the batch.

    Prints the windows of the longest video, from the second on.
    """
    panels = {}
    common = {"precision": "float32", "mode": "eager", "repeat": args.repeat, "device": args.device, "size": "small"}
    for title, name, key, values in (
        ("a video, seconds against windows", "long generate", "windows", (1, 2, 4, 8, 16, 32)),
        ("18 guided steps, seconds against ids of a window", "generate 18", "side", (8, 12, 16, 24, 32)),
        ("a training step of MaskGit, seconds against batch", "maskgit step", "batch", (1, 2, 4, 8, 16)),
    ):
        rows = []
        for value in values:
            row = measured({**common, "pass": name, key: value})
            if row is not None:
                rows.append(row)
                print(line(row | {"pass": f"{name}, {key} {value}"}), flush=True)
        panels[title] = {"seconds": [(row["x"], row["seconds"]) for row in rows]}
        if key == "windows" and rows:
            panels["a video, MiB against windows"] = {"MiB": [(row["x"], row["MiB"]) for row in rows]}
            each = rows[-1]["each window"]
            panels["the longest, seconds of each window"] = {"seconds": list(enumerate(each, 1))}
            middle = statistics.median(each[1:])
            off = [f"{value / middle - 1:+.0%}" for value in (min(each[1:]), max(each[1:]))]
            print(f"windows 2 to {len(each)}: median {middle:.3g} s, {' to '.join(off)}")
    return panels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", nargs="+", choices=tuple(SIZES), default=["middle"])
    add("--passes", nargs="+", choices=tuple(PASSES), default=list(PASSES))
    add("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    add(
        "--modes",
        nargs="+",
        choices=("eager", "compiled", "plain", "products"),
        default=["eager"],
        help="plain: benchmark_plain.py; products: benchmark_products.py",
    )
    add("--windows", type=int, nargs="+", default=[1, 4, 16], help="of the long generation")
    add("--batch", type=int, default=1)
    add("--repeat", type=int, default=5)
    add("--device", default="cpu", help="cpu or cuda")
    add("--csv", type=Path, help="where to write the table as well")
    add("--cost", type=Path, help="another table: what length, ids and batch cost, with a plot as PNG")
    args = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    if args.cost:
        write_plots(args.cost, cost(args), from_zero=True)
        return
    rows = []
    for size in args.sizes:
        for precision in args.precisions:
            for mode in args.modes:
                for name in args.passes:
                    if (mode, name) == ("plain", "long generate"):
                        continue
                    beside = "plain" in args.modes and mode != "plain" and name != "long generate"
                    for windows in args.windows if name == "long generate" else (1,):
                        case = {"size": size, "pass": name, "precision": precision, "mode": mode, "windows": windows}
                        case |= {"batch": args.batch, "repeat": args.repeat, "device": args.device}
                        case |= {"beside_plain": beside}
                        row = measured(case)
                        if row is not None:
                            if name == "long generate":
                                row["pass"] += f", {windows} windows"
                            rows.append(row)
                            print(line(row), flush=True)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
