"""GPT: generation with caches has the logits of one pass over each window."""

import pytest
import torch

from conftest import make_context, make_ids, tiny_gpt
from gpt_models import ALL, GRID, every_pair, flat, generated, given_for, gpt_for


@torch.no_grad()
def assert_as_without_caches(model, ids, got, given, cond_scale=1.0, known=0):
    """The logits of each id are those that one pass over its window gives."""
    _, t, h, w = ids.shape
    longest, expected = model.grid[0], []
    for step in range(known, t):
        first = max(0, step + 1 - longest)
        now = dict(given)
        if now.get("condition") is not None and now["condition"].ndim == 3:
            now["condition"] = now["condition"][:, first : step + 1]
        window = ids[:, first : step + 1]
        expected.append(flat(model.logits(window, **now, cond_scale=cond_scale)[:, -1:]))
    expected = torch.cat(expected, dim=1)
    assert expected.shape == got.shape == (len(ids), (t - known) * h * w, model.num_tokens)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got[:, :-1], expected[:, 1:], atol=1e-2)


@every_pair
def test_generation_with_caches_has_the_logits_of_one_pass(text, vector, frame_map, condition):
    combination = (text, vector, frame_map, condition)
    model = gpt_for(*combination)
    for b in (2, 1, 3):  # one after the other on one model
        given = given_for(*combination, b=b)
        assert_as_without_caches(model, *generated(model, GRID, given, batch_size=b), given)


@every_pair
def test_grids_longer_than_trained_go_on_from_the_last_time_steps(text, vector, frame_map, condition):
    combination = (text, vector, frame_map, condition)
    model, given = gpt_for(*combination), given_for(*combination, t=6)
    ids, logits = generated(model, (6, 2, 2), given, batch_size=2)
    assert ids.shape == (2, 6, 2, 2)
    assert_as_without_caches(model, ids, logits, given)


# Each condition with each length, and each of them with both scales.
GUIDED = [
    (condition, (0.0, 3.0)[(i + j) % 2], *lengths)
    for i, condition in enumerate((None, "constant", "steps"))
    for j, lengths in enumerate([(3, 0), (3, 2), (6, 4)])
]


@pytest.mark.parametrize("condition, scale, t, known", GUIDED)
def test_guided_generation_has_the_logits_of_one_guided_pass(condition, scale, t, known):
    combination = (True, True, True, condition)
    model, given = gpt_for(*combination), given_for(*combination, t=t)
    prime = make_ids(grid=(known, 2, 2)) if known else None
    ids, logits = generated(model, (t, 2, 2), given, cond_scale=scale, prime_ids=prime)
    assert_as_without_caches(model, ids, logits, given, scale, known)


@torch.no_grad()
def test_guidance_is_the_null_logits_and_scale_times_the_difference():
    model, given, ids = gpt_for(*ALL), given_for(*ALL), make_ids(grid=GRID)
    null, plain, guided = (model.logits(ids, **given, cond_scale=scale) for scale in (0.0, 1.0, 3.0))
    torch.testing.assert_close(guided, null + 3 * (plain - null), atol=1e-5, rtol=1e-5)
    assert (null - plain).abs().max() > 1e-3
    context = make_context()[0]
    torch.testing.assert_close(model.logits(ids, **{**given, "context": context}, cond_scale=0.0), null)


@pytest.mark.parametrize("t, known", [(3, 1), (3, 2), (6, 1), (6, 3), (6, 5)])
def test_prime_ids_never_change_and_act_on_what_follows(t, known):
    model, given = gpt_for(*ALL), given_for(*ALL, t=t)
    primes = [make_ids(grid=(known, 2, 2)) for _ in range(2)]
    ids, logits = zip(*(generated(model, (t, 2, 2), given, prime_ids=prime) for prime in primes))
    for prime, each, own in zip(primes, ids, logits):
        assert torch.equal(each[:, :known], prime)
        assert_as_without_caches(model, each, own, given, known=known)
    assert not torch.equal(ids[0][:, known:], ids[1][:, known:])


def test_smaller_grids_have_the_positions_of_their_rows_and_columns():
    model = tiny_gpt(grid=(3, 4, 4)).eval()
    ids, logits = generated(model, (2, 3, 2), {}, batch_size=2)
    assert_as_without_caches(model, ids, logits, {})


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize("axes", ["both", "space", "time"])
def test_all_positions_generate_with_the_logits_of_one_pass(positions, axes):
    model = gpt_for(*ALL, positions=positions, axes=axes)
    given = given_for(*ALL, t=5)
    assert_as_without_caches(model, *generated(model, (5, 2, 2), given), given)


def test_keys_and_values_of_known_tokens_are_computed_once():
    model, sizes = tiny_gpt().eval(), []
    model.transformer.blocks[0].attention.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[1]))
    model.generate(prime_ids=make_ids(1, (2, 2, 2)))
    assert sizes == [8] + [1] * 16


def test_keys_and_values_of_a_context_are_computed_once():
    model, calls = gpt_for(*ALL), []
    for branch in model.transformer.blocks[0].cross:
        branch.attention.to_kv.register_forward_hook(lambda module, *_: calls.append(module))
    model.generate((6, 2, 2), **given_for(*ALL, t=6))
    assert len(calls) == 2
