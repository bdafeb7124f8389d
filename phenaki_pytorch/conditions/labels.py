"""Classes and actions as the condition of a prior's norms, one vector for each time step (VideoGPT, section 3.3).

How actions are encoded, VideoGPT does not say. Here the actions of a time step's frames stand one after the other, so
that nothing of them is lost; where the first time step has fewer frames than the others, zeros come before its actions.

b = batch · f = frames · t = time steps · s = frames of a time step · a = dim_action
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from phenaki_pytorch.core.checks import check_at_least, check_classes, check_finite
from phenaki_pytorch.core.contracts import Lengths


class Labels:
    """Turns classes and actions into the condition of a clip.

    lengths      the tokenizer, which says how many frames a time step has
    num_classes  number of classes, None for none
    dim_action   width of an action, None for none
    """

    def __init__(self, lengths: Lengths, num_classes: int | None, dim_action: int | None):
        check_at_least(1, num_classes=num_classes, dim_action=dim_action)
        self.first = lengths.num_frames(1)
        self.step = lengths.num_frames(2) - self.first
        self.num_classes, self.dim_action = num_classes, dim_action

    @property
    def width(self) -> int | None:
        """Width of the condition, None where there is nothing to condition on."""
        return (self.num_classes or 0) + max(self.step, self.first) * (self.dim_action or 0) or None

    def condition(
        self, classes: Tensor | None, actions: Tensor | None, *, batch_size: int, num_frames: int, like: Tensor
    ) -> Tensor | None:
        """Classes, int64 (b,), and actions, (b, f, a), one for each frame -> the condition (b, t, width), or None.

        Of classes alone the condition is (b, width), the same for all time steps.

        `like` has the device and dtype of the result. Raises ValueError where something does not fit, is missing or is
        not asked for.
        """
        parts = []
        if self._wanted("classes", classes, self.num_classes):
            check_classes(classes, self.num_classes, (batch_size,))
            parts.append(F.one_hot(classes, self.num_classes))
        if self._wanted("actions", actions, self.dim_action):
            expected = (batch_size, num_frames, self.dim_action)
            if tuple(actions.shape) != expected:
                raise ValueError(f"actions must be {expected}, one for each frame, got {tuple(actions.shape)}")
            check_finite("actions", actions)
            steps = self._by_step(actions)
            parts = [repeat(part, "b w -> b t w", t=steps.shape[1]) for part in parts] + [steps]
        parts = [part.to(like.device, like.dtype) for part in parts]
        return torch.cat(parts, dim=-1) if parts else None

    def _by_step(self, actions: Tensor) -> Tensor:
        """Actions (b, f, a) -> (b, t, longest step · a)."""
        longest = max(self.step, self.first)
        first = F.pad(actions[:, : self.first], (0, 0, longest - self.first, 0))
        steps = [rearrange(first, "b s a -> b 1 (s a)")]
        if actions.shape[1] > self.first:
            rest = rearrange(actions[:, self.first :], "b (t s) a -> b t s a", s=self.step)
            rest = F.pad(rest, (0, 0, longest - self.step, 0))
            steps.append(rearrange(rest, "b t s a -> b t (s a)"))
        return torch.cat(steps, dim=1)

    def _wanted(self, name: str, value: Tensor | None, size: int | None) -> bool:
        if (value is None) != (size is None):
            got, expected = ("none", "some") if value is None else ("some", "none")
            raise ValueError(f"expected {expected} {name}, got {got}")
        return value is not None
