"""Errors of files: their names are as given, and nothing waits for a pipe or reads a device."""

import os
import re

import av
import pytest
from PIL import Image

from data.file_errors import naming
from data.image_reader import read_image
from data.timeline import read_timeline
from data.video_reader import read_video
from video_files import grey_frames, noise, write


@pytest.mark.parametrize("read", [read_video, read_timeline, read_image])
def test_pipes_and_devices_are_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("pipe.mp4")
    for path in (tmp_path / "pipe.mp4", tmp_path / "link.mp4", "/dev/null", "/dev/zero"):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: expected a file, got a pipe"):
            read(path)


@pytest.mark.parametrize("read", [read_video, read_timeline, read_image])
def test_errors_have_the_path_as_it_was_given(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    for name, kind in (("none.mp4", FileNotFoundError), ("gone", FileNotFoundError), ("folder", IsADirectoryError)):
        with pytest.raises(kind, match=rf"'{name}'$"):
            read(name)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"^text\.mp4: [^/]*$"):
        read("text.mp4")


@pytest.mark.parametrize("name", ["PermissionError", "FileNotFoundError", "IsADirectoryError"])
def test_errors_of_decoders_are_never_those_of_opening(tmp_path, name):
    (tmp_path / "a.mp4").write_text("video")
    with pytest.raises(ValueError, match=r"^[^\n]*a\.mp4: Operation not permitted$"), naming(tmp_path / "a.mp4"):
        raise getattr(av.error, name)(1, "Operation not permitted", "avcodec_send_packet()")


def test_links_to_files_are_read(tmp_path):
    write(tmp_path / "a.mp4", grey_frames(4))
    Image.fromarray(noise(1)[0]).save(tmp_path / "a.png")
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    (tmp_path / "b.png").symlink_to("a.png")
    assert read_video(tmp_path / "b.mp4")[0].shape[1] == 4 and read_image(tmp_path / "b.png").shape[0] == 3
