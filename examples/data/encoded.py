"""The data of the second stage: clips as ids, which are computed once, with what a prior is told of them.

b = batch · f = frames · t, h, w = grid of ids · a = actions
"""

import random
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.mixture import Batches, Source, stack_clips
from phenaki_pytorch.core.contracts import Tokenizer

ENCODE_BATCH = 50


class Encoded(Dataset):
    """Encoded clips: {"ids": int64 (t, h, w), "caption": str, "prime_steps": int}, and what else is `told` of each.

    ids          (n, t, h, w)
    captions     t of each clip: the first is that of the whole clip, number k of what follows its first k time steps
    told         further tensors by name, with one row for each clip
    prime_prob   share of the draws that are continuations: their first 1 to t − 1 time steps are given, not generated

    Where the caption of what comes after the given time steps differs from that of the whole clip, half of the
    continuations have it. They then begin at the first time step from which it holds: the given frames do not show
    it yet, so that the model has to read it in the caption.
    """

    def __init__(
        self,
        ids: Tensor,
        captions: list[list[str]],
        *,
        told: Mapping[str, Tensor] | None = None,
        prime_prob: float = 0.0,
        seed: int = 0,
    ):
        self.ids, self.captions, self.told = ids, captions, dict(told or {})
        self.prime_prob, self.seed = prime_prob, seed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        told = {name: values[index] for name, values in self.told.items()}
        return {"ids": self.ids[index].long(), "caption": self.captions[index][0], "prime_steps": 0, **told}

    def draw(self, index: int, epoch: int) -> dict:
        """An item as training reads it, a function of (seed, index, epoch) alone."""
        rng, item, steps = random.Random(f"{self.seed} {index} {epoch}"), self[index], self.ids.shape[1]
        if steps == 1 or rng.random() >= self.prime_prob:
            return item
        given, captions = rng.randint(1, steps - 1), self.captions[index]
        if captions[given] == captions[0] or rng.random() < 0.5:
            return item | {"prime_steps": given}
        while captions[given] == captions[given - 1]:
            given -= 1
        return item | {"prime_steps": given, "caption": captions[given]}

    def split(self, count: int) -> tuple["Encoded", "Encoded"]:
        """The first `count` clips, and the others."""
        options = {"prime_prob": self.prime_prob, "seed": self.seed}
        parts = []
        for part in (slice(count), slice(count, None)):
            told = {name: values[part] for name, values in self.told.items()}
            parts.append(type(self)(self.ids[part], self.captions[part], told=told, **options))
        return tuple(parts)


def encode_all(
    tokenizer: Tokenizer,
    dataset: Dataset,
    count: int,
    *,
    seed: int,
    device: torch.device,
    prime_prob: float = 0.0,
    tell: Callable[[list[dict]], dict[str, Tensor]] | None = None,
) -> Encoded:
    """Encode at least `count` items of a video data set, in the order of `Batches`.

    The one caption of an item without "captions_after" is used for every continuation. `tell` turns items into what
    else is told of them.
    """
    batches = Batches([Source(dataset, 1.0, ENCODE_BATCH)], list, seed=seed, steps=-(-count // ENCODE_BATCH))
    ids, captions, told = [], [], []
    for items in (batches[step] for step in range(len(batches))):
        videos, texts = stack_clips(items)
        ids.append(tokenizer.encode(videos.to(device)).int().cpu())
        told.append({} if tell is None else tell(items))
        lengths = [tokenizer.num_frames(steps) for steps in range(1, ids[-1].shape[1])]
        for item, text in zip(items, texts):
            after = item.get("captions_after")
            captions.append([text, *(text if after is None else after[frames - 1] for frames in lengths)])
    told = {name: torch.cat([each[name] for each in told]) for name in told[0]}
    return Encoded(torch.cat(ids), captions, told=told, prime_prob=prime_prob, seed=seed)
