"""The actions of a folder of clips: actions.csv, with the columns file, frame, and one of 0 or 1 for each action.

The file's path is relative to the folder. The row of a frame holds the actions that are taken at this frame and lead
to the next one, as in (state, action) pairs of reinforcement learning; so those of the last frame lead out of the clip.

f = frames of a clip · a = actions
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.captions import is_there, key_of, lines_of
from data.outputs import written

TABLE = "actions.csv"


class Rows(NamedTuple):
    """The rows of a file: its path as the table writes it, and its actions, bool (f, a)."""

    file: str
    actions: np.ndarray  # no tensor, as PyTorch opens a file for each one that it sends to a worker process


class Actions(NamedTuple):
    """The names of the actions, and the rows of each file by `key_of` its path."""

    names: tuple[str, ...]
    rows: dict[str, Rows]

    @property
    def files(self) -> list[str]:
        """The files that the table names, as it writes them."""
        return [rows.file for rows in self.rows.values()]

    def of(self, path: Path, frames: int) -> np.ndarray | None:
        """The actions (f, a) of a video of `frames` frames; None without rows, ValueError for another number."""
        rows = self.rows.get(key_of(path))
        if rows is None:
            return None
        if len(rows.actions) != frames:
            raise ValueError(f"{path} must have {frames} rows in {TABLE}, one for each frame, got {len(rows.actions)}")
        return rows.actions


def write_actions(folder: Path, names: Sequence[str], actions: Mapping[str, Sequence[str]]) -> None:
    """Write folder/actions.csv: for every file the name of the action of each frame, one of `names`."""
    with written(folder / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "frame", *names])
        for path, taken in actions.items():
            for frame, action in enumerate(taken):
                writer.writerow([path, frame, *(int(name == action) for name in names)])


def read_actions(folder: str | Path) -> Actions:
    """Read folder/actions.csv; without that table there are no names and no rows.

    Raises ValueError, with the number of the line, for wrong columns, other values than 0 and 1, frames that are
    missing or not in order, and wrong quotes; also for text that is not UTF-8, and for a table that is no file.
    """
    folder, table = Path(folder), Path(folder) / TABLE
    if not is_there(table):
        return Actions((), {})
    lines = lines_of(table)
    number, columns = next(lines, (1, []))
    if columns[:2] != ["file", "frame"] or len(columns) < 3 or "" in columns or len({*columns}) < len(columns):
        expected = "the columns file, frame, and one for each action, each once"
        raise ValueError(f"{table}, line {number}: must have {expected}, got {columns}")
    keys, read = {}, {}
    for number, cells in lines:
        file, values = cells[0], cells[2:]
        if len(cells) != len(columns) or not file or not {*values} <= {"0", "1"}:
            expected = f"a file, a frame, and {len(columns) - 2} values of 0 or 1"
            raise ValueError(f"{table}, line {number}: must have {expected}, got {cells}")
        if file not in keys:
            keys[file] = key_of(folder / file)
        _, rows = read.setdefault(keys[file], (file, []))
        if cells[1] != str(len(rows)):
            raise ValueError(f"{table}, line {number}: must have frame {len(rows)} of {file} next, got {cells[1]!r}")
        rows.append([value == "1" for value in values])
    return Actions(tuple(columns[2:]), {key: Rows(file, np.array(rows)) for key, (file, rows) in read.items()})
