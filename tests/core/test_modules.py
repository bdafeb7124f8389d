"""Modes, precision and gradients of modules that somebody else owns."""

import threading

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


class Paused(nn.Module):
    """A network whose call can be held inside: `pause` is called between its input and its layer."""

    def __init__(self, layer, pause=lambda: None):
        super().__init__()
        self.layer, self.pause = layer, pause

    def forward(self, x):
        self.pause()
        return self.layer(x)


def in_two_threads(network, first, second):
    """Start `second(network)` while `first(network)` is inside the network, which the first leaves before the second.

    Where a lock keeps the second out, the first goes on after half a second.
    """
    inside, joined, left = threading.Event(), threading.Event(), threading.Event()

    def pause():
        if threading.current_thread() is threads[0]:
            inside.set()
            joined.wait(0.5)
        else:
            joined.set()
            left.wait(10)

    def run_first():
        first(network)
        left.set()

    network.pause = pause
    threads = [threading.Thread(target=run_first), threading.Thread(target=second, args=(network,))]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    [thread.join() for thread in threads]
    network.pause = lambda: None


@pytest.mark.parametrize("script", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_threads_that_share_a_network_leave_it_trainable(script):
    network = Paused(torch.jit.script(nn.Linear(4, 3)) if script else nn.Linear(4, 3))
    parameters = list(network.parameters())
    inputs = [torch.rand(2, 4, requires_grad=True) for _ in range(2)]

    def frozen(x):
        return lambda network: without_gradients(network)(x).sum().backward()

    in_two_threads(network, frozen(inputs[0]), frozen(inputs[1]))
    assert all(x.grad is not None for x in inputs)
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    assert all(each.requires_grad and each.grad is None for each in parameters)


def test_a_thread_trains_a_network_while_another_calls_it_without_gradients():
    network = Paused(nn.Linear(4, 3))
    x = torch.rand(2, 4)

    def train_in_a_thread():
        network.pause = lambda: None
        thread = threading.Thread(target=lambda: network(x).sum().backward())
        thread.start()
        thread.join()

    network.pause = train_in_a_thread
    without_gradients(network)(x)
    assert network.layer.weight.grad is not None


def test_without_gradients_passes_gradients_to_an_input_that_is_a_parameter():
    x = nn.Parameter(torch.rand(2, 4))
    without_gradients(nn.Linear(4, 3))(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    "layer", [nn.LSTM(4, 4), nn.MultiheadAttention(4, 2), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))]
)
def test_without_gradients_reaches_weights_that_layers_keep_in_lists_or_compute(layer):
    x = torch.rand(3, 4, requires_grad=True)
    out = without_gradients(layer)(*([x] * 3 if isinstance(layer, nn.MultiheadAttention) else [x]))
    (out if isinstance(out, torch.Tensor) else out[0]).sum().backward()
    assert x.grad is not None
    assert all(each.grad is None and each.requires_grad for each in layer.parameters())


def test_without_gradients_is_part_of_a_compiled_graph():
    network = nn.Linear(4, 3)
    x = torch.rand(2, 4, requires_grad=True)
    compiled = torch.compile(lambda x: without_gradients(network)(x).sum(), backend="aot_eager", fullgraph=True)
    compiled(x).backward()
    torch.testing.assert_close(x.grad, network.weight.sum(dim=0).expand(2, 4))
    assert network.weight.grad is None
