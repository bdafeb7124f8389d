"""Speed and memory of every pass of training and use: seconds, share of the machine's peak, memory.

    python examples/benchmark.py                                   # the middle size, float32 and bfloat16
    python examples/benchmark.py --modes eager plain               # and benchmarks/plain.py
    python examples/benchmark.py --modes eager products            # and the matrix products alone
    python examples/benchmark.py --sizes small --modes compiled    # torch.compile
    python examples/benchmark.py --cost cost.png                   # cost against length, tokens and batch

Each line is measured in a process of its own, as the median of its repetitions, and written as soon as it is measured.

share      the time that the pass's least work (benchmarks/least_work.py) takes at the machine's peak, over the
           measured time. The peak is that of matrix products. It is measured before and after every repetition and the
           larger value counts, because the speed of shared machines varies.
× plain    how many times as long the plain implementation takes: the median of repetitions in turn. In the row of the
           mode "products", which runs the matrix products and attention of the pass and nothing else, it is the most
           that a faster implementation around these products could reach.
MiB        the most memory beyond that of the imports, with parameters and optimizer: of the process on the CPU, of the
           allocator on CUDA. The C library keeps freed memory (`KEEP_MEMORY`; the variables help a training as well).

A training step of MaskGit masks the mean share of its schedule. Under bfloat16 the weights are cast again in every
training step, and once in every other pass.
"""

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import torch

from benchmarks.passes import PASSES, SIZES
from data.flags import given_names, integer, mistakes_in_one_line, path, refuse_idle
from data.media import write_plots
from data.targets import check_targets, png

PRECISIONS = ("float32", "bfloat16")
LONG = "long generate"
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

# Without these, glibc gives large blocks back to the system and asks for them again in every pass.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def measured(case: dict) -> dict | None:
    """Measure one case in a process of its own; None, and a message, where the process fails."""
    command = [sys.executable, "-m", "benchmarks.passes", json.dumps(case)]
    environment = KEEP_MEMORY | os.environ
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parent)
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
    """Plots: seconds and memory against the length of a video, seconds against the ids of a window and the batch.

    Prints how much the windows of the longest video differ in time, without the first.
    """
    panels = {}
    common = {"precision": "float32", "mode": "eager", "repeat": args.repeat, "device": args.device, "size": "small"}
    for title, name, key, values in (
        ("a video, seconds against windows", LONG, "windows", (1, 2, 4, 8, 16, 32)),
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
        if key == "windows" and rows and len(each) > 1:
            panels["the longest video, seconds of each window"] = {"seconds": list(enumerate(each, 1))}
            middle = statistics.median(each[1:])
            off = [f"{value / middle - 1:+.0%}" for value in (min(each[1:]), max(each[1:]))]
            print(f"windows 2 to {len(each)}: median {middle:.3g} s, {' to '.join(off)}")
    return panels


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", nargs="+", choices=tuple(SIZES), default=["middle"], help="default: %(default)s")
    add("--passes", nargs="+", choices=tuple(PASSES), default=list(PASSES), help="default: all")
    add("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="default: both")
    add("--modes", nargs="+", choices=("eager", "compiled", "plain", "products"), default=["eager"], help="see above")
    add("--windows", type=integer(), nargs="+", default=[1, 4, 16], help="of the long generation; default: %(default)s")
    add("--batch", type=integer(), default=1)
    add("--repeat", type=integer(), default=5, help="repetitions; default: %(default)s")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    add("--csv", type=path, help="where to write the table as well")
    add("--cost", type=png, help="a PNG: measure instead what length, ids and batch cost, and plot it")
    args = parser.parse_args(argv)
    check_used(parser, args, given_names(parser, argv))
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch finds")
    return args


def check_used(parser: argparse.ArgumentParser, args: argparse.Namespace, given: set[str]) -> None:
    """Refuse arguments without effect, and those that leave nothing to measure."""
    if args.cost:
        of_table = ("sizes", "passes", "precisions", "modes", "windows", "batch", "csv")
        refuse_idle(parser, given, "with --cost, which has its own cases", *of_table)
    elif LONG not in args.passes:
        refuse_idle(parser, given, f"without the pass {LONG!r}", "windows")
    if next(cases(args), None) is None:
        parser.error(f"the plain implementation has no {LONG!r}: expected another pass or mode")


def cases(args: argparse.Namespace) -> Iterator[dict]:
    """All cases of the table, line by line. The plain implementation has no long generation."""
    for size, precision, mode, name in product(args.sizes, args.precisions, args.modes, args.passes):
        if (mode, name) == ("plain", LONG):
            continue
        for windows in args.windows if name == LONG else (1,):
            yield {
                "size": size,
                "pass": name,
                "precision": precision,
                "mode": mode,
                "windows": windows,
                "batch": args.batch,
                "repeat": args.repeat,
                "device": args.device,
                "beside_plain": "plain" in args.modes and mode != "plain" and name != LONG,
            }


def rows_of(args: argparse.Namespace) -> Iterator[dict]:
    """The rows of the table, each as soon as it is measured."""
    for case in cases(args):
        row = measured(case)
        if row is not None:
            if row["pass"] == LONG:
                row["pass"] += f", {row['windows']} windows"
            print(line(row), flush=True)
            yield row


def write_table(args: argparse.Namespace) -> None:
    """Print the table, and write it where --csv says."""
    with args.csv.open("w", newline="", encoding="utf-8") if args.csv else nullcontext(io.StringIO()) as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        count = 0
        for row in rows_of(args):
            writer.writerow(row)
            file.flush()
            count += 1
    if count == 0:
        raise ValueError("no case could be measured")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with mistakes_in_one_line(__file__):
        check_targets({"--csv": args.csv, "--cost": args.cost})
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
        if args.cost:
            write_plots(args.cost, cost(args), from_zero=True)
        else:
            write_table(args)


if __name__ == "__main__":
    main()
