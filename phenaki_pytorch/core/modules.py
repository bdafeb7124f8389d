"""Calls, modes, precision and gradients of modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint


def through_call(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a public method of a `HookedModule` run inside the module's call.

    Hooks around a call gather the parameters of FSDP2 and of offloaded modules, so weights are there only inside it.
    """

    @wraps(method)
    def run(*inputs: Any, **named: Any) -> Any:  # of these names, or beartype would not check the method's arguments
        self, *inputs = inputs
        if self._inside:
            return method(self, *inputs, **named)
        # Hooks move the arguments of a call to the module's device; modules among them are not this module's.
        modules = {name: value for name, value in named.items() if isinstance(value, nn.Module)}
        others = {name: value for name, value in named.items() if name not in modules}
        return self(*inputs, _method=partial(method, **modules), **others)

    return run


class HookedModule(nn.Module):
    """A module whose call is its loss, and whose other public methods run inside its call: see `through_call`."""

    _inside = False

    def forward(self, *inputs: Any, _method: Callable[..., Any] | None = None, **named: Any) -> Any:
        """The loss, a scalar; arguments as in `losses`."""
        self._inside = True
        try:
            return self.loss(*inputs, **named) if _method is None else _method(self, *inputs, **named)
        finally:
            self._inside = False

    def loss(self, *inputs: Any, **named: Any) -> Tensor:
        """What a call returns."""
        return self.losses(*inputs, **named).total


def uncompiled(module: nn.Module | None) -> nn.Module | None:
    """The module that `torch.compile` wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


_lock = RLock()
_in_eval: dict[nn.Module, tuple[int, bool]] = {}  # how often a module is in eval mode by us, and its own mode


@contextmanager
def in_eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules and all below them into eval mode; afterwards, also after an error, each has its own mode again.

    Where several threads do so at once, the last one restores the modes.
    """
    parts = {part for module in modules for part in module.modules()}
    with _lock:
        for part in parts:
            count, mode = _in_eval.get(part, (0, part.training))
            _in_eval[part] = count + 1, mode
            part.training = False
    try:
        yield
    finally:
        with _lock:
            for part in parts:
                count, mode = _in_eval.pop(part)
                if count > 1:
                    _in_eval[part] = count - 1, mode
                else:
                    part.training = mode


class Checkpointing(nn.Module):
    """A module that can keep only the inputs of its blocks for the backward pass, and compute the rest again."""

    checkpointing = False

    def run(self, block: nn.Module, *inputs: Any, **named: Any) -> Any:
        """What the block's call returns."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, **named)
        return block(*inputs, **named)


def checkpoint_activations(module: nn.Module, on: bool = True) -> None:
    """Keep only the input of every block below `module` for the backward pass, for less memory in training.

    The rest is computed again in the backward pass, which costs a second forward pass. `on=False` undoes it. Raises
    ValueError for a module without such blocks, TypeError for what is no module.
    """
    parts = [part for part in module.modules() if isinstance(part, Checkpointing)]
    if not parts:
        raise ValueError(f"{type(module).__name__} has no blocks whose activations could be checkpointed")
    for part in parts:
        part.checkpointing = on


class CastsInput(nn.Module):
    """Casts the input to the dtype of a layer's weight, which only the layer itself reads: wrappers may replace it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class CastingLinear(CastsInput, nn.Linear):
    """A linear layer whose input may have any dtype."""


class CastingConv2d(CastsInput, nn.Conv2d):
    """A convolution whose input may have any dtype."""


class CastingConv3d(CastsInput, nn.Conv3d):
    """A convolution whose input may have any dtype."""


class Float32Module(nn.Module):
    """A module that moves to another device, but keeps its dtype: in half precision, averages lose small steps."""

    def _apply(self, fn, recurse=True):
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype == tensor.dtype or not tensor.is_floating_point():
                return moved
            return tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype in which autocast computes on a kind of device; None where autocast is off."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def without_gradients(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function of its inputs, through which gradients flow, but none reaches a module's own parameters.

    Other threads may use the module at the same time; one with TorchScript parts must not be trained meanwhile. A
    callable that is not a module is returned as it is.
    """
    if not isinstance(network, nn.Module):
        return network
    scripted = any(isinstance(part, torch.jit.ScriptModule) for part in network.modules())
    return partial(_call_frozen if scripted else _call_detached, network)


class _DetachedParameters(TorchFunctionMode):
    """Operations inside take every parameter detached. A mode holds for its own thread, and changes no module."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(nn.Parameter, Tensor.detach, (args, kwargs or {}))
        return function(*args, **kwargs)


def _call_detached(network: nn.Module, *inputs: Tensor) -> Any:
    inputs = [each.view_as(each) for each in inputs]  # an input may be a parameter, which needs its gradient
    with _DetachedParameters():
        return network(*inputs)


_frozen_lock = RLock()


def _call_frozen(network: nn.Module, *inputs: Tensor) -> Any:
    """TorchScript ignores modes, so its parameters require no gradient during the call, which one thread makes."""
    with _frozen_lock:
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            return network(*inputs)
        finally:
            for parameter in trainable:
                parameter.requires_grad_()
