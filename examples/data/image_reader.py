"""Read images as tensors: upright, in sRGB, on black. Large ones are reduced while they are read.

h = height · w = width. Pixels are RGB in [0, 1].
"""

from __future__ import annotations

import io
import struct
import threading
from contextlib import nullcontext
from pathlib import Path
from warnings import warn

import numpy as np
import torch
from einops import rearrange
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from data.clip_arguments import as_path, as_size
from data.file_errors import naming
from data.frames import HDR, fit

# What pillow may take a file for. It does not look at the suffix, and it knows formats that start other programs.
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SEVERAL = ("PNG", "WEBP", "TIFF", "GIF")  # formats whose further pictures are frames or pages; a JPEG's are previews

MAX_PIXELS = 120_000_000  # of an image: those of large cameras. Decoded, that is 480 MB
Image.MAX_IMAGE_PIXELS = None  # pillow would warn beside the refusal here, which comes before anything is decoded
LARGE = 2**24  # pixels of an image that is decoded alone
ALONE = threading.Lock()

SRGB = ImageCms.createProfile("sRGB")
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # the colours of a profile, and the mode they are given in


def read_image(path: str | Path, size: int | tuple[int, int] | None = None) -> Tensor:
    """Read an image: float (3, h, w) in [0, 1], rotated as its EXIF data say; transparent pixels become black.

    size  a number or (height, width) to resize and crop to; None: the file's own

    Colours are those of the file's profile, in sRGB; a broken profile is not used. Values in floating point are taken
    from 0 to 1. A large image is reduced while it is read, and only one is read at a time in a process. Warns of a
    high dynamic range and a gamma other than 2.2, which are taken as they are, and of further frames and pages, which
    are not read. Raises TypeError for a size of a wrong kind; ValueError for a wrong size, for more than MAX_PIXELS,
    for values that are neither of 8 or 16 bits nor from 0 to 1, and for a file that is broken or no image;
    FileNotFoundError for a missing file.
    """
    pixels, note = read_pixels(as_path("path", path), as_size(size))
    if note:
        warn(f"{path}: {note}", stacklevel=2)
    return pixels


def read_pixels(path: Path, size: tuple[int, int] | None) -> tuple[Tensor, str]:
    """The image, and what its pixels lack of what a viewer shows. Errors as in `read_image`."""
    with naming(path), _opened(path) as image:
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise ValueError(f"has {image.width} × {image.height} pixels: expected at most {MAX_PIXELS:,} pixels")
        if image.mode == "I":
            raise ValueError("has values of 32 bits: expected 8 or 16 bits, or floating point from 0 to 1")
        note = _note_on(image, path)
        with ALONE if pixels > LARGE else nullcontext():
            rgb = np.array(_upright_on_black(image, size))
            return fit(torch.from_numpy(rearrange(rgb, "h w c -> c h w")), size), note


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=PICTURES)
    except UnidentifiedImageError as error:
        raise ValueError(f"is none of the images that are read here ({', '.join(PICTURES)})") from error


def _note_on(image: Image.Image, path: Path) -> str:
    """What is not done for an image; "" where all is done."""
    notes, count = [], image.n_frames if image.format in SEVERAL and hasattr(image, "n_frames") else 1
    if count > 1:
        notes.append(f"the first of {count} frames or pages, which alone is read")
    if image.format == "PNG":
        coding, gamma = _png_chunk(path, b"cICP"), image.info.get("gamma")
        if transfer := HDR.get(coding[1] if len(coding) > 1 else 0):
            notes.append(f"high dynamic range ({transfer}), which is read without tone mapping")
        replaced = coding or "icc_profile" in image.info or "srgb" in image.info  # these say it better than a gamma
        if gamma and not replaced and abs(2.2 * gamma - 1) > 0.05:
            notes.append(f"a gamma of {1 / gamma:.2f}, which is read as 2.2")
    return "; ".join(notes)


def _png_chunk(path: Path, wanted: bytes) -> bytes:
    """The content of a chunk before the pixels of a PNG; empty where there is none. Pillow skips some of them."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == wanted:
                return file.read(length)
            if name == b"IDAT":
                break
            file.seek(length + 4, io.SEEK_CUR)
    return b""


def _upright_on_black(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The image in RGB; with a size, at a whole fraction of its own that is at least four times as large."""
    enough = None if size is None else 4 * max(size)
    if enough:
        image.draft(None, (enough, enough))  # a JPEG can be decoded at a half, a quarter or an eighth of its size
    image.load()
    transform = _to_srgb(image)
    factor = max(1, min(image.size) // enough) if enough else 1
    small = Image.new("RGB", tuple(-(-side // factor) for side in image.size))
    rows = factor * max(1, 2**20 // (factor * image.width))
    for top in range(0, image.height, rows):  # in bands: no second copy of a large image is made
        band = _on_black(image.crop((0, top, image.width, min(top + rows, image.height))), transform)
        small.paste(band.reduce(factor), (0, top // factor))
    orientation = ExifTags.Base.Orientation
    small.getexif()[orientation] = image.getexif().get(orientation, 1)
    return ImageOps.exif_transpose(small)


def _to_srgb(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """What brings the colours of the image's profile to sRGB; None without a profile that is usable for it."""
    if not image.info.get("icc_profile"):
        return None
    grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    own = "L" if grey else "CMYK" if image.mode == "CMYK" else "RGB"
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        if SPACES.get(profile.profile.xcolor_space.strip()) != own:
            return None
        return ImageCms.buildTransform(profile, SRGB, own, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


def _on_black(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    """An image of any mode in RGB."""
    image = _eight_bits(image)
    if transform is None:
        rgb = image.convert("RGB")
    else:
        rgb = ImageCms.applyTransform(image.convert(transform.input_mode), transform)
    if not image.has_transparency_data:
        return rgb
    rgb.putalpha(image.convert("RGBA").getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), rgb).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits or floating point in 8 bits, which pillow would clip; all others as they are."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype(np.uint8))
    if image.mode != "F":
        return image
    values = np.asarray(image)
    if not ((values >= 0) & (values <= 1)).all():  # also where one is not a number
        raise ValueError(f"has values from {values.min():g} to {values.max():g}: floating point must be from 0 to 1")
    return Image.fromarray((values * 255).round().astype(np.uint8))
