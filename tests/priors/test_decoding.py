"""Parallel decoding: exact numbers of masked tokens, ids that do not change, confidence, and random samples."""

import math

import pytest
import torch

from conftest import seed
from phenaki_pytorch.priors import decoding
from phenaki_pytorch.priors.decoding import by_confidence, by_critic, categorical, gumbel, parallel_decode, sample

CODES = 16


class Recorder:
    """A callable for logits: fixed random ones, or those given. It keeps the ids, masks and steps of its calls."""

    def __init__(self, b, n, logits=None):
        self.all_logits = torch.randn(b, n, CODES, generator=seed(1)) if logits is None else logits
        self.ids, self.masks, self.steps = [], [], []

    def __call__(self, ids, mask, step):
        self.steps.append(step)
        self.ids.append(ids.clone())
        self.masks.append(mask.clone())
        return self.all_logits[mask]


def decode(b=3, n=50, *, mask=None, ids=None, logits=None, temperature=4.0, confidence=None, **options):
    """Run parallel_decode, `by_confidence` by default; returns the recorder, the ids given and the result."""
    calls = Recorder(b, n, logits)
    ids = torch.randint(0, CODES, (b, n), generator=seed(2)) if ids is None else ids
    mask = torch.ones(b, n, dtype=torch.bool) if mask is None else mask
    options = {"steps": 6, "generator": seed(), **options}
    confidence = by_confidence(temperature, options["generator"]) if confidence is None else confidence
    return calls, ids, parallel_decode(calls, ids, mask, confidence=confidence, **options)


def expected_counts(at_first, steps, share):
    """The number of masked tokens at the start of each step, by MaskGIT's formula."""
    counts = [at_first]
    for step in range(steps - 1):
        n = math.floor(at_first * min(1, max(1e-6, share((step + 1) / steps))))
        counts.append(max(1, min(counts[-1] - 1, n)))
    return counts


# which tokens are masked


@pytest.mark.parametrize("steps", [1, 2, 5, 24, 60])
def test_the_number_of_masked_tokens_follows_the_formula_in_every_step(steps):
    # Odd numbers, because half of an even one may be rounded to either side in float32.
    mask = torch.arange(51) < torch.tensor([[51], [37], [3]])
    calls, _, _ = decode(n=51, mask=mask, steps=steps)
    assert calls.steps == list(range(steps))
    for i, at_first in enumerate((51, 37, 3)):
        counts = [each[i].sum().item() for each in calls.masks]
        assert counts == expected_counts(at_first, steps, lambda r: math.cos(math.pi * r / 2))


@pytest.mark.parametrize("schedule, share", [("cubic", lambda r: 1 - r**3), ("linear", lambda r: 1 - r)])
def test_the_number_of_masked_tokens_follows_the_given_schedule(schedule, share):
    calls, _, _ = decode(steps=7, schedule=schedule, n=51)
    counts = [each[0].sum().item() for each in calls.masks]
    assert counts == expected_counts(51, 7, share)


def test_known_tokens_are_never_masked_again_by_confidence():
    calls, _, result = decode(steps=8)
    for step in range(1, 8):
        assert not (calls.masks[step] & ~calls.masks[step - 1]).any()
        known = ~calls.masks[step]
        assert known.any()
        for later in (*calls.ids[step:], result):
            assert torch.equal(later[known], calls.ids[step][known])


def test_given_ids_never_change():
    given = torch.rand(3, 50) < 0.4
    calls, ids, result = decode(mask=~given, steps=8)
    assert torch.equal(calls.masks[0], ~given)
    for each in (*calls.ids, result):
        assert torch.equal(each[given], ids[given])
    assert not any((each & given).any() for each in calls.masks)
    assert (result != ids)[~given].any()


def test_the_result_is_what_the_last_step_fills_in():
    logits = torch.full((3, 50, CODES), -torch.inf)
    calls, _, result = decode(steps=4, logits=logits.index_fill(2, torch.tensor([5]), 0.0))
    assert calls.masks[-1].any(dim=1).all()
    assert torch.equal(result, torch.full((3, 50), 5))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_masked_tokens_than_steps(count):
    mask = (torch.arange(50) < count).repeat(3, 1)
    calls, ids, result = decode(mask=mask, steps=4)
    assert torch.equal(result[:, count:], ids[:, count:])
    assert [each.sum().item() for each in calls.masks] == [3 * count] * 4


