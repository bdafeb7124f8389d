"""What every program does with its command line: ranges of numbers, flags without effect, errors in one line."""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

# What a wrong argument or a broken file raises. Anything else is a fault of the program and keeps its traceback.
MISTAKES = (ValueError, OSError)


def integer(at_least: int = 1, at_most: int | None = None) -> Callable[[str], int]:
    """A `type` for argparse: whole numbers in a range, both ends included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if value < at_least or (at_most is not None and value > at_most):
            most = "" if at_most is None else f" and at most {at_most}"
            raise argparse.ArgumentTypeError(f"expected at least {at_least}{most}, got {text}")
        return value

    return parse


def number(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Callable[[str], float]:
    """A `type` for argparse: finite numbers in a range."""
    bounds = [
        (f"at least {at_least}", at_least is None, lambda value: value >= at_least),
        (f"above {above}", above is None, lambda value: value > above),
        (f"at most {at_most}", at_most is None, lambda value: value <= at_most),
        (f"below {below}", below is None, lambda value: value < below),
    ]
    bounds = [(words, holds) for words, absent, holds in bounds if not absent]
    wanted = " and ".join(words for words, _ in bounds) or "a finite number"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
        if not math.isfinite(value) or not all(holds(value) for _, holds in bounds):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
        return value

    return parse


def path_text(text: str) -> str:
    """A `type` for argparse: the path of a file or folder, as a text.

    An empty text, as an unset variable of a shell gives, would be the current folder, and an address a new folder.
    """
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected the name of a file or folder, got {text!r}")
    if re.match(r"[A-Za-z][\w+.-]*://", text):
        raise argparse.ArgumentTypeError(f"expected the name of a file or folder, got the address {text}")
    return text


def path(text: str) -> Path:
    """A `type` for argparse: as `path_text`, as a Path."""
    return Path(path_text(text))


def flag_of(name: str) -> str:
    """The flag of an argument's name."""
    return f"--{name.replace('_', '-')}"


def given_names(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """The names of the options that stand on the command line, even where their values are the defaults."""
    absent = object()
    names = list(vars(parser.parse_args(argv)))
    again = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, absent)))
    return {name for name in names if getattr(again, name) is not absent}


def refuse_idle(parser: argparse.ArgumentParser, given: set[str], why: str, *names: str) -> None:
    """Refuse arguments that were given and would have no effect."""
    if idle := [flag_of(name) for name in names if name in given]:
        parser.error(f"{', '.join(idle)} would have no effect {why}")


@contextmanager
def mistakes_in_one_line(program: str, stopped: str = "stopped") -> Iterator[None]:
    """End the program with the message of a wrong argument or a broken file, not with a traceback.

    After Ctrl-C it ends with the line `stopped` and the return code 130, as a shell does.
    """
    name = Path(program).name
    try:
        yield
    except (*MISTAKES, SafetensorError) as error:  # that of safetensors where a disk is full, among others
        raise SystemExit(f"{name}: {' '.join(str(error).split()) or type(error).__name__}") from error
    except KeyboardInterrupt:
        print(f"{name}: {stopped}", file=sys.stderr)
        raise SystemExit(130) from None
