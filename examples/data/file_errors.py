"""Errors of files that cannot be read: each names the file, as it was given."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

ERRORS = (av.FFmpegError, OSError, ValueError, EOFError, SyntaxError, IndexError, struct.error, zlib.error)


def check_file(path: str | Path) -> None:
    """Raise OSError for a path that cannot be read as a file, ValueError for a pipe and a device."""
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # opening a pipe would wait for its other end
        raise ValueError(f"{path}: expected a file, got a pipe, a socket or a device")
    with path.open("rb"):  # the errors of decoders name neither the kind nor the path as it was given
        pass


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Check a file, and turn what decoders raise for its content into a ValueError that names it."""
    check_file(path)
    try:
        yield
    except ERRORS as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{path}: {why}") from error
