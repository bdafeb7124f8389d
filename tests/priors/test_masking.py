"""Schedules, the training mask, and the positions of masked tokens."""

import math

import pytest
import torch

from conftest import seed
from phenaki_pytorch.priors.masking import draw_mask, mask_share, masked_positions

# schedules


def test_values_of_the_schedules():
    r = torch.tensor([0.0, 1 / 3, 0.5, 2 / 3, 1.0])
    torch.testing.assert_close(mask_share(r), torch.tensor([1.0, 0.75**0.5, 0.5**0.5, 0.5, 0.0]))
    torch.testing.assert_close(mask_share(r, "cubic"), torch.tensor([1.0, 26 / 27, 7 / 8, 19 / 27, 0.0]))
    torch.testing.assert_close(mask_share(r, "linear"), torch.tensor([1.0, 2 / 3, 0.5, 1 / 3, 0.0]))


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match=r"\('cosine', 'cubic', 'linear'\), got 'sine'"):
        mask_share(torch.zeros(()), "sine")
    with pytest.raises(ValueError, match="got 'sine'"):
        draw_mask(torch.ones(1, 4, dtype=torch.bool), schedule="sine")


# the training mask


@pytest.mark.parametrize("schedule", ["cosine", "cubic", "linear"])
def test_the_mask_covers_exactly_its_share_of_the_real_tokens(schedule):
    real = torch.arange(40) < torch.tensor([[40], [23], [7], [1], [40]])
    real = real[:, torch.randperm(40)]
    progress = torch.tensor([0.3, 0.55, 0.9, 0.2, 0.9999])
    share = mask_share(progress, schedule)
    mask = draw_mask(real, schedule=schedule, progress=progress)
    expected = [max(1, math.ceil(each * n)) for each, n in zip(share.tolist(), (40, 23, 7, 1, 40))]
    assert mask.sum(dim=1).tolist() == expected
    assert not (mask & ~real).any()


def test_at_progress_0_all_real_tokens_are_masked():
    real = torch.rand(4, 30) < 0.7
    assert torch.equal(draw_mask(real, progress=torch.zeros(4)), real)


def test_every_token_is_masked_equally_often():
    real = torch.arange(12) < 9
    mask = draw_mask(real.expand(4000, 12), schedule="linear", progress=torch.full((4000,), 0.5))
    assert mask.sum(dim=1).eq(5).all()
    torch.testing.assert_close(mask.float().mean(dim=0), real * 5 / 9, atol=0.04, rtol=0)


def test_random_progress_gives_the_mean_share_of_the_schedule():
    real = torch.ones(4000, 100, dtype=torch.bool)
    counts = draw_mask(real).float().mean(dim=1)
    torch.testing.assert_close(counts.mean(), torch.tensor(2 / math.pi + 0.005), atol=0.02, rtol=0)
    assert counts.min() < 0.05 and counts.max() == 1


def test_the_mask_depends_on_its_generator_only():
    real, before = torch.ones(4, 30, dtype=torch.bool), torch.get_rng_state()
    assert torch.equal(draw_mask(real, generator=seed()), draw_mask(real, generator=seed()))
    assert not torch.equal(draw_mask(real, generator=seed()), draw_mask(real, generator=seed(1)))
    assert torch.equal(torch.get_rng_state(), before)


# positions


def test_masked_positions_are_in_order_and_those_of_shorter_samples_are_filled_up():
    mask = torch.tensor([[False, True, False, True, True], [False, False, False, False, True]])
    positions = masked_positions(mask)
    assert positions[0].tolist() == [1, 3, 4]
    assert positions[1, 0] == 4 and positions.shape == (2, 3)
    assert not mask[1, positions[1, 1:]].any() and positions[1].unique().numel() == 3


def test_all_positions_are_computed_where_nearly_all_are_masked_or_the_count_is_on_another_device():
    assert masked_positions(torch.arange(20) < torch.tensor([[19], [2]])) is None
    assert masked_positions(torch.arange(20) < torch.tensor([[18], [2]])).shape == (2, 18)
    assert masked_positions(torch.ones(2, 20, dtype=torch.bool, device="meta")) is None
