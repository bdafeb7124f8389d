"""Small videos of known frames, written in several formats, for the tests that read videos."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image

STEP = 6  # of grey between neighbouring frames


def grey_frames(count, height=32, width=32):
    """uint8 (count, h, w, 3): the grey value of a frame is `STEP` times its index."""
    return np.broadcast_to((np.arange(count) * STEP)[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def numbers(video):
    return (video.mean(dim=(0, 2, 3)) * 255 / STEP).round().int().tolist()


def write(path, frames, rate=10, codec="libx264", pix_fmt="yuv420p", times=None, options=None, movflags=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    muxer = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            pixels = np.ascontiguousarray(pixels)
            if pix_fmt == "pal8":
                frame = av.VideoFrame.from_ndarray(paletted(pixels), format="pal8")
            else:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_webm(path, frames, rate=10):
    return write(path, frames, rate, "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})


def write_gif(path, frames, rate=10):
    return write(path, frames, rate, "gif", "pal8")


def paletted(pixels):
    image = Image.fromarray(pixels).quantize(256)
    palette = np.full((256, 4), 255, dtype=np.uint8)
    colours = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    palette[: len(colours), 1:] = colours
    return np.asarray(image), palette


def noise(count, height=64, width=64):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def cut(path, source, share=0.5):
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path
