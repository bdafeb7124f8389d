"""Where a program writes: pictures by their suffix, files that differ, folders that are deleted after an error."""

import argparse
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from data.flags import path
from data.outputs import check_writable


def png(text: str) -> Path:
    """A `type` for argparse: the path of a PNG."""
    if path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"expected the name of a .png file, got {text!r}")
    return path(text)


def check_targets(targets: Mapping[str, Path | None]) -> None:
    """Check files that a program will write, by their flags; None where a flag is not given.

    Raises ValueError where two are the same file, and OSError where one cannot be written.
    """
    flags: dict[Path, str] = {}
    for flag, target in targets.items():
        if target is None:
            continue
        other = flags.setdefault(target.resolve(), flag)
        if other != flag:
            raise ValueError(f"{other} and {flag} would write the same file: expected another one than {target}")
        check_writable(target)


@contextmanager
def made(folder: Path, *, keep_files: bool = False) -> Iterator[None]:
    """After an error, delete a folder that was not there before, and its parents where they are empty.

    keep_files  not if the folder holds a file other than the lock of `alone`
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    except BaseException:
        files = [each for each in folder.rglob("*") if each.is_file() and each.name != ".lock"]
        if missing and not (keep_files and files):
            shutil.rmtree(folder, ignore_errors=True)
            for parent in missing[1:]:
                with suppress(OSError):  # something else is in it
                    parent.rmdir()
        raise
