"""Read clips of videos and gifs as tensors.

The frames of a clip are picked by their times (`Timeline`), so that variable frame rates are right too. Decoding begins
at the keyframe before the clip, and only the clip is in memory.

f = frames of the clip · h = height · w = width. Pixels are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from warnings import warn

import av
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from data.clip_arguments import as_path, as_size, check_rate, check_repeats, whole
from data.frames import THREADS, fit, pixels_shown
from data.timeline import opened, read_timeline

DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these drop the transparency


def _decode(path: str | Path, wanted: np.ndarray, seek: bool = True) -> Iterator[Tensor]:
    """Decode the pixels that are shown at each of the ascending times `wanted`, from the keyframe before them on."""
    with opened(path) as (container, stream):
        aspect = float(stream.sample_aspect_ratio or 1)
        seek = seek and container.format.name != "gif"  # gif frames are painted over one another
        if seek:
            container.seek(int(wanted[0]), stream=stream)
        shown, found = None, 0
        for frame in _frames(container, stream):
            time = frame.pts if frame.pts is not None else frame.dts
            if seek and shown is None and time > wanted[0]:
                break  # the seek went too far
            while found < len(wanted) and time > wanted[found]:
                yield pixels_shown(shown or frame, aspect)
                found += 1
            shown = frame
            while found < len(wanted) and time == wanted[found]:
                yield pixels_shown(frame, aspect)
                found += 1
            if found == len(wanted):
                return
        if shown is not None or not seek:
            raise ValueError(f"only {found} of {len(wanted)} frames could be decoded")
    yield from _decode(path, wanted, seek=False)


def _frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decode from where the file was sought to, transparency too."""
    name = stream.codec_context.codec.name
    if name not in DECODERS or stream.metadata.get("alpha_mode") != "1":
        yield from container.decode(stream)
        return
    decoder = av.CodecContext.create(DECODERS[name], "r")
    decoder.thread_count = THREADS
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def read_clip(path: str | Path, pts: np.ndarray, size: tuple[int, int] | None) -> Tensor:
    """The frames shown at the ascending times `pts` (f,): float (3, f, *size).

    Raises ValueError for damaged frames, and without a size for frames of several sizes.
    """
    wanted, index = np.unique(pts, return_inverse=True)  # a frame of a slow video can be in the clip several times
    frames = [fit(pixels, size) for pixels in _decode(path, wanted)]
    if len(sizes := {tuple(frame.shape[1:]) for frame in frames}) > 1:
        shown = ", ".join(f"{width} × {height}" for height, width in sorted(sizes))
        raise ValueError(f"{path}: has frames of several sizes ({shown} pixels): expected one, or a size to resize to")
    return rearrange(torch.stack(frames)[torch.from_numpy(index)], "f c h w -> c f h w").contiguous()


def read_video(
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    stride: int = 1,
    start: int = 0,
) -> tuple[Tensor, float]:
    """Read a clip of a video or gif: float (3, f, h, w) in [0, 1], and its frames per second.

    size        a number or (height, width) to resize and crop to; None: the file's own
    num_frames  frames of the clip; None: up to the end of the file
    fps         the rate of the clip; frames are repeated where the file's rate is lower
    stride      every n-th frame of the file, in place of `fps`
    start       the index of the file's frame at which the clip begins

    Warns of a file with a high dynamic range, and of an interlaced one, whose values are taken as they are. Raises
    TypeError for an argument of a wrong kind; ValueError for one out of range, for a broken, cut-off or too short
    file, for one whose frames would be repeated too often, and without a size for frames of several sizes;
    FileNotFoundError for a missing file. What is cut off is not seen in all formats (`read_timeline`).
    """
    path, size, (fps, stride) = as_path("path", path), as_size(size), check_rate(fps, stride)
    num_frames = None if num_frames is None else whole("num_frames", num_frames, 1)
    start = whole("start", start, at_most=None)
    timeline = read_timeline(path)
    if timeline.note:
        warn(f"{path}: {timeline.note}", stacklevel=2)
    if not 0 <= start < len(timeline.pts):
        raise ValueError(f"start must be from 0 to {len(timeline.pts) - 1} in {path}, got {start}")
    available = int(timeline.clip_lengths(fps, stride)[start])
    if num_frames is not None and num_frames > available:
        raise ValueError(f"{path} has {available} frames from start={start}, got num_frames={num_frames}")
    check_repeats(path, num_frames or available, len(timeline.pts))
    pts = timeline.pick(start, num_frames or available, fps, stride)
    return read_clip(path, pts, size), fps or timeline.rate / stride
