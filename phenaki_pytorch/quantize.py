"""One face over the quantizers of vector-quantize-pytorch: features -> (quantized, ids, loss), ids -> features.

The default, "vq", is the paper's factorised, l2-normalised codebook (Phenaki, section A.1; ViT-VQGAN,
https://arxiv.org/abs/2110.04627) with one difference: its codes follow the features assigned to them by moving
averages (van den Oord et al. 2017, appendix A.1) in place of the gradient of the codebook term ‖sg(z) − e‖². The
commitment term β‖z − sg(e)‖², β = 0.25, is the paper's.

Everything inside runs in float32, under autocast too, and stays float32 when the module around it is cast.

b = batch · n = tokens · d = code_dim
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
import torch.distributed as dist
import torch.distributed.nn as dist_nn
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, LFQ, SimVQ, VectorQuantize, lookup_free_quantization
from vector_quantize_pytorch.vector_quantize_pytorch import (
    Codebook,
    batched_sample_vectors,
    gumbel_sample,
    noop,
    sample_vectors_distributed,
)

QUANTIZERS = ("vq", "lfq", "fsq", "simvq")

# Tokenizing looks at this many features at a time, and on processors keeps this many cosines: 16 MB, for the C library
# of Linux asks the system for what is larger than 32 MB, each time anew, which takes longer than the product.
CHUNK = 16_384
COSINES = 2**22
PIECE = 64  # codes of a piece, when the nearest is sought


def build_quantizer(quantizer: str, *, dim: int, codebook_size: int, kwargs: dict) -> nn.Module:
    """A quantizer by name: "vq", "lfq", "fsq" or "simvq"; `kwargs` go to its constructor, over our defaults.

    Raises ValueError for an unknown name, for "fsq" levels whose product is not the codebook's size, and for "lfq" of
    a size that is no power of 2.
    """
    if quantizer == "vq":
        # The library's own defaults (decay 0.8, commitment 1, rotation trick) are not the paper's.
        paper = {"use_cosine_sim": True, "commitment_weight": 0.25, "decay": 0.99, "rotation_trick": False}
        made = VectorQuantize(**{**paper, **kwargs, "dim": dim, "codebook_size": codebook_size})
        if not {"stochastic_sample_codes", "straight_through"} & kwargs.keys():
            made._codebook.gumbel_sample = nearest_codes
        return made
    if quantizer == "lfq":
        if codebook_size & (codebook_size - 1):
            raise ValueError(f"the codebook_size of lfq must be a power of 2, got {codebook_size}")
        return LFQ(**{**kwargs, "dim": dim, "codebook_size": codebook_size})
    if quantizer == "simvq":
        return SimVQ(**{**kwargs, "dim": dim, "codebook_size": codebook_size})
    if quantizer == "fsq":
        levels = kwargs.get("levels", (8, 8, 8, 16))
        if prod(levels) != codebook_size:
            raise ValueError(
                f"fsq levels {tuple(levels)} make {prod(levels)} codes, codebook_size is {codebook_size}: "
                f"pass quantizer_kwargs={{'levels': ...}} whose product is the codebook_size"
            )
        return FSQ(**{**kwargs, "levels": list(levels), "dim": dim})
    raise ValueError(f"quantizer must be one of {QUANTIZERS} or a module, got {quantizer!r}")


def several_processes() -> bool:
    """Whether this is one of the processes of a distributed run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def follow_processes(quantizer: nn.Module) -> None:
    """Let a codebook's averages, and what replaces its dead codes, be of the features of all processes.

    VectorQuantize settles this once, when it is built, which may be before the process group is.
    """
    together = several_processes()
    for part in quantizer.modules():
        if isinstance(part, Codebook) and part.use_ddp != together:
            part.use_ddp = together
            part.all_reduce_fn = part.kmeans_all_reduce_fn = dist.all_reduce if together else noop
            part.sample_fn = part.replace_sample_fn = sample_vectors_distributed if together else batched_sample_vectors


def mean_over_processes(shares: Tensor) -> Tensor:
    """The mean of what all processes hold, with a gradient."""
    return dist_nn.all_reduce(shares) / dist.get_world_size() if several_processes() else shares


@contextmanager
def joint_shares() -> Iterator[None]:
    """Let LFQ's entropy be of the codes of all processes.

    Its own mean (vector-quantize-pytorch 1.32) drops what `all_reduce` returns and divides one process's shares by
    the number of processes.
    """
    theirs = lookup_free_quantization.maybe_distributed_mean
    lookup_free_quantization.maybe_distributed_mean = mean_over_processes
    try:
        yield
    finally:
        lookup_free_quantization.maybe_distributed_mean = theirs


def first_largest(scores: Tensor) -> Tensor:
    """`argmax` over the last axis of finite scores (..., k), in two steps: which of some pieces, then where in it.

    On processors `argmax` (PyTorch 2.13) takes twenty times as long as `amax`, which finds the piece.
    """
    if missing := -scores.shape[-1] % PIECE:
        scores = F.pad(scores, (0, missing), value=-torch.inf)
    pieces = scores.unflatten(-1, (-1, PIECE))
    piece = pieces.amax(dim=-1).argmax(dim=-1, keepdim=True)
    place = pieces.take_along_dim(piece[..., None], dim=-2)[..., 0, :].argmax(dim=-1)
    return piece[..., 0] * PIECE + place


