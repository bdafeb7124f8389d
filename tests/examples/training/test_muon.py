"""Muon: all directions of a matrix change at the same rate, and a loaded state takes the same next step."""

import copy

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(16, 16), (12, 48), (48, 12)])
def test_singular_values_become_about_equal(shape):
    torch.manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    sizes = torch.logspace(0, -2, min(shape))  # a hundred to one
    matrices = u * sizes @ vt
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.min() > 0.5 and values.max() < 1.3
    # The singular vectors stay: what is left of U Vᵀ is symmetric between them.
    core = u.mT @ orthogonal(matrices) @ vt.mT
    assert torch.allclose(core, torch.diag_embed(core.diagonal(dim1=1, dim2=2)), atol=1e-3)


def test_a_batch_gives_the_same_as_each_of_its_matrices():
    torch.manual_seed(0)
    matrices = torch.randn(4, 8, 20)
    one_by_one = torch.cat([orthogonal(matrix[None]) for matrix in matrices])
    assert torch.allclose(orthogonal(matrices), one_by_one, atol=1e-5)


def test_a_zero_gradient_changes_nothing():
    weight = nn.Parameter(torch.randn(4, 4))
    before = weight.detach().clone()
    weight.grad = torch.zeros(4, 4)
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, before)


def test_the_update_has_the_stated_mean_square_whatever_the_gradients_size():
    torch.manual_seed(0)
    gradient, updates = torch.randn(32, 32), []
    for scale in (1.0, 1000.0):
        weight = nn.Parameter(torch.zeros(32, 32))
        weight.grad = scale * gradient
        Muon([weight], lr=0.1).step()
        updates.append(weight.detach())
    assert torch.allclose(*updates, atol=1e-5)
    assert 0.1 * 0.2 * 0.7 < updates[0].square().mean().sqrt() < 0.1 * 0.2 * 1.3


def test_it_learns_a_linear_map():
    torch.manual_seed(0)
    truth, model = torch.randn(8, 8), nn.Linear(8, 8, bias=False)
    optimizer = Muon(model.parameters(), lr=0.05)
    losses = []
    for _ in range(200):
        x = torch.randn(64, 8)
        loss = (model(x) - x @ truth.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.05 * sum(losses[:10])


def test_a_loaded_state_takes_the_same_next_step():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 10))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        weight.grad = torch.randn(6, 10)
        optimizer.step()
    other = nn.Parameter(weight.detach().clone())
    resumed = Muon([other], lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fresh_weight = nn.Parameter(weight.detach().clone())
    fresh = Muon([fresh_weight], lr=0.1, weight_decay=0.1)
    gradient = torch.randn(6, 10)
    for parameter, one in ((weight, optimizer), (other, resumed), (fresh_weight, fresh)):
        parameter.grad = gradient.clone()
        one.step()
    assert torch.equal(weight, other)
    assert not torch.equal(weight, fresh_weight)  # the momentum counts


def test_parameters_that_are_no_matrices_are_refused():
    with pytest.raises(ValueError, match=r"trains matrices, got a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
