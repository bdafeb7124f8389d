"""Timing several calls in turn, because the speed of shared machines varies: the times, and how a table shows them."""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.machine import seconds


def seconds_in_turn(calls: Mapping[str, Callable[[], object]], turns: int, device: str) -> dict[str, list[float]]:
    """The seconds of each call in each turn; nothing is warmed up."""
    times = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return times


def spread(values: Sequence[float], digits: str) -> str:
    """The median, the least and the most."""
    return f"{statistics.median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the arguments --device and --precision."""
    add, default = parser.add_argument, "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=default, help="default: cuda if there is one")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="of the weights; default: %(default)s")


def check_machine(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with the usage where there is no such device."""
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch finds")