def nearest_codes(
    scores: Tensor, *, topk: int | None = None, training: bool = True, **of_samples
) -> tuple[Tensor, Tensor | None]:
    """What VectorQuantize asks of scores (..., n, k) where it samples nothing: ids (..., n), and as one-hot rows.

    Its own (vector-quantize-pytorch 1.32) takes `argmax` and makes the rows of int64 first; in eval mode they are made
    for nothing.
    """
    if topk is not None:
        return gumbel_sample(scores, topk=topk, training=training, **of_samples)
    ids = first_largest(scores)
    return ids, torch.zeros_like(scores).scatter_(-1, ids[..., None], 1.0) if training else None


class Quantizer(nn.Module):
    """Features to the nearest code and back, in float32 always.

    quantizer      a name (see `build_quantizer`), or a module whose call returns (quantized, ids, ...) for
                   (b, n, d), one id a token, with `codebook_size` and `get_output_from_indices` or
                   `indices_to_codes`. A VectorQuantize's averages are made those of all processes
    dim            width of the features
    codebook_size  number of codes

    In eval mode the quantizers of vector-quantize-pytorch, but for SimVQ, report a loss of 0.
    """

    def __init__(self, quantizer: str | nn.Module, *, dim: int, codebook_size: int, kwargs: dict | None = None):
        super().__init__()
        self.follows_processes = "sync_codebook" not in (kwargs or {})
        if isinstance(quantizer, str):
            quantizer = build_quantizer(quantizer, dim=dim, codebook_size=codebook_size, kwargs=kwargs or {})
        elif kwargs:
            raise ValueError("quantizer_kwargs go with a quantizer's name; the module given has its own already")
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
        self.quantizer = quantizer
        # Codes that are to begin as means of the first features trained on.
        begun = [part.initted for part in quantizer.modules() if isinstance(part, Codebook)]
        self.begins_with_data = any(not each.is_meta and not each for each in begun)

    def _apply(self, fn, recurse=True):
        """Follow the module around to another device, but never to another precision.

        The codebook's moving averages lose small steps in half precision.
        """

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype == tensor.dtype or not tensor.is_floating_point():
                return moved
            return tensor.to(moved.device)

        return super()._apply(keep_precision, recurse)

    @torch.compiler.disable
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """features (b, n, d) -> quantized (b, n, d), with the straight-through gradient; ids (b, n); loss."""
        if self.follows_processes:
            follow_processes(self.quantizer)
        with torch.autocast(features.device.type, enabled=False), joint_shares():
            quantized, ids, *rest = self.quantizer(features.float())
        self._check_ids(ids, features)
        # FSQ has nothing to add to the loss.
        loss = rest[0] if rest else quantized.new_zeros(())
        return quantized, ids.long(), loss.float().sum()

    @torch.no_grad()
    @torch.compiler.disable
    def ids(self, features: Tensor) -> Tensor:
        """features (b, n, d) -> ids (b, n), int64, in bounded memory; changes nothing, in training mode either.

        Raises ValueError for codes that are yet to be made of the first features trained on.
        """
        b, n, d = features.shape
        if self.begins_with_data:
            for part in self.quantizer.modules():
                if isinstance(part, Codebook) and not part.initted:
                    raise ValueError("the codes are means of the first features trained on: expected some, got none")
        if n == 0:  # a piece of a stream that completes no time step; not every quantizer takes nothing
            return torch.empty(b, 0, dtype=torch.int64, device=features.device)
        training = self.quantizer.training
        self.quantizer.eval()
        try:
            with torch.autocast(features.device.type, enabled=False):
                chunks = features.reshape(1, b * n, d).split(CHUNK, dim=1)
                ids = torch.cat([self._nearest(chunk.float()) for chunk in chunks], dim=1)
        finally:
            self.quantizer.train(training)
        return ids.reshape(b, n)

    def features(self, ids: Tensor) -> Tensor:
        """ids (b, n) -> features (b, n, d), float32: what `forward` gives in eval mode ("simvq": within 1e-6)."""
        with torch.autocast(ids.device.type, enabled=False):
            if hasattr(self.quantizer, "get_output_from_indices"):
                return self.quantizer.get_output_from_indices(ids)
            return self.quantizer.indices_to_codes(ids)

    def _nearest(self, features: Tensor) -> Tensor:
        plain = isinstance(self.quantizer, VectorQuantize) and not self.quantizer.has_projections
        if plain and self.quantizer.use_cosine_sim and self.quantizer.heads == 1:
            # The same ids as the module's own call, without its one-hot matrix of tokens × codes.
            codes = F.normalize(self.quantizer.codebook, dim=-1)
            at_once = max(1, COSINES // len(codes)) if features.device.type == "cpu" else CHUNK
            parts = F.normalize(features, dim=-1).split(at_once, dim=1)
            return torch.cat([first_largest(part @ codes.T) for part in parts], dim=1)
        ids = self.quantizer(features)[1].long()
        self._check_ids(ids, features)
        return ids

    def _check_ids(self, ids: Tensor, features: Tensor) -> None:
        if ids.shape != features.shape[:2]:
            raise ValueError(
                f"a quantizer must give one id a token, {tuple(features.shape[:2])}, got {tuple(ids.shape)}: "
                "several heads, codebooks or residuals are more than a video's ids can say"
            )
