"""stream.py: neither its clips nor their reconstructions depend on the pieces."""

import pytest
import torch

from conftest import tiny_cvivit
from data.moving_shapes import EVERY_PAIR, MOTIONS, SPEED
from evaluation.judge import judge, track
from stream import TURN_EVERY, frames_of, main, reconstructed


def test_the_clip_does_not_depend_on_the_pieces_and_never_jumps():
    length = TURN_EVERY + 9
    whole, pieces = (torch.cat(list(frames_of(length, 32, piece)), dim=2) for piece in (length, 7))
    assert whole.shape == (1, 3, length, 32, 32)
    torch.testing.assert_close(whole, pieces)
    [positions] = track(whole)
    steps = (positions.diff(dim=0) / 32 + 0.5).remainder(1) - 0.5
    assert steps.norm(dim=-1).tolist() == pytest.approx([SPEED] * (length - 1), abs=0.01)
    assert len({tuple(step.sign().tolist()) for step in (steps / SPEED).round()}) == 2  # it turned once


def test_a_batch_has_every_colour_and_shape_and_each_clip_as_if_alone():
    clips = torch.cat(list(frames_of(TURN_EVERY + 9, 32, 8, count=19)), dim=2)
    assert torch.equal(clips[:1], torch.cat(list(frames_of(TURN_EVERY + 9, 32, 8)), dim=2))
    verdicts = judge(clips, motion_start=TURN_EVERY)
    assert [verdict[:2] for verdict in verdicts] == [*EVERY_PAIR, EVERY_PAIR[0]]
    assert {verdict.motion for verdict in verdicts} == set(MOTIONS)
    assert not torch.equal(clips[0], clips[18])


@pytest.mark.parametrize("piece", [1, 4, 30])
def test_reconstructions_in_pieces_are_those_of_one_call(piece):
    cvivit, length = tiny_cvivit(temporal_window=3).eval(), 24
    pairs = list(reconstructed(cvivit, frames_of(length, 16, piece)))
    original, rebuilt = (torch.cat(parts, dim=2) for parts in zip(*pairs))
    assert rebuilt.shape[2] == 23  # the last frame does not fill a time step
    whole = torch.cat(list(frames_of(length, 16, length)), dim=2)[:, :, :23]
    torch.testing.assert_close(original, whole)
    torch.testing.assert_close(rebuilt, cvivit.reconstruct(whole), rtol=0, atol=1e-5)


def test_the_program_prints_frames_psnr_and_memory(tmp_path, capsys):
    tiny_cvivit().save_pretrained(tmp_path)
    main(["--model", str(tmp_path), "--frames", "40", "--at", "10", "38"])
    printed = capsys.readouterr().out
    assert "39 of 40 frames of 16×16 reconstructed" in printed
    assert "frame 10: " in printed and "frame 38: " in printed and "MiB above" in printed


@pytest.mark.parametrize("frame", [39, 40, 5000])
def test_a_frame_that_is_not_reconstructed_has_no_psnr_to_ask_for(tmp_path, frame):
    tiny_cvivit().save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match=f"stream.py: --at must be below 39, .* got {frame}"):
        main(["--model", str(tmp_path), "--frames", "40", "--at", "10", str(frame)])
