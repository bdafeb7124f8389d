"""What training gives, as a continuation is given its past: how much is drawn or said, and none of it learnt from."""

import pytest
import torch

from conftest import make_ids, seed, tiny_maskgit
from phenaki_pytorch import maskgit as module
from phenaki_pytorch.sampling import draw_prime_steps, first_steps

GRID = (6, 2, 2)


def no_drop(**changes):
    return tiny_maskgit(cond_drop_prob=0.0, dim_context=None, **changes)


# which are drawn


def primed(real_steps, share, times=1):
    """Which time steps of clips with so many real ones, of 6, are given: (times · b, 6), whole or not at all."""
    real = (torch.arange(6) < torch.tensor(real_steps).repeat(times)[:, None]).repeat_interleave(4, dim=1)
    given = first_steps(draw_prime_steps(real, 6, share=share), 6, 24).unflatten(1, (6, 4))
    assert torch.equal(given.any(dim=2), given.all(dim=2))
    return given.all(dim=2)


def test_all_numbers_of_first_time_steps_are_given_equally_often_but_never_all():
    given = primed([6], share=1.0, times=4000)
    assert torch.equal(given, given.cummin(dim=1).values)  # they come first
    counts = torch.bincount(given.sum(dim=1), minlength=7) / 4000
    torch.testing.assert_close(counts, torch.tensor([0, 0.2, 0.2, 0.2, 0.2, 0.2, 0]), atol=0.04, rtol=0)


def test_padding_is_no_part_of_a_clip_that_is_gone_on_with_and_images_are_not():
    given = primed([3, 1], share=1.0, times=200).sum(dim=1).unflatten(0, (200, 2))
    assert given[:, 0].unique().tolist() == [1, 2] and not given[:, 1].any()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_share_of_clips_that_are_gone_on_with(share):
    assert primed([6], share, times=4000)[:, 0].float().mean().item() == pytest.approx(share, abs=0.03)


def test_primes_follow_their_generator_alone():
    real, before = torch.ones(40, 30, dtype=torch.bool), torch.get_rng_state()
    one, two, three = (draw_prime_steps(real, 5, share=0.5, generator=seed(number)) for number in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert torch.equal(torch.get_rng_state(), before)


# in MaskGit's loss


def test_in_training_so_many_clips_are_continuations_with_their_first_time_steps_given(monkeypatch):
    asked, drawn = [], module.draw_mask
    monkeypatch.setattr(module, "draw_mask", lambda real, **o: asked.append(real) or drawn(real, **o))
    model = no_drop(prime_prob=0.3)
    for _ in range(500):
        model(make_ids())
    steps = torch.cat(asked).unflatten(1, (GRID[0], -1)).any(dim=2)
    assert (~steps[:, 0]).float().mean().item() == pytest.approx(0.3, abs=0.05) and steps[:, -1].all()
    asked.clear()
    model.eval()(make_ids())
    no_drop()(make_ids())
    assert torch.cat(asked).all()


def test_where_it_is_said_how_many_time_steps_are_given_so_many_are(monkeypatch):
    asked, drawn = [], module.draw_mask
    monkeypatch.setattr(module, "draw_mask", lambda real, **o: asked.append(real) or drawn(real, **o))
    model = no_drop(prime_prob=0.5)
    for training in (True, False):
        losses = model.train(training).losses(make_ids(), prime_steps=torch.tensor([4, 0]))
        assert not losses.masked[0, :4].any() and losses.masked[0, 4:].any()
    real = torch.stack(asked).unflatten(2, (GRID[0], -1))
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
def test_time_steps_that_cannot_be_given_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        no_drop()(make_ids(), prime_steps=torch.tensor(steps))


def test_of_a_padded_clip_fewer_time_steps_can_be_given():
    model, real = no_drop(), torch.ones(make_ids().shape, dtype=torch.bool)
    real[1, 2:] = False
    model(make_ids(), token_mask=real, prime_steps=torch.tensor([5, 1]))
    with pytest.raises(ValueError, match=r"\[6, 2\], got \[5, 2\]"):
        model(make_ids(), token_mask=real, prime_steps=torch.tensor([5, 2]))
