"""Data sets over a folder of captioned videos or images.

A caption stands in `captions.csv` (columns file, caption; file relative to the folder) or, for files it does
not list, in a .txt of the same stem beside the file; a file without either has the caption "".
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

from video_reader import Timeline, as_size, check_rate, read_clip, read_image, read_timeline, read_video

__all__ = ["ImageFolder", "VideoFolder", "read_captions", "read_image", "read_video"]

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".mov", ".mkv", ".avi")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8: {error}") from error


def read_captions(folder: Path) -> dict[Path, str]:
    """The captions of folder/captions.csv by file; empty without one. Raises ValueError for a wrong one."""
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
    """What is wrong, without the path, which stands beside it."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that pillow can read"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Folder(Dataset):
    """What both data sets share: finding, probing, captions, the draw of an epoch, and files that fail."""

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
                self.skipped[path] = "named in captions.csv but not there"
        self.paths = [path for path in candidates if path not in self.skipped]
        self.probes = [got for got in probed if not isinstance(got, str)]
        if not self.paths:
            raise ValueError(self._nothing_usable(found))
        if self.skipped:
            warnings.warn(f"{len(self.skipped)} files are skipped:{self._list_skipped()}", stacklevel=3)
        self.captions = [self._caption(path, captions) for path in self.paths]
        # In shared memory, so that workers which live through several epochs follow, and a file that fails
        # in one worker is not named again by the others.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.failed = torch.zeros(len(self.paths), dtype=torch.bool).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the draw: an item is a function of (seed, epoch, index) and of nothing else."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        return self.draw(index % len(self), int(self.epoch))

    def draw(self, index: int, epoch: int) -> dict[str, Tensor | str]:
        """The item of an epoch, whichever one `set_epoch` chose."""
        draw = random.Random(f"{self.seed} {epoch} {index}")
        for place in (number % len(self) for number in range(index, index + len(self))):
            if self.failed[place]:
                continue
            try:
                video = self._load(place, draw)
            except Exception as error:  # broken files make the decoders raise anything; training goes on
                self._fail(place, error)
                continue
            flip = self.flip and draw.random() < 0.5
            return {"video": video.flip(-1) if flip else video, "caption": self.captions[place]}
        raise RuntimeError(f"none of the {len(self)} files in {self.folder} can be read any more")

    def _fail(self, place: int, error: Exception) -> None:
        self.failed[place] = True
        self.skipped[self.paths[place]] = _reason(error)
        warnings.warn(f"skipped from now on: {self.paths[place]}: {_reason(error)}", stacklevel=3)

    def _try_probe(self, path: Path) -> object | str:
        try:
            return self._probe(path)
        except Exception as error:  # as above: which errors a broken file raises is not known
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
        """Decodes what a clip needs; returns what `_load` wants to know about the file. Raises if broken."""
        raise NotImplementedError

    def _load(self, place: int, draw: random.Random) -> Tensor:
        raise NotImplementedError


class VideoFolder(_Folder):
    """Clips of the videos and gifs in a folder and the folders below it.

    An item is {"video": float (3, num_frames, height, width) in [0, 1], "caption": str}. The shorter side is
    resized to `size` (a number or (height, width)) with antialiasing, then the centre is cut out. With `fps`
    a clip has the frames that are seen at that rate (by their times; repeated where the source is slower),
    with `stride` every n-th frame. Where a clip begins is drawn by (seed, epoch, index); `flip` mirrors half
    of the clips, and with them every "left" in the picture, but not in the caption.

    Every file is decoded once when the data set is built. What is broken, cut off or too short is left out,
    named in one warning and kept in `skipped` (path: reason). A file that fails later is named once too, and
    the next usable one takes its place. Raises ValueError for wrong arguments, a missing folder, one without
    a usable file and a captions.csv with wrong columns.
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

    def _load(self, place: int, draw: random.Random) -> Tensor:
        timeline = self.probes[place]
        return self._read(self.paths[place], timeline, draw.randrange(self._starts(timeline)))


class ImageFolder(_Folder):
    """The pictures in a folder and the folders below it, as clips of one frame.

    An item is {"video": float (3, 1, height, width) in [0, 1], "caption": str}; all else as in VideoFolder.
    """

    suffixes = IMAGE_SUFFIXES

    def __init__(self, folder: str | Path, *, size: int | tuple[int, int], flip: bool = False, seed: int = 0) -> None:
        super().__init__(folder, size=size, flip=flip, seed=seed)

    def _probe(self, path: Path) -> None:
        read_image(path, self.size)

    def _load(self, place: int, draw: random.Random) -> Tensor:
        return rearrange(read_image(self.paths[place], self.size), "c h w -> c 1 h w")
