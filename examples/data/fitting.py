"""Sizes that do not fit: the message of the library, preceded by the flags from which they come."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fitting(flags: str) -> Iterator[None]:
    """Name the flags in the message of a ValueError, and of torch's RuntimeError for tensors that are too large."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{flags} does not fit: {error}") from error
