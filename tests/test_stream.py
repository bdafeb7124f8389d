"""stream.py: the clip it draws does not depend on its pieces, and what comes back is what a whole clip gives."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import tiny_cvivit
from moving_shapes import EVERY_PAIR, MOTIONS, SPEED
from moving_shapes_judge import judge, track
from stream import WANDERS, frames_of, there_and_back

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_clip_is_the_same_in_any_pieces_and_moves_without_a_jump():
    length = WANDERS + 9
    whole, pieces = (torch.cat(list(frames_of(length, 32, piece)), dim=2) for piece in (length, 7))
    assert whole.shape == (1, 3, length, 32, 32)
    torch.testing.assert_close(whole, pieces)
    [places] = track(whole)
    steps = (places.diff(dim=0) / 32 + 0.5).remainder(1) - 0.5
    assert steps.norm(dim=-1).tolist() == pytest.approx([SPEED] * (length - 1), abs=0.01)
    assert len({tuple(step.sign().tolist()) for step in (steps / SPEED).round()}) == 2  # it turned once


def test_clips_side_by_side_are_of_every_colour_and_shape_and_each_as_if_alone():
    clips = torch.cat(list(frames_of(WANDERS + 9, 32, 8, count=19)), dim=2)
    assert torch.equal(clips[:1], torch.cat(list(frames_of(WANDERS + 9, 32, 8)), dim=2))
    verdicts = judge(clips, motion_start=WANDERS)
    assert [verdict[:2] for verdict in verdicts] == [*EVERY_PAIR, EVERY_PAIR[0]]
    assert {verdict.motion for verdict in verdicts} == set(MOTIONS)
    assert not torch.equal(clips[0], clips[18])


@pytest.mark.parametrize("piece", [1, 4, 30])
def test_each_frame_comes_back_once_beside_its_original_as_in_one_call(piece):
    cvivit, length = tiny_cvivit(temporal_window=3).eval(), 24
    pairs = list(there_and_back(cvivit, frames_of(length, 16, piece)))
    original, made = (torch.cat(parts, dim=2) for parts in zip(*pairs))
    assert made.shape[2] == 23  # the last frame waits for another
    whole = torch.cat(list(frames_of(length, 16, length)), dim=2)[:, :, :23]
    torch.testing.assert_close(original, whole)
    torch.testing.assert_close(made, cvivit.reconstruct(whole), rtol=0, atol=1e-5)


def test_it_says_what_came_back_and_how_well(tmp_path):
    tiny_cvivit().save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, EXAMPLES / "stream.py", "--model", tmp_path, "--frames", "40", "--at", "10", "38"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "39 of 40 frames of 16×16 came back" in done.stdout
    assert "frame 10: " in done.stdout and "frame 38: " in done.stdout and "MiB above" in done.stdout
