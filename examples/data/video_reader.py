"""Read clips of videos and gifs, and images, as tensors.

The frames of a clip are picked by their times (`Timeline`), so that variable frame rates are right too. Decoding begins
at the keyframe before the clip, and only the clip is in memory.

n = frames of the file · f = frames of the clip · h = height · w = width. Pixels are RGB in [0, 1].
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple
from warnings import warn

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.stream import Disposition
from einops import rearrange
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from data.frames import check_frame_size, note_on_colours, pixels_shown

# What FFmpeg and pillow may take a file for. Neither looks at the suffix, and both know formats that open other files
# or start other programs: playlists, lists of images, PostScript.
CONTAINERS = "mov,mp4,matroska,webm,avi,gif,mpeg,mpegts,asf,ogg,flv"
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these drop the transparency

MAX_PIXELS = 120_000_000  # of an image: those of large cameras. Decoded, that is 480 MB
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # pillow warns above it, and refuses twice as many when it opens a file
LARGE = 2**24  # pixels of an image that is decoded alone
ALONE = threading.Lock()

ERRORS = (av.FFmpegError, OSError, ValueError, EOFError, SyntaxError, IndexError, struct.error, zlib.error)


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Turn what decoders raise for a broken file into a ValueError that names it."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: is none of the images that are read here ({', '.join(PICTURES)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path}: {error} Expected at most {MAX_PIXELS:,} pixels.") from error
    except ERRORS as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{path}: {why}") from error


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
def _opened(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file as a file, whatever its name or its content ask for, and find its video."""
    only = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    with _named(path):
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
    stream = max(streams, key=lambda each: bool(each.disposition & Disposition.default))
    codec = stream.codec_context
    check_frame_size(codec.width, codec.height)
    codec.thread_count = 1  # the workers of a DataLoader already run in parallel
    return stream


def read_timeline(path: str | Path) -> Timeline:
    """Read the times of all frames.

    Raises ValueError for a broken or cut-off file, and for one that is no video, FileNotFoundError for a missing file.
    """
    with _opened(path) as (container, stream):
        note, pts, durations, count, ends = note_on_colours(stream), [], [], 0, 0.0
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
    return Timeline(times, int(times[-1]) + max(1, round(last)), tick, note)


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


def _decode(path: str | Path, wanted: np.ndarray, seek: bool = True) -> Iterator[Tensor]:
    """Decode the pixels that are shown at each of the ascending times `wanted`, from the keyframe before them on."""
    with _opened(path) as (container, stream):
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
    decoder.thread_count = 1
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


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
    frames = torch.stack([_fit(pixels, size) for pixels in _decode(path, wanted)])  # (n, 3, h, w)
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

    Warns of a file with a high dynamic range, whose values are taken as they are. Raises ValueError for a wrong
    argument and for a broken, cut-off or too short file, FileNotFoundError for a missing file.
    """
    size = as_size(size)
    check_rate(num_frames, fps, stride)
    timeline = read_timeline(path)
    if timeline.note:
        warn(f"{path}: {timeline.note}", stacklevel=2)
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

    A large image is reduced while it is read, and only one is read at a time in a process. Raises ValueError for a
    wrong size, for more than MAX_PIXELS and for a file that is broken or no image, FileNotFoundError for a missing
    file.
    """
    size = as_size(size)
    with _named(path), Image.open(path, formats=PICTURES) as image:
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise ValueError(f"has {image.width} × {image.height} pixels: expected at most {MAX_PIXELS:,} pixels")
        with ALONE if pixels > LARGE else nullcontext():
            rgb = np.array(_upright_on_black(image, size))
            return _fit(torch.from_numpy(rearrange(rgb, "h w c -> c h w")), size)


def _upright_on_black(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The image in RGB; with a size, at a whole fraction of its own that is at least four times as large."""
    enough = None if size is None else 4 * max(size)
    if enough:
        image.draft(None, (enough, enough))  # a JPEG can be decoded at a half, a quarter or an eighth of its size
    image.load()
    factor = max(1, min(image.size) // enough) if enough else 1
    small = Image.new("RGB", tuple(-(-side // factor) for side in image.size))
    rows = factor * max(1, 2**20 // (factor * image.width))
    for top in range(0, image.height, rows):  # in bands: no second copy of a large image is made
        band = _on_black(image.crop((0, top, image.width, min(top + rows, image.height))))
        small.paste(band.reduce(factor), (0, top // factor))
    orientation = ExifTags.Base.Orientation
    small.getexif()[orientation] = image.getexif().get(orientation, 1)
    return ImageOps.exif_transpose(small)


def _on_black(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB."""
    if image.mode.startswith("I"):  # pillow would clip 16-bit grey
        image = Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
