"""The data of the second stage: clips as ids or continuous latents, which are computed once, with what is told of them.

b = batch · f = frames · t, h, w = grid of the latents · e = channels of continuous latents
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
    """Encoded clips: {"latents": Tensor, "caption": str, "prime_steps": int}, and what else is `told` of each.

    latents      ids (n, t, h, w), of which an item has int64, or continuous ones (n, t, h, w, e), float32 in an item
    captions     t of each clip: the first is that of the whole clip, number k of what follows its first k time steps
    told         further tensors by name, with one row for each clip
    prime_prob   share of the draws that are continuations: their first 1 to t − 1 time steps are given, not generated

    Where the caption of what comes after the given time steps differs from that of the whole clip, half of the
    continuations have it. They then begin at the first time step from which it holds: the given frames do not show
    it yet, so that the model has to read it in the caption.
    """

    def __init__(
        self,
        latents: Tensor,
        captions: list[list[str]],
        *,
        told: Mapping[str, Tensor] | None = None,
        prime_prob: float = 0.0,
        seed: int = 0,
    ):
        self.latents, self.captions, self.told = latents, captions, dict(told or {})
        self.prime_prob, self.seed = prime_prob, seed

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict:
        told = {name: values[index] for name, values in self.told.items()}
        latents = self.latents[index]
        latents = latents.float() if latents.is_floating_point() else latents.long()
        return {"latents": latents, "caption": self.captions[index][0], "prime_steps": 0, **told}

    def draw(self, index: int, epoch: int) -> dict:
        """An item as training reads it, a function of (seed, index, epoch) alone."""
        rng, item, steps = random.Random(f"{self.seed} {index} {epoch}"), self[index], self.latents.shape[1]
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
            parts.append(type(self)(self.latents[part], self.captions[part], told=told, **options))
        return tuple(parts)


def compact(latents: Tensor) -> Tensor:
    """Latents in half of their bits, on the CPU."""
    return latents.to(torch.float16 if latents.is_floating_point() else torch.int32).cpu()


@torch.no_grad()
def encode_all(
    tokenizer: Tokenizer,
    dataset: Dataset,
    count: int,
    *,
    seed: int,
    device: torch.device,
    encode: Callable[[Tensor], Tensor] | None = None,
    prime_prob: float = 0.0,
    tell: Callable[[list[dict]], dict[str, Tensor]] | None = None,
) -> Encoded:
    """Encode at least `count` items of a video data set, in the order of `Batches`.

    encode  videos -> ids or continuous latents; default: the tokenizer's ids. Kept as int32 or float16
    tell    items -> what else is told of them

    The one caption of an item without "captions_after" is used for every continuation.
    """
    encode = encode or tokenizer.encode
    batches = Batches([Source(dataset, 1.0, ENCODE_BATCH)], list, seed=seed, steps=-(-count // ENCODE_BATCH))
    latents, captions, told = [], [], []
    for items in (batches[step] for step in range(len(batches))):
        videos, texts = stack_clips(items)
        latents.append(compact(encode(videos.to(device))))
        told.append({} if tell is None else tell(items))
        lengths = [tokenizer.num_frames(steps) for steps in range(1, latents[-1].shape[1])]
        for item, text in zip(items, texts):
            after = item.get("captions_after")
            captions.append([text, *(text if after is None else after[frames - 1] for frames in lengths)])
    told = {name: torch.cat([each[name] for each in told]) for name in told[0]}
    return Encoded(torch.cat(latents), captions, told=told, prime_prob=prime_prob, seed=seed)


class WithImages(Dataset):
    """Encoded clips, each with `count` images that are drawn independently: items have {"images": their items} too."""

    def __init__(self, clips: Encoded, images: Encoded, count: int):
        self.clips, self.images, self.count = clips, images, count

    def __len__(self) -> int:
        return len(self.clips)

    def draw(self, index: int, epoch: int) -> dict:
        """An item as training reads it, a function of (seed, index, epoch) alone."""
        rng = random.Random(f"images {self.clips.seed} {index} {epoch}")
        images = [self.images[rng.randrange(len(self.images))] for _ in range(self.count)]
        return self.clips.draw(index, epoch) | {"images": images}
