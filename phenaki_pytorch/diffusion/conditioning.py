"""The conditions of LatteTransformer: time, classes and texts of a video and of its images, some of them dropped.

b = batch · t = time steps of the video · i = images · f = t + i · s = 1 + i: the video and each image · d = dim
m = text tokens · c = dim_context · k = condition tokens of a time step · n = patches of a time step
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_bool, check_classes
from phenaki_pytorch.diffusion.blocks import by_step
from phenaki_pytorch.diffusion.embedders import TextEmbedding, TimeEmbedding
from phenaki_pytorch.layers.attention import Context
from phenaki_pytorch.layers.texts import check_context, with_null


class RawConditions(NamedTuple):
    """The conditions of a batch, as the user gives them; None for what a model does not have.

    images   i
    dropped  bool (b,): which samples have the null class and the null context
    """

    time: Tensor  # (b,)
    classes: Tensor | None = None  # int64 (b,)
    context: Tensor | None = None  # (b, m, c)
    context_mask: Tensor | None = None  # bool (b, m)
    images: int = 0
    image_classes: Tensor | None = None  # int64 (b, i)
    image_context: Tensor | None = None  # (b, i, m, c)
    image_context_mask: Tensor | None = None  # bool (b, i, m)
    dropped: Tensor | None = None


class Conditions(NamedTuple):
    """The conditions as vectors of width d; None for what a model does not have."""

    time: Tensor  # (b, 1, d)
    classes: Tensor | None  # (b, s, d)
    texts: Tensor | None  # (b, s, m, d)
    text_mask: Tensor | None  # bool (b, s, m)

    def vector(self) -> Tensor:
        """Time and class as one, (b, s, d), or (b, 1, d) without classes."""
        return self.time if self.classes is None else self.time + self.classes

    def contexts(self) -> tuple[Context | None, Context | None]:
        """What cross-attention reads: the text of the video, (b, m, d), and those of the images, (b · i, m, d)."""
        if self.texts is None:
            return None, None
        images = (rearrange(part[:, 1:], "b i m ... -> (b i) m ...") for part in (self.texts, self.text_mask))
        return Context(self.texts[:, 0], self.text_mask[:, 0]), Context(*images)

    def tokens(self, time_steps: int, images: int) -> Tensor:
        """Time, class and text as tokens of each time step, (b, f, k, d)."""
        parts = [rearrange(part, "b s d -> b s 1 d") for part in (self.time, self.classes) if part is not None]
        parts += [] if self.texts is None else [self.texts]
        parts = [by_step(part, time_steps).expand(-1, time_steps + images, -1, -1) for part in parts]
        return torch.cat(parts, dim=2)

    def token_mask(self, time_steps: int, images: int, patches: int) -> Tensor | None:
        """Which tokens and patches of a time step are real, bool (b, f, k + n); None where all are."""
        if self.text_mask is None:
            return None
        mask = by_step(self.text_mask, time_steps).expand(-1, time_steps + images, -1)
        before = 1 if self.classes is None else 2
        return nn.functional.pad(mask, (before, patches), value=True)


class Conditioning(nn.Module):
    """Reads time, classes (where there are `num_classes`) and texts (of width `dim_context`).

    In training mode it drops a share of them: the null class is one more row of the table, the null context one token.
    """

    def __init__(self, dim: int, *, num_classes: int | None, dim_context: int | None, drop_prob: float):
        super().__init__()
        self.num_classes, self.dim_context, self.drop_prob = num_classes, dim_context, drop_prob
        self.time = TimeEmbedding(dim)
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, dim)
        self.text = None if dim_context is None else TextEmbedding(dim_context, dim)
        self.null_context = None if dim_context is None else nn.Parameter(torch.randn(dim_context) / dim_context**0.5)

    def forward(self, raw: RawConditions) -> Conditions:
        dropped = self._dropped(raw)
        classes = self._class_ids(raw)
        if classes is not None:
            if dropped is not None:
                classes = classes.masked_fill(dropped, self.num_classes)
            classes = self.classes(classes)
        texts, mask = self._texts(raw)
        if texts is not None:
            s = texts.shape[1]
            flat = rearrange(texts, "b s m c -> (b s) m c"), rearrange(mask, "b s m -> (b s) m")
            if dropped is not None:
                flat = with_null(*flat, self.null_context, rearrange(dropped, "b s -> (b s)"))
            texts, mask = (rearrange(part, "(b s) m ... -> b s m ...", s=s) for part in flat)
            texts = self.text(texts)
        return Conditions(self.time(raw.time)[:, None], classes, texts, mask)

    def check(self, raw: RawConditions) -> None:
        """Refuse, with a ValueError, conditions that are missing, not asked for, or do not fit."""
        self._class_ids(raw)
        self._texts(raw)

    def _dropped(self, raw: RawConditions) -> Tensor | None:
        """What is dropped, bool (b, s), the images of a sample together."""
        conditional = self.num_classes is not None or self.dim_context is not None
        if raw.dropped is not None:
            if not conditional:
                raise ValueError("this model has no classes and no text that could be dropped, got dropped")
            check_bool("dropped", raw.dropped, raw.time.shape)
            return repeat(raw.dropped, "b -> b s", s=1 + raw.images)
        if not conditional or not self.training:
            return None
        draws = torch.rand(len(raw.time), 2, device=raw.time.device) < self.drop_prob
        return torch.cat((draws[:, :1], draws[:, 1:].expand(-1, raw.images)), dim=1)

    def _class_ids(self, raw: RawConditions) -> Tensor | None:
        """int64 (b, s)."""
        expect("classes", raw.classes, self.num_classes is not None)
        expect("image_classes", raw.image_classes, self.num_classes is not None and raw.images > 0)
        if raw.classes is None:
            return None
        b = len(raw.time)
        check_classes(raw.classes, self.num_classes, (b,))
        if not raw.images:
            return raw.classes[:, None]
        check_classes(raw.image_classes, self.num_classes, (b, raw.images), name="image_classes")
        return torch.cat((raw.classes[:, None], raw.image_classes), dim=1)

    def _texts(self, raw: RawConditions) -> tuple[Tensor | None, Tensor | None]:
        """Embeddings (b, s, m, c), 0 at padding, which may hold anything, and their mask, bool (b, s, m)."""
        mask = check_context(raw.context, raw.context_mask, self.dim_context, len(raw.time))
        expect("image_context", raw.image_context, self.dim_context is not None and raw.images > 0)
        if raw.image_context is None and raw.image_context_mask is not None:
            raise ValueError("expected no image_context_mask without an image_context, got one")
        if raw.context is None:
            return None, None
        texts, mask = raw.context[:, None], mask[:, None]
        if raw.images:
            mask = torch.cat((mask, self._image_mask(raw)), dim=1)
            texts = torch.cat((texts, raw.image_context), dim=1)
        return texts.masked_fill(~mask[..., None], 0), mask

    def _image_mask(self, raw: RawConditions) -> Tensor:
        """The mask of the images' texts, bool (b, i, m); refuses texts that do not fit."""
        b, i, texts, mask = len(raw.time), raw.images, raw.image_context, raw.image_context_mask
        expected = (b, i, *raw.context.shape[1:])
        if texts.shape != expected:
            raise ValueError(f"image_context must be {expected}, padded as the context, got {tuple(texts.shape)}")
        if mask is not None:
            check_bool("image_context_mask", mask, texts.shape[:3])
            mask = rearrange(mask, "b i m -> (b i) m")
        texts = rearrange(texts, "b i m c -> (b i) m c")
        mask = check_context(texts, mask, self.dim_context, b * i, name="image_context")
        return rearrange(mask, "(b i) m -> b i m", i=i)


def expect(name: str, value: Tensor | None, wanted: bool) -> None:
    """Refuse a condition that is missing or not asked for."""
    if (value is not None) != wanted:
        got, expected = ("some", "no") if value is not None else ("none", "some")
        raise ValueError(f"expected {expected} {name}, got {got}")
