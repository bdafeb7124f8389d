"""Open a video as a file, find its video stream, and read the times of its frames without decoding them.

n = frames of the file
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition

from data.file_errors import naming
from data.file_lengths import promised_bytes
from data.frames import THREADS, check_frame_size, note_on

# What FFmpeg may take a file for. It does not look at the suffix, and it knows formats that open other files: playlists
# and lists of images.
CONTAINERS = "mov,mp4,matroska,webm,avi,gif,mpeg,mpegts,asf,ogg,flv"


class Timeline(NamedTuple):
    """The times of a video's frames, read without decoding them."""

    pts: np.ndarray  # (n,) ascending presentation times, in ticks
    end: int  # the time at which the last frame ends, in ticks
    tick: float  # the length of a tick, in seconds
    note: str = ""  # what the pixels that are read lack of what a player shows

    @property
    def rate(self) -> float:
        """Frames per second, on average."""
        return len(self.pts) / ((self.end - int(self.pts[0])) * self.tick)

    def clip_lengths(self, fps: float | None, stride: int) -> np.ndarray:
        """The largest number of frames of a clip that starts at each of the n frames: (n,), not increasing."""
        if fps is None:
            return -(-np.arange(len(self.pts), 0, -1) // stride)
        seconds = (self.end - self.pts) * self.tick - self._tolerance()
        return np.maximum(np.ceil(seconds * fps), 1).astype(np.int64)

    def pick(self, start: int, num_frames: int, fps: float | None, stride: int) -> np.ndarray:
        """The presentation times (num_frames,) of a clip's frames at its rate, from frame `start` on."""
        if fps is None:
            return self.pts[start : start + num_frames * stride : stride][:num_frames]
        seconds = np.arange(num_frames) / fps + self._tolerance()
        seen = np.searchsorted((self.pts - self.pts[start]) * self.tick, seconds, side="right") - 1
        return self.pts[seen]

    def _tolerance(self) -> float:
        # Containers round times to ticks (webm: 1/1000 s, gif: 1/100 s), so a frame can start a tick late. In avi
        # a tick is a whole frame, and nothing is rounded.
        between = float(np.median(np.diff(self.pts))) if len(self.pts) > 1 else 1.0
        return min(1.5, between / 4) * self.tick


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file as a file, whatever its name or its content ask for, and find its video."""
    only = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    with naming(path):
        try:
            container = av.open(f"file:{Path(path).resolve()}", options=only)
        except av.ArgumentError as error:
            raise ValueError(f"is none of the videos that are read here ({CONTAINERS})") from error
        with container:
            yield container, _video_stream(container)


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video stream that players choose: one marked as the default, or else the first; never a cover picture."""
    streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
    if not streams:
        raise ValueError("has no video stream")
    streams = [each for each in streams if each.codec_context is not None]
    if not streams:
        raise ValueError("has no usable video stream")
    stream = max(streams, key=lambda each: bool(each.disposition & Disposition.default))
    codec = stream.codec_context
    check_frame_size(codec.width, codec.height)
    codec.thread_count = THREADS
    return stream


def read_timeline(path: str | Path) -> Timeline:
    """Read the times of all frames.

    Raises ValueError for a broken or cut-off file, and for one that is no video, FileNotFoundError for a missing file.
    A missing tail cannot be seen where a format does not say how long a file is: MPEG-TS and MPEG-PS (ts, mts, m2ts,
    mpg), Ogg, and fragmented mp4.
    """
    with opened(path) as (container, stream):
        pts, durations, count, ends = [], [], 0, 0.0
        for packet in container.demux():
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None:  # the empty packet at the end of a stream
                continue
            ends = max(ends, float((time + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            if packet.is_corrupt:
                raise ValueError(f"cut off after {count} frames")
            count += 1
            if not packet.is_discard:  # discarded packets lie outside the part that an mp4's edit list shows
                pts.append(time)
                durations.append(packet.duration or 0)
        _refuse_cut_off(container, stream, Path(path), count)
        if not pts:
            raise ValueError("has no frames")
        tick, rate, note = float(stream.time_base), float(stream.average_rate or 1), note_on(stream)
        times = np.unique(np.array(pts, dtype=np.int64))
        _refuse_early_end(container, Path(path), ends, np.diff(times) * tick)
    last = durations[np.argsort(pts, kind="stable")[-1]]
    if not last:  # some containers do not give the duration of the last frame: take that of the others
        last = float(np.median(np.diff(times))) if len(times) > 1 else 1 / (rate * tick)
    return Timeline(times, int(times[-1]) + max(1, round(last)), tick, note)


def _refuse_cut_off(container: av.container.InputContainer, stream: av.VideoStream, path: Path, count: int) -> None:
    """Refuse a file with less than the number of frames, or bytes, or without the mark at the end, that it promises."""
    name, size = container.format.name, path.stat().st_size
    if name.startswith("mov") and count < len(stream.index_entries):
        raise ValueError(f"cut off after {count} of {len(stream.index_entries)} frames")
    if size < (promised := promised_bytes(path, name) or 0):
        raise ValueError(f"cut off after {size:,} of {promised:,} bytes")
    if name == "gif" and not path.read_bytes().rstrip(b"\0").endswith(b";"):
        raise ValueError(f"cut off after {count} frames")


def _refuse_early_end(container: av.container.InputContainer, path: Path, ends: float, gaps: np.ndarray) -> None:
    """Refuse a file whose last packet `ends` long before the time in its header, in seconds.

    These formats need not say how long the last frame is, so it may be as long as the longest of the `gaps` before it.
    A Matroska file that says how many bytes it has, and has them, is whole.
    """
    name, promised = container.format.name, (container.duration or 0) / av.time_base
    timed = name == "flv" or (name.startswith("matroska") and promised_bytes(path, name) is None)
    if timed and len(gaps) and promised - ends > 1.5 * gaps.max():
        raise ValueError(f"cut off after {ends:.2f} of {promised:.2f} seconds")
