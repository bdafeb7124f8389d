"""encode.py: a video file becomes ids and the ids a video, in pieces of any length, as the whole clip would."""

import pytest
import torch
from safetensors.torch import load_file

import encode
from conftest import tiny_cvivit
from data.media import write_mp4
from data.video_reader import read_timeline, read_video


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
