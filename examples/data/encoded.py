"""The data of the second stage: clips as ids, and captions as embeddings, each computed once.

b = batch · t, h, w = grid of ids · m = text tokens · d = width of the text embeddings
"""

import random

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from data.mixture import Batches, Source, stack_clips
from phenaki_pytorch.core.contracts import TextEncoder, Tokenizer

ENCODE_BATCH = 50


class Encoded(Dataset):
    """Encoded clips: {"ids": int64 (t, h, w), "caption": str, "prime_steps": int}.

    ids          (n, t, h, w)
    captions     t of each clip: the first is that of the whole clip, number k of what follows its first k time steps
    prime_prob   share of the draws that are continuations: their first 1 to t − 1 time steps are given, not generated

    Where the caption of what comes after the given time steps differs from that of the whole clip, half of the
    continuations have it. They then begin at the first time step from which it holds: the given frames do not show
    it yet, so that the model has to read it in the caption.
    """

    def __init__(self, ids: Tensor, captions: list[list[str]], *, prime_prob: float = 0.0, seed: int = 0):
        self.ids, self.captions, self.prime_prob, self.seed = ids, captions, prime_prob, seed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        return {"ids": self.ids[index].long(), "caption": self.captions[index][0], "prime_steps": 0}

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
        parts = (slice(count), slice(count, None))
        return tuple(type(self)(self.ids[part], self.captions[part], **options) for part in parts)


class Captions:
    """A text encoder that is called once for each caption; None leaves captions out."""

    def __init__(self, encoder: TextEncoder | None):
        self.encoder, self.known = encoder, {}

    @property
    def width(self) -> int | None:
        """The width of the embeddings, MaskGit's `dim_context`."""
        return None if self.encoder is None else self([""])[0].shape[-1]

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Texts -> embeddings (b, m, d) and their mask, bool (b, m), True where real; on the CPU."""
        for text in set(texts) - set(self.known):
            embeds, mask = self.encoder([text])
            self.known[text] = embeds[0, mask[0]].cpu()
        embeds = nn.utils.rnn.pad_sequence([self.known[text] for text in texts], batch_first=True)
        lengths = torch.tensor([len(self.known[text]) for text in texts])
        return embeds, torch.arange(embeds.shape[1]) < lengths[:, None]

    def collate(self, items: list[dict]) -> dict[str, Tensor]:
        """Items of `Encoded` -> arguments of the loss."""
        batch = {"video_ids": torch.stack([item["ids"] for item in items])}
        batch["prime_steps"] = torch.tensor([item["prime_steps"] for item in items])
        if "crossed" in items[0]:
            batch["crossed"] = items[0]["crossed"]
        if self.encoder is None:
            return batch
        embeds, mask = self([item["caption"] for item in items])
        return batch | {"text_embeds": embeds, "text_mask": mask}


def encode_all(
    tokenizer: Tokenizer, dataset: Dataset, count: int, *, seed: int, device: torch.device, prime_prob: float = 0.0
) -> Encoded:
    """Encode at least `count` items of a video data set, in the order of `Batches`.

    The one caption of an item without "captions_after" is used for every continuation.
    """
    batches = Batches([Source(dataset, 1.0, ENCODE_BATCH)], list, seed=seed, steps=-(-count // ENCODE_BATCH))
    ids, captions = [], []
    for items in (batches[step] for step in range(len(batches))):
        videos, texts = stack_clips(items)
        ids.append(tokenizer.encode(videos.to(device)).int().cpu())
        lengths = [tokenizer.num_frames(steps) for steps in range(1, ids[-1].shape[1])]
        for item, text in zip(items, texts):
            after = item.get("captions_after")
            captions.append([text, *(text if after is None else after[frames - 1] for frames in lengths)])
    return Encoded(torch.cat(ids), captions, prime_prob=prime_prob, seed=seed)
