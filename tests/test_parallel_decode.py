"""Parallel decoding: exact counts, tokens that stay, whom to trust, and which places are computed."""

import math

import pytest
import torch

from conftest import seed
from phenaki_pytorch import sampling
from phenaki_pytorch.sampling import by_confidence, by_critic, parallel_decode

CODES = 16


class Recorder:
    """Logits of fixed random numbers, or those given; keeps what it was asked."""

    def __init__(self, b, n, logits=None):
        self.logits = torch.randn(b, n, CODES, generator=seed(1)) if logits is None else logits
        self.ids, self.masked, self.steps = [], [], []

    def __call__(self, ids, masked, places, step):
        self.steps.append(step)
        self.ids.append(ids.clone())
        self.masked.append(masked.clone())
        if places is None:
            return self.logits
        return self.logits.gather(1, places[..., None].expand(*places.shape, self.logits.shape[-1]))


def decode(b=3, n=50, *, masked=None, ids=None, logits=None, temperature=4.0, trust=None, **options):
    """Run parallel_decode, by confidence if nothing else is said; what was asked and what came out."""
    asked = Recorder(b, n, logits)
    ids = torch.randint(0, CODES, (b, n), generator=seed(2)) if ids is None else ids
    masked = torch.ones(b, n, dtype=torch.bool) if masked is None else masked
    options = {"steps": 6, "generator": seed(), **options}
    trust = by_confidence(temperature, options["generator"]) if trust is None else trust
    return asked, ids, parallel_decode(asked, ids, masked, trust=trust, **options)


def still_masked(at_first, steps, share):
    """SPEC B: how many are masked at the start of each step."""
    counts = [at_first]
    for step in range(steps - 1):
        n = math.floor(at_first * min(1, max(1e-6, share((step + 1) / steps))))
        counts.append(max(1, min(counts[-1] - 1, n)))
    return counts


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
    asked, generator = Recorder(3, 50, logits), seed()
    expected = parallel_decode(
        lambda *given: asked(*given) / next(divisors),
        *(ids, masked),
        trust=by_confidence(4.0, generator),
        steps=5,
        generator=generator,
    )
    assert torch.equal(decode(logits=logits, ids=ids, steps=5, token_temperature=(3.0, 1.0))[2], expected)
    assert not torch.equal(decode(logits=logits, ids=ids, steps=5, token_temperature=(1.0, 3.0))[2], expected)


def test_noise_falls_to_nothing_over_the_steps(monkeypatch):
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
        ids = decode(1, 20_000, logits=logits, steps=steps, temperature=1e4)[2]
        drawn = ids[0].bincount(minlength=len(probs)) / 20_000
        torch.testing.assert_close(drawn, probs, atol=0.012, rtol=0)
        assert (drawn[probs == 0] == 0).all()


def test_places_are_drawn_independently():
    ids = decode(1, 20_000, logits=torch.zeros(1, 20_000, 2), steps=1)[2][0].float() * 2 - 1
    assert abs((ids[1:] * ids[:-1]).mean()) < 0.03


# which places are computed, and whom to trust


def test_only_what_is_masked_is_asked_for_and_no_less_is_drawn_by_it(monkeypatch):
    given = torch.arange(50) < torch.tensor([[4], [4], [20]])
    places = []
    inside = Recorder.__call__
    monkeypatch.setattr(Recorder, "__call__", lambda self, *asked: places.append(asked[2]) or inside(self, *asked))
    asked, _, few = decode(masked=~given, steps=6)
    assert places[0] is None  # almost all
    for masked, wanted in zip(asked.masked[1:], places[1:], strict=True):
        assert wanted.shape[1] == masked.sum(dim=1).max()
        for row, of_row in zip(masked, wanted):
            assert set(row.nonzero()[:, 0].tolist()) <= set(of_row.tolist())
    places.clear()
    monkeypatch.setattr(sampling, "masked_places", lambda masked: None)
    assert torch.equal(decode(masked=~given, steps=6)[2], few)
    assert places == [None] * 6


def test_a_critic_takes_earlier_choices_back():
    doubted = torch.rand(3, 50, generator=seed(5))
    given = torch.arange(50) < 10
    asked, _, _ = decode(masked=~given.expand(3, 50), steps=8, trust=by_critic(lambda ids: doubted, 0.0))
    counts = still_masked(40, 8, lambda r: math.cos(math.pi * r / 2))
    for masked, count in zip(asked.masked[1:], counts[1:]):
        order = doubted.masked_fill(given, -1).argsort(dim=1, descending=True)[:, :count]
        assert torch.equal(masked, torch.zeros_like(masked).scatter(1, order, True))
    changing = iter(torch.rand(7, 3, 50, generator=seed(6)))
    asked, _, _ = decode(steps=8, trust=by_critic(lambda ids: next(changing), 0.0))
    assert all((later & ~now).any() for now, later in zip(asked.masked[1:], asked.masked[2:]))


def test_a_critic_inside_the_pass_doubts_what_stood_and_leaves_what_was_drawn_to_its_probability():
    doubted, seen = torch.randn(3, 50, generator=seed(5)), []
    inside = by_critic(lambda ids: doubted, 0.0, inline=True)

    def trust(ids, log_probs, progress):
        seen.append((log_probs, inside(ids, log_probs, progress)))
        return seen[-1][1]

    asked, _, _ = decode(steps=8, trust=trust)
    assert asked.steps == list(range(8))
    for masked, (log_probs, trusted) in zip(asked.masked, seen):
        assert torch.equal(trusted[masked], log_probs[masked])
        torch.testing.assert_close(trusted[~masked], (-doubted[~masked]).sigmoid().log())
    assert any((later & ~now).any() for now, later in zip(asked.masked, asked.masked[1:]))


def test_a_critic_that_knows_as_much_as_the_confidence_keeps_the_same():
    """Its logits are those of being wrong with the probability that the confidence leaves: one measure, one noise."""
    sure = torch.rand(10, 1000, generator=seed(1))
    for progress in (0.0, 0.5, 1.0):
        one = by_confidence(3.0, seed())(torch.zeros(10, 1000).long(), sure.log(), progress)
        other = by_critic(lambda ids: -sure.logit(), 3.0, seed())(torch.zeros(10, 1000).long(), sure.log(), progress)
        torch.testing.assert_close(one, other)


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="got 'sine'"):
        decode(schedule="sine", steps=1)


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
