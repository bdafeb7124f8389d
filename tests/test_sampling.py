"""Schedules, the training mask and parallel decoding: exact counts, tokens that stay, distributions that match."""

import math

import pytest
import torch

from conftest import seed
from phenaki_pytorch.sampling import draw_mask, draw_primes, gumbel, mask_share, parallel_decode

CODES = 16


class Recorder:
    """Logits of fixed random numbers, or those given; keeps what it was asked."""

    def __init__(self, b, n, logits=None):
        self.logits = torch.randn(b, n, CODES, generator=seed(1)) if logits is None else logits
        self.ids, self.masked = [], []

    def __call__(self, ids, masked):
        self.ids.append(ids.clone())
        self.masked.append(masked.clone())
        return self.logits


def decode(b=3, n=50, *, masked=None, ids=None, logits=None, **options):
    """Run parallel_decode; what was asked and what came out."""
    asked = Recorder(b, n, logits)
    ids = torch.randint(0, CODES, (b, n), generator=seed(2)) if ids is None else ids
    masked = torch.ones(b, n, dtype=torch.bool) if masked is None else masked
    return asked, ids, parallel_decode(asked, ids, masked, **{"steps": 6, "generator": seed(), **options})


def still_masked(at_first, steps, share):
    """SPEC B: how many are masked at the start of each step."""
    counts = [at_first]
    for step in range(steps - 1):
        n = math.floor(at_first * min(1, max(1e-6, share((step + 1) / steps))))
        counts.append(max(1, min(counts[-1] - 1, n)))
    return counts


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
    with pytest.raises(ValueError, match="got 'sine'"):
        decode(schedule="sine", steps=1)


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


# what training gives


