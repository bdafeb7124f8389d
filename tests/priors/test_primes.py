"""Training on continuations: the first time steps of some clips are given, and the loss leaves them out."""

import pytest
import torch

from conftest import make_ids, seed, tiny_maskgit
from phenaki_pytorch.priors import maskgit as module
from phenaki_pytorch.priors.masking import draw_prime_steps, first_steps

GRID = (6, 2, 2)


def unconditional(**changes):
    return tiny_maskgit(dim_context=None, **changes)


@pytest.fixture
def maskable(monkeypatch):
    """The tokens that each call may mask, a list of bool (b, n)."""
    calls, draw_mask = [], module.draw_mask
    monkeypatch.setattr(module, "draw_mask", lambda real, **o: calls.append(real) or draw_mask(real, **o))
    return calls


# how many are given


def given_steps(real_steps, share, times=1):
    """Which of 6 time steps are given, for clips with these numbers of real ones: bool (times · b, 6)."""
    real = (torch.arange(6) < torch.tensor(real_steps).repeat(times)[:, None]).repeat_interleave(4, dim=1)
    given = first_steps(draw_prime_steps(real, 6, share=share), 6, 24).unflatten(1, (6, 4))
    assert torch.equal(given.any(dim=2), given.all(dim=2))
    return given.all(dim=2)


def test_each_number_of_first_time_steps_is_given_equally_often_but_never_all():
    given = given_steps([6], share=1.0, times=4000)
    assert torch.equal(given, given.cummin(dim=1).values)  # they come first
    counts = torch.bincount(given.sum(dim=1), minlength=7) / 4000
    torch.testing.assert_close(counts, torch.tensor([0, 0.2, 0.2, 0.2, 0.2, 0.2, 0]), atol=0.04, rtol=0)


def test_only_real_time_steps_are_given_and_none_of_an_image():
    given = given_steps([3, 1], share=1.0, times=200).sum(dim=1).unflatten(0, (200, 2))
    assert given[:, 0].unique().tolist() == [1, 2] and not given[:, 1].any()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_given_share_of_clips_has_given_time_steps(share):
    assert given_steps([6], share, times=4000)[:, 0].float().mean().item() == pytest.approx(share, abs=0.03)


def test_all_randomness_comes_from_the_generator():
    real, before = torch.ones(40, 30, dtype=torch.bool), torch.get_rng_state()
    one, two, three = (draw_prime_steps(real, 5, share=0.5, generator=seed(number)) for number in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert torch.equal(torch.get_rng_state(), before)


# in MaskGit's loss


def test_prime_prob_is_the_share_of_training_clips_with_given_time_steps(maskable):
    model = unconditional(prime_prob=0.3, depth=1)
    model(make_ids(2000))
    steps = torch.cat(maskable).unflatten(1, (GRID[0], -1)).any(dim=2)
    assert (~steps[:, 0]).float().mean().item() == pytest.approx(0.3, abs=0.05) and steps[:, -1].all()
    maskable.clear()
    model.eval()(make_ids())
    unconditional()(make_ids())
    assert torch.cat(maskable).all()


def test_prime_steps_replace_the_random_numbers(maskable):
    model = unconditional(prime_prob=0.5)
    for training in (True, False):
        losses = model.train(training).losses(make_ids(), prime_steps=torch.tensor([4, 0]))
        assert not losses.masked[0, :4].any() and losses.masked[0, 4:].any()
    real = torch.stack(maskable).unflatten(2, (GRID[0], -1))
    assert torch.equal(real.any(dim=3), real.all(dim=3))
    assert real.all(dim=3).sum(dim=2).tolist() == [[2, 6], [2, 6]]


@pytest.mark.parametrize(
    "steps, message",
    [
        ([1, 6], r"fewer than the real time steps, \[6, 6\], got \[1, 6\]"),
        ([-1, 0], r"got \[-1, 0\]"),
        ([1], r"int64 \(2,\), got torch.int64 \(1,\)"),
        ([1.0, 1.0], "got torch.float32"),
    ],
)
def test_wrong_prime_steps_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        unconditional()(make_ids(), prime_steps=torch.tensor(steps))


def test_prime_steps_must_be_fewer_than_the_real_time_steps_of_a_padded_clip():
    model, real = unconditional(), torch.ones(make_ids().shape, dtype=torch.bool)
    real[1, 2:] = False
    model(make_ids(), token_mask=real, prime_steps=torch.tensor([5, 1]))
    with pytest.raises(ValueError, match=r"\[6, 2\], got \[5, 2\]"):
        model(make_ids(), token_mask=real, prime_steps=torch.tensor([5, 2]))
