"""Faults of vector-quantize-pytorch (1.32), corrected from outside; each can go when the package has corrected it.

- A `VectorQuantize` decides when it is built whether its codebook averages over all processes. Built before the process
  group, every process has a codebook of its own: `follow_processes`.
- A `VectorQuantize` that is initialised by data runs a k-means, in eval mode too, and fails with 0 iterations of it,
  which would give random features: `initialise_codes`.
- Where there are fewer features than codes to start or restart, it starts several codes alike, or, in one process,
  restarts some of them only: `sample_or_copy`.
- LFQ's mean over processes drops what `all_reduce` returns, and divides one process's share by their number:
  `joint_entropy`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
import torch.distributed.nn as dist_nn
from einops import rearrange, repeat
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize, lookup_free_quantization
from vector_quantize_pytorch.vector_quantize_pytorch import (
    Codebook,
    batched_sample_vectors,
    noop,
    sample_vectors_distributed,
)

from phenaki_pytorch.core.statistics import several_processes


def codebooks_of(quantizer: nn.Module) -> list:
    """The codebooks in a quantizer that move by averages."""
    return [part for part in quantizer.modules() if isinstance(part, Codebook)]


def follow_processes(quantizer: nn.Module) -> None:
    """Let the averages of codebooks, and the replacement of their dead codes, use the features of all processes."""
    together = several_processes()
    for codebook in codebooks_of(quantizer):
        if codebook.use_ddp != together:
            codebook.use_ddp = together
            codebook.all_reduce_fn = codebook.kmeans_all_reduce_fn = dist.all_reduce if together else noop
            sample = sample_vectors_distributed if together else batched_sample_vectors
            codebook.sample_fn = codebook.replace_sample_fn = sample


@torch.no_grad()
def initialise_codes(quantizer: VectorQuantize, features: Tensor) -> None:
    """Start the codes as random ones of the features, (b, n, d), of all processes, where they have not started yet.

    From then on, codes that restart are drawn in the same way, by `sample_or_copy`.
    """
    codebook = quantizer._codebook
    sample = sample_vectors_distributed if codebook.use_ddp else batched_sample_vectors
    codebook.sample_fn = codebook.replace_sample_fn = partial(sample_or_copy, sample)
    if not codebook.initted:
        features = codebook.transform_input(quantizer.project_in(features))
        codes = codebook.sample_fn(rearrange(features, "b n d -> 1 (b n) d"), codebook.codebook_size)
        codebook.embed.data.copy_(codes)
        codebook.embed_avg.data.copy_(codes)
        codebook.cluster_size.data.fill_(1)
        codebook.initted.data.fill_(True)


def sample_or_copy(sample: Callable[[Tensor, int], Tensor], features: Tensor, count: int) -> Tensor:
    """`count` random ones of the features (1, n, d), drawn by `sample`, no two of them alike -> (1, count, d).

    Where n < count, the features are repeated, and noise (σ = 0.01 / √d) tells the copies apart.
    """
    _, n, d = features.shape
    if n < count:
        copies = repeat(features, "1 n d -> 1 (r n) d", r=math.ceil(count / n))
        features = copies + 0.01 / math.sqrt(d) * torch.randn_like(copies)
    return sample(features, count)


@contextmanager
def joint_entropy() -> Iterator[None]:
    """Let LFQ's entropy be that of the codes of all processes."""
    original = lookup_free_quantization.maybe_distributed_mean
    lookup_free_quantization.maybe_distributed_mean = mean_over_processes
    try:
        yield
    finally:
        lookup_free_quantization.maybe_distributed_mean = original


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes, with a gradient."""
    return dist_nn.all_reduce(values) / dist.get_world_size() if several_processes() else values
