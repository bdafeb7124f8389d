"""Frames are read as players show them: turned, mirrored, with square pixels, on black, in the right colours."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, ColorTrc
from PIL import Image

from data import frames
from data.image_reader import read_image
from data.timeline import read_timeline
from data.video_folder import VideoFolder
from data.video_reader import read_video
from video_files import grey_frames, noise, numbers, write

QUARTERS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]  # (a, b, c, d) of turns by 0, 90, 180, 270
MIRRORED = [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


def with_matrix(path, source, matrix, scale=1.0):
    """A copy of an mp4 whose display matrix is replaced."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (round(each * scale * 65536) for each in matrix)
    data[at : at + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def corners(tmp_path_factory):
    """A video of 48 × 80 pixels whose quadrants have different greys."""
    pixels = np.zeros((2, 48, 80, 3), dtype=np.uint8)
    for number, (y, x) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        pixels[:, 24 * y : 24 * (y + 1), 40 * x : 40 * (x + 1)] = 80 * number
    return write(tmp_path_factory.mktemp("frames") / "corners.mp4", pixels, options={"crf": "1"})


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("matrix", QUARTERS + MIRRORED)
def test_every_corner_is_where_the_display_matrix_puts_it(tmp_path, corners, matrix, scale):
    video, _ = read_video(with_matrix(tmp_path / "a.mp4", corners, matrix, scale))
    a, b, c, d = matrix
    assert tuple(video.shape[2:]) == ((48, 80) if a else (80, 48))
    for y in (-1, 1):  # from the centre of the frame
        for x in (-1, 1):
            row, column = (0 if side < 0 else -1 for side in (b * x + d * y, a * x + c * y))
            expected = 80 * (2 * (y > 0) + (x > 0)) / 255
            assert video[0, 0, row, column] == pytest.approx(expected, abs=0.03), (x, y)


def test_turns_that_are_no_quarters_are_refused_with_their_angle(tmp_path, corners):
    for degrees in (10, 45, 100, -30):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        path = with_matrix(tmp_path / "a.mp4", corners, (cos, sin, -sin, cos))
        with pytest.raises(ValueError, match=rf"a\.mp4: turned by {degrees} degrees: expected a multiple of 90"):
            read_video(path)


def write_stream(path, pixels, *, muxer=None, rate=10, codec="libx264", pix_fmt="yuv420p", aspect=None, **marks):
    """Write frames (n, h, w, 3 or 4) with marks on the codec, such as `colorspace`."""
    with av.open(str(path), "w", format=muxer) as container:
        options = {"auto-alt-ref": "0"} if codec.startswith("libvpx") else {"crf": "1"}
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], pix_fmt
        stream.codec_context.thread_count = 1
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for name, value in marks.items():
            setattr(stream.codec_context, name, value)
        colours = {"dst_colorspace": marks.get("colorspace"), "dst_color_range": marks.get("color_range")}
        for each in pixels:
            frame = av.VideoFrame.from_ndarray(each, format="rgb24" if each.shape[-1] == 3 else "rgba")
            container.mux(stream.encode(frame.reformat(format=pix_fmt, **colours)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(16, 15), Fraction(1, 2), Fraction(3, 1)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_circles_are_round_whatever_the_shape_of_the_stored_pixels(tmp_path, suffix, aspect):
    width, height = round(120 / aspect / 2) * 2, 120
    y, x = np.mgrid[:height, :width]
    disc = np.hypot(y - height / 2 + 0.5, (x - width / 2 + 0.5) * float(aspect)) < 40
    pixels = np.repeat(disc[None, ..., None] * np.uint8(255), 3, axis=-1)
    video, _ = read_video(write_stream(tmp_path / f"a{suffix}", pixels, aspect=aspect))
    assert video.shape[2] == height and video.shape[3] == round(width * aspect)
    inside = video.mean(dim=(0, 1)) > 0.5
    tall, wide = (int(inside.any(dim=axis).sum()) for axis in (1, 0))
    assert abs(tall - 80) <= 2 and abs(wide - 80) <= 3


def test_non_square_pixels_are_made_square_before_the_frame_is_turned(tmp_path):
    source = write_stream(tmp_path / "a.mp4", noise(2, 32, 48), aspect=Fraction(2, 1))
    assert read_video(source)[0].shape[2:] == (32, 96)
    turned = with_matrix(tmp_path / "b.mp4", source, QUARTERS[1])
    assert torch.equal(read_video(turned)[0], read_video(source)[0].transpose(2, 3).flip(3))


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparent_parts_of_a_webm_become_black_as_those_of_an_image(tmp_path, codec):
    pixels = np.full((12, 32, 64, 4), 200, dtype=np.uint8)
    pixels[..., 3] = np.repeat([255, 128, 51, 0], 16)
    path = write_stream(tmp_path / "a.webm", pixels, codec=codec, pix_fmt="yuva420p")
    for start in (0, 7):
        video, _ = read_video(path, start=start, num_frames=2)
        shown = video[:, :, :, 4::16].mean(dim=(0, 1, 2))
        assert torch.allclose(shown, torch.tensor([255, 128, 51, 0]) / 255 * 200 / 255, atol=0.03)
    assert video.shape == (3, 2, 32, 64)
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") - video[:, 0]).abs().mean() < 0.02


@pytest.mark.parametrize("height, width", [(64, 64), (576, 720), (720, 1280), (64, 1280), (592, 64)])
@pytest.mark.parametrize("mark", [None, Colorspace.ITU709, Colorspace.ITU601])
def test_colours_of_unmarked_videos_are_those_that_players_take(tmp_path, height, width, mark):
    guessed = Colorspace.ITU709 if width >= 1280 or height > 576 else Colorspace.ITU601
    pixels = np.broadcast_to(np.array([200, 40, 0], dtype=np.uint8), (1, height, width, 3))
    marks = {"colorspace": mark or guessed, "color_range": ColorRange.MPEG}
    path = write_stream(tmp_path / "a.mp4", np.ascontiguousarray(pixels), **marks)
    if mark is None:
        path = unmarked(path)
        with av.open(str(path)) as container:
            assert next(container.decode(video=0)).colorspace == frames.UNSPECIFIED
    video, _ = read_video(path)
    assert torch.allclose(video.mean(dim=(1, 2, 3)) * 255, torch.tensor([200.0, 40, 0]), atol=3)


def unmarked(path):
    """The same stream without marks of its colours, as H.264's bit stream filter writes it."""
    with av.open(str(path)) as source, av.open(str(path.with_suffix(".mkv")), "w") as target:
        stream = source.streams.video[0]
        new = target.add_stream_from_template(stream)
        blank = "h264_metadata=colour_primaries=2:transfer_characteristics=2:matrix_coefficients=2"
        bare = av.bitstream.BitStreamFilterContext(blank, stream, new)
        for packet in source.demux(stream):
            target.mux(bare.filter(packet))
    return path.with_suffix(".mkv")


@pytest.mark.parametrize("first", ["cover", "video"])
def test_cover_pictures_are_no_videos(tmp_path, first):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 48, 32, "rgb24", Disposition.attached_pic
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        picture = av.VideoFrame.from_ndarray(noise(1, 32, 48)[0], format="rgb24")
        picture.pts = 0
        container.mux([*cover.encode(picture), *cover.encode()])
        for pixels in grey_frames(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    if first == "cover":
        cover_first(path)
    with av.open(str(path)) as container:
        streams = container.streams.video
        assert [bool(each.disposition & Disposition.attached_pic) for each in streams].index(True) == (first != "cover")
    assert numbers(read_video(path)[0]) == list(range(8))


def cover_first(path):
    """Move the box with the cover before those of the tracks, and mark no track as the default."""
    data = path.read_bytes()
    flags = data.index(b"tkhd") + 7
    data = data[:flags] + b"\2" + data[flags + 1 :]  # in a movie, but not enabled
    moov = data.index(b"moov") - 4
    end = moov + int.from_bytes(data[moov : moov + 4], "big")
    boxes, at = [], moov + 8
    while at < end:
        size = int.from_bytes(data[at : at + 4], "big")
        boxes.append(data[at : at + size])
        at += size
    boxes.sort(key=lambda box: box[4:8] != b"udta")
    path.write_bytes(data[: moov + 8] + b"".join(boxes) + data[end:])


def test_the_track_that_is_marked_as_the_default_is_read(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, disposition in zip(streams, (Disposition(0), Disposition.default)):
            stream.width, stream.height, stream.pix_fmt, stream.disposition = 32, 32, "yuv420p", disposition
        for preview, pixels in zip(np.zeros((8, 32, 32, 3), dtype=np.uint8), grey_frames(8)):
            for stream, each in zip(streams, (preview, pixels)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(each), format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    assert numbers(read_video(path)[0]) == list(range(8))


@pytest.mark.parametrize("transfer, name", [(ColorTrc.SMPTE2084, "PQ"), (ColorTrc.ARIB_STD_B67, "HLG")])
def test_a_high_dynamic_range_is_named_once_for_a_file(tmp_path, transfer, name):
    for number in range(2):
        write_stream(tmp_path / f"{number}.mp4", grey_frames(4), color_trc=transfer)
    write_stream(tmp_path / "plain.mp4", grey_frames(4), color_trc=ColorTrc.BT709)
    assert read_timeline(tmp_path / "plain.mp4").note == ""
    with pytest.warns(UserWarning, match=rf"0\.mp4: high dynamic range \({name}\)") as caught:
        read_video(tmp_path / "0.mp4")
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="2 files look different in a player") as caught:
        dataset = VideoFolder(tmp_path, size=16, num_frames=2)
        for index in range(3):
            dataset[index]
    assert len(caught) == 1
    assert [str(caught[0].message).count(f"{each}.mp4: high") for each in ("0", "1", "plain")] == [1, 1, 0]


def test_frames_that_take_too_much_memory_are_refused(tmp_path, monkeypatch):
    wide = write_stream(tmp_path / "wide.mp4", noise(2, 32, 48), aspect=Fraction(30, 1))
    plain = write(tmp_path / "plain.mp4", noise(2, 32, 48))
    monkeypatch.setattr(frames, "MAX_FRAME", 32 * 48)
    assert read_video(plain)[0].shape == (3, 2, 32, 48)
    with pytest.raises(ValueError, match=r"wide\.mp4: has frames of 1440 × 32 pixels: expected at most 1,536"):
        read_video(wide)
    monkeypatch.setattr(frames, "MAX_FRAME", 32 * 48 - 1)
    with pytest.raises(ValueError, match=r"plain\.mp4: has frames of 48 × 32 pixels: expected at most 1,535"):
        read_timeline(plain)
