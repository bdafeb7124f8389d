"""The codes of a trained tokenizer as a frozen table, for priors that read codes in place of an embedding of their own.

k = num_tokens · e = code_dim
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAME = 0.005  # of the largest value of a code: codes that were rounded in half precision are the same


class Codes(nn.Module):
    """Ids (...) -> their codes (..., e); ValueError as long as none were taken from a trained tokenizer."""

    def __init__(self, num_tokens: int, code_dim: int):
        super().__init__()
        self.register_buffer("values", torch.zeros(num_tokens, code_dim))
        self.register_buffer("taken", torch.zeros((), dtype=torch.bool))
        self._ready = False  # so that the buffer, which may lie on a device, is read once

    @property
    def ready(self) -> bool:
        """Whether there are codes to read; on the meta device, which has no values, there always are."""
        if not self._ready:
            self._ready = self.values.is_meta or bool(self.taken)
        return self._ready

    def forward(self, ids: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and not self.ready:
            raise ValueError(
                "there are no codes to read yet: expected use_codes with a trained tokenizer, or a VideoGPT"
            )
        return F.embedding(ids, self.values)

    @torch.no_grad()
    def take(self, tokenizer: nn.Module) -> None:
        """Copy a tokenizer's codes; nothing happens where all are equal, because it has not been trained.

        ValueError where their number or width, or the codes taken before, are others.
        """
        k, e = self.values.shape
        if missing := [name for name in ("code_dim", "code_features") if not hasattr(tokenizer, name)]:
            raise TypeError(
                f"a GPT that reads codes needs a tokenizer with code_dim and code_features; "
                f"{type(tokenizer).__name__} lacks {missing}"
            )
        if (tokenizer.codebook_size, tokenizer.code_dim) != (k, e):
            got = f"{tokenizer.codebook_size} codes of width {tokenizer.code_dim}"
            raise ValueError(f"the tokenizer must have {k} codes of width {e}, got {got}")
        if self.values.is_meta:
            return  # there are no values
        ids = torch.arange(k, device=_device_of(tokenizer)).reshape(1, 1, 1, k)
        codes = tokenizer.code_features(ids)[0, 0, 0].to(self.values)
        if k > 1 and (codes == codes[0]).all():
            return
        if self.taken and (codes - self.values).abs().max() > SAME * codes.abs().max():
            raise ValueError("this prior was trained with the codes of another tokenizer")
        self.values.copy_(codes)
        self.taken.fill_(True)


def _device_of(tokenizer: nn.Module) -> torch.device:
    """Where a tokenizer reads ids: on the device of its parameters and buffers; a tokenizer without any, on the CPU."""
    tensors = (*tokenizer.parameters(), *tokenizer.buffers())
    return tensors[0].device if tensors else torch.device("cpu")
