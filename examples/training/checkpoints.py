"""The checkpoints of a stage: files OUT/STAGE/step-00001000.pt that are there whole or not at all."""

import os
from pathlib import Path

import torch

from data.outputs import written

PATTERN = "step-*.pt"


def reason_of(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def save_whole(path: Path, state: dict) -> None:
    """Write a file that is there whole or not at all. OSError, with the file's name, where it cannot be written."""
    try:
        with written(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # that of torch where a disk is full
        raise OSError(f"cannot write {path}: {reason_of(error)}") from error


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write step-00001000.pt, and keep the one before it."""
    save_whole(folder / f"step-{state['step']:08d}.pt", state)
    for old in sorted(folder.glob(PATTERN))[:-2]:
        old.unlink()


def remove_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a stage."""
    for path in folder.glob(PATTERN):
        path.unlink()


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint, by its name; 0 where there is none."""
    steps = [path.stem.removeprefix("step-") for path in folder.glob(PATTERN)]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def load_newest(folder: Path) -> dict | None:
    """The newest checkpoint that can be read, None where there is none; those that cannot are named.

    ValueError where there are checkpoints and none can be read.
    """
    paths = sorted(folder.glob(PATTERN), reverse=True)
    for path in paths:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the kind of error depends on where the file is damaged
            print(f"cannot read the checkpoint {path} ({reason_of(error)}): trying the one before it")
    if paths:
        raise ValueError(f"no checkpoint in {folder} can be read: delete them to begin with step 0")
    return None
