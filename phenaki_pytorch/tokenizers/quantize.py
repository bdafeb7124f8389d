"""One interface to the quantizers of vector-quantize-pytorch: features -> (quantized, ids, loss), ids -> features.

The default, "vq", is the paper's factorised, l2-normalised codebook (Phenaki, section A.1; ViT-VQGAN,
https://arxiv.org/abs/2110.04627) with one difference: its codes are moving averages of the features assigned to them
(van den Oord et al. 2017, appendix A.1), where the paper has the gradient of the codebook term ‖sg(z) − e‖². The
commitment term β‖z − sg(e)‖², β = 0.25, is the paper's.

"ema" is VideoGPT's (section 3.1, https://arxiv.org/abs/2104.10157): its codes are moving averages too, but not
normalised. They start as features of the first batch of training, and a code that falls below 1 token a step on average
restarts as a current feature.

All computation is in float32, under autocast too, and the quantizer stays float32 when the module around it is cast.

b = batch · n = tokens · d = code_dim
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, LFQ, SimVQ, VectorQuantize

from phenaki_pytorch.core.checks import check_at_least
from phenaki_pytorch.core.modules import Float32Module, in_eval_mode
from phenaki_pytorch.core.statistics import several_processes
from phenaki_pytorch.tokenizers.quantizer_arguments import check_arguments, check_one_id_per_token
from phenaki_pytorch.tokenizers.quantizer_fixes import (
    codebooks_of,
    follow_processes,
    initialise_codes,
    joint_entropy,
)
from phenaki_pytorch.tokenizers.quantizer_values import before_rounding

QUANTIZERS = ("vq", "ema", "lfq", "fsq", "simvq")
TOKENS_PER_CODE = 4  # with 4 a step almost no code of "ema" restarts; with 1, over half of them do, again and again
CHUNK = 4096  # features whose similarities to all codes are in memory at a time


def build_quantizer(quantizer: str, *, dim: int, codebook_size: int, kwargs: dict) -> nn.Module:
    """A quantizer by name, one of `QUANTIZERS`; `kwargs` go to its constructor, over our defaults.

    Raises ValueError for an unknown name, for "fsq" levels whose product is not the codebook's size, for "lfq" of a
    size that is no power of 2, and for `kwargs` that do not go together.
    """
    check_arguments(kwargs)
    try:
        return _built(quantizer, dim, codebook_size, kwargs)
    except AssertionError as error:
        raise ValueError(f"these quantizer_kwargs do not go together: {error}") from error


def _built(quantizer: str, dim: int, codebook_size: int, kwargs: dict) -> nn.Module:
    if quantizer == "vq":
        # The library's own defaults (decay 0.8, commitment 1, rotation trick) are not the paper's.
        paper = {"use_cosine_sim": True, "commitment_weight": 0.25, "decay": 0.99, "rotation_trick": False}
        return VectorQuantize(**{**paper, **kwargs}, dim=dim, codebook_size=codebook_size)
    if quantizer == "ema":
        paper = {"commitment_weight": 0.25, "decay": 0.99, "eps": 1e-7, "rotation_trick": False}
        # kmeans_init leaves the codes to the first batch, of which `initialise_codes` then takes features.
        paper |= {"threshold_ema_dead_code": 1, "kmeans_init": True}
        return VectorQuantize(**{**paper, **kwargs}, dim=dim, codebook_size=codebook_size)
    if quantizer == "lfq":
        if codebook_size & (codebook_size - 1):
            raise ValueError(f"the codebook_size of lfq must be a power of 2, got {codebook_size}")
        return LFQ(**kwargs, dim=dim, codebook_size=codebook_size)
    if quantizer == "simvq":
        return SimVQ(**kwargs, dim=dim, codebook_size=codebook_size)
    if quantizer == "fsq":
        levels = kwargs.get("levels", (8, 8, 8, 16))
        check_at_least(2, **{f"levels[{i}]": level for i, level in enumerate(levels)})
        if prod(levels) != codebook_size:
            raise ValueError(
                f"fsq levels {tuple(levels)} make {prod(levels)} codes, codebook_size is {codebook_size}: "
                f"pass quantizer_kwargs={{'levels': ...}} whose product is the codebook_size"
            )
        return FSQ(**{**kwargs, "levels": list(levels)}, dim=dim)
    raise ValueError(f"quantizer must be one of {QUANTIZERS} or a module, got {quantizer!r}")


class Quantizer(Float32Module):
    """Features to the nearest code and back, always in float32.

    quantizer      a name (see `build_quantizer`), or a module whose call returns (quantized, ids, ...) for
                   (b, n, d), one id per token, with `codebook_size` and `get_output_from_indices` or
                   `indices_to_codes`. The averages of a VectorQuantize are made those of all processes
    dim            width of the features
    codebook_size  number of codes

    In eval mode the quantizers of vector-quantize-pytorch, except SimVQ, report a loss of 0.
    """

    def __init__(self, quantizer: str | nn.Module, *, dim: int, codebook_size: int, kwargs: dict | None = None):
        super().__init__()
        self.follows_processes = "sync_codebook" not in (kwargs or {})
        name = quantizer if isinstance(quantizer, str) else None
        if name is not None:
            quantizer = build_quantizer(quantizer, dim=dim, codebook_size=codebook_size, kwargs=kwargs or {})
        elif kwargs:
            raise ValueError("quantizer_kwargs go with the name of a quantizer; the given module has its own already")
        if not hasattr(quantizer, "get_output_from_indices") and not hasattr(quantizer, "indices_to_codes"):
            raise ValueError(
                f"a quantizer needs get_output_from_indices or indices_to_codes, {type(quantizer).__name__} has neither"
            )
        size = getattr(quantizer, "codebook_size", None)
        if size != codebook_size:
            raise ValueError(f"codebook_size is {codebook_size}, the quantizer given has {size}")
        width = getattr(quantizer, "dim", dim)
        if width != dim:
            raise ValueError(f"code_dim is {dim}, the quantizer given is {width} wide")
        self.codebook_size = codebook_size
        self.quantizer = quantizer.float()  # whatever the default dtype
        self.initialise = name == "ema"
        self.warned = False
        if name is not None:
            check_one_id_per_token(self.quantizer, dim)
        # Whether the codes are to be initialised by the first batch.
        initialised = [codebook.initted for codebook in codebooks_of(quantizer)]
        self.initialised_by_data = any(not each.is_meta and not each for each in initialised)

    @torch.compiler.disable
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """features (b, n, d) -> quantized (b, n, d), with the straight-through gradient; ids (b, n); loss.

        Raises ValueError in eval mode for codes that the first batch of training has yet to initialise.
        """
        if self.follows_processes:
            follow_processes(self.quantizer)
        if not self.training:
            self.check_initialised()
        with torch.autocast(features.device.type, enabled=False), joint_entropy(), self._undone_if_not_finite(features):
            if self.initialise and self.training:
                self._warn_of_few_tokens(features)
                initialise_codes(self.quantizer, features.float())
            quantized, ids, *rest = self.quantizer(features.float())
        self._check_ids(ids, features)
        loss = rest[0] if rest else quantized.new_zeros(())  # FSQ has no loss
        return quantized, ids.long(), loss.float().sum()

    @torch.no_grad()
    @torch.compiler.disable
    def ids(self, features: Tensor) -> Tensor:
        """features (b, n, d) -> ids (b, n), int64, in bounded memory; changes no state, in training mode either.

        Raises ValueError for codes that the first batch has yet to initialise.
        """
        b, n, d = features.shape
        self.check_initialised()
        if n == 0:  # not every quantizer takes an empty input, as a stream may have
            return torch.empty(b, 0, dtype=torch.int64, device=features.device)
        with in_eval_mode(self.quantizer), torch.autocast(features.device.type, enabled=False):
            chunks = features.reshape(1, b * n, d).split(CHUNK, dim=1)
            ids = torch.cat([self._nearest(chunk.float()) for chunk in chunks], dim=1)
        return ids.reshape(b, n)

    def features(self, ids: Tensor) -> Tensor:
        """ids (b, n) -> features (b, n, d), float32: what `forward` gives in eval mode ("simvq": within 1e-6)."""
        with torch.autocast(ids.device.type, enabled=False):
            if hasattr(self.quantizer, "get_output_from_indices"):
                return self.quantizer.get_output_from_indices(ids)
            return self.quantizer.indices_to_codes(ids)

    def continuous(self, features: Tensor) -> Tensor:
        """features (b, n, d) -> what the decoder reads, before it is rounded to a code, (b, n, d), float32.

        Of a module that is no quantizer of vector-quantize-pytorch: the quantized features. Changes no state.
        """
        with torch.autocast(features.device.type, enabled=False):
            unrounded = before_rounding(self.quantizer, features.float())
            if unrounded is not None:
                return unrounded
            self.check_initialised()
            with in_eval_mode(self.quantizer):
                quantized, ids, *_ = self.quantizer(features.float())
        self._check_ids(ids, features)
        return quantized.float()

    def _nearest(self, features: Tensor) -> Tensor:
        plain = isinstance(self.quantizer, VectorQuantize) and not self.quantizer.has_projections
        if plain and self.quantizer.use_cosine_sim and self.quantizer.heads == 1:
            # The same ids as those of its own call, without the one-hot matrix of tokens × codes.
            return (F.normalize(features, dim=-1) @ F.normalize(self.quantizer.codebook, dim=-1).T).argmax(dim=-1)
        ids = self.quantizer(features)[1].long()
        self._check_ids(ids, features)
        return ids

    @contextmanager
    def _undone_if_not_finite(self, features: Tensor) -> Iterator[None]:
        """Keep the codebook as it was where features of any process are not finite; without waiting for a device."""
        averages = [buffer for codebook in codebooks_of(self.quantizer) for buffer in codebook.buffers()]
        before = [buffer.clone() for buffer in averages] if self.training else []
        yield
        finite = features.detach().isfinite().all()
        if before and several_processes():
            finite = finite.int()
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
            finite = finite.bool()
        with torch.no_grad():
            for buffer, value in zip(averages, before):
                buffer.copy_(torch.where(finite, buffer, value))

    def check_initialised(self) -> None:
        """Refuse, with a ValueError, codes that the first batch has yet to initialise."""
        if self.initialised_by_data and not all(codebook.initted for codebook in codebooks_of(self.quantizer)):
            raise ValueError("the codes are initialised by the first batch of training, and there was none yet")

    def _warn_of_few_tokens(self, features: Tensor) -> None:
        """Warn once where most codes would restart at every step."""
        tokens = features.shape[:2].numel() * (dist.get_world_size() if several_processes() else 1)
        least = TOKENS_PER_CODE * self.quantizer._codebook.threshold_ema_dead_code
        if tokens < least * self.codebook_size and not self.warned:
            self.warned = True
            warnings.warn(
                f"{tokens} tokens a step are few for {self.codebook_size} codes: below about {least} tokens a code, "
                "many codes restart again and again. Use larger batches or fewer codes",
                stacklevel=2,
            )

    def _check_ids(self, ids: Tensor, features: Tensor) -> None:
        if ids.shape != features.shape[:2]:
            raise ValueError(
                f"a quantizer must give one id per token, {tuple(features.shape[:2])}, got {tuple(ids.shape)}; "
                "several heads, codebooks or residuals do not fit"
            )
