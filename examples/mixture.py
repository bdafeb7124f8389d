"""Batches that mix several data sets by weight, each batch a function of (seed, step, process) alone.

So a run that is resumed at any step, or loads ahead in worker processes, sees the batches of one that was not.

b = batch · f = frames
"""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Source(NamedTuple):
    """A data set, its weight in the mixture (the share of the batches), and how many items a batch of it has."""

    dataset: Dataset
    weight: float
    batch_size: int


class Batches(Dataset):
    """Item i is the batch of step i: what `collate` makes of items of one source, drawn without replacement.

    `process` of `processes` gets its own part of each step's batch.
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
        self.sources = [source for source in sources if source.weight > 0]
        if not self.sources or any(source.weight < 0 for source in sources):
            raise ValueError(f"weights must be ≥ 0 and not all 0, got {[source.weight for source in sources]}")
        self.collate, self.seed, self.steps = collate, seed, steps
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict:
        if not 0 <= step < self.steps:
            raise IndexError(f"step must lie in [0, {self.steps}), got {step}")
        draw = random.Random(f"{self.seed} {step}")
        [source] = draw.choices(self.sources, [source.weight for source in self.sources])
        first = (step * self.processes + self.process) * source.batch_size
        return self.collate(self._items(source.dataset, range(first, first + source.batch_size)))

    def _items(self, dataset: Dataset, numbers: Sequence[int]) -> list[dict]:
        """Draws from a data set, by their numbers: its epochs follow one another, each in an order of its own."""
        length = len(dataset)
        epochs, places = zip(*(divmod(number, length) for number in numbers))
        indices = [int(shuffled(length, self.seed, epoch)[place]) for epoch, place in zip(epochs, places)]
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
