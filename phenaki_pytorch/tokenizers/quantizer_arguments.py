"""Checks of the arguments of a quantizer that is given by its name: all are refused when it is built.

b = batch · n = tokens · d = code_dim
"""

import math
from itertools import chain
from typing import Any

import torch
from einops import rearrange
from torch import nn

from phenaki_pytorch.core.checks import check_probabilities
from phenaki_pytorch.core.modules import in_eval_mode
from phenaki_pytorch.tokenizers.quantizer_fixes import codebooks_of

TRIAL = 3  # tokens


def check_arguments(kwargs: dict[str, Any]) -> None:
    """Refuse the tokenizer's own arguments, and numbers that no training could use."""
    if own := sorted(kwargs.keys() & {"dim", "codebook_size"}):
        raise ValueError(f"quantizer_kwargs must not hold {', '.join(own)}, which the tokenizer gives itself")
    numbers = {name: value for name, value in kwargs.items() if isinstance(value, int | float)}
    check_probabilities(**{name: value for name, value in numbers.items() if name.endswith("decay")})
    for name, value in numbers.items():
        if not math.isfinite(value) or (name.endswith("weight") and value < 0):
            raise ValueError(f"{name} of a quantizer must be finite, a weight at least 0, got {value}")


def check_one_id_per_token(quantizer: nn.Module, dim: int) -> None:
    """Refuse, by a trial of a few tokens, a quantizer of another layout: features (b, n, d) <-> ids (b, n).

    Its state and the random state stay as they are. On the meta device there is no trial.
    """
    tensors = list(chain(quantizer.parameters(), quantizer.buffers()))
    if any(tensor.is_meta for tensor in tensors):
        return
    # Without this, the trial would initialise the codes.
    untouched = [codebook.initted for codebook in codebooks_of(quantizer) if not codebook.initted]
    for initialised in untouched:
        initialised.fill_(True)
    features = torch.linspace(-1, 1, TRIAL * dim, device=tensors[0].device if tensors else None, dtype=torch.float32)
    features = rearrange(features, "(n d) -> 1 n d", n=TRIAL)
    try:
        with torch.no_grad(), in_eval_mode(quantizer):
            quantized, ids = quantizer(features)[:2]
            decode = getattr(quantizer, "get_output_from_indices", None) or quantizer.indices_to_codes
            decoded = decode(ids)
    except Exception as error:
        raise ValueError(f"with these quantizer_kwargs, features (b, n, {dim}) cannot be quantized: {error}") from error
    finally:
        for initialised in untouched:
            initialised.fill_(False)
    shapes = tuple(quantized.shape), tuple(ids.shape), tuple(decoded.shape)
    if shapes != (features.shape, features.shape[:2], features.shape):
        raise ValueError(
            f"a quantizer must give one id per token, {tuple(features.shape[:2])}, and features "
            f"{tuple(features.shape)}, got ids {shapes[1]} and features {shapes[0]}, {shapes[2]}; "
            "several heads, codebooks or residuals do not fit"
        )
    if not torch.allclose(decoded, quantized, rtol=1e-3, atol=1e-3):
        raise ValueError(
            "with these quantizer_kwargs, the code of an id must be what features are quantized to, got values that "
            f"differ by {(decoded - quantized).abs().max():.2g}"
        )
