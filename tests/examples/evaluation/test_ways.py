"""Ways of parallel decoding: their orders, their guidance, and how many forward passes they take."""

from itertools import pairwise

import pytest
import torch

from conftest import make_context, make_ids, seed, tiny_phenaki, tiny_token_critic
from evaluation.ways import at_random, by_halton, first_and_last, halton, scales_of, way_of
from phenaki_pytorch import SelfCritic
from phenaki_pytorch.priors.decoding import parallel_decode


def test_halton_sequences_of_bases_2_and_3():
    torch.testing.assert_close(halton(6, 2), torch.tensor([0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]))
    torch.testing.assert_close(halton(5, 3), torch.tensor([0, 1 / 3, 2 / 3, 1 / 9, 4 / 9]))


def known_after_each_step(confidence, *, steps=5, grid=(2, 4, 4)):
    """Which of 3 samples' tokens are known at the beginning of each step, (b, n) each."""
    n, known = grid[0] * grid[1] * grid[2], []

    def logits(ids, mask, step):
        known.append(~mask)
        return torch.zeros(int(mask.sum()), 7)

    ids = torch.zeros(3, n, dtype=torch.int64)
    parallel_decode(logits, ids, ids == 0, confidence=confidence, steps=steps, generator=seed())
    return known


@pytest.mark.parametrize("order", ["random", "halton"])
def test_known_tokens_are_never_masked_again(order):
    confidence = at_random(seed(1)) if order == "random" else by_halton((2, 4, 4), torch.device("cpu"))
    known = known_after_each_step(confidence)
    assert all(not (now & ~later).any() for now, later in pairwise(known)) and known[-1].any()
    same_in_all_samples = all(torch.equal(each, each[:1].expand_as(each)) for each in known)
    assert same_in_all_samples == (order == "halton")


def test_halton_order_spreads_evenly_over_each_time_step():
    for known in known_after_each_step(by_halton((2, 8, 8), torch.device("cpu")), grid=(2, 8, 8))[1:]:
        first, second = known[0].view(2, 8, 8)
        assert abs(int(first.sum()) - int(second.sum())) <= 1
        quarters = first.view(2, 4, 2, 4).sum(dim=(1, 3))
        assert quarters.max() - quarters.min() <= 3


@pytest.mark.parametrize("text", ["2", "1", "1:3", "4:1"])
@pytest.mark.parametrize("way", ["confidence", "critic,critic_inline=1"])
@torch.no_grad()
def test_each_step_is_guided_by_its_own_scale(way, text):
    phenaki, context = tiny_phenaki(critic=SelfCritic).eval(), make_context()
    ids, mask = make_ids(), torch.rand(2, 6, 2, 2) < 0.5
    scales = scales_of(first_and_last(text), 3)
    logits, _ = way_of(way, {}).sampler(phenaki, context, scales, seed())
    for step, scale in enumerate(scales):
        expected = phenaki.maskgit.logits(ids, mask, *context, cond_scale=scale)[mask]
        torch.testing.assert_close(logits(ids.flatten(1), mask.flatten(1), step), expected)


@torch.no_grad()
def test_between_the_steps_that_compute_null_the_last_difference_is_scaled():
    phenaki, context = tiny_phenaki().eval(), make_context()
    ids, mask = make_ids(), torch.rand(2, 6, 2, 2) < 0.5
    scales = scales_of((1.0, 3.0), 5)
    logits, _ = way_of("confidence,guide_every=3", {}).sampler(phenaki, context, scales, seed())
    guided = [logits(ids.flatten(1), mask.flatten(1), step) for step in range(5)]
    for step, scale in enumerate(scales):  # the ids are the same in all steps, and so is the difference
        expected = phenaki.maskgit.logits(ids, mask, *context, cond_scale=scale)[mask]
        torch.testing.assert_close(guided[step], expected)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("confidence", [True, True, True]),
        ("critic", [False, True, True]),
        ("critic,critic_inline=1", [False, False, True]),
        ("halton", [True, True, True]),
    ],
)
def test_a_way_with_a_critic_needs_a_model_with_it(text, expected):
    models = [tiny_phenaki(critic=critic) for critic in (None, lambda _: tiny_token_critic(), SelfCritic)]
    assert [way_of(text, {}).is_for(model) for model in models] == expected


@pytest.mark.parametrize("passes", [1, 2, 8, 24])
@pytest.mark.parametrize(
    "text", ["critic", "critic,critic_scale=2", "critic,critic_inline=1,guide_every=3", "confidence,guide_every=2"]
)
def test_a_way_gets_the_most_steps_that_fit_into_the_passes(passes, text):
    way = way_of(text, {})
    for guidance in ((1.0, 1.0), (2.0, 2.0), (1.0, 3.0)):
        if passes >= way.passes(1, guidance):
            steps = way.steps_within(passes, guidance)
            assert way.passes(steps, guidance) <= passes < way.passes(steps + 1, guidance)


def test_a_way_changes_only_the_options_that_it_names():
    plan = {"temperature": 3.0, "token_temperature": (1.2, 0.1), "critic_scale": 2.0, "sampling_steps": 12}
    same = way_of("confidence", plan)
    assert (same.temperature, same.token_temperature, same.critic_scale) == (3.0, (1.2, 0.1), 2.0)
    changed = way_of("critic,temperature=8,token_temperature=1:0.4,guide_every=3", plan)
    assert (changed.order, changed.temperature, changed.token_temperature) == ("critic", 8.0, (1.0, 0.4))
    assert (changed.critic_scale, changed.guide_every, changed.critic_inline) == (2.0, 3, False)


@pytest.mark.parametrize(
    "text, message",
    [
        ("doubt", "one of confidence"),
        ("critic,heat=8", "sets temperature.*heat=8"),
        ("critic,temperature=-1", "temperature must be finite and at least 0"),
        ("critic,guide_every=2.5", "2.5"),
        ("critic,critic_inline=2", "2"),
        ("halton,temperature=2", "temperature would have no effect on the order halton"),
        ("random,critic_scale=2", "critic_scale would have no effect on the order random"),
        ("confidence,critic_inline=1", "critic_inline would have no effect on the order confidence"),
    ],
)
def test_wrong_ways_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        way_of(text, {})