# confidence


def test_temperature_0_keeps_the_most_confident():
    peaks = torch.stack([torch.randperm(50, generator=seed(i)) for i in range(3)]).float()
    logits = torch.zeros(3, 50, CODES)
    logits[..., 4] = 20 + peaks / 10  # so high that only id 4 is sampled
    calls, _, _ = decode(logits=logits, steps=5, temperature=0.0)
    log_probs = logits.log_softmax(dim=-1)[..., 4]
    for mask in calls.masks[1:]:
        for i in range(3):
            assert log_probs[i][mask[i]].max() <= log_probs[i][~mask[i]].min()


def test_a_high_temperature_keeps_less_confident_tokens_too():
    logits = torch.zeros(3, 50, CODES)
    logits[:, :25, 4] = 20.0  # the confident half
    cold, hot = (decode(logits=logits, steps=2, temperature=t)[0].masks[1].float() for t in (0.0, 1000.0))
    assert cold[:, 25:].mean() > 0.9
    assert hot[:, 25:].mean() < 0.9 and abs(hot[:, 25:].mean() - hot[:, :25].mean()) < 0.25


def test_the_noise_on_the_confidence_is_annealed_to_0(monkeypatch):
    scales = []

    class Noise:
        def __rmul__(self, scale):
            scales.append(float(scale))
            return 0.0

    monkeypatch.setattr(decoding, "gumbel", lambda *_: Noise())
    decode(steps=4, temperature=4.0)
    torch.testing.assert_close(torch.tensor(scales), torch.tensor([3.0, 2.0, 1.0]))


def test_a_critic_masks_known_tokens_again():
    critic_logits = torch.rand(3, 50, generator=seed(5))
    given = torch.arange(50) < 10
    calls, _, _ = decode(mask=~given.expand(3, 50), steps=8, confidence=by_critic(lambda ids: critic_logits, 0.0))
    counts = expected_counts(40, 8, lambda r: math.cos(math.pi * r / 2))
    for mask, count in zip(calls.masks[1:], counts[1:], strict=True):
        order = critic_logits.masked_fill(given, -1).argsort(dim=1, descending=True)[:, :count]
        assert torch.equal(mask, torch.zeros_like(mask).scatter(1, order, True))
    changing = iter(torch.rand(7, 3, 50, generator=seed(6)))
    calls, _, _ = decode(steps=8, confidence=by_critic(lambda ids: next(changing), 0.0))
    assert all((later & ~now).any() for now, later in zip(calls.masks[1:], calls.masks[2:]))


def test_a_critic_that_gives_the_models_own_probabilities_has_the_same_confidence():
    probs, ids = torch.rand(10, 1000, generator=seed(1)), torch.zeros(10, 1000, dtype=torch.int64)
    for progress in (0.0, 0.5, 1.0):
        one = by_confidence(3.0, seed())(ids, probs.log(), progress)
        other = by_critic(lambda ids: -probs.logit(), 3.0, seed())(ids, probs.log(), progress)
        torch.testing.assert_close(one, other)


# samples


@pytest.mark.parametrize(
    "probs", [[1.0], [0.3, 0.7], [0.7, 0.2, 0.09, 0.01], [0.25, 0.0, 0.05, 0.3, 0.0, 0.1, 0.2, 0.0, 0.06, 0.03, 0.01]]
)
def test_sampled_frequencies_are_those_of_the_softmax(probs):
    probs = torch.tensor(probs)
    logits = probs.log().expand(1, 20_000, -1) + 3  # the softmax does not depend on the constant
    for steps in (1, 3):
        ids = decode(1, 20_000, logits=logits, steps=steps, temperature=1e4)[2]
        frequencies = ids[0].bincount(minlength=len(probs)) / 20_000
        torch.testing.assert_close(frequencies, probs, atol=0.012, rtol=0)
        assert (frequencies[probs == 0] == 0).all()


def test_tokens_are_sampled_independently():
    ids = decode(1, 20_000, logits=torch.zeros(1, 20_000, 2), steps=1)[2][0].float() * 2 - 1
    assert abs((ids[1:] * ids[:-1]).mean()) < 0.03


