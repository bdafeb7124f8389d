"""What a prior is told of a clip: its caption as a text or as a class, its first frame, its actions.

b = batch · c = channels · f = frames · t, h, w = grid of ids · m = text tokens · d = width of the text embeddings
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from phenaki_pytorch.core.contracts import TextEncoder

CONDITIONS = ("text", "frames", "actions", "classes")


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


class Conditions:
    """Turns items of the data sets into what a prior is told of them.

    names    some of `CONDITIONS`, or none
    encoder  of the texts, if there are any
    classes  the captions, each of which is a class, if there are classes
    actions  the names of the actions, if there are actions
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        encoder: TextEncoder | None = None,
        classes: Sequence[str] = (),
        actions: Sequence[str] = (),
    ):
        self.names, self.classes, self.actions = set(names), list(classes), list(actions)
        self.texts = Captions(encoder if "text" in self.names else None)

    def tell(self, items: list[dict]) -> dict[str, Tensor]:
        """Items of the videos' data sets -> what is kept beside their ids: bytes (b, c, 1, h, w), actions (b, f, a)."""
        told = {}
        if "frames" in self.names:
            first = torch.stack([item["video"][:, :1] for item in items])
            told["frames"] = (255 * first).round().byte()
        if "actions" in self.names:
            told["actions"] = torch.stack([item["actions"] for item in items])
        return told

    def collate(self, items: list[dict]) -> dict[str, Tensor]:
        """Items of `Encoded` -> arguments of the loss of a VideoGPT, and of a Phenaki but for `prime_steps`."""
        return {"video_ids": torch.stack([item["latents"] for item in items]), **self.given(items)}

    def given(self, items: list[dict]) -> dict[str, Tensor]:
        """Items of `Encoded` -> what the model is given beside the latents."""
        batch = {}
        if "text" in self.names:
            batch["text_embeds"], batch["text_mask"] = self.texts([item["caption"] for item in items])
        if "classes" in self.names:
            batch["classes"] = torch.tensor([self.classes.index(item["caption"]) for item in items])
        if "frames" in self.names:
            batch["frames"] = torch.stack([item["frames"] for item in items]).float() / 255
        if "actions" in self.names:
            batch["actions"] = torch.stack([item["actions"] for item in items])
        return batch
