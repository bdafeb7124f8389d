"""The shift between frames is found exactly, to the right side, and is 0 where nothing moves sideways."""

import pytest
import torch

from evaluation.shifts import follows_turns, horizontal_shifts


def panorama(steps, width=32, height=16):
    """A clip (1, 3, f, h, w) of a camera over a wide random picture, at steps of `steps` pixels to the right."""
    picture = torch.rand(3, height, 400)
    places = 200 + torch.tensor([0, *steps]).cumsum(dim=0)
    return torch.stack([picture[:, :, place : place + width] for place in places], dim=1)[None]


@pytest.mark.parametrize("steps", [(0, 3, -3), (8, -8, 1), (-1, -2, -7)])
def test_the_shift_of_a_moved_camera_is_exact(steps):
    assert horizontal_shifts(panorama(steps)).tolist() == [list(steps)]


def test_clips_of_a_batch_are_judged_alone():
    one, other = panorama((2, -5)), panorama((7, 0))
    assert horizontal_shifts(torch.cat((one, other))).tolist() == [[2, -5], [7, 0]]


def test_noise_does_not_change_the_shift():
    clip = panorama((4, -4, 6, 0))
    noisy = clip + 0.1 * torch.randn_like(clip)
    assert horizontal_shifts(noisy).tolist() == [[4, -4, 6, 0]]


def test_a_mirrored_clip_has_the_opposite_shifts():
    clip = panorama((4, -3, 8, 0))
    assert torch.equal(horizontal_shifts(clip.flip(-1)), -horizontal_shifts(clip))


def test_a_reversed_clip_has_the_opposite_shifts_in_reverse():
    clip = panorama((4, -3, 8, 0))
    assert torch.equal(horizontal_shifts(clip.flip(2)), -horizontal_shifts(clip).flip(1))


@pytest.mark.parametrize("clip", [torch.zeros(1, 3, 4, 16, 32), torch.rand(1, 3, 1, 16, 32).expand(-1, -1, 4, -1, -1)])
def test_a_still_clip_has_no_shift(clip):
    assert horizontal_shifts(clip).tolist() == [[0, 0, 0]]


def test_a_weapon_at_the_lower_edge_does_not_hide_a_turn():
    clip = panorama((5, -5), height=16)
    clip[:, :, :, 12:, 8:24] = 3 * torch.rand(1, 3, 1, 4, 16)
    assert horizontal_shifts(clip).tolist() == [[5, -5]]


def test_shifts_are_at_most_what_is_asked_for():
    clip = panorama((6, -6))
    assert horizontal_shifts(clip, most=6).tolist() == [[6, -6]]
    assert horizontal_shifts(clip, most=5).abs().max() <= 5
    assert horizontal_shifts(clip, most=0).tolist() == [[0, 0]]


def test_turns_are_followed_where_the_signs_agree():
    shifts = torch.tensor([[4, -2, 0, 7, 0]])
    turns = torch.tensor([[1, 1, -1, 0, 0]])
    assert follows_turns(shifts, turns).tolist() == [True, False, False]
    assert follows_turns(shifts, shifts.sign()).all()


def test_wrong_shapes_and_ranges_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 frames, none empty, got \(1, 3, 1, 16, 32\)"):
        horizontal_shifts(torch.rand(1, 3, 1, 16, 32))
    with pytest.raises(ValueError, match=r"\(b, c, f, h, w\).*got \(3, 4, 16, 32\)"):
        horizontal_shifts(torch.rand(3, 4, 16, 32))
    for most in (-1, 32):
        with pytest.raises(ValueError, match=f"below the width 32, got {most}"):
            horizontal_shifts(panorama((1,)), most=most)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 3\) and \(1, 2\)"):
        follows_turns(torch.zeros(1, 3), torch.zeros(1, 2))
