"""GPT: its loss, dropout, conditions and codes, under every pair of conditions."""

import itertools
import math

import pytest
import torch

from conftest import make_context, make_ids, same_state, seed, state, tiny_gpt, tiny_vqvae, train
from gpt_models import ALL, COMBINATIONS, GRID, every_pair, given_for, gpt_for, part_of
from phenaki_pytorch import GPT


def test_each_pair_of_conditions_occurs():
    for one, other in itertools.combinations(range(4), 2):
        pairs = {(row[one], row[other]) for row in COMBINATIONS}
        assert pairs == set(itertools.product(*({row[column] for row in COMBINATIONS} for column in (one, other))))
    assert [len({row[column] for row in COMBINATIONS}) for column in range(4)] == [2, 2, 2, 3]


@every_pair
def test_the_untrained_loss_is_ln_k(text, vector, frame_map, condition):
    combination = (text, vector, frame_map, condition)
    model, given = gpt_for(*combination, started=False).train(), given_for(*combination)
    losses = model.losses(make_ids(grid=GRID), **given)
    torch.testing.assert_close(losses.total, torch.tensor(math.log(32)), atol=1e-6, rtol=0)
    torch.testing.assert_close(losses.nats, torch.full((2, *GRID), math.log(32)), atol=1e-6, rtol=0)
    assert gpt_for(*combination)(make_ids(grid=GRID), **given) != losses.total


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_the_logits():
    model, given, ids = gpt_for(*ALL), given_for(*ALL), make_ids(grid=GRID)
    nats = -model.logits(ids, **given).log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0]
    losses = model.losses(ids, **given)
    torch.testing.assert_close(losses.nats, nats)
    torch.testing.assert_close(losses.total, nats.mean())
    assert torch.equal(model(ids, **given), losses.total)


def test_padding_changes_nothing_and_is_not_counted():
    model, given, ids = gpt_for(*ALL), given_for(*ALL), make_ids(grid=GRID)
    real = torch.ones(2, *GRID, dtype=torch.bool)
    real[1, 1:] = False
    losses = model.losses(ids, **given, token_mask=real)
    other = torch.where(real, ids, (ids + 7) % 32)
    assert torch.equal(model(other, **given, token_mask=real), losses.total)
    assert model(other, **given) != model(ids, **given)
    assert not losses.nats[~real].any() and losses.nats[real].min() > 0
    alone = [model.losses(ids[:1], **part_of(given, slice(1)))]
    short = part_of(given, slice(1, 2))
    alone.append(model.losses(ids[1:, :1], **{**short, "condition": short["condition"][:, :1]}))
    torch.testing.assert_close(losses.total, (12 * alone[0].total + 4 * alone[1].total) / 16)
    losses.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@every_pair
def test_every_parameter_learns(text, vector, frame_map, condition):
    combination = (text, vector, frame_map, condition)
    model, given = gpt_for(*combination).train(), given_for(*combination)
    model(make_ids(grid=GRID), **given).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name != "null_context":  # no text may have been dropped
            assert parameter.grad.abs().max() > 0, name


def test_it_learns_ids_that_follow_from_those_before():
    model, start = tiny_gpt(grid=GRID, started=False), torch.randint(0, 32, (8, 1))

    def loss():
        return model(((start + torch.arange(12)) % 32).reshape(8, *GRID))

    assert train(model, loss, 60, lr=1e-2)[-1] < 0.4 * math.log(32)
    prime = torch.arange(4).reshape(1, 1, 2, 2) + start[0]
    expected = (start[0] + torch.arange(12)) % 32
    assert torch.equal(model.generate(prime_ids=prime % 32, top_k=1).flatten(), expected)


@pytest.mark.parametrize("dropout", ["attn_dropout", "ff_dropout"])
def test_dropout_acts_in_training_only(dropout):
    model, given, ids = gpt_for(*ALL, **{dropout: 0.5, "cond_drop_prob": 0.0}), given_for(*ALL), make_ids(grid=GRID)
    assert torch.equal(model(ids, **given), model(ids, **given))
    model.train()
    assert not torch.equal(model(ids, **given), model(ids, **given))
    ids = [model.generate(**given, generator=seed()) for _ in range(2)]
    assert torch.equal(*ids)


def test_texts_are_dropped_in_training_with_their_probability():
    model, ids = gpt_for(True, False, False, None), make_ids(200, grid=GRID)
    context, context_mask = make_context(200)
    null = model.null_context_like(model.read_context(context, context_mask)).embeddings[0, 0]
    for share, low, high in ((0.0, 0, 0), (0.3, 30, 90), (1.0, 200, 200)):
        model.cond_drop_prob = share
        seen = []
        layer = model.transformer.blocks[0].cross[0].attention.to_kv
        hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # noqa: B023
        model.train()(ids, context, context_mask)
        model.eval()(ids, context, context_mask)
        hook.remove()
        dropped = [(each[:, 0] == null).all(dim=-1).sum().item() for each in seen]
        assert low <= dropped[0] <= high and dropped[1] == 0


