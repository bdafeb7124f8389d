"""Data sets over a folder of captioned videos or images.

Captions come from `captions.csv` (columns file and caption; the file's path is relative to the folder). A file that is
not listed there has the text of the .txt file of the same name beside it, and without one the caption "". Actions come
from `actions.csv` (data/actions.py). What lies in the folder and is not used is named in a warning.
"""

from __future__ import annotations

import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from data.actions import TABLE as ACTIONS
from data.actions import read_actions
from data.captions import TABLE as CAPTIONS
from data.captions import Captions, files_below, rows_without_file, shortened
from data.clip_arguments import as_flag, as_path, as_size, check_rate, whole
from data.image_reader import read_pixels
from data.timeline import Timeline, read_timeline
from data.video_reader import read_clip

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".ogv", ".flv"),
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff")
TABLES = (CAPTIONS, ACTIONS)  # files that belong to the data, though they are no videos or images
PROBES = 4  # files that are read at the same time when a data set is built


class _Folder(Dataset):
    """What both data sets share: finding and probing files, captions, random clips, and files that fail."""

    suffixes: tuple[str, ...]

    def __init__(
        self, folder: str | Path, *, size: int | tuple[int, int], flip: bool, seed: int, leave_out: str | Path | None
    ) -> None:
        self.folder, self.size = as_path("folder", folder), as_size(size)
        self.flip, self.seed = as_flag("flip", flip), whole("seed", seed, at_most=None)
        leave_out = None if leave_out is None else as_path("leave_out", leave_out)
        if self.size is None:
            raise ValueError("size must be a positive number or (height, width), got None")
        if not self.folder.is_dir():
            raise ValueError(f"folder must be a directory, got {str(folder)!r}")
        found, left_out = files_below(self.folder, leave_out=leave_out)
        captions = Captions(self.folder, found)
        self._read_tables()
        candidates = [path for path in found if path.suffix.lower() in self.suffixes]
        with ThreadPoolExecutor(PROBES) as pool:
            probed = list(pool.map(self._try_probe, candidates))
        failed = {path: why for path, (_, why) in zip(candidates, probed) if why}
        self.paths = [path for path in candidates if path not in failed]
        self.probes = [got for got, why in probed if not why]
        self.captions = [captions.caption_of(path) for path in self.paths]
        self.skipped = left_out | failed | self._not_data(found, captions) | captions.unreadable
        if not self.paths:
            raise ValueError(self._nothing_usable(found))
        self._warn()
        # In shared memory, so that persistent workers see a new epoch, and a file that fails in one worker is
        # skipped by the others.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.failed = torch.zeros(len(self.paths), dtype=torch.bool).share_memory_()

    @property
    def files(self) -> list[str]:
        """The paths of the files that are read, relative to the folder, in order: a file's index is its place here."""
        return [path.relative_to(self.folder).as_posix() for path in self.paths]

    def every_caption(self) -> list[str]:
        """All captions that an item can have."""
        return sorted(set(self.captions))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. An item is determined by seed, epoch and index."""
        self.epoch.fill_(whole("epoch", epoch, 0, 2**63 - 1))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        return self.draw(index % len(self), int(self.epoch))

    def draw(self, index: int, epoch: int) -> dict[str, Tensor | str]:
        """The item of an index in an epoch, independent of `set_epoch`.

        The next usable file replaces one that fails. Raises RuntimeError where none can be read any more.
        """
        rng = random.Random(f"{self.seed} {epoch} {index}")
        for number in range(index, index + len(self)):
            candidate = number % len(self)
            if self.failed[candidate]:
                continue
            try:
                item = self._load(candidate, rng)
            except Exception as error:  # decoders raise errors of many kinds for broken files; training goes on
                self._fail(candidate, error)
                continue
            if self.flip and rng.random() < 0.5:
                item["video"] = item["video"].flip(-1)
            return item | {"caption": self.captions[candidate]}
        raise RuntimeError(f"none of the {len(self)} files in {self.folder} can be read any more")

    def _fail(self, index: int, error: Exception) -> None:
        path = self.paths[index]
        self.failed[index], self.skipped[path] = True, _reason(path, error)
        warnings.warn(f"skipped from now on: {path}: {self.skipped[path]}", stacklevel=3)

    def _try_probe(self, path: Path) -> tuple[object, str]:
        """What `_probe` returns, and "", or why it failed."""
        if not path.is_file():
            return None, "no file, or a link to none"
        try:
            return self._probe(path), ""
        except Exception as error:  # as in `draw`
            return None, _reason(path, error)

    def _not_data(self, found: list[Path], captions: Captions) -> dict[Path, str]:
        """What neither data set uses: files of other kinds, texts and rows of the table that belong to no file."""
        media = [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES]
        others = {*found} - {*media} - {path for path in found if path.suffix.lower() == ".txt"}
        others -= {self.folder / name for name in TABLES}
        reasons = {path: f"no data set reads {path.suffix or 'files without a suffix'}" for path in sorted(others)}
        return reasons | captions.not_used(found, media)

    def _warn(self) -> None:
        if self.skipped:
            warnings.warn(f"{len(self.skipped)} files are skipped:{self._list_skipped()}", stacklevel=4)
        missing = self.captions.count("")
        if 0 < missing < len(self.captions):  # a folder without any captions is one for a model without texts
            lines = shortened([str(path) for path, caption in zip(self.paths, self.captions) if not caption])
            warnings.warn(f"{missing} of {len(self.captions)} files have no caption:{lines}", stacklevel=4)
        if noted := [f"{path}: {note}" for path, note in zip(self.paths, self._notes()) if note]:
            warnings.warn(f"{len(noted)} files look different in a player:{shortened(noted)}", stacklevel=4)

    def _read_tables(self) -> None:
        """Read the tables that a data set uses beside the captions."""

    def _notes(self) -> list[str]:
        """What the pixels of each file lack of what a player shows; "" for nothing."""
        raise NotImplementedError

    def _list_skipped(self) -> str:
        return shortened([f"{path}: {why}" for path, why in self.skipped.items()])

    def _nothing_usable(self, found: list[Path]) -> str:
        kinds = sorted({path.suffix.lower() or "no suffix" for path in found})
        return (
            f"{self.folder} must hold a usable file ({', '.join(self.suffixes)}), got {len(found)} files"
            f"{' (' + ', '.join(kinds) + ')' if kinds else ''}{self._list_skipped()}"
        )

    def _probe(self, path: Path) -> object:
        """Check a file by decoding parts of it; returns what `_load` needs to know. Raises for a broken file."""
        raise NotImplementedError

    def _load(self, index: int, rng: random.Random) -> dict[str, Tensor]:
        """Read a clip of one file: an item without its caption."""
        raise NotImplementedError


class VideoFolder(_Folder):
    """Clips of the videos and gifs in a folder and its subfolders.

    An item is {"video": float (3, num_frames, height, width) in [0, 1], "caption": str}. Its first frame is random,
    determined by seed, epoch and index. A clip of a file that has rows in `actions.csv` (`read_actions`) also has
    "actions": float32 (num_frames, a) of 0 and 1, the row of each frame of the clip. With a stride, or a lower fps than
    the video's, the actions of the frames between are not shown; a frame that is repeated has the same row each time.
    `action_names` has the names of the a columns, () without that table.

    size        a number or (height, width): frames are resized with antialiasing to just cover it, then centre-cropped
    num_frames  frames of a clip
    fps         the rate of a clip's frames, which are picked by their times and repeated where the video is slower
    stride      every n-th frame of the video, in place of `fps`
    flip        mirror half of the clips; the captions stay, so "left" and "right" in them become wrong, and so would
                actions: flip is refused where there are any
    leave_out   a folder whose files are no data, such as that of the results of a training

    Hidden files and folders are no data; links to folders are followed. When the data set is built, parts of every
    file are decoded. Files that are broken, cut off or too short are left out, named in one warning and listed in
    `skipped` (path: reason), with texts that cannot be read, folders of the results of earlier trainings (those with a
    plan.json or a train.json), and all other files that are neither videos, images nor captions. `files` has the paths
    of those that are used. A file that fails later is named in a warning once, and the next usable file replaces it.
    Further warnings name files without a caption, where others have one, and files that look different in a player.
    What is cut off is not seen in all formats (`read_timeline`).

    Raises TypeError for arguments of a wrong kind; ValueError for those out of range, a missing folder, a folder
    without a usable file, a wrong captions.csv or actions.csv, a video that is used and has another number of frames
    than of rows in actions.csv, `flip` with actions, and where `leave_out` is the folder itself.
    """

    suffixes = VIDEO_SUFFIXES

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int | tuple[int, int],
        num_frames: int,
        fps: float | None = None,
        stride: int = 1,
        flip: bool = False,
        seed: int = 0,
        leave_out: str | Path | None = None,
    ) -> None:
        self.num_frames, (self.fps, self.stride) = whole("num_frames", num_frames, 1), check_rate(fps, stride)
        super().__init__(folder, size=size, flip=flip, seed=seed, leave_out=leave_out)
        self.actions = [self.table.of(path, len(timeline.pts)) for path, timeline in zip(self.paths, self.probes)]

    @property
    def action_names(self) -> tuple[str, ...]:
        """The names of the columns of actions."""
        return self.table.names

    def _read_tables(self) -> None:
        self.table = read_actions(self.folder)
        if self.flip and self.table.rows:
            raise ValueError(f"flip must be False with {ACTIONS}, as left and right would become wrong, got True")

    def _not_data(self, found: list[Path], captions: Captions) -> dict[Path, str]:
        tables = {CAPTIONS: captions.files, ACTIONS: self.table.files}
        return super()._not_data(found, captions) | rows_without_file(self.folder, found, tables)

    def _starts(self, timeline: Timeline) -> int:
        return int((timeline.clip_lengths(self.fps, self.stride) >= self.num_frames).sum())

    def _pick(self, timeline: Timeline, start: int) -> np.ndarray:
        return timeline.pick(start, self.num_frames, self.fps, self.stride)

    def _probe(self, path: Path) -> Timeline:
        timeline = read_timeline(path)
        starts = self._starts(timeline)
        if not starts:
            longest = timeline.clip_lengths(self.fps, self.stride)[0]
            raise ValueError(f"too short: {longest} of the {self.num_frames} frames of a clip")
        for start in {0, starts - 1}:
            read_clip(path, self._pick(timeline, start), self.size)
        return timeline

    def _notes(self) -> list[str]:
        return [timeline.note for timeline in self.probes]

    def _load(self, index: int, rng: random.Random) -> dict[str, Tensor]:
        timeline, actions = self.probes[index], self.actions[index]
        pts = self._pick(timeline, rng.randrange(self._starts(timeline)))
        item = {"video": read_clip(self.paths[index], pts, self.size)}
        if actions is not None:
            item["actions"] = torch.from_numpy(actions[np.searchsorted(timeline.pts, pts)]).float()
        return item


class ImageFolder(_Folder):
    """The images in a folder and its subfolders, as clips of one frame.

    An item is {"video": float (3, 1, height, width) in [0, 1], "caption": str}. Actions are not read. Everything
    else is as in VideoFolder.
    """

    suffixes = IMAGE_SUFFIXES

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int | tuple[int, int],
        flip: bool = False,
        seed: int = 0,
        leave_out: str | Path | None = None,
    ) -> None:
        super().__init__(folder, size=size, flip=flip, seed=seed, leave_out=leave_out)

    def _probe(self, path: Path) -> str:
        return read_pixels(path, self.size)[1]

    def _notes(self) -> list[str]:
        return self.probes

    def _load(self, index: int, rng: random.Random) -> dict[str, Tensor]:
        return {"video": rearrange(read_pixels(self.paths[index], self.size)[0], "c h w -> c 1 h w")}


def _reason(path: Path, error: Exception) -> str:
    """The error's message without the path, which the warning names."""
    return str(error).removeprefix(f"{path}: ") or type(error).__name__
