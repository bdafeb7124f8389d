"""Images have the colours that a viewer shows, or the difference is named; values without a known range are refused."""

import re
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from test_images import bomb

from data.image_reader import read_image
from data.video_folder import ImageFolder
from video_files import noise

GREEN = np.broadcast_to(np.array([0, 255, 0], dtype=np.uint8), (32, 40, 3)).copy()


def swapped():
    """The sRGB profile with red and green exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = [
        struct.unpack_from(">4sI", data, 132 + 12 * number) for number in range(int.from_bytes(data[128:132], "big"))
    ]
    at = {name: 136 + 12 * number for number, (name, _) in enumerate(entries)}
    offsets = dict(entries)
    struct.pack_into(">I", data, at[b"rXYZ"], offsets[b"gXYZ"])
    struct.pack_into(">I", data, at[b"gXYZ"], offsets[b"rXYZ"])
    return bytes(data)


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_colours_are_those_of_the_profile(tmp_path, suffix, mode, size):
    if (suffix, mode) in ((".jpg", "RGBA"), (".jpg", "P"), (".webp", "P")):
        pytest.skip(f"{suffix} has no images of mode {mode}")
    image = Image.fromarray(GREEN)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / f"a{suffix}", icc_profile=swapped(), **({"lossless": True} if suffix == ".webp" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        colour = read_image(tmp_path / f"a{suffix}", size).mean(dim=(1, 2))
    assert torch.allclose(colour, torch.tensor([1.0, 0, 0]), atol=0.02)


def test_transparent_pixels_are_black_with_a_profile_too(tmp_path):
    image = Image.fromarray(GREEN).convert("RGBA")
    image.putalpha(51)
    image.save(tmp_path / "a.png", icc_profile=swapped())
    assert torch.allclose(read_image(tmp_path / "a.png").mean(dim=(1, 2)), torch.tensor([0.2, 0, 0]), atol=0.01)


@pytest.mark.parametrize("profile", [b"no profile" * 20, swapped()[:200], swapped()[:-400]])
def test_a_broken_profile_is_not_used(tmp_path, profile):
    Image.fromarray(GREEN).save(tmp_path / "a.png", icc_profile=profile)
    assert read_image(tmp_path / "a.png")[:, 3, 3].tolist() in ([0, 1, 0], [1, 0, 0])


def test_a_profile_of_other_colours_is_not_used(tmp_path):
    grey = np.full((8, 8), 100, dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.jpg", icc_profile=swapped(), quality=100)
    assert (read_image(tmp_path / "a.jpg") * 255).round().unique().tolist() == [100]
    Image.new("CMYK", (8, 8), (0, 0, 255, 0)).save(tmp_path / "b.jpg", icc_profile=swapped(), quality=100)
    assert torch.allclose(read_image(tmp_path / "b.jpg")[:, 3, 3], torch.tensor([1.0, 1, 0]), atol=0.05)


def with_chunk(path, name, data):
    Image.fromarray(noise(1)[0]).save(path)
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(path.read_bytes()[:33] + chunk + path.read_bytes()[33:])


CHUNKS = [
    (b"cICP", bytes([9, 16, 0, 1]), r"high dynamic range \(PQ\)"),
    (b"cICP", bytes([9, 18, 0, 1]), r"high dynamic range \(HLG\)"),
    (b"cICP", bytes([1, 13, 0, 1]), None),
    (b"cICP", b"", None),
    (b"gAMA", struct.pack(">I", 100_000), r"a gamma of 1\.00, which is read as 2\.2"),
    (b"gAMA", struct.pack(">I", 45_455), None),
    (b"gAMA", struct.pack(">I", 0), None),
]


@pytest.mark.parametrize("name, data, message", CHUNKS)
def test_colours_that_are_not_followed_are_named_once(tmp_path, name, data, message):
    with_chunk(tmp_path / "a.png", name, data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(tmp_path / "a.png")
        folder = ImageFolder(tmp_path, size=16)
        assert folder[0]["video"].shape == (3, 1, 16, 16)
    said = [str(each.message) for each in caught]
    assert len(said) == (0 if message is None else 2)
    assert all(re.search(rf"a\.png: {message}", each) for each in said)


@pytest.mark.parametrize("suffix", [".webp", ".png", ".tif"])
def test_further_frames_and_pages_are_named(tmp_path, suffix):
    first, *others = [Image.fromarray(pixels) for pixels in noise(3)]
    options = {"lossless": True} if suffix == ".webp" else {}
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=others, **options)
    with pytest.warns(UserWarning, match=rf"a\{suffix}: the first of 3 frames or pages, which alone is read"):
        image = read_image(tmp_path / f"a{suffix}")
    assert torch.equal((image * 255).round().byte(), torch.from_numpy(noise(3)[0]).permute(2, 0, 1))


@pytest.mark.parametrize("size", [None, 8])
def test_floating_point_from_0_to_1_is_read_as_it_is_and_other_values_are_refused(tmp_path, size):
    path, values = tmp_path / "a.tif", np.full((40, 40), 0.25, dtype=np.float32)
    Image.fromarray(values).save(path)
    assert read_image(path, size).mean() == pytest.approx(0.25, abs=0.002)
    for wrong in (-0.1, 1.5, 255, float("nan"), float("inf")):
        values[20, 20] = wrong
        Image.fromarray(values).save(path)
        with pytest.raises(ValueError, match=r"a\.tif: has values from .* to .*: floating point must be from 0 to 1"):
            read_image(path, size)


def test_values_of_32_bits_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: has values of 32 bits: expected 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


def test_the_refusal_of_too_many_pixels_is_the_only_message(tmp_path):
    path = bomb(tmp_path / "a.png", 20_000, 6_001)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="expected at most 120,000,000 pixels"):
            read_image(path, 64)
    assert not caught


MEASURE = """
import resource, sys
from data.image_reader import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    assert read_image(path, 64).shape == (3, 64, 64)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_thin_images_take_little_memory(tmp_path):
    Image.new("RGB", (1_000_000, 1)).save(tmp_path / "wide.png")
    Image.new("RGB", (1, 1_000_000)).save(tmp_path / "tall.png")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "wide.png"), str(tmp_path / "tall.png")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert float(ran.stdout) < 100


def test_of_a_thin_image_the_centre_is_read(tmp_path):
    pixels = np.zeros((1, 4001, 3), dtype=np.uint8)
    pixels[:, 1990:2011] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 8) * 255).round().unique().tolist() == [200]
