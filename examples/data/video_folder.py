"""Data sets over a folder of captioned videos or images.

Captions come from `captions.csv` (columns file and caption; the file's path is relative to the folder). A file that is
not listed there has the text of the .txt file of the same name beside it, and without one the caption "".
"""

from __future__ import annotations

import csv
import io
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from einops import rearrange
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from data.video_reader import Timeline, as_size, check_rate, read_clip, read_image, read_timeline, read_video

__all__ = ["ImageFolder", "VideoFolder", "read_captions", "read_image", "read_video"]

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".mov", ".mkv", ".avi")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8: {error}") from error


def read_captions(folder: Path) -> dict[Path, str]:
    """The captions of folder/captions.csv by path; empty if there is no such file.

    Raises ValueError for missing columns, a file that is named twice, and text that is not UTF-8.
    """
    table = folder / "captions.csv"
    if not table.is_file():
        return {}
    reader = csv.DictReader(io.StringIO(_read_text(table), newline=""), skipinitialspace=True)
    if not {"file", "caption"} <= set(reader.fieldnames or ()):
        raise ValueError(f"{table} must have the columns file, caption, got {reader.fieldnames}")
    captions = {}
    for row in reader:
        path = folder / (row["file"] or "").strip()
        if path in captions:
            raise ValueError(f"{table} must name a file once, got {row['file']!r} again")
        captions[path] = (row["caption"] or "").strip()
    return captions


def _reason(error: Exception) -> str:
    """The error's message without the path, which the warning names."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that pillow can read"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Folder(Dataset):
    """What both data sets share: finding and probing files, captions, random clips, and files that fail."""

    suffixes: tuple[str, ...]

    def __init__(self, folder: str | Path, *, size: int | tuple[int, int], flip: bool, seed: int) -> None:
        self.folder, self.size, self.flip, self.seed = Path(folder), as_size(size), flip, seed
        if self.size is None:
            raise ValueError("size must be a positive number or (height, width), got None")
        if not self.folder.is_dir():
            raise ValueError(f"folder must be a directory, got {str(folder)!r}")
        found = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name[0] != ".")
        candidates = [path for path in found if path.suffix.lower() in self.suffixes]
        captions = read_captions(self.folder)
        with ThreadPoolExecutor() as pool:
            probed = list(pool.map(self._try_probe, candidates))
        self.skipped = {path: got for path, got in zip(candidates, probed) if isinstance(got, str)}
        others = {*VIDEO_SUFFIXES, *IMAGE_SUFFIXES} - {*self.suffixes}
        for path in captions:
            if path.suffix.lower() not in others and not path.is_file():
                self.skipped[path] = "named in captions.csv but missing"
        self.paths = [path for path in candidates if path not in self.skipped]
        self.probes = [got for got in probed if not isinstance(got, str)]
        if not self.paths:
            raise ValueError(self._nothing_usable(found))
        if self.skipped:
            warnings.warn(f"{len(self.skipped)} files are skipped:{self._list_skipped()}", stacklevel=3)
        self.captions = [self._caption(path, captions) for path in self.paths]
        # In shared memory, so that persistent workers see a new epoch, and a file that fails in one worker is
        # skipped by the others.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.failed = torch.zeros(len(self.paths), dtype=torch.bool).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. An item is determined by seed, epoch and index."""
        self.epoch.fill_(epoch)

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
                video = self._load(candidate, rng)
            except Exception as error:  # decoders raise errors of many kinds for broken files; training goes on
                self._fail(candidate, error)
                continue
            flip = self.flip and rng.random() < 0.5
            return {"video": video.flip(-1) if flip else video, "caption": self.captions[candidate]}
        raise RuntimeError(f"none of the {len(self)} files in {self.folder} can be read any more")

    def _fail(self, index: int, error: Exception) -> None:
        self.failed[index] = True
        self.skipped[self.paths[index]] = _reason(error)
        warnings.warn(f"skipped from now on: {self.paths[index]}: {_reason(error)}", stacklevel=3)

    def _try_probe(self, path: Path) -> object | str:
        try:
            return self._probe(path)
        except Exception as error:  # as in `draw`
            return _reason(error)

    def _caption(self, path: Path, captions: dict[Path, str]) -> str:
        beside = path.with_suffix(".txt")
        if path not in captions and beside.is_file():
            return _read_text(beside).strip()
        return captions.get(path, "")

    def _list_skipped(self) -> str:
        return "".join(f"\n  {path}: {why}" for path, why in self.skipped.items())

    def _nothing_usable(self, found: list[Path]) -> str:
        kinds = sorted({path.suffix.lower() or "no suffix" for path in found})
        return (
            f"{self.folder} must hold a usable file ({', '.join(self.suffixes)}), got {len(found)} files"
            f"{' (' + ', '.join(kinds) + ')' if kinds else ''}{self._list_skipped()}"
        )

    def _probe(self, path: Path) -> object:
        """Check a file by decoding parts of it; returns what `_load` needs to know. Raises for a broken file."""
        raise NotImplementedError

    def _load(self, index: int, rng: random.Random) -> Tensor:
        """Read a clip of one file."""
        raise NotImplementedError


