"""Read clips of videos and gifs, and images, as tensors.

The frames of a clip are picked by their times (`Timeline`), so that variable frame rates are right too. Decoding begins
at the keyframe before the clip, and only the clip is in memory.

n = frames of the file · f = frames of the clip · h = height · w = width. Pixels are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import Interpolation
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

# Colour is stored once for 2 × 2 pixels. By default it is not interpolated, which shows as blocks.
FINE = int(Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND)


class Timeline(NamedTuple):
    """The times of a video's frames, read without decoding them."""

    pts: np.ndarray  # (n,) ascending presentation times, in ticks
    end: int  # the time at which the last frame ends, in ticks
    tick: float  # the length of a tick, in seconds

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


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise ValueError("has no video stream")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # the workers of a DataLoader already run in parallel
    return stream


def read_timeline(path: str | Path) -> Timeline:
    """Read the times of all frames. Raises ValueError or av.FFmpegError for a broken or cut-off file."""
    with av.open(str(path)) as container:
        stream = _video_stream(container)
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
        _refuse_cut_off(container, stream, Path(path), count, ends)
        if not pts:
            raise ValueError("has no frames")
        tick, rate = float(stream.time_base), float(stream.average_rate or 1)
    order = np.argsort(pts, kind="stable")
    last, times = durations[order[-1]], np.unique(np.array(pts, dtype=np.int64))
    if not last:  # some containers do not give the duration of the last frame: take that of the others
        last = float(np.median(np.diff(times))) if len(times) > 1 else 1 / (rate * tick)
    return Timeline(times, int(times[-1]) + max(1, round(last)), tick)


def _refuse_cut_off(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path, count: int, ends: float
) -> None:
    """Compare the packets that were read with the length in the file's header; formats store it in different ways."""
    name = container.format.name
    if name.startswith("mov") and count < len(stream.index_entries):
        raise ValueError(f"cut off after {count} of {len(stream.index_entries)} frames")
    promised = (container.duration or 0) / av.time_base
    if name.startswith("matroska") and ends < 0.9 * promised:
        raise ValueError(f"cut off after {ends:.2f} of {promised:.2f} seconds")
    if name == "gif" and not path.read_bytes().rstrip(b"\0").endswith(b";"):
        raise ValueError(f"cut off after {count} frames")


def _decode(path: str | Path, wanted: np.ndarray, seek: bool = True) -> Iterator[av.VideoFrame]:
    """Decode the frame that is shown at each of the ascending times `wanted`, from the keyframe before them on."""
    with av.open(str(path)) as container:
        stream = _video_stream(container)
        seek = seek and container.format.name != "gif"  # gif frames are painted over one another
        if seek:
            container.seek(int(wanted[0]), stream=stream)
        shown, found = None, 0
        for frame in container.decode(stream):
            time = frame.pts if frame.pts is not None else frame.dts
            if seek and shown is None and time > wanted[0]:
                break  # the seek went too far
            while found < len(wanted) and time > wanted[found]:
                yield _undamaged(shown or frame)
                found += 1
            shown = frame
            while found < len(wanted) and time == wanted[found]:
                yield _undamaged(frame)
                found += 1
            if found == len(wanted):
                return
    if shown is not None or not seek:
        raise ValueError(f"only {found} of {len(wanted)} frames could be decoded")
    yield from _decode(path, wanted, seek=False)


def _undamaged(frame: av.VideoFrame) -> av.VideoFrame:
    if frame.is_corrupt:
        raise ValueError(f"damaged at {frame.time:.2f} seconds")
    return frame


def _pixels(frame: av.VideoFrame) -> Tensor:
    """A decoded frame as uint8 (3, h, w), upright; transparent pixels become black."""
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
        rgb = (rgba[..., :3] * rgba[..., 3:] // 255).astype(np.uint8)
    else:
        rgb = frame.to_ndarray(format="rgb24", interpolation=FINE)
    rgb = np.rot90(rgb, k=round(frame.rotation / 90))  # phones store unrotated frames and the angle
    return torch.from_numpy(rearrange(rgb, "h w c -> c h w").copy())


def _fit(pixels: Tensor, size: tuple[int, int] | None) -> Tensor:
    """uint8 (3, h, w) -> float (3, *size) in [0, 1]: resized to just cover `size`, then centre-cropped."""
    pixels = pixels / 255
    if size is None or tuple(pixels.shape[1:]) == size:
        return pixels
    scale = max(wanted / got for wanted, got in zip(size, pixels.shape[1:]))
    cover = [max(wanted, round(got * scale)) for wanted, got in zip(size, pixels.shape[1:])]
    pixels = F.interpolate(pixels[None], size=cover, mode="bilinear", antialias=True)[0].clamp(0, 1)
    top, left = ((got - wanted) // 2 for wanted, got in zip(size, cover))
    return pixels[:, top : top + size[0], left : left + size[1]]


def as_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """A number or (height, width) -> (height, width); None stays None. Raises ValueError unless all are above 0."""
    pair = (size, size) if isinstance(size, int) else size
    if pair is not None and (len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair)):
        raise ValueError(f"size must be a positive number or (height, width), got {size!r}")
    return None if pair is None else (pair[0], pair[1])


def check_rate(num_frames: int | None, fps: float | None, stride: int) -> None:
    """Raise ValueError for numbers out of range, and if both fps and stride are given."""
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if fps is not None and stride != 1:
        raise ValueError(f"either fps or stride can be given, got fps={fps} and stride={stride}")
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"fps must be above 0, got {fps}")
    if not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride must be a whole number of at least 1, got {stride!r}")


def read_clip(path: str | Path, pts: np.ndarray, size: tuple[int, int] | None) -> Tensor:
    """The frames shown at the ascending times `pts` (f,): float (3, f, *size). Raises ValueError for damaged frames."""
    wanted, index = np.unique(pts, return_inverse=True)  # a frame of a slow video can be in the clip several times
    frames = torch.stack([_fit(_pixels(frame), size) for frame in _decode(path, wanted)])  # (n, 3, h, w)
    return rearrange(frames[torch.from_numpy(index)], "f c h w -> c f h w").contiguous()


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

    Raises ValueError for a wrong argument and for a broken, cut-off or too short file, FileNotFoundError for a missing
    file.
    """
    size = as_size(size)
    check_rate(num_frames, fps, stride)
    timeline = read_timeline(path)
    if not 0 <= start < len(timeline.pts):
        raise ValueError(f"start must be from 0 to {len(timeline.pts) - 1} in {path}, got {start}")
    available = int(timeline.clip_lengths(fps, stride)[start])
    if num_frames is not None and num_frames > available:
        raise ValueError(f"{path} has {available} frames from start={start}, got num_frames={num_frames}")
    pts = timeline.pick(start, num_frames or available, fps, stride)
    return read_clip(path, pts, size), fps or timeline.rate / stride


def read_image(path: str | Path, size: int | tuple[int, int] | None = None) -> Tensor:
    """Read an image: float (3, h, w) in [0, 1], rotated as its EXIF data say; transparent pixels become black.

    size  a number or (height, width) to resize and crop to; None: the file's own

    Raises ValueError for a wrong size, OSError for a file that is missing or that pillow cannot read.
    """
    size = as_size(size)
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # pillow would clip 16-bit grey
            image = Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype(np.uint8))
        image = image.convert("RGBA")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    rgb = np.array(Image.alpha_composite(black, image).convert("RGB"))
    return _fit(torch.from_numpy(rearrange(rgb, "h w c -> c h w")), size)