def primed(real_steps, share, times=1):
    """Which time steps of clips with so many real ones, of 6, are given: (times · b, 6), whole or not at all."""
    real = (torch.arange(6) < torch.tensor(real_steps).repeat(times)[:, None]).repeat_interleave(4, dim=1)
    given = draw_primes(real, 6, share=share).unflatten(1, (6, 4))
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
    one, two, three = (draw_primes(real, 5, share=0.5, generator=seed(number)) for number in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert torch.equal(torch.get_rng_state(), before)


# parallel decoding


@pytest.mark.parametrize("steps", [1, 2, 5, 24, 60])
def test_as_many_tokens_are_masked_in_each_step_as_the_formula_says(steps):
    # Another count in every sample; odd, for half of an even one may fall on either side in float32.
    masked = torch.arange(51) < torch.tensor([[51], [37], [3]])
    asked, _, _ = decode(n=51, masked=masked, steps=steps)
    assert len(asked.masked) == steps
    for i, at_first in enumerate((51, 37, 3)):
        counts = [each[i].sum().item() for each in asked.masked]
        assert counts == still_masked(at_first, steps, lambda r: math.cos(math.pi * r / 2))


@pytest.mark.parametrize("schedule, share", [("cubic", lambda r: 1 - r**3), ("linear", lambda r: 1 - r)])
def test_another_schedule_is_heeded(schedule, share):
    asked, _, _ = decode(steps=7, schedule=schedule, n=51)
    counts = [each[0].sum().item() for each in asked.masked]
    assert counts == still_masked(51, 7, share)


def test_tokens_once_accepted_stay():
    asked, _, result = decode(steps=8)
    for step in range(1, 8):
        assert not (asked.masked[step] & ~asked.masked[step - 1]).any()
        accepted = ~asked.masked[step]
        assert accepted.any()
        for later in (*asked.ids[step:], result):
            assert torch.equal(later[accepted], asked.ids[step][accepted])


def test_given_tokens_are_the_same_in_every_step_and_at_the_end():
    given = torch.rand(3, 50) < 0.4
    asked, ids, result = decode(masked=~given, steps=8)
    assert torch.equal(asked.masked[0], ~given)
    for each in (*asked.ids, result):
        assert torch.equal(each[given], ids[given])
    assert not any((each & given).any() for each in asked.masked)
    assert (result != ids)[~given].any()


def test_the_last_fill_is_the_result():
    logits = torch.full((3, 50, CODES), -torch.inf)
    asked, _, result = decode(steps=4, logits=logits.index_fill(2, torch.tensor([5]), 0.0))
    assert asked.masked[-1].any(dim=1).all()
    assert torch.equal(result, torch.full((3, 50), 5))


def test_certain_logits_leave_no_choice():
    target = torch.randint(0, CODES, (3, 50), generator=seed(3))
    logits = torch.zeros(3, 50, CODES).scatter(2, target[..., None], 1000.0)
    for steps, temperature in ((1, 4.0), (5, 0.0), (5, 100.0)):
        assert torch.equal(decode(logits=logits, steps=steps, temperature=temperature)[2], target)


@pytest.mark.parametrize("count", [0, 1])
def test_few_masked_tokens(count):
    masked = (torch.arange(50) < count).repeat(3, 1)
    asked, ids, result = decode(masked=masked, steps=4)
    assert torch.equal(result[:, count:], ids[:, count:])
    assert [each.sum().item() for each in asked.masked] == [3 * count] * 4


def test_temperature_0_keeps_the_most_confident():
    peaks = torch.stack([torch.randperm(50, generator=seed(i)) for i in range(3)]).float()
    logits = torch.zeros(3, 50, CODES)
    logits[..., 4] = 20 + peaks / 10  # so sure that nothing else is drawn
    asked, _, _ = decode(logits=logits, steps=5, temperature=0)
    log_probs = logits.log_softmax(dim=-1)[..., 4]
    for masked in asked.masked[1:]:
        for i in range(3):
            assert log_probs[i][masked[i]].max() <= log_probs[i][~masked[i]].min()


def test_temperature_makes_less_confident_tokens_stay():
    logits = torch.zeros(3, 50, CODES)
    logits[:, :25, 4] = 20.0  # these are the surer ones
    cold, hot = (decode(logits=logits, steps=2, temperature=t)[0].masked[1].float() for t in (0, 1000))
    assert cold[:, 25:].mean() > 0.9
    assert hot[:, 25:].mean() < 0.9 and abs(hot[:, 25:].mean() - hot[:, :25].mean()) < 0.25


def test_token_temperature_divides_the_logits():
    logits = torch.randn(3, 50, CODES, generator=seed(4))
    for steps in (1, 5):
        one = decode(logits=logits, steps=steps, token_temperature=0.5)[2]
        assert torch.equal(one, decode(logits=2 * logits, steps=steps)[2])
        assert not torch.equal(one, decode(logits=logits, steps=steps)[2])


def test_token_temperature_goes_from_the_first_steps_to_the_last():
    divisors = iter((3.0, 2.5, 2.0, 1.5, 1.0))
    logits = torch.randn(3, 50, CODES, generator=seed(4))
    ids, masked = torch.zeros(3, 50, dtype=torch.int64), torch.ones(3, 50, dtype=torch.bool)
    expected = parallel_decode(lambda *_: logits / next(divisors), ids, masked, steps=5, generator=seed())
    assert torch.equal(decode(logits=logits, ids=ids, steps=5, token_temperature=(3.0, 1.0))[2], expected)
    assert not torch.equal(decode(logits=logits, ids=ids, steps=5, token_temperature=(1.0, 3.0))[2], expected)


def test_noise_falls_to_nothing_over_the_steps(monkeypatch):
    import phenaki_pytorch.sampling as sampling

    scales = []

    class Noise:
        def __rmul__(self, scale):
            scales.append(float(scale))
            return 0.0

    monkeypatch.setattr(sampling, "gumbel", lambda *_: Noise())
    decode(steps=4, temperature=4.0)
    torch.testing.assert_close(torch.tensor(scales), torch.tensor([3.0, 2.0, 1.0]))


@pytest.mark.parametrize(
    "probs", [[1.0], [0.3, 0.7], [0.7, 0.2, 0.09, 0.01], [0.25, 0.0, 0.05, 0.3, 0.0, 0.1, 0.2, 0.0, 0.06, 0.03, 0.01]]
)
def test_drawn_frequencies_are_those_of_the_softmax(probs):
    probs = torch.tensor(probs)
    logits = probs.log().expand(1, 20_000, -1) + 3  # the constant means nothing
    for steps in (1, 3):  # whatever the confidence keeps, each token is drawn from its own distribution
        asked = Recorder(1, 20_000, logits)
        masked = torch.ones(1, 20_000, dtype=torch.bool)
        ids = parallel_decode(asked, masked.long(), masked, steps=steps, temperature=1e4, generator=seed())
        drawn = ids[0].bincount(minlength=len(probs)) / 20_000
        torch.testing.assert_close(drawn, probs, atol=0.012, rtol=0)
        assert (drawn[probs == 0] == 0).all()


def test_places_are_drawn_independently():
    logits = torch.zeros(1, 20_000, 2)
    asked, masked = Recorder(1, 20_000, logits), torch.ones(1, 20_000, dtype=torch.bool)
    ids = parallel_decode(asked, masked.long(), masked, steps=1, generator=seed())[0].float() * 2 - 1
    assert abs((ids[1:] * ids[:-1]).mean()) < 0.03


def test_gumbel_noise_is_gumbel():
    noise = gumbel(torch.zeros(200_000), seed())
    assert torch.isfinite(noise).all()
    torch.testing.assert_close(noise.mean(), torch.tensor(0.5772), atol=0.02, rtol=0)
    torch.testing.assert_close(noise.var(), torch.tensor(math.pi**2 / 6), atol=0.05, rtol=0)


def test_the_generator_is_the_only_source_of_chance():
    before = torch.get_rng_state()
    one, again, other = (decode(generator=seed(i))[2] for i in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    decode(generator=None)
    assert not torch.equal(torch.get_rng_state(), before)


def test_progress_wraps_the_steps():
    seen = []
    decode(steps=5, progress=lambda passes: seen.append(len(passes)) or passes)
    assert seen == [5]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"temperature": -0.5}, "at least 0, got -0.5"),
        ({"token_temperature": 0.0}, "above 0, or two of them, got 0.0"),
        ({"token_temperature": (1.0, -1.0)}, r"above 0, or two of them, got \(1.0, -1.0\)"),
        ({"token_temperature": (1.0,)}, r"above 0, or two of them, got \(1.0,\)"),
    ],
)
def test_lawless_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        decode(**options)
