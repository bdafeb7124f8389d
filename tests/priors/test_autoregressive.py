"""Sampling one id after the other: which codes are drawn, and with which probability."""

import math

import pytest
import torch

from conftest import seed, tiny_gpt
from phenaki_pytorch.priors.autoregressive import DEFAULTS, choose, keep_likely, raster_options


def chances(n):
    """Uniform numbers that reach both ends of [0, 1)."""
    chance = torch.rand(n, generator=seed(1))
    chance[0], chance[-1] = 0.0, 1 - 2**-24
    return chance


def drawn(logits, n=2000, **options):
    """Which codes are drawn from logits (k,): a set."""
    ids = choose(logits.expand(n, -1), chances(n), DEFAULTS | options)
    return set(ids.tolist())


@pytest.mark.parametrize("k", [1, 3, 8])
def test_top_k_draws_the_k_most_likely_codes_and_never_another(k):
    for _ in range(20):
        logits = torch.randn(8)
        assert drawn(logits, top_k=k) <= set(logits.topk(k).indices.tolist())
    assert len(drawn(torch.zeros(8), top_k=k)) == k


@pytest.mark.parametrize("p", [0.01, 0.3, 0.7, 0.95])
def test_top_p_draws_the_fewest_codes_that_have_p_together_and_never_another(p):
    for _ in range(20):
        logits = 2 * torch.randn(8)
        probs, order = logits.softmax(dim=-1).sort(descending=True)
        fewest = next(n for n in range(1, 9) if probs[:n].sum() >= p or n == 8)
        kept = keep_likely(logits.softmax(dim=-1)[None], None, p)[0] > 0
        assert set(kept.nonzero()[:, 0].tolist()) == set(order[:fewest].tolist())
        assert drawn(logits, top_p=p) <= set(order[:fewest].tolist())
    assert len(drawn(torch.zeros(8))) == 8


@pytest.mark.parametrize("p, count", [(0.3, 3), (0.5, 5), (0.7, 7)])
def test_of_equally_likely_codes_top_p_draws_no_more_than_it_needs(p, count):
    assert keep_likely(torch.full((1, 10), 0.1), None, p).gt(0).sum() == count


def test_top_p_counts_what_top_k_leaves():
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    assert keep_likely(probs, 2, 0.6).gt(0).tolist() == [[True, True, False, False]]  # 0.4 of 0.7 is below 0.6
    assert keep_likely(probs, 2, 0.5).gt(0).tolist() == [[True, False, False, False]]
    assert keep_likely(probs, 4, 0.5).gt(0).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("options", [{"top_p": 1.0}, {"top_k": 32}, {"top_k": 99}, {"top_k": 32, "top_p": 1.0}])
def test_all_codes_and_a_share_of_1_change_nothing(options):
    model = tiny_gpt(grid=(3, 2, 2))
    plain = model.generate(batch_size=4, generator=seed())
    assert torch.equal(model.generate(batch_size=4, generator=seed(), **options), plain)
    assert not torch.equal(model.generate(batch_size=4, generator=seed(), top_k=2), plain)


@pytest.mark.parametrize(
    "options", [{"top_k": 1}, *({name: least} for name in ("top_p", "temperature") for least in (1e-6, 1e-40, 1e-46))]
)
def test_the_most_likely_code_is_drawn_where_no_other_is_left(options):
    logits = torch.randn(500, 32)
    ids = choose(logits, chances(500), DEFAULTS | options)
    assert torch.equal(ids, logits.argmax(dim=-1))
    assert not torch.equal(choose(logits, chances(500), DEFAULTS), ids)


def test_generation_with_one_code_left_is_greedy():
    model = tiny_gpt(grid=(3, 2, 2)).eval()
    ids = model.generate(batch_size=2, top_k=1)
    with torch.no_grad():
        assert torch.equal(model.logits(ids).argmax(dim=-1), ids)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_codes_are_drawn_with_the_softmax_of_the_logits_over_the_temperature(temperature):
    logits, n = torch.tensor([0.0, 1.0, 2.0]), 50_000
    ids = choose(logits.expand(n, -1), torch.rand(n, generator=seed()), DEFAULTS | {"temperature": temperature})
    torch.testing.assert_close(ids.bincount() / n, (logits / temperature).softmax(dim=-1), atol=0.01, rtol=0)


def test_missing_options_are_the_defaults():
    assert raster_options({}) == DEFAULTS
    assert raster_options({"top_k": 3}) == DEFAULTS | {"top_k": 3}


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"steps": 3}, TypeError, "unknown sampling options steps; expected temperature, top_k, top_p"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and above 0, got 0.0"),
        ({"temperature": math.inf}, ValueError, "above 0, got inf"),
        ({"temperature": math.nan}, ValueError, "above 0, got nan"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, ValueError, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, ValueError, "at most 1, got 1.1"),
        ({"cond_scale": -1.0}, ValueError, "cond_scale must be finite and at least 0, got -1.0"),
        ({"top_k": 2.5}, TypeError, "[Ss]ampling option top_k"),
        ({"temperature": "hot"}, TypeError, "[Ss]ampling option temperature"),
    ],
)
def test_wrong_options_are_refused_before_sampling(options, kind, message):
    model = tiny_gpt()
    model.transformer.forward = None
    with pytest.raises(kind, match=message):
        model.generate(**options)
