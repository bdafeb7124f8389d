"""What the second stage learns from: clips that were turned into ids once, captions that were embedded once.

b = batch · t, h, w = grid of ids · m = text tokens · d = width of the text embeddings
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mixture import Batches, Source, stack_clips
from phenaki_pytorch.texts import TextEncoder


class Encoded(Dataset):
    """Clips that were turned into ids once: {"ids": int64 (t, h, w), "caption": str}."""

    def __init__(self, ids: Tensor, captions: list[str]):
        self.ids, self.captions = ids, captions

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        return {"ids": self.ids[index].long(), "caption": self.captions[index]}


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
        if self.encoder is None:
            return batch
        embeds, mask = self([item["caption"] for item in items])
        return batch | {"text_embeds": embeds, "text_mask": mask}


def encode_all(cvivit: nn.Module, dataset: Dataset, count: int, *, seed: int, device: torch.device) -> Encoded:
    """The ids of at least `count` draws of a data set of videos, in the order of `Batches`."""
    draws = Batches([Source(dataset, 1.0, 50)], stack_clips, seed=seed, steps=-(-count // 50))
    ids, captions = [], []
    for videos, texts in (draws[i] for i in range(len(draws))):
        ids.append(cvivit.encode(videos.to(device)).int().cpu())
        captions += texts
    return Encoded(torch.cat(ids), captions)
