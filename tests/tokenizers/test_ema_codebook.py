"""VideoGPT's codebook, "ema": moving averages that start as features of the data, and whose unused codes restart."""

import warnings

import pytest
import torch
from torch import nn

from conftest import same_state, state, tiny_vqvae, with_codes
from phenaki_pytorch.tokenizers.quantize import Quantizer

DIM, CODES = 8, 32


def build(**kwargs):
    return Quantizer("ema", dim=DIM, codebook_size=CODES, kwargs=kwargs)


def codebook_of(module):
    """Copies of codes (k, d), averages of sums (k, d) and of counts (k,)."""
    book = module.quantizer._codebook
    return book.embed[0].clone(), book.embed_avg[0].clone(), book.cluster_size[0].clone()


def is_row_of(rows, table):
    """Which rows have, bit for bit, the values of a row of the table."""
    return torch.isin(rows, table).all(dim=-1)


def test_ema_codes_start_as_features_of_the_first_batch_with_a_count_of_1():
    module, features = build(), torch.randn(4, 50, DIM)
    assert not module.quantizer._codebook.initted
    ids = module(features)[1]
    # The first step of the averages is known, so that the codes before it are.
    codes, sums, counts = codebook_of(module)
    used = ids.flatten().bincount(minlength=CODES)
    kept = used >= 1  # the others restarted at once
    assert kept.float().mean() > 0.5
    torch.testing.assert_close(counts[kept], 0.99 + 0.01 * used[kept])
    start = sums.clone().index_add(0, ids.flatten(), -0.01 * features.flatten(0, 1)) / 0.99
    distances = (start[kept][:, None] - features.flatten(0, 1)).norm(dim=-1).min(dim=1)
    assert distances.values.max() < 1e-5 and distances.indices.unique().numel() == kept.sum()
    torch.testing.assert_close(codes, sums / counts[:, None], atol=1e-5, rtol=1e-5)
    module(features)
    assert not is_row_of(codebook_of(module)[0], features.flatten(0, 1)).all()  # it starts once


def test_ema_codes_are_the_moving_averages_of_the_paper():
    module = build()
    module(torch.randn(4, 50, DIM))
    for shift in (0, 1, 2, 3):  # codes that the features leave behind restart
        before, sums, counts = codebook_of(module)
        features = torch.randn(4, 50, DIM) + shift
        _, ids, loss = module(features)
        torch.testing.assert_close(loss, 0.25 * (features - before[ids]).square().mean())
        one_hot = nn.functional.one_hot(ids.flatten(), CODES).float()
        counts = 0.99 * counts + 0.01 * one_hot.sum(dim=0)
        sums = 0.99 * sums + 0.01 * one_hot.T @ features.flatten(0, 1)
        weights = (counts + 1e-7) / (counts.sum() + CODES * 1e-7) * counts.sum()
        got, live = codebook_of(module), counts >= 1
        for each, expected in zip(got, (sums / weights[:, None], sums, counts)):
            torch.testing.assert_close(each[live], expected[live], atol=1e-5, rtol=1e-5)
        restarted, restarted_sums, restarted_counts = (each[~live] for each in got)
        assert len(restarted) > 0 or shift == 0
        assert is_row_of(restarted, features.flatten(0, 1)).all()
        assert torch.equal(restarted_sums, restarted) and torch.equal(restarted_counts, torch.ones(len(restarted)))


def test_the_counts_of_ema_tend_to_the_tokens_of_a_step():
    module = Quantizer("ema", dim=2, codebook_size=4, kwargs={"threshold_ema_dead_code": 0, "decay": 0.9})
    features = torch.randn(1, 40, 2)
    module(features)
    assert codebook_of(module)[2].sum() < 8
    for _ in range(60):
        module(features)
    torch.testing.assert_close(codebook_of(module)[2].sum(), torch.tensor(40.0), atol=0.2, rtol=0)


def test_killed_ema_codes_live_again_within_100_steps_while_no_live_code_jumps():
    module = Quantizer("ema", dim=DIM, codebook_size=256)
    for _ in range(5):
        module(torch.randn(1, 1024, DIM))
    book = module.quantizer._codebook
    for buffer in (book.embed, book.embed_avg, book.cluster_size):
        buffer[:, ::2] = 0
    book.embed[:, ::2] += 100  # far from all features
    restarts = []
    for _ in range(100):
        before, _, counts = codebook_of(module)
        features = torch.randn(1, 1024, DIM)
        ids = module(features)[1]
        counts = 0.99 * counts + 0.01 * ids.flatten().bincount(minlength=256)
        after = codebook_of(module)[0]
        jumped = is_row_of(after, features[0])
        assert torch.equal(jumped, counts < 1)
        # A live code takes at most a hundredth of its weight from each token of the step.
        assert (after - before)[~jumped].norm(dim=-1).max() < 0.5
        restarts.append(int(jumped.sum()))
    assert restarts[0] >= 128
    assert max(restarts[-10:]) == 0


def test_with_fewer_tokens_than_codes_no_two_codes_start_alike():
    module, features = build(), torch.randn(1, 10, DIM)
    with pytest.warns(UserWarning, match="10 tokens a step are few for 32 codes: below about 4 tokens a code"):
        module(features)
    codes = codebook_of(module)[0]
    assert torch.pdist(codes).min() > 1e-4
    assert torch.cdist(codes, features[0]).min(dim=1).values.max() < 0.05


def test_too_few_tokens_are_warned_of_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()(torch.randn(4, 32, DIM))  # 4 a code
        build(threshold_ema_dead_code=0)(torch.randn(1, 40, DIM))
        module = build()
        with pytest.raises(UserWarning, match="127 tokens a step"):
            module(torch.randn(1, 127, DIM))
        module(torch.randn(1, 127, DIM))
        module.eval()(torch.randn(1, 5, DIM))


def test_a_loaded_ema_codebook_does_not_start_again():
    module = build()
    for _ in range(3):
        module(torch.randn(4, 50, DIM))
    loaded = build()
    loaded.load_state_dict(state(module))
    features = torch.randn(4, 50, DIM)
    for each in (module, loaded):
        torch.manual_seed(1)
        each(features)
    assert same_state(state(module), state(loaded))
    fresh = build()
    torch.manual_seed(1)
    fresh(features)
    assert not same_state(state(module), state(fresh))


def test_evaluation_moves_no_buffer_of_ema():
    module = build()
    module(torch.randn(4, 50, DIM))
    before, features = state(module), 3 + torch.randn(4, 50, DIM)
    module.eval()(features)
    module.ids(features)
    assert same_state(before, state(module))
    module.train()(features)
    assert not same_state(before, state(module))


@pytest.mark.parametrize("steps", [0, 2])
def test_features_that_are_not_finite_leave_ema_as_it_was(steps):
    module = build()
    for _ in range(steps):
        module(torch.randn(4, 50, DIM))
    before, features = state(module), torch.randn(4, 50, DIM)
    module(features.index_fill(1, torch.tensor(3), float("nan")))
    assert same_state(before, state(module))
    module(features)
    assert not same_state(before, state(module))
    assert all(value.isfinite().all() for value in state(module).values())


def test_a_tokenizer_without_codes_decodes_nothing():
    model = tiny_vqvae(trained=False)
    ids = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="initialised by the first batch of training, and there was none yet"):
        model.decode(ids)
    with_codes(model).decode(ids)
