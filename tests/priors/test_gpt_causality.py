"""GPT: an id, and a condition, acts on what follows it in raster order and on nothing else."""

import pytest
import torch

from conftest import make_ids, tiny_vqvae
from gpt_models import ALL, GRID, every_pair, flat, given_for, gpt_for


@every_pair
@torch.no_grad()
def test_an_id_changes_the_logits_after_it_and_no_others(text, vector, frame_map, condition):
    combination = (text, vector, frame_map, condition)
    model, given, ids = gpt_for(*combination), given_for(*combination), make_ids(grid=GRID)
    before = flat(model.logits(ids, **given))
    for k in (0, 4, 10, 11):
        other = ids.clone()
        other[0].view(-1)[k] += 1
        changed = (flat(model.logits(other % 32, **given)) - before).abs().amax(dim=-1) > 1e-6
        assert changed[0].tolist() == [position > k for position in range(12)]
        assert not changed[1].any()


@every_pair
@pytest.mark.parametrize("code_dim", [None, 8])
def test_the_gradient_of_a_logit_reaches_every_earlier_id_and_no_other(text, vector, frame_map, condition, code_dim):
    combination = (text, vector, frame_map, condition)
    model, given = gpt_for(*combination, code_dim=code_dim), given_for(*combination)
    if code_dim is not None:
        model.use_codes(tiny_vqvae())
    embedded = []
    model.embed.register_forward_hook(lambda *args: embedded.append(args[-1].requires_grad_()) or embedded[-1])
    logits = flat(model.logits(make_ids(grid=GRID), **given))
    for position in (0, 1, 6, 11):
        (gradient,) = torch.autograd.grad(logits[0, position, 3], embedded[0], retain_graph=True, allow_unused=True)
        reached = gradient.flatten(1, 3).abs().amax(dim=-1) > 0
        assert reached[0].tolist() == [earlier < position for earlier in range(12)]
        assert not reached[1].any()


@pytest.mark.parametrize("condition", ["constant", "steps"])
@torch.no_grad()
def test_a_condition_acts_on_its_time_step_and_later_ones_only(condition):
    combination = (True, True, True, condition)
    model, given, ids = gpt_for(*combination), given_for(*combination), make_ids(grid=GRID)
    before = model.logits(ids, **given)
    for step in range(3):
        other = given["condition"].clone()
        other[0, step] += 1  # of a constant condition, one of its channels
        changed = (model.logits(ids, **{**given, "condition": other}) - before).abs().amax(dim=(2, 3, 4)) > 1e-5
        assert changed[0].tolist() == [condition == "constant" or later >= step for later in range(3)]
        assert not changed[1].any()


@pytest.mark.parametrize("name", ["context", "frame_vector", "frame_map"])
@torch.no_grad()
def test_every_other_condition_acts_on_all_logits_of_its_sample(name):
    model, given, ids = gpt_for(*ALL), given_for(*ALL), make_ids(grid=GRID)
    other = given[name].clone()
    other[1, 0] = torch.randn_like(other[1, 0])
    changed = model.logits(ids, **{**given, name: other}) - model.logits(ids, **given)
    assert flat(changed)[1].abs().amax(dim=-1).min() > 1e-5
    assert not changed[0].any()


@torch.no_grad()
def test_a_constant_condition_is_the_same_one_at_every_time_step():
    model, given, ids = gpt_for(*ALL), given_for(True, True, True, "constant"), make_ids(grid=GRID)
    steps = given["condition"][:, None].expand(-1, 3, -1)
    torch.testing.assert_close(model.logits(ids, **{**given, "condition": steps}), model.logits(ids, **given))
