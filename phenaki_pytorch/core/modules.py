"""Modes, precision and gradients of modules that the caller passes in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn


@contextmanager
def in_eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules and all below them into eval mode; afterwards, also after an error, each has its own mode again."""
    modes = {part: part.training for module in modules for part in module.modules()}
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype in which autocast computes on a kind of device; None where autocast is off."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def without_gradients(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function of its inputs, through which gradients flow, but none reaches a module's own parameters.

    A callable that is not a module is returned as it is.
    """
    if not isinstance(network, nn.Module):
        return network
    if any(isinstance(part, torch.jit.ScriptModule) for part in network.modules()):
        return partial(_call_frozen, network)
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    return lambda *inputs: torch.func.functional_call(network, parameters, inputs)


def _call_frozen(network: nn.Module, *inputs: Tensor) -> Tensor:
    """`functional_call` does not work with TorchScript, so its parameters require no gradient during the call."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        return network(*inputs)
    finally:
        for parameter in trainable:
            parameter.requires_grad_()
