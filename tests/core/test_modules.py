"""Modes, precision and gradients of modules that somebody else owns."""

import pytest
import torch
from torch import nn

from conftest import modes
from phenaki_pytorch.core.modules import autocast_dtype, in_eval_mode, without_gradients


def nested(training):
    """A module with two levels of submodules, one of which is in the other mode."""
    module = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.BatchNorm1d(2)).train(training)
    module[0][1].train(not training)
    return module


@pytest.mark.parametrize("training", [True, False])
def test_in_eval_mode_restores_the_own_mode_of_every_submodule(training):
    module, other = nested(training), nested(not training)
    before = modes(module, other)
    with in_eval_mode(module, other):
        assert not any(part.training for part in (*module.modules(), *other.modules()))
    assert modes(module, other) == before
    assert len(set(before[0].values())) == 2  # or the test would show less


def test_in_eval_mode_restores_the_modes_after_an_error():
    module = nested(True)
    before = modes(module)
    with pytest.raises(RuntimeError, match="inside"), in_eval_mode(module):
        raise RuntimeError("inside")
    assert modes(module) == before


def test_in_eval_mode_restores_the_modes_of_modules_that_share_a_part():
    part = nn.Dropout()
    module, other = nn.Sequential(part), nn.Sequential(part, nn.Linear(2, 2)).eval()
    part.train()
    before = modes(module, other)
    with in_eval_mode(module, other):
        pass
    assert modes(module, other) == before


def test_autocast_dtype_is_none_without_autocast():
    assert autocast_dtype("cpu") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype("cpu") == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert autocast_dtype("cpu") is None
    assert autocast_dtype("meta") is None  # a device without autocast


def test_without_gradients_is_the_same_function_and_gives_parameters_no_gradient():
    network = nn.Linear(4, 3)
    x = torch.rand(2, 4, requires_grad=True)
    out = without_gradients(network)(x)
    torch.testing.assert_close(out, network(x))
    out.sum().backward()
    assert x.grad is not None and network.weight.grad is None
    assert network.weight.requires_grad


def test_without_gradients_leaves_functions_as_they_are():
    assert without_gradients(torch.sin) is torch.sin


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_without_gradients_restores_torchscript_parameters_after_an_error():
    network = torch.jit.script(nn.Linear(4, 3))
    network.bias.requires_grad_(False)
    with pytest.raises(RuntimeError):
        without_gradients(network)(torch.rand(2, 5))
    assert network.weight.requires_grad and not network.bias.requires_grad
