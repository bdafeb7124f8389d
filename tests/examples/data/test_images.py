"""Images of all kinds in bounded memory: reduced while they are read, large ones one at a time, bombs refused."""

import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from data import image_reader
from data.image_reader import read_image
from video_files import cut, noise

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]


def smooth(height, width):
    """uint8 (h, w, 3): colours without detail, which look the same at every size."""
    y, x = np.mgrid[:height, :width]
    grey = 127 + 100 * np.stack([np.sin(3 * y / height), np.cos(4 * x / width), np.sin(y / height + x / width)], -1)
    return grey.clip(0, 255).astype(np.uint8)


def picture(mode, height, width):
    if mode == "I;16":
        return Image.fromarray(smooth(height, width)[..., 0].astype(np.uint16) * 256)
    image = Image.fromarray(smooth(height, width))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(smooth(height, width)[..., 1]))
    return image.quantize(256) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_reduced_images_look_like_whole_ones(tmp_path, mode, suffix):
    path = tmp_path / f"a{suffix}"
    try:
        picture(mode, 1210, 903).save(path)  # sizes that are no multiples of the factor
    except (OSError, KeyError):
        pytest.skip(f"{suffix} has no images of mode {mode}")
    whole, reduced = read_image(path), read_image(path, 24)
    assert whole.shape == (3, 1210, 903) and reduced.shape == (3, 24, 24)
    expected = torch.nn.functional.interpolate(whole[None], size=(32, 24), mode="bilinear", antialias=True)[0, :, 4:28]
    assert (reduced - expected).abs().mean() < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_reduced_images_are_turned_as_whole_ones(tmp_path, suffix, orientation):
    pixels = np.zeros((320, 480, 3), dtype=np.uint8)
    pixels[:160, :240] = 255
    pixels[160:, 240:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", exif=exif)
    whole, reduced = (read_image(tmp_path / f"a{suffix}", size) for size in (None, (32, 32)))
    assert whole.shape == ((3, 320, 480) if orientation <= 4 else (3, 480, 320))
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    assert all(torch.allclose(whole[:, y, x], reduced[:, y, x], atol=0.05) for y, x in corners)
    white = [corner for corner in corners if whole[:, corner[0], corner[1]].min() > 0.9]
    assert white == [[(0, 0), (0, -1), (-1, -1), (-1, 0)][[0, 1, 2, 3, 0, 1, 2, 3][orientation - 1]]]


def bomb(path, width, height):
    """A png of a few bytes that promises width × height black pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("width, height", [(20_000, 6_001), (20_000, 10_000), (40_000, 40_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("strict", ["error", "ignore"])
def test_images_of_too_many_pixels_are_refused_unread(tmp_path, monkeypatch, width, height, strict):
    path = bomb(tmp_path / "a.png", width, height)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter(strict)
        with pytest.raises(ValueError, match=r"(?i)a\.png: .*(pixels|too large).*") as refused:
            read_image(path, 64)
    assert "120,000,000" in str(refused.value)


MEASURE = """
import resource, sys
from data.image_reader import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert read_image(sys.argv[1], 64).shape == (3, 64, 64)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("mode, most", [("P", 200), ("RGBA", 210)])
def test_a_large_legal_image_takes_little_more_than_its_decoded_pixels(tmp_path, mode, most):
    side = 10_000 if mode == "P" else 6_000  # 100 and 144 MB of decoded pixels
    Image.new(mode, (side, side)).save(tmp_path / "a.png", compress_level=1)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.png")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert float(ran.stdout) < most


def test_large_images_are_read_one_at_a_time_and_small_ones_together(tmp_path, monkeypatch):
    Image.fromarray(noise(1, 64, 64)[0]).save(tmp_path / "a.png")
    reading, most, original, together = [], [], image_reader._upright_on_black, threading.Barrier(3)

    def watched(*args):
        reading.append(1)
        most.append(len(reading))
        with suppress(threading.BrokenBarrierError):
            together.wait(timeout=30 if image_reader.LARGE == 64 * 64 else 0.2)
        reading.pop()
        return original(*args)

    monkeypatch.setattr(image_reader, "_upright_on_black", watched)
    for large, expected in ((64 * 64, 3), (64 * 64 - 1, 1)):
        monkeypatch.setattr(image_reader, "LARGE", large)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(read_image, [tmp_path / "a.png"] * 3))
        assert max(most) == expected
        most.clear()


def test_formats_that_start_other_programs_are_never_opened(tmp_path, monkeypatch):
    postscript = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args: pytest.fail("was started"))
    for suffix in (".png", ".jpg", ".eps"):
        path = tmp_path / f"a{suffix}"
        path.write_text(postscript)
        assert Image.open(path).format == "EPS"
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: is none of the images .*PNG"):
            read_image(path)


def test_errors_of_broken_images_name_them(tmp_path):
    Image.fromarray(noise(1, 64, 64)[0]).save(tmp_path / "whole.png")
    for share in np.linspace(0.01, 0.99, 25):
        path = cut(tmp_path / "cut.png", tmp_path / "whole.png", share)
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: [^\n]+$"):
            read_image(path)
    whole, messages = (tmp_path / "whole.png").read_bytes(), []
    for at in range(60):
        damaged = bytearray(whole)
        damaged[at] ^= 255
        (tmp_path / "damaged.png").write_bytes(damaged)
        try:
            read_image(tmp_path / "damaged.png")
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 40 and all(message.startswith(f"{tmp_path}/damaged.png: ") for message in messages)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_image(tmp_path / "none.png")
