"""Texts: embeddings for a conditional model, from captions and an encoder, or given.

b = batch · m = text tokens · d = width of the embeddings
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from phenaki_pytorch.conditions.t5 import T5TextEncoder
from phenaki_pytorch.core.checks import check_items
from phenaki_pytorch.core.contracts import TextEncoder
from phenaki_pytorch.layers.texts import check_context


class Texts:
    """An encoder and the width of its embeddings; `dim` None for a model that reads no text.

    Without an encoder, a model that reads texts is given their embeddings. This is not a module, so that the encoder's
    weights are no part of the model that holds it. Raises ValueError where the encoder has a `dim` and it is another.
    """

    def __init__(self, encoder: str | TextEncoder | None, dim: int | None):
        if isinstance(encoder, str):
            encoder = T5TextEncoder(encoder)
        self.encoder, self.dim = encoder if dim is not None else None, dim
        width = getattr(self.encoder, "dim", None)
        if isinstance(width, int) and width != dim:
            raise ValueError(f"the text encoder is {width} wide, the model's dim_context is {dim}")

    @property
    def is_ours(self) -> bool:
        """Whether the encoder is a T5TextEncoder, which is moved along and saved by name, unlike the user's own."""
        return isinstance(self.encoder, T5TextEncoder)

    def config(self, given: str) -> dict | str | None:
        """What is saved; `given` stands for an encoder of the user's own."""
        if self.is_ours:
            return {"name": self.encoder.name, "max_length": self.encoder.max_length}
        return None if self.encoder is None else given

    def read(
        self, texts: str | Sequence | None, embeds: Tensor | None, mask: Tensor | None, like: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Captions, or embeddings (b, m, d) and mask, bool (b, m) -> embeddings and mask; None, None without texts.

        Device and dtype are those of `like`. Whether there is one text for each sample is checked by the model.
        """
        given = (texts is not None) + (embeds is not None)
        if self.dim is None:
            if given or mask is not None:
                raise ValueError("this model reads no text: expected no texts, text_embeds and text_mask, got some")
            return None, None
        if given != 1:
            raise ValueError(f"expected either texts or text_embeds, got {('none', 'one', 'both')[given]}")
        name, mask_name = "text_embeds", "text_mask"
        if texts is not None:
            if self.encoder is None:
                raise ValueError("this model has no text encoder: expected text_embeds, got texts")
            if mask is not None:
                raise ValueError("text_mask is only allowed with text_embeds, got it with texts")
            texts = [texts] if isinstance(texts, str) else list(texts)
            if not texts:
                raise ValueError("texts must not be empty, got none")
            check_items("texts", texts, str)
            encoded = self.encoder(texts)
            if not (isinstance(encoded, tuple) and len(encoded) == 2):
                raise TypeError(
                    f"a text encoder must return a pair, embeddings and mask, got a {type(encoded).__name__}"
                )
            embeds, mask = encoded
            name, mask_name = "the encoder's embeddings", "the encoder's mask"
        _check_kinds(embeds, mask)
        check_context(embeds, mask, self.dim, None, name=name, mask_name=mask_name)
        if texts is not None and len(embeds) != len(texts):
            raise ValueError(f"the text encoder gave {len(embeds)} embeddings for {len(texts)} texts")
        return embeds.to(like.device, like.dtype), None if mask is None else mask.to(like.device)


def padded_to_one_length(
    context: Tensor | None, context_mask: Tensor | None, image_context: Tensor | None, image_mask: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The texts of videos, (b, m, d), and of their images, (b, i, m, d), with masks: the same with one m for both.

    What does not fit is left to the checks of the model that reads it.
    """
    if context is None or image_context is None or (context.ndim, image_context.ndim) != (3, 4):
        return context, context_mask, image_context, image_mask
    image_context = image_context.to(context)
    if context_mask is None:
        context_mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
    if image_mask is None:
        image_mask = torch.ones(image_context.shape[:3], dtype=torch.bool)
    longest = max(context.shape[1], image_context.shape[2])
    missing, image_missing = longest - context.shape[1], longest - image_context.shape[2]
    return (
        F.pad(context, (0, 0, 0, missing)),
        F.pad(context_mask, (0, missing)),
        F.pad(image_context, (0, 0, 0, image_missing)),
        F.pad(image_mask.to(context.device), (0, image_missing)),
    )


def _check_kinds(embeds: object, mask: object) -> None:
    """Refuse, with a TypeError, what are not embeddings and a mask or None."""
    if not (isinstance(embeds, Tensor) and embeds.is_floating_point()):
        got = embeds.dtype if isinstance(embeds, Tensor) else type(embeds).__name__
        raise TypeError(f"text embeddings must be a tensor, floating point, got {got}")
    if not isinstance(mask, Tensor | None):
        raise TypeError(f"the mask of text embeddings must be a tensor or None, got {type(mask).__name__}")
