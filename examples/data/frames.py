"""The pixels of a decoded frame as a player shows them: its colours, square pixels, turned upright, on black.

h = height · w = width, of the frame as it is shown.
"""

import math
from collections.abc import Sequence

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace, ColorTrc, Interpolation
from einops import rearrange
from torch import Tensor

# Colour is stored once for 2 × 2 pixels. By default it is not interpolated, which shows as blocks.
FINE = int(Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND)

MAX_FRAME = 2**26  # pixels, as 8192 × 8192: a few bytes of a file can ask for any amount of memory
UNSPECIFIED = 2  # FFmpeg's number for a colour space that a file does not name
PROGRESSIVE = 1  # its number for frames that are whole, and not two fields; 0 is unknown
LONG = 8  # times as long as a size asks for: what is beyond is cut off before it is resized, which needs its memory
# Of FFmpeg's scaler. What has threads cannot be freed in a forked process, such as a worker of a DataLoader.
THREADS = 1
HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}


def check_frame_size(width: int, height: int) -> None:
    """Raise ValueError for a frame that takes too much memory."""
    if width * height > MAX_FRAME:
        raise ValueError(f"has frames of {width} × {height} pixels: expected at most {MAX_FRAME:,} pixels")


def note_on(stream: av.VideoStream) -> str:
    """What `pixels_shown` does not do for a stream; "" where it does all."""
    codec, notes = stream.codec_context, []
    if transfer := HDR.get(int(codec.color_trc)):
        notes.append(f"high dynamic range ({transfer}), which is read without tone mapping")
    if codec.field_order > PROGRESSIVE:
        notes.append("interlaced, which is read without deinterlacing")
    return "; ".join(notes)


def pixels_shown(frame: av.VideoFrame, aspect: float = 1) -> Tensor:
    """The pixels of a frame, uint8 (3, h, w) in RGB.

    aspect  width of a stored pixel over its height; frames of other than square pixels are made wider or narrower

    Transparent pixels become black. Raises ValueError for a damaged frame, one that is turned by another angle than
    multiples of 90 degrees, and one that is too large.
    """
    if frame.is_corrupt:
        raise ValueError(f"damaged at {frame.time:.2f} seconds")
    width = max(1, round(frame.width * aspect))
    check_frame_size(width, frame.height)
    clear = any(component.is_alpha for component in frame.format.components)
    layout = {"format": "rgba" if clear else "rgb24", "width": width, "interpolation": FINE, "threads": THREADS}
    pixels = frame.to_ndarray(**layout, src_colorspace=_colours_of(frame))
    if clear:
        pixels = (pixels[..., :3].astype(np.uint16) * pixels[..., 3:] // 255).astype(np.uint8)
    return torch.from_numpy(rearrange(_upright(frame, pixels), "h w c -> c h w").copy())


def _colours_of(frame: av.VideoFrame) -> Colorspace | None:
    """The colour space to read a frame in; None for what it says itself.

    Where a file does not say, players take BT.709 for high definition (mpv: mp_csp_guess_colorspace), FFmpeg BT.601.
    """
    large = frame.width >= 1280 or frame.height > 576
    guessed = large and frame.colorspace == UNSPECIFIED and not frame.format.is_rgb
    return Colorspace.ITU709 if guessed else None


def _upright(frame: av.VideoFrame, pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3), turned by quarters and mirrored as the display matrix of the file says."""
    matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return pixels
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), dtype=np.int32).tolist()  # (x, y) -> (a x + c y, b x + d y)
    straight, quarter = max(abs(a), abs(d)), max(abs(b), abs(c))
    if min(straight, quarter) > 0.01 * max(straight, quarter):
        raise ValueError(f"turned by {np.degrees(np.arctan2(b, a)):.0f} degrees: expected a multiple of 90")
    if quarter > straight:
        pixels, a, d = rearrange(pixels, "h w c -> w h c"), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def fit(pixels: Tensor, size: tuple[int, int] | None) -> Tensor:
    """uint8 (3, h, w) -> float (3, *size) in [0, 1]: resized to just cover `size`, then centre-cropped.

    Of a picture that is far longer than the size asks for, only the part about the centre is resized.
    """
    if size is None or tuple(pixels.shape[1:]) == size:
        return pixels / 255
    scale = max(wanted / got for wanted, got in zip(size, pixels.shape[1:]))
    pixels = _centre(pixels, [math.ceil(LONG * wanted / scale) for wanted in size]) / 255
    cover = [max(wanted, round(got * scale)) for wanted, got in zip(size, pixels.shape[1:])]
    return _centre(F.interpolate(pixels[None], size=cover, mode="bilinear", antialias=True)[0].clamp(0, 1), size)


def _centre(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """The centre of (3, h, w), at most as large as a size."""
    (top, height), (left, width) = ((max(0, got - n) // 2, n) for got, n in zip(pixels.shape[1:], size))
    return pixels[:, top : top + height, left : left + width]
