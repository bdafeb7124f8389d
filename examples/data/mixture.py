"""Batches that mix several data sets by weight, each batch a function of (seed, step, process) alone.

So a training that is resumed at any step, or that loads ahead in worker processes, sees the same batches.

b = batch · f = frames
"""

import math
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Source(NamedTuple):
    """A data set, its weight in the mixture (the share of the batches), and the number of items of its batches."""

    dataset: Dataset
    weight: float
    batch_size: int


class Batches(Dataset):
    """Item i is the batch of step i: what `collate` makes of items of one source.

    A source is read in epochs, in each of which every item comes once. `process` of `processes` gets its own part of
    each step's batch. Raises ValueError for a weight that is negative or not finite, and where all are 0.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        collate: Callable[[list], dict],
        *,
        seed: int,
        steps: int,
        process: int = 0,
        processes: int = 1,
    ):
        weights = [source.weight for source in sources]
        self.sources = [source for source in sources if source.weight > 0]
        if not self.sources or not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(f"weights must be finite and at least 0, and one of them above 0, got {weights}")
        self.collate, self.seed, self.steps = collate, seed, steps
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict:
        if not 0 <= step < self.steps:
            raise IndexError(f"step must lie in [0, {self.steps}), got {step}")
        rng = random.Random(f"{self.seed} {step}")
        [source] = rng.choices(self.sources, [source.weight for source in self.sources])
        first = (step * self.processes + self.process) * source.batch_size
        return self.collate(self._items(source.dataset, range(first, first + source.batch_size)))

    def _items(self, dataset: Dataset, numbers: Sequence[int]) -> list[dict]:
        """Items of a data set by their numbers, which count on from epoch to epoch, each in its own order."""
        length = len(dataset)
        epochs, ranks = zip(*(divmod(number, length) for number in numbers))
        indices = [int(shuffled(length, self.seed, epoch)[rank]) for epoch, rank in zip(epochs, ranks)]
        if hasattr(dataset, "draw"):
            return [dataset.draw(index, epoch) for index, epoch in zip(indices, epochs)]
        return dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else [dataset[i] for i in indices]


@lru_cache(maxsize=8)
def shuffled(length: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch, a permutation of range(length)."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(hash((seed, epoch)) % 2**63))


def stack_clips(items: list[dict]) -> tuple[Tensor, list[str]]:
    """Items of the video data sets -> videos (b, 3, f, h, w) and their captions."""
    return torch.stack([item["video"] for item in items]), [item["caption"] for item in items]
