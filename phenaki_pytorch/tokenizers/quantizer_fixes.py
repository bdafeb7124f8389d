"""Faults of vector-quantize-pytorch (1.32), corrected from outside; each can go when the package has corrected it.

- A `VectorQuantize` decides when it is built whether its codebook averages over all processes. Built before the process
  group, every process has a codebook of its own: `follow_processes`.
- LFQ's mean over processes drops what `all_reduce` returns, and divides one process's share by their number:
  `joint_entropy`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
import torch.distributed.nn as dist_nn
from torch import Tensor, nn
from vector_quantize_pytorch import lookup_free_quantization
from vector_quantize_pytorch.vector_quantize_pytorch import (
    Codebook,
    batched_sample_vectors,
    noop,
    sample_vectors_distributed,
)


def several_processes() -> bool:
    """Whether this is one process of a distributed run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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