class VideoFolder(_Folder):
    """Clips of the videos and gifs in a folder and its subfolders.

    An item is {"video": float (3, num_frames, height, width) in [0, 1], "caption": str}. Its first frame is random,
    determined by seed, epoch and index.

    size        a number or (height, width): frames are resized with antialiasing to just cover it, then centre-cropped
    num_frames  frames of a clip
    fps         the rate of a clip's frames, which are picked by their times and repeated where the video is slower
    stride      every n-th frame of the video, in place of `fps`
    flip        mirror half of the clips; the captions stay, so "left" and "right" in them become wrong

    When the data set is built, parts of every file are decoded. Files that are broken, cut off or too short are left
    out, named in one warning and listed in `skipped` (path: reason). A file that fails later is named in a warning
    once, and the next usable file replaces it.

    Raises ValueError for wrong arguments, a missing folder, a folder without a usable file, and a wrong captions.csv.
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
    ) -> None:
        check_rate(num_frames, fps, stride)
        self.num_frames, self.fps, self.stride = num_frames, fps, stride
        super().__init__(folder, size=size, flip=flip, seed=seed)

    def _starts(self, timeline: Timeline) -> int:
        return int((timeline.clip_lengths(self.fps, self.stride) >= self.num_frames).sum())

    def _read(self, path: Path, timeline: Timeline, start: int) -> Tensor:
        return read_clip(path, timeline.pick(start, self.num_frames, self.fps, self.stride), self.size)

    def _probe(self, path: Path) -> Timeline:
        timeline = read_timeline(path)
        starts = self._starts(timeline)
        if not starts:
            longest = timeline.clip_lengths(self.fps, self.stride)[0]
            raise ValueError(f"too short: {longest} of the {self.num_frames} frames of a clip")
        for start in {0, starts - 1}:
            self._read(path, timeline, start)
        return timeline

    def _load(self, index: int, rng: random.Random) -> Tensor:
        timeline = self.probes[index]
        return self._read(self.paths[index], timeline, rng.randrange(self._starts(timeline)))


class ImageFolder(_Folder):
    """The images in a folder and its subfolders, as clips of one frame.

    An item is {"video": float (3, 1, height, width) in [0, 1], "caption": str}. Everything else is as in VideoFolder.
    """

    suffixes = IMAGE_SUFFIXES

    def __init__(self, folder: str | Path, *, size: int | tuple[int, int], flip: bool = False, seed: int = 0) -> None:
        super().__init__(folder, size=size, flip=flip, seed=seed)

    def _probe(self, path: Path) -> None:
        read_image(path, self.size)

    def _load(self, index: int, rng: random.Random) -> Tensor:
        return rearrange(read_image(self.paths[index], self.size), "c h w -> c 1 h w")
