"""What a program leaves: files that are there whole or not at all, in a folder that no other run writes to."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

# The files that are `written` inside `together`, with their temporary names.
WAITING: ContextVar[dict[Path, Path] | None] = ContextVar("waiting", default=None)


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` at the end, or deleted after an error.

    Errors of the system name `path`, not the temporary one.
    """
    path, waiting = Path(path), WAITING.get()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    done = False
    try:
        with _named_as(path, temporary):
            yield temporary
            if waiting is None:
                os.replace(temporary, path)
            else:
                waiting[path] = temporary
        done = True
    finally:
        if waiting is None or not done:
            temporary.unlink(missing_ok=True)


@contextmanager
def together() -> Iterator[None]:
    """Let the files that are `written` inside appear together at the end, or none of them after an error."""
    waiting: dict[Path, Path] = {}
    token = WAITING.set(waiting)
    try:
        yield
        for path, temporary in waiting.items():
            with _named_as(path, temporary):
                os.replace(temporary, path)
    finally:
        WAITING.reset(token)
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)


@contextmanager
def _named_as(path: Path, temporary: Path) -> Iterator[None]:
    """Let errors of the system name a file, not its temporary name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or temporary.name not in str(error.filename or temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


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
    with _named_as(path, trial):
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