# conditions, positions, codes


def test_a_condition_that_is_not_needed_is_refused_and_one_that_is_needed_is_asked_for():
    model, given = gpt_for(*ALL), given_for(*ALL)
    without, ids = gpt_for(False, False, False, None), make_ids(grid=GRID)
    for name in ("frame_vector", "frame_map", "condition"):
        with pytest.raises(ValueError, match=f"expected a {name}, got none"):
            model(ids, **{key: value for key, value in given.items() if key != name})
        with pytest.raises(ValueError, match=f"expected no {name}, got one"):
            without(ids, **{name: given[name]})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_conditions_of_any_dtype_are_cast_to_the_models(dtype):
    model, given, ids = gpt_for(*ALL), given_for(*ALL), make_ids(grid=GRID)
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
    assert model(ids, **cast).dtype == torch.float32
    torch.testing.assert_close(model(ids, **cast), model(ids, **given), atol=0.05, rtol=0)
    assert model.generate(**cast).shape == (2, *GRID)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize("code_dim", [None, 8])
def test_it_works_in_bfloat16_and_float64(positions, code_dim):
    model, given, ids = gpt_for(*ALL, positions=positions, code_dim=code_dim), given_for(*ALL), make_ids(grid=GRID)
    if code_dim is not None:
        model.use_codes(tiny_vqvae())
    exact = model(ids, **given)
    for dtype, near in ((torch.float64, 1e-4), (torch.bfloat16, 0.1)):
        loss = model.to(dtype)(ids, **given)
        assert abs(loss.item() - exact.item()) < near
        assert model.generate(**given).shape == (2, *GRID)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@torch.no_grad()
def test_the_ablations_see_their_axes_only(positions):
    def inputs(axes):
        """What the blocks add to equal ids, at each position of a grid."""
        model = tiny_gpt(grid=(3, 2, 4), positions=positions, axes=axes)
        return model.positions((3, 2, 4), torch.device("cpu")).unflatten(0, (3, 2, 4))

    space, time, both = (inputs(axes) for axes in ("space", "time", "both"))
    assert torch.equal(space, space[:1].expand_as(space))
    assert torch.equal(time, time[:, :1, :1].expand_as(time))
    assert len(space[0].flatten(0, 1).unique(dim=0)) == 8 and len(time[:, 0, 0].unique(dim=0)) == 3
    assert len(both.flatten(0, 2).unique(dim=0)) == 24


def test_codes_are_read_in_place_of_an_embedding_and_are_not_trained():
    tokenizer, ids = tiny_vqvae(), make_ids(grid=GRID)
    model = tiny_gpt(grid=GRID, code_dim=8)
    with pytest.raises(ValueError, match="no codes to read yet"):
        model(ids)
    model.use_codes(tokenizer)
    expected = tokenizer.code_features(ids)
    assert torch.equal(model.embed[0](ids), expected)
    torch.testing.assert_close(model.embed(ids), expected @ model.embed[1].weight.T)
    assert not any(parameter.shape == (32, 8) for parameter in model.parameters())
    before = state(model.embed[0])
    weight = model.embed[1].weight.detach().clone()
    train(model, lambda: model(ids), 2, weight_decay=0.5)
    assert same_state(before, state(model.embed[0]))
    assert not torch.equal(weight, model.embed[1].weight)


def test_codes_are_saved_and_those_of_another_tokenizer_are_refused(tmp_path):
    tokenizer, model, ids = tiny_vqvae(), tiny_gpt(code_dim=8), make_ids()
    model.use_codes(tokenizer)
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids), model(ids))
    loaded.use_codes(tokenizer)  # the same ones again
    with pytest.raises(ValueError, match="trained with the codes of another tokenizer"):
        loaded.use_codes(tiny_vqvae())
    assert torch.equal(loaded(ids), model(ids))


def test_codes_that_were_rounded_in_half_precision_are_still_the_same(tmp_path):
    tokenizer, model = tiny_vqvae(), tiny_gpt(code_dim=8)
    model.use_codes(tokenizer)
    model.bfloat16().save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    loaded.use_codes(tokenizer)
    assert torch.equal(loaded.embed[0].values, tokenizer.code_features(torch.arange(32).view(1, 1, 1, 32))[0, 0, 0])


def test_tokenizers_without_fitting_codes_are_refused():
    class Ids(torch.nn.Module):
        codebook_size = 32

    with pytest.raises(TypeError, match="needs a tokenizer with code_dim and code_features; Ids lacks"):
        tiny_gpt(code_dim=8).use_codes(Ids())
    with pytest.raises(ValueError, match="32 codes of width 6, got 32 codes of width 8"):
        tiny_gpt(code_dim=6).use_codes(tiny_vqvae())
    model = tiny_gpt(code_dim=8)
    model.use_codes(tiny_vqvae(trained=False))
    assert model.needs_codes
    tiny_gpt().use_codes(Ids())  # without code_dim nothing is read
