"""What the second stage learns from: clips that were turned into ids once, captions that were embedded once.

b = batch · t, h, w = grid of ids · m = text tokens · d = width of the text embeddings
"""

import random

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mixture import Batches, Source, stack_clips
from phenaki_pytorch.texts import TextEncoder


class Encoded(Dataset):
    """Clips that were turned into ids once: {"ids": int64 (t, h, w), "caption": str, "prime_steps": int}.

    ids          (n, t, h, w)
    captions     of each clip, t of them: of the whole, and of what is seen after its first 1, ... t − 1 time steps
    prime_prob   share of the draws that are continuations: 1 to t − 1 of their first time steps are given. Where what
                 comes after these is told otherwise than the whole, every second draw is told so, and goes on from
                 where that has just become true: the frames do not say it yet, the caption alone does
    """

    def __init__(self, ids: Tensor, captions: list[list[str]], *, prime_prob: float = 0.0, seed: int = 0):
        self.ids, self.captions, self.prime_prob, self.seed = ids, captions, prime_prob, seed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        return {"ids": self.ids[index].long(), "caption": self.captions[index][0], "prime_steps": 0}

    def draw(self, index: int, epoch: int) -> dict:
        """An item as it is trained on, a function of (seed, index, epoch) alone."""
        rng, item, steps = random.Random(f"{self.seed} {index} {epoch}"), self[index], self.ids.shape[1]
        if steps == 1 or rng.random() >= self.prime_prob:
            return item
        given, told = rng.randint(1, steps - 1), self.captions[index]
        if told[given] == told[0] or rng.random() < 0.5:
            return item | {"prime_steps": given}
        while told[given] == told[given - 1]:
            given -= 1
        return item | {"prime_steps": given, "caption": told[given]}

    def split(self, kept: int) -> tuple["Encoded", "Encoded"]:
        """The first clips, and the others."""
        parts = (slice(kept), slice(kept, None))
        of = {"prime_prob": self.prime_prob, "seed": self.seed}
        return tuple(type(self)(self.ids[part], self.captions[part], **of) for part in parts)


class Captions:
    """The text encoder, asked once for each caption; without one, captions are left out."""

    def __init__(self, encoder: TextEncoder | None):
        self.encoder, self.known = encoder, {}

    @property
    def width(self) -> int | None:
        """Of the embeddings, as MaskGit's `dim_context`."""
        return None if self.encoder is None else self([""])[0].shape[-1]

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        for text in set(texts) - set(self.known):
            embeds, mask = self.encoder([text])
            self.known[text] = embeds[0, mask[0]].cpu()
        embeds = nn.utils.rnn.pad_sequence([self.known[text] for text in texts], batch_first=True)
        lengths = torch.tensor([len(self.known[text]) for text in texts])
        return embeds, torch.arange(embeds.shape[1]) < lengths[:, None]

    def collate(self, items: list[dict]) -> dict[str, Tensor]:
        batch = {"video_ids": torch.stack([item["ids"] for item in items])}
        batch["prime_steps"] = torch.tensor([item["prime_steps"] for item in items])
        if "crossed" in items[0]:
            batch["crossed"] = items[0]["crossed"]
        if self.encoder is None:
            return batch
        embeds, mask = self([item["caption"] for item in items])
        return batch | {"text_embeds": embeds, "text_mask": mask}


def encode_all(
    cvivit: nn.Module, dataset: Dataset, count: int, *, seed: int, device: torch.device, prime_prob: float = 0.0
) -> Encoded:
    """The ids of at least `count` draws of a data set of videos, in the order of `Batches`.

    Items that have no "captions_after" are told by their one caption, from wherever one goes on.
    """
    draws = Batches([Source(dataset, 1.0, 50)], list, seed=seed, steps=-(-count // 50))
    ids, captions = [], []
    for items in (draws[i] for i in range(len(draws))):
        videos, texts = stack_clips(items)
        ids.append(cvivit.encode(videos.to(device)).int().cpu())
        given = [cvivit.num_frames(steps) for steps in range(1, ids[-1].shape[1])]
        for item, text in zip(items, texts):
            after = item.get("captions_after")
            captions.append([text, *(text if after is None else after[n - 1] for n in given)])
    return Encoded(torch.cat(ids), captions, prime_prob=prime_prob, seed=seed)
