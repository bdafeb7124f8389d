"""What a clip can be asked for: whole numbers, rates, sizes, paths. Wrong ones are refused by the argument's name.

TypeError for a wrong kind, ValueError for a wrong range. Numbers of numpy are taken as Python's are.
"""

import math
import operator
from numbers import Real
from pathlib import Path

from data.frames import MAX_FRAME

MIN_FPS, MAX_FPS = 0.01, 1000  # of files that are written; a gif has at most 50
MOST = 2**31 - 1  # frames of a file

# A clip with more frames than both is refused: it comes from a gap of days in a video, or from a wrong header.
MANY_FRAMES = 10_000
MAX_REPEATS = 1000  # times the frames of the file


def whole(name: str, value: object, at_least: int | None = None, at_most: int | None = MOST) -> int:
    """A whole number in a range, both ends included."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if at_least is not None and number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")
    if at_most is not None and number > at_most:
        raise ValueError(f"{name} must be at most {at_most}, got {number}")
    return number


def as_path(name: str, value: object) -> Path:
    """A path from a text or a path; an empty text is refused, as it would be the current folder."""
    try:
        path = Path(value)
    except TypeError:
        raise TypeError(f"{name} must be a path, got {value!r}") from None
    if value == "":
        raise ValueError(f"{name} must be a path, got an empty text")
    return path


def as_flag(name: str, value: object) -> bool:
    """True or False, and nothing that only counts as one of them."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def as_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """A number or (height, width) -> (height, width); None stays None. All must be above 0."""
    if size is None:
        return None
    try:
        pair = tuple(size)
    except TypeError:
        pair = (size, size)
    if len(pair) != 2:
        raise ValueError(f"size must be a positive number or (height, width), got {size!r}")
    height, width = (whole("size", side, 1) for side in pair)
    if height * width > MAX_FRAME:
        raise ValueError(f"size must be at most {MAX_FRAME:,} pixels, got {height} × {width}")
    return height, width


def check_rate(fps: float | None, stride: int) -> tuple[float | None, int]:
    """The rate of a clip, or every how many frames of the file it takes. Only one of both can be given."""
    stride = whole("stride", stride, 1)
    if fps is None:
        return None, stride
    if isinstance(fps, bool) or not isinstance(fps, Real):
        raise TypeError(f"fps must be a number, got {fps!r}")
    if stride != 1:
        raise ValueError(f"either fps or stride can be given, got fps={fps} and stride={stride}")
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}")
    if fps > MAX_FPS:
        raise ValueError(f"fps must be at most {MAX_FPS}, got {fps}")
    return float(fps), 1


def check_repeats(path: str | Path, frames: int, of: int) -> None:
    """Refuse a clip that would repeat the frames of a file, `of` many, far more often than is meant."""
    most = max(MANY_FRAMES, MAX_REPEATS * of)
    if frames > most:
        raise ValueError(
            f"{path}: at this rate a clip of {frames:,} frames repeats the {of:,} frames of the file, some for very "
            f"long: expected at most {most:,}"
        )


def writable_rate(path: str | Path, rate: float) -> float:
    """The rate of a file where it can be written again, without what rounding adds. Raises ValueError elsewhere."""
    nearest = min(max(rate, MIN_FPS), MAX_FPS)
    if not math.isclose(nearest, rate, rel_tol=1e-3):
        raise ValueError(f"{path} has {rate:g} frames a second: expected {MIN_FPS} to {MAX_FPS}, or another --fps")
    return nearest
