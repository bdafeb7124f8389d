"""Reading clips: which frames they have, by index and by time, their pixels, and files that are no videos."""

import os
import re
import shutil
import socket

import numpy as np
import pytest
import torch

from data import video_reader
from data.timeline import read_timeline
from data.video_folder import VIDEO_SUFFIXES
from data.video_reader import read_video
from video_files import cut, grey_frames, noise, numbers, write, write_gif, write_webm

CODECS = {".mpg": "mpeg2video", ".mpeg": "mpeg1video", ".wmv": "wmv2", ".avi": "mpeg4", ".ogv": "libvpx"}


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("rate", [8, 15, 30])
def test_fps_picks_frames_by_their_times(tmp_path, suffix, rate):
    writer = {".mp4": write, ".webm": write_webm, ".gif": write_gif}[suffix]
    path = writer(tmp_path / f"a{suffix}", grey_frames(24), rate=rate)
    half, fps = read_video(path, fps=rate / 2)
    assert fps == rate / 2 and np.abs(np.array(numbers(half)) - np.arange(0, 24, 2)).max() <= (suffix == ".gif")
    whole, fps = read_video(path)
    assert numbers(whole) == list(range(24)) and fps == pytest.approx(rate, rel=0.02)
    if suffix != ".gif":  # its times are rounded to 1/100 s
        double, _ = read_video(path, fps=rate * 2, num_frames=10, start=3)
        assert numbers(double) == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7]


def test_fps_of_a_variable_frame_rate(tmp_path):
    times = [0, 0.1, 0.2, 0.3, 0.4, 0.9, 1.4, 1.5, 1.6, 1.7]  # the frames 4 and 5 last half a second
    path = write(tmp_path / "a.mp4", grey_frames(10), times=times)
    video, _ = read_video(path, fps=10, num_frames=17)
    assert numbers(video) == [0, 1, 2, 3, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 7, 8]
    assert numbers(read_video(path, fps=2, num_frames=3)[0]) == [0, 4, 5]


def written_as(path, pixels):
    """Write a file in the format of its suffix, with a keyframe every 7 frames where that can be chosen."""
    if path.suffix in (".webm", ".gif"):
        return (write_webm if path.suffix == ".webm" else write_gif)(path, pixels, rate=25)
    named = path.with_suffix(".mp4") if path.suffix == ".m4v" else path  # FFmpeg writes another format for .m4v
    options = {"g": "7", "b": "4000000"}
    write(named, pixels, rate=25, codec=CODECS.get(path.suffix, "libx264"), options=options)
    return named.rename(path)


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_clips_after_a_seek_are_those_read_from_the_beginning(tmp_path, suffix):
    path = written_as(tmp_path / f"a{suffix}", grey_frames(40))
    whole, rate = read_video(path)
    assert numbers(whole) == list(range(40)) and rate == pytest.approx(25, rel=0.03)
    for start in (0, 1, 6, 7, 20, 36):
        clip, _ = read_video(path, start=start, num_frames=4)
        assert torch.equal(clip, whole[:, start : start + 4]), start


def test_only_the_frames_of_the_clip_are_converted(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", grey_frames(40), options={"g": "8", "bf": "0"})
    converted = []
    original = video_reader.pixels_shown
    monkeypatch.setattr(video_reader, "pixels_shown", lambda *args: converted.append(args) or original(*args))
    read_video(path, start=30, num_frames=4)
    assert len(converted) == 4


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_red_is_red(tmp_path, suffix):
    writer = {".mp4": write, ".webm": write_webm, ".gif": write_gif}[suffix]
    red = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    red[..., 0] = 255
    video, _ = read_video(writer(tmp_path / f"a{suffix}", red))
    assert video[0].min() > 0.97 and video[1:].max() < 0.03


def test_resizing_keeps_the_aspect_and_the_centre(tmp_path):
    frames = np.zeros((2, 60, 120, 3), dtype=np.uint8)
    frames[:, 20:40, 50:70] = 255  # a square in the middle
    frames[:, :, :30] = frames[:, :, 90:] = 128  # outside the crop
    path = write(tmp_path / "a.mp4", frames, options={"crf": "1"})
    video, _ = read_video(path, size=30)
    assert video.shape == (3, 2, 30, 30)
    expected = torch.zeros(30, 30)
    expected[10:20, 10:20] = 1
    assert (video.mean(dim=(0, 1)) - expected).abs().mean() < 0.02
    assert read_video(path, size=(30, 60))[0][0, 0, :, :15].mean() == pytest.approx(0.5, abs=0.02)
    assert read_video(path, size=(90, 32))[0].shape == (3, 2, 90, 32)


@pytest.fixture
def listener():
    """An address on this machine, and a function that says whether anything connected to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def connected():
            try:
                server.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        yield f"127.0.0.1:{server.getsockname()[1]}", connected


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {}\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT4S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1">'
    "<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 {0}\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".m3u8", ".mpd", ".sdp", ".ffconcat"])
@pytest.mark.parametrize("target", ["file", "url"])
def test_lists_of_other_files_are_refused_whatever_their_names(tmp_path, listener, kind, suffix, target):
    address, connected = listener
    write(tmp_path / "other.mp4", grey_frames(40))
    path = tmp_path / f"list{suffix}"
    path.write_text(PLAYLISTS[kind].format("other.mp4" if target == "file" else f"http://{address}/other.mp4"))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_video(path)
    assert not connected()


def test_names_are_never_read_as_addresses_or_patterns(tmp_path, monkeypatch, listener):
    address, connected = listener
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "source.mp4", grey_frames(5))
    plain = (
        "http:x.mp4",
        "concat:source.mp4|source.mp4",
        "data:x.mp4",
        "pipe:0.mp4",
        "-i.mp4",
        "a%03d.mp4",
        "file:x.mp4",
    )
    for name in (*plain, "subfile,,start,0,end,0,,:x.mp4", "é ü?#&.mp4", f"tcp:{address}", "lavfi:testsrc.mp4"):
        shutil.copy(source, tmp_path / name)
        assert numbers(read_video(name)[0]) == list(range(5)), name
        os.remove(tmp_path / name)
    for name in (f"http://{address}/x.mp4", f"tcp://{address}", "concat:source.mp4|source.mp4", "file:source.mp4"):
        with pytest.raises(FileNotFoundError):
            read_timeline(name)
    assert not connected()


def test_errors_of_broken_files_name_them(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    cut(tmp_path / "cut.mp4", write(tmp_path / "whole.mp4", noise(8), movflags="faststart"))
    for name in ("empty.mp4", "text.mp4", "cut.mp4"):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path / name))}: [^\n]+$"):
            read_video(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        read_video(tmp_path / "none.mp4")
