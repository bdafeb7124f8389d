"""The actions of a folder of clips: actions.csv, with the columns file, frame, and one of 0 or 1 for each action.

The file's path is relative to the folder. The row of a frame holds the actions that are taken at this frame and lead
to the next one, as in (state, action) pairs of reinforcement learning; so those of the last frame lead out of the clip.

f = frames of a clip · a = actions
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.outputs import written

TABLE = "actions.csv"


def write_actions(folder: Path, names: Sequence[str], actions: Mapping[str, Sequence[str]]) -> None:
    """Write folder/actions.csv: for every file the name of the action of each frame, one of `names`."""
    with written(folder / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "frame", *names])
        for path, taken in actions.items():
            for frame, action in enumerate(taken):
                writer.writerow([path, frame, *(int(name == action) for name in names)])


def read_actions(folder: str | Path) -> tuple[list[str], dict[Path, Tensor]]:
    """The names of the actions, and for every clip's path a bool tensor (f, a).

    Raises OSError for a missing table, ValueError for missing columns, other values than 0 and 1, and for frames that
    are missing or not in order.
    """
    table, rows = Path(folder) / TABLE, {}
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        if columns[:2] != ["file", "frame"] or len(columns) < 3:
            raise ValueError(f"{table} must have the columns file, frame, and one for each action, got {columns}")
        for row in reader:
            values = row[2:]
            if len(row) != len(columns) or not set(values) <= {"0", "1"}:
                raise ValueError(f"{table} must have file, frame, {len(columns) - 2} values of 0 or 1, got {row}")
            clip = rows.setdefault(Path(folder) / row[0], [])
            if row[1] != str(len(clip)):
                raise ValueError(f"{table} must have frame {len(clip)} of {row[0]} next, got {row[1]!r}")
            clip.append([value == "1" for value in values])
    return columns[2:], {path: torch.tensor(clip) for path, clip in rows.items()}
