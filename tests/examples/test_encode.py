"""encode.py: a video file becomes ids and the ids a video, in pieces of any length, as the whole clip would."""

import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import encode
from conftest import tiny_cvivit
from data.media import write_mp4
from data.timeline import read_timeline
from data.video_reader import read_video
from video_files import grey_frames, write


@pytest.fixture
def tokenizer(tmp_path):
    cvivit = tiny_cvivit(temporal_window=3).eval()
    cvivit.save_pretrained(tmp_path / "cvivit")
    return cvivit


def test_ids_are_those_of_the_whole_clip_and_decode_to_its_reconstruction(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encode, "PIECE", 3)
    write_mp4("clip.mp4", torch.rand(3, 10, 16, 16), fps=5)
    encode.main(["clip.mp4", "--tokenizer", "cvivit"])
    assert "1 frames at the end left out" in capsys.readouterr().out
    ids = load_file("runs/clip.safetensors")["ids"]
    video, _ = read_video("clip.mp4", num_frames=9)
    assert torch.equal(ids.long()[None], tokenizer.encode(video[None]))
    encode.main(["runs/clip.safetensors", "--tokenizer", "cvivit"])
    decoded, rate = read_video("runs/clip.mp4")
    assert decoded.shape == (3, 9, 16, 16) and rate == 5
    assert (decoded - tokenizer.decode(ids.long()[None])[0].clamp(0, 1)).abs().mean() < 0.03


def test_frames_are_taken_at_the_rate_that_is_asked_for(tokenizer, tmp_path, capsys):
    write_mp4(tmp_path / "clip.mp4", torch.rand(3, 10, 16, 16), fps=10)
    assert len(read_timeline(tmp_path / "clip.mp4").pts) == 10
    out = tmp_path / "ids.safetensors"
    encode.main([str(tmp_path / "clip.mp4"), "--tokenizer", str(tmp_path / "cvivit"), "--fps", "5", "--out", str(out)])
    assert load_file(out)["ids"].shape == (3, 2, 2)  # 5 frames


@pytest.mark.parametrize("arguments, message", [(["missing.mp4"], "missing.mp4"), (["x.mp4", "--fps", "0"], "--fps")])
def test_what_cannot_be_read_ends_in_one_line(tokenizer, tmp_path, arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        encode.main([*arguments, "--tokenizer", str(tmp_path / "cvivit")])
    assert message in f"{caught.value} {capsys.readouterr().err}"


def ids_file(path, ids, metadata=None, name="ids"):
    save_file({name: ids}, path, metadata=metadata)


WRONG = {
    "no safetensors": (lambda path: path.write_text("ids"), "holds no ids"),
    "a pipe": (os.mkfifo, "expected a file, got a pipe"),
    "empty": (lambda path: path.write_bytes(b""), "holds no ids"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "not there": (lambda path: None, "No such file"),
    "no ids": (lambda path: ids_file(path, torch.zeros(1, 2, 2), name="weight"), "holds no ids"),
    "not whole": (lambda path: ids_file(path, torch.zeros(1, 2, 2)), "whole numbers"),
    "a batch": (lambda path: ids_file(path, torch.zeros(1, 1, 2, 2).int()), "whole numbers"),
    "no time step": (lambda path: ids_file(path, torch.zeros(0, 2, 2).int()), "whole numbers"),
    "too large": (lambda path: ids_file(path, torch.full((1, 2, 2), 32)), "ids below 32"),
    "negative": (lambda path: ids_file(path, torch.full((1, 2, 2), -1)), "ids below 32"),
    "another grid": (lambda path: ids_file(path, torch.zeros(1, 4, 4).int()), "a grid of 2 × 2"),
    "no rate": (lambda path: ids_file(path, torch.zeros(1, 2, 2).int(), {"fps": "fast"}), "wrong frame rate"),
    "nan": (lambda path: ids_file(path, torch.zeros(1, 2, 2).int(), {"fps": "nan"}), "wrong frame rate"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_holds_no_ids_of_the_tokenizer_is_named(tokenizer, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    write, message = WRONG[case]
    write(tmp_path / "clip.safetensors")
    with pytest.raises(SystemExit) as caught:
        encode.main(["clip.safetensors", "--tokenizer", "cvivit"])
    said = str(caught.value)
    assert said.startswith("encode.py: ") and "clip.safetensors" in said and message in said and "\n" not in said
    assert not (tmp_path / "runs" / "clip.mp4").exists()


@pytest.mark.parametrize("words", [["clip.mp4", "--out", "again.mp4"], ["ids.safetensors", "--out", "ids.safetensors"]])
def test_the_suffix_of_out_is_that_of_what_is_written(words, capsys):
    with pytest.raises(SystemExit):
        encode.main(words)
    assert "--out must end in" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[""], ["a.mp4", "--out", ""], ["a.mp4", "--tokenizer", ""]])
def test_an_empty_name_is_refused_at_its_flag(words, capsys):
    with pytest.raises(SystemExit):
        encode.main(words)
    assert "expected the name of a file or folder, got ''" in capsys.readouterr().err


@pytest.mark.parametrize("fps", ["0.009", "1001"])
def test_rates_that_no_mp4_holds_are_refused_at_the_flag(fps, capsys):
    with pytest.raises(SystemExit):
        encode.main(["a.mp4", "--fps", fps])
    assert "--fps" in capsys.readouterr().err


def test_a_gap_is_named_with_the_number_of_frames_and_a_gap_of_days_is_refused(
    tokenizer, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "gap.mkv", grey_frames(3), times=[0, 0.1, 10])
    encode.main(["gap.mkv", "--tokenizer", "cvivit", "--fps", "4"])
    assert "warning: gap.mkv: 41 frames at 4 a second, of 3 in the file" in capsys.readouterr().err
    write(tmp_path / "days.mkv", grey_frames(3), times=[0, 0.1, 10**6])
    with pytest.raises(SystemExit, match=r"encode\.py: days\.mkv: .* 4,000,0\d\d frames repeats the 3 frames"):
        encode.main(["days.mkv", "--tokenizer", "cvivit", "--fps", "4"])
    with pytest.raises(SystemExit, match=r"encode\.py: days\.mkv has .* frames a second: expected 0\.01 to 1000"):
        encode.main(["days.mkv", "--tokenizer", "cvivit"])


def test_a_full_disk_ends_in_one_line_that_names_the_file(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mp4("clip.mp4", torch.rand(3, 9, 16, 16), fps=5)
    (tmp_path / "clip.safetensors").write_text("old")

    def full(tensors, path, metadata):
        raise SafetensorError(f"Error while serializing: I/O error: No space left on device, {path}")

    monkeypatch.setattr(encode, "save_file", full)
    with pytest.raises(SystemExit) as ended:
        encode.main(["clip.mp4", "--tokenizer", "cvivit", "--out", "clip.safetensors"])
    said = str(ended.value)
    assert said.startswith("encode.py: clip.safetensors could not be written: ") and "No space left" in said
    assert ".tmp" not in said and (tmp_path / "clip.safetensors").read_text() == "old"
    assert not list(tmp_path.glob(".*.tmp"))
