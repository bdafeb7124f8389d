"""The files of a data folder and their captions: captions.csv, or a .txt file beside each.

Names are compared in Unicode's composed form (NFC) and folders as they are resolved, so that it does not matter how the
table or the disk writes them.
"""

import csv
import io
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

TABLE = "captions.csv"
LINES = 20  # of a list in a warning
RESULTS = ("plan.json", "train.json")  # what marks a folder that a training left

csv.field_size_limit(sys.maxsize)  # a caption may be of any length; by default it may have 131,072 letters


class Row(NamedTuple):
    """A row of captions.csv, as it is written."""

    file: str
    caption: str


def key_of(path: Path) -> str:
    """What all ways to write the path of one file have in common. A link to a file is a file of its own."""
    return unicodedata.normalize("NFC", str(path.parent.resolve() / path.name))


def shortened(lines: Sequence[str]) -> str:
    """The first lines of a list for a warning, each on a line of its own, and how many more there are."""
    rest = [f"and {len(lines) - LINES} more"] if len(lines) > LINES else []
    return "".join(f"\n  {line}" for line in [*lines[:LINES], *rest])


def files_below(folder: Path, *, leave_out: Path | None = None) -> tuple[list[Path], dict[Path, str]]:
    """Everything in a folder and its subfolders that is no folder, in order, and the subfolders that are left out.

    Hidden files and folders are none of these. Links to folders are followed, and no folder is read twice.

    leave_out  a folder whose files are no data

    What earlier trainings left is left out, too: folders below this one that hold a plan.json or a train.json, with all
    that is in them. The second result has these and why. Raises ValueError where `leave_out` is the folder itself.
    """
    own = None if leave_out is None else leave_out.resolve()
    if own == folder.resolve():
        raise ValueError(f"the results and the data need folders of their own, got {str(folder)!r} for both")
    found, left_out, seen, folders, links = [], {}, {own}, [folder], []
    while folders or links:  # links last, so that a folder has its own name, not that of a link
        current = folders.pop() if folders else links.pop(0)
        if (real := current.resolve()) in seen:
            continue
        seen.add(real)
        if current != folder and (marks := [name for name in RESULTS if (current / name).is_file()]):
            left_out[current] = f"the results of a training, as there is a {marks[0]}"
            continue
        for path in sorted(current.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            else:
                found.append(path)
    return sorted(found), left_out


def read_captions(folder: Path) -> dict[str, Row]:
    """The rows of folder/captions.csv by `key_of` their file; {} without that table.

    Rows with more or fewer columns than the header are left out and named in a warning. Raises ValueError, with the
    number of the line, for an unclosed quote, a file that is named twice and wrong columns, and for text that is not
    UTF-8; and for a table that is no file.
    """
    table = folder / TABLE
    if not is_there(table):
        return {}
    lines = lines_of(table)
    _, header = next(lines, (1, []))
    if sorted(name for name in header if name in Row._fields) != ["caption", "file"]:
        raise ValueError(f"{table} must have the columns file, caption, each once, got {header}")
    rows, left_out = {}, []
    for number, cells in lines:
        named = dict(zip(header, cells))
        if len(cells) != len(header) or not named["file"]:
            got = "no file" if named.get("file") == "" else f"{len(cells)} columns instead of {len(header)}"
            left_out.append(f"line {number}: {got}")
            continue
        key = key_of(folder / named["file"])
        if key in rows:
            raise ValueError(f"{table}, line {number}: must name a file once, got {named['file']!r} again")
        rows[key] = Row(named["file"], named["caption"])
    if left_out:
        why = f"{len(left_out)} rows of {table} are left out (a caption with commas needs quotes):"
        warnings.warn(why + shortened(left_out), stacklevel=4)
    return rows


def is_there(table: Path) -> bool:
    """Whether a folder has a table. Raises ValueError for one that is no file."""
    if not table.exists() and not table.is_symlink():
        return False
    if not table.is_file():
        raise ValueError(f"{table} must be a file, got a folder, a pipe, or a link to nothing")
    return True


def lines_of(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not empty, with the numbers of their first lines.

    Raises ValueError, with the number of the line, for wrong quotes, and for text that is not UTF-8.
    """
    reader = csv.reader(io.StringIO(read_text(table), newline=""), skipinitialspace=True, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{table}, line {number}: {error}; a quote that begins here may not be closed") from error
        if any(cells):
            yield number, cells


def rows_without_file(folder: Path, found: Sequence[Path], tables: Mapping[str, Iterable[str]]) -> dict[Path, str]:
    """What tables name and is none of the files `found`: path -> which tables name it, and why it is not found.

    tables  the files that each table names, as it writes them
    """
    there, named = {key_of(path) for path in found}, {}
    for table, files in tables.items():
        for file in files:
            if key_of(folder / file) not in there:
                named.setdefault(folder / file, []).append(table)
    return {path: f"named in {' and '.join(names)} but {_absence(path)}" for path, names in named.items()}


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. Raises ValueError for another encoding."""
    try:
        return path.read_bytes().decode("utf-8-sig")  # as it is: read_text would change the ends of lines
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8: {error}") from error


class Captions:
    """The captions of a folder whose files are `found`, and which files and rows give none.

    Errors and warnings as in `read_captions`. `unreadable` has the .txt files that could not be read, and why;
    `files` the files that the table names.
    """

    def __init__(self, folder: Path, found: Sequence[Path]) -> None:
        self.folder, self.rows, self.texts = folder, read_captions(folder), {}
        self.unreadable: dict[Path, str] = {}
        self.files = [row.file for row in self.rows.values()]
        for path in found:
            if path.suffix.lower() == ".txt":
                self.texts.setdefault(_stem_of(path), path)

    def text_of(self, path: Path) -> Path | None:
        """The .txt file that has the caption of a video or image; None without one, and where the table has it."""
        return None if key_of(path) in self.rows else self.texts.get(_stem_of(path))

    def caption_of(self, path: Path) -> str:
        """The caption of a video or image; "" without one, and where its text cannot be read."""
        text = self.text_of(path)
        if text is None:
            row = self.rows.get(key_of(path))
            return "" if row is None else row.caption
        try:
            if not text.is_file():  # opening a pipe would wait for its other end
                raise ValueError("no file, or a link to none")
            return read_text(text).strip()
        except (OSError, ValueError) as error:
            self.unreadable[text] = str(error).removeprefix(f"{text} ")
            return ""

    def not_used(self, found: Sequence[Path], media: Sequence[Path]) -> dict[Path, str]:
        """The .txt files that belong to none of `media`, and the rows that belong to none of `found`: path -> why."""
        used = {self.text_of(path) for path in media}
        why = f"no video or image of this name is beside it, or {TABLE} has the caption"
        texts = {path: why for path in found if path.suffix.lower() == ".txt" and path not in used}
        return texts | rows_without_file(self.folder, found, {TABLE: self.files})


def _stem_of(path: Path) -> str:
    return key_of(path.with_suffix(""))


def _absence(path: Path) -> str:
    return "hidden, a folder, left out, or outside of the data" if path.exists() else "missing"
