"""Schedules, the training mask, and random draws: exact counts, distributions that match."""

import math

import pytest
import torch

from conftest import seed
from phenaki_pytorch import sampling
from phenaki_pytorch.sampling import categorical, draw, draw_mask, gumbel, mask_share

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
def test_the_mask_has_exactly_its_share_of_real_tokens(schedule):
    real = torch.arange(40) < torch.tensor([[40], [23], [7], [1], [40]])
    real = real[:, torch.randperm(40)]
    progress = torch.tensor([0.3, 0.55, 0.9, 0.2, 0.9999])
    share = mask_share(progress, schedule)
    masked = draw_mask(real, schedule=schedule, progress=progress)
    expected = [max(1, math.ceil(each * n)) for each, n in zip(share.tolist(), (40, 23, 7, 1, 40))]
    assert masked.sum(dim=1).tolist() == expected
    assert not (masked & ~real).any()


def test_all_is_masked_at_no_progress():
    real = torch.rand(4, 30) < 0.7
    assert torch.equal(draw_mask(real, progress=torch.zeros(4)), real)


def test_every_token_is_masked_equally_often():
    real = torch.arange(12) < 9
    masked = draw_mask(real.expand(4000, 12), schedule="linear", progress=torch.full((4000,), 0.5))
    assert masked.sum(dim=1).eq(5).all()
    torch.testing.assert_close(masked.float().mean(dim=0), real * 5 / 9, atol=0.04, rtol=0)


def test_drawn_progress_gives_the_schedules_mean_share():
    real = torch.ones(4000, 100, dtype=torch.bool)
    counts = draw_mask(real).float().mean(dim=1)
    torch.testing.assert_close(counts.mean(), torch.tensor(2 / math.pi + 0.005), atol=0.02, rtol=0)
    assert counts.min() < 0.05 and counts.max() == 1


def test_the_mask_follows_its_generator_alone():
    real, before = torch.ones(4, 30, dtype=torch.bool), torch.get_rng_state()
    assert torch.equal(draw_mask(real, generator=seed()), draw_mask(real, generator=seed()))
    assert not torch.equal(draw_mask(real, generator=seed()), draw_mask(real, generator=seed(1)))
    assert torch.equal(torch.get_rng_state(), before)


# draws


@pytest.mark.parametrize("k", [1, 2, 11, 1024])
def test_a_draw_is_the_place_of_its_number_on_the_line_of_the_probabilities(k):
    probs = torch.rand(200, k, generator=seed(k)).double() * (torch.rand(200, k, generator=seed(k + 1)) < 0.5)
    probs[:, -1] += 1e-3  # somewhere it has to be
    chance = torch.rand(200, generator=seed()).double()
    ends = probs.cumsum(dim=1)
    expected = (ends <= chance[:, None] * ends[:, -1:]).sum(dim=1)
    assert torch.equal(categorical(probs, chance), expected)


def test_not_even_the_ends_of_the_line_draw_what_is_impossible():
    probs = torch.tensor([[0.0, 0.3, 0.7, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    assert categorical(probs, torch.zeros(3)).tolist() == [1, 3, 0]
    assert categorical(probs, torch.full((3,), 1 - 2**-24)).tolist() == [2, 3, 0]


def test_gumbel_noise_is_gumbel():
    noise = gumbel(torch.zeros(200_000), seed())
    assert torch.isfinite(noise).all()
    torch.testing.assert_close(noise.mean(), torch.tensor(0.5772), atol=0.02, rtol=0)
    torch.testing.assert_close(noise.var(), torch.tensor(math.pi**2 / 6), atol=0.05, rtol=0)


def test_draws_of_some_places_at_a_time_are_those_of_all(monkeypatch):
    logits, chance = torch.randn(3, 17, 40), torch.rand(3, 17)
    whole = draw(logits, chance, 0.7)
    torch.testing.assert_close(whole[1], (logits / 0.7).log_softmax(-1).gather(-1, whole[0][..., None])[..., 0])
    for numbers in (1, 3 * 40 * 5):
        monkeypatch.setattr(sampling, "NUMBERS", numbers)
        for one, other in zip(draw(logits, chance, 0.7), whole, strict=True):
            assert torch.equal(one, other)
