"""Files that are cut off are refused where their format says how long they are; whole ones are not."""

import re
from fractions import Fraction

import av
import numpy as np
import pytest

from data.timeline import read_timeline
from data.video_reader import read_video
from video_files import cut, grey_frames, noise, numbers, write, write_gif, write_webm

CODECS = {".avi": "mpeg4", ".wmv": "wmv2", ".flv": "flv1"}


def whole_file(path):
    if path.suffix in (".webm", ".gif"):
        return (write_webm if path.suffix == ".webm" else write_gif)(path, noise(100, 32, 32))
    return write(path, noise(100, 32, 32), rate=25, codec=CODECS.get(path.suffix, "libx264"))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif", ".flv"])
def test_a_file_without_its_last_part_is_refused(tmp_path, suffix):
    path = whole_file(tmp_path / f"whole{suffix}")
    assert len(read_timeline(path).pts) == 100
    for share in (0.3, 0.9, 0.95, 0.98, 0.99):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}/cut\{suffix}: [^\n]+$"):
            read_timeline(cut(tmp_path / f"cut{suffix}", path, share))


def packets_of(path):
    """Where the packets of a file begin, in bytes."""
    with av.open(str(path)) as container:
        return [packet.pos for packet in container.demux() if packet.pos is not None and packet.size]


@pytest.mark.parametrize("suffix", [".webm", ".mkv", ".flv", ".wmv", ".avi"])
def test_a_file_that_ends_between_two_frames_is_refused_too(tmp_path, suffix):
    path = whole_file(tmp_path / f"whole{suffix}")
    places, data = packets_of(path), path.read_bytes()
    for kept in (98, 90, 50):
        (tmp_path / f"cut{suffix}").write_bytes(data[: places[kept]])
        with pytest.raises(ValueError, match=rf"cut\{suffix}: cut off after "):
            read_timeline(tmp_path / f"cut{suffix}")


def with_unknown_size(path):
    """Let a Matroska file not say how many bytes it has, as one that was written to a stream."""
    data = path.read_bytes()
    at = data.index(b"\x18\x53\x80\x67") + 4
    assert data[at] == 1  # a length of eight bytes
    path.write_bytes(data[:at] + b"\x01" + b"\xff" * 7 + data[at + 8 :])
    return path


def test_a_matroska_file_of_unknown_size_is_refused_where_it_ends_before_its_duration(tmp_path):
    path = with_unknown_size(whole_file(tmp_path / "whole.mkv"))
    assert len(read_timeline(path).pts) == 100
    data, places = path.read_bytes(), packets_of(path)
    for kept in (97, 50):
        (tmp_path / "cut.mkv").write_bytes(data[: places[kept]])
        with pytest.raises(ValueError, match=r"cut\.mkv: cut off after .* of 4\.00 seconds"):
            read_timeline(tmp_path / "cut.mkv")


def with_audio(path, frames, seconds):
    """A video of 10 frames a second with a sound that goes on for longer."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flv1" if path.suffix == ".flv" else "libvpx", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        sound = container.add_stream("aac" if path.suffix == ".flv" else "libopus", rate=48000, layout="mono")
        for pixels in grey_frames(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
        for number in range(int(seconds * 48000 / 960)):
            kind, dtype = ("fltp", np.float32) if path.suffix == ".flv" else ("s16", np.int16)
            part = av.AudioFrame.from_ndarray(np.zeros((1, 960), dtype), kind, "mono")
            part.sample_rate, part.pts, part.time_base = 48000, 960 * number, Fraction(1, 48000)
            container.mux(sound.encode(part))
        container.mux(sound.encode())
    return path


@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.flv", "unknown.mkv"])
def test_a_sound_that_is_longer_than_the_video_is_no_cut(tmp_path, name):
    path = with_audio(tmp_path / name, 8, 4)
    timeline = read_timeline(with_unknown_size(path) if name == "unknown.mkv" else path)
    assert len(timeline.pts) == 8 and timeline.rate == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_a_last_frame_that_is_long_is_no_cut(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", grey_frames(4), codec="libvpx", times=[0, 0.1, 0.2, 5])
    assert len(read_timeline(path).pts) == 4


def test_a_stream_without_a_decoder_is_refused_in_one_line(tmp_path):
    path = write(tmp_path / "a.mkv", grey_frames(4))
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_NONE4/ISO/AVC"))
    with pytest.raises(ValueError, match=r"^[^\n]*a\.mkv: [^\n]+$"):
        read_timeline(path)


@pytest.mark.parametrize(
    "codec, options", [("mpeg2video", {"flags": "+ildct+ilme"}), ("libx264", {"x264-params": "interlaced=1"})]
)
def test_an_interlaced_video_is_named(tmp_path, codec, options):
    path = write(tmp_path / "a.mkv", grey_frames(6), rate=25, codec=codec, options=options)
    with pytest.warns(UserWarning, match=r"a\.mkv: interlaced, which is read without deinterlacing"):
        read_video(path)
    assert read_timeline(write(tmp_path / "b.mkv", grey_frames(6))).note == ""


def test_frames_of_several_sizes_need_a_size(tmp_path):
    parts = [write(tmp_path / f"{side}.mp4", grey_frames(4, side, side)) for side in (32, 64)]
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as target:
        new, at = None, 0
        for part in parts:
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                new = new or target.add_stream_from_template(stream)
                bare = av.bitstream.BitStreamFilterContext("h264_mp4toannexb", stream, new)
                for packet in source.demux(stream):
                    for each in bare.filter(packet):
                        each.pts = each.dts = at
                        each.time_base, each.stream, at = Fraction(1, 10), new, at + 1
                        target.mux(each)
    with pytest.raises(ValueError, match=r"a\.ts: has frames of several sizes \(32 × 32, 64 × 64 pixels\)"):
        read_video(path)
    assert read_video(path, size=16)[0].shape == (3, 8, 16, 16)


def test_only_the_middle_of_a_very_long_frame_is_resized(tmp_path):
    pixels = np.zeros((2, 2, 8000, 3), dtype=np.uint8)
    pixels[:, :, 3990:4010] = 180
    path = write(tmp_path / "a.mkv", pixels, codec="ffv1", pix_fmt="bgr0")
    video, _ = read_video(path, size=64)
    assert video.shape == (3, 2, 64, 64) and numbers(video) == [30, 30]
