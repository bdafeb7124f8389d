"""Muon: momentum, made orthogonal before it is added, for the matrices inside a transformer.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. All directions of a matrix then change at the same
rate, also those with a weak gradient: that of the word "left" in a caption is weak beside that of the background.

`torch.optim.Muon` does the same in bfloat16, which processors without units for it emulate hundreds of times more
slowly. Here it is float32, all matrices of one shape at once.

k = matrices · m, n = their shape
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steepest at 0, so that small singular values grow in few steps
STEPS = 5
RMS = 0.2  # root mean square of an update over the learning rate, as of AdamW's


def orthogonal(matrices: Tensor) -> Tensor:
    """About U Vᵀ of each U S Vᵀ, (k, m, n): singular values that differ up to a hundredfold become 0.5 to 1.3."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; at the same `lr` its updates have the root mean square of AdamW's.

    Raises ValueError for a parameter that is not a matrix.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon trains matrices, got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                directions = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in parameters])
                size = group["lr"] * RMS * max(shape) ** 0.5
                for parameter, direction in zip(parameters, orthogonal(directions)):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(direction, alpha=size)
        return loss

    def _momentum(self, parameter: nn.Parameter, decay: float) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - decay)
        return parameter.grad.lerp(state["momentum"], decay)