def test_a_token_is_sampled_from_its_own_random_number_however_many_are_masked():
    mask = torch.rand(3, 50) < 0.5
    calls, _, every = decode(steps=1)
    assert torch.equal(decode(mask=mask, steps=1)[2][mask], every[mask])
    chance = torch.rand(150, generator=seed())
    assert torch.equal(every.flatten(), sample(calls.all_logits.flatten(0, 1), chance)[0])


def test_logits_of_one_certain_id_give_that_id():
    target = torch.randint(0, CODES, (3, 50), generator=seed(3))
    logits = torch.zeros(3, 50, CODES).scatter(2, target[..., None], 1000.0)
    for steps, temperature in ((1, 4.0), (5, 0.0), (5, 100.0)):
        assert torch.equal(decode(logits=logits, steps=steps, temperature=temperature)[2], target)


def test_token_temperature_divides_the_logits():
    logits = torch.randn(3, 50, CODES, generator=seed(4))
    for steps in (1, 5):
        one = decode(logits=logits, steps=steps, token_temperature=0.5)[2]
        assert torch.equal(one, decode(logits=2 * logits, steps=steps)[2])
        assert not torch.equal(one, decode(logits=logits, steps=steps)[2])


def test_token_temperature_changes_linearly_from_the_first_step_to_the_last():
    divisors = iter((3.0, 2.5, 2.0, 1.5, 1.0))
    logits = torch.randn(3, 50, CODES, generator=seed(4))
    ids, mask = torch.zeros(3, 50, dtype=torch.int64), torch.ones(3, 50, dtype=torch.bool)
    calls, generator = Recorder(3, 50, logits), seed()
    expected = parallel_decode(
        lambda *given: calls(*given) / next(divisors),
        *(ids, mask),
        confidence=by_confidence(4.0, generator),
        steps=5,
        generator=generator,
    )
    assert torch.equal(decode(logits=logits, ids=ids, steps=5, token_temperature=(3.0, 1.0))[2], expected)
    assert not torch.equal(decode(logits=logits, ids=ids, steps=5, token_temperature=(1.0, 3.0))[2], expected)


def test_a_sample_comes_with_its_log_probability():
    logits, chance = torch.randn(40, CODES), torch.rand(40)
    ids, log_probs = sample(logits, chance, 0.7)
    expected = (logits / 0.7).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(log_probs, expected)


@pytest.mark.parametrize("k", [1, 2, 11, 1024])
def test_the_id_is_found_by_inversion_of_the_cumulative_sum(k):
    probs = torch.rand(200, k, generator=seed(k)).double() * (torch.rand(200, k, generator=seed(k + 1)) < 0.5)
    probs[:, -1] += 1e-3  # at least one id is possible
    chance = torch.rand(200, generator=seed()).double()
    ends = probs.cumsum(dim=1)
    expected = (ends <= chance[:, None] * ends[:, -1:]).sum(dim=1)
    assert torch.equal(categorical(probs, chance), expected)


def test_impossible_ids_are_not_sampled_at_either_end():
    probs = torch.tensor([[0.0, 0.3, 0.7, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    assert categorical(probs, torch.zeros(3)).tolist() == [1, 3, 0]
    assert categorical(probs, torch.full((3,), 1 - 2**-24)).tolist() == [2, 3, 0]


def test_nan_probabilities_give_an_id_in_range():
    assert categorical(torch.full((2, 5), torch.nan), torch.zeros(2)).tolist() == [4, 4]


def test_gumbel_noise_has_the_mean_and_variance_of_gumbel_0_1():
    noise = gumbel(torch.zeros(200_000), seed())
    assert torch.isfinite(noise).all()
    torch.testing.assert_close(noise.mean(), torch.tensor(0.5772), atol=0.02, rtol=0)
    torch.testing.assert_close(noise.var(), torch.tensor(math.pi**2 / 6), atol=0.05, rtol=0)


# options


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="got 'sine'"):
        decode(schedule="sine", steps=1)


def test_all_randomness_comes_from_the_generator():
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
    "wrap",
    [lambda steps: [], lambda steps: list(steps)[:1], lambda steps: list(steps)[::-1], lambda steps: [*steps, 5]],
)
def test_a_progress_that_yields_other_steps_is_refused(wrap):
    with pytest.raises(ValueError, match="progress must yield the 5 steps that it is given"):
        decode(steps=5, progress=wrap)
