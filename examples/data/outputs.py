"""What a program leaves: files that are there whole or not at all, in a folder that no other run writes to."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` at the end, or deleted after an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise OSError where a file cannot be written, before there is anything to lose. Missing folders are made."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{path.parent} cannot be a folder, because there is a file") from error
    trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    trial.touch()
    trial.unlink()


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Keep a folder for one run. Raises ValueError while another run holds it.

    The lock belongs to the process: it ends with it, however it ends, and leaves an empty file that does no harm.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing to {folder}: expected a folder of its own") from None
        yield
