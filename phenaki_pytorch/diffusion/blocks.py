"""The blocks of the four variants of Latte (section 3.2, https://arxiv.org/abs/2401.03048).

    variant 1, 2   SpatialBlock:     x + Spatial(LN(x)),      x + MLP(LN(x))
                   TemporalBlock:    x + Temporal(LN(x)),     x + MLP(LN(x))
    variant 3      SequentialBlock:  x + Spatial(LN(x)),      x + Temporal(LN(x)),   x + MLP(LN(x))
    variant 4      ParallelBlock:    x + Spatial(LN(x)) + Temporal(LN(x)),           x + MLP(LN(x))

Spatial attention is within a time step, temporal attention over the time steps at one place. Each LN has a shift and a
scale, and each branch a gate, that depend on time and class (see `Modulation`), unless these are tokens. A text, if it
is no token, is read by a cross-attention after each spatial attention, without norm and gate.

Images may follow the time steps of a video: temporal attention does not see them, and all else treats each of them
as one more time step.

b = batch · t = time steps of the video · i = images · f = t + i · n = tokens of a time step · d = dim
s = steps of the condition: 1 for all, or 1 + i, that of the video and of each image · k = number of vectors
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.layers.attention import Attention, Context, CrossAttention
from phenaki_pytorch.layers.modulation import Modulation, ModulationTable, ToModulation
from phenaki_pytorch.layers.transformer import FeedForward

VECTORS = 6  # of a block: shift, scale and gate of attention and MLP


class Widths(NamedTuple):
    """The arguments that all blocks share.

    modulation  "own": each block has a linear layer of the condition; "shared": a table, added to a linear layer that
                all share; None: the condition is tokens
    reads_text  spatial attention is followed by a cross-attention to a text of width d
    """

    dim: int
    heads: int
    modulation: str | None
    reads_text: bool

    def norm(self) -> nn.LayerNorm:
        """A norm, whose gain and bias are learned only where there is no modulation."""
        return nn.LayerNorm(self.dim, eps=1e-6, elementwise_affine=self.modulation is None)

    def to_modulation(self, vectors: int) -> nn.Module | None:
        """What makes vectors (b, s, k, d) of the condition."""
        kinds = {"own": ToModulation, "shared": ModulationTable}
        return None if self.modulation is None else kinds[self.modulation](self.dim, vectors)

    def attention(self, *, heads: int | None = None) -> Attention:
        """Self-attention with biases; all heads together are d wide."""
        heads = self.heads if heads is None else heads
        return Attention(self.dim, heads=heads, dim_head=self.dim // heads, qk_norm=False, bias=True)

    def text_attention(self) -> "TextAttention | None":
        """Cross-attention to a text, if there is one."""
        return TextAttention(self) if self.reads_text else None


class Given(NamedTuple):
    """What the blocks read beside the tokens.

    time_steps      t; what follows them are images
    condition       what the blocks' modulation reads: (b, s, d), of a shared one (b, s, k, d); None for tokens
    rotary          cosines and sines of t time steps, for temporal attention
    time_positions  (t, 1, d), which the first temporal block alone is given and adds
    mask            bool (b, f, n), True for tokens that spatial attention sees; None for all
    text            of the video, for cross-attention; image_text: of the images, (b · i, m, d)
    """

    time_steps: int
    condition: Tensor | None = None
    rotary: Tensor | None = None
    time_positions: Tensor | None = None
    mask: Tensor | None = None
    text: Context | None = None
    image_text: Context | None = None

    def placed(self, video: Tensor) -> Tensor:
        """Add the positions of time, if there are any here, to a video (b, t, n, d)."""
        return video if self.time_positions is None else video + self.time_positions.to(video.dtype)


class LatteBlock(nn.Module):
    """What all blocks have: the norm of the attention, the MLP, and the modulation of both."""

    def __init__(self, widths: Widths):
        super().__init__()
        self.to_modulation = widths.to_modulation(VECTORS)
        self.attention_norm = widths.norm()
        self.ff_norm = widths.norm()
        self.ff = FeedForward(widths.dim, gelu="tanh")

    def modulations(self, given: Given) -> tuple[Modulation, Modulation]:
        """Those of the attention and of the MLP, each (b, 1 or f, 1, d)."""
        if self.to_modulation is None:
            return Modulation(), Modulation()
        vectors = by_step(self.to_modulation(given.condition), given.time_steps)
        vectors = rearrange(vectors, "b f (branch k) d -> branch k b f 1 d", branch=2, k=3)
        return Modulation(*vectors[0]), Modulation(*vectors[1])

    def feed(self, x: Tensor, modulation: Modulation) -> Tensor:
        """x + MLP(LN(x)), modulated."""
        return modulation.add(x, self.ff(modulation.modulate(self.ff_norm(x))))


class SpatialBlock(LatteBlock):
    """Attention within each time step, (b, f, n, d) -> (b, f, n, d)."""

    def __init__(self, widths: Widths):
        super().__init__(widths)
        self.attention = widths.attention()
        self.text_attention = widths.text_attention()

    def forward(self, x: Tensor, *, given: Given) -> Tensor:
        attend, feed = self.modulations(given)
        x = attend.add(x, along_space(self.attention, attend.modulate(self.attention_norm(x)), given))
        if self.text_attention is not None:
            x = self.text_attention(x, given)
        return self.feed(x, feed)


class TemporalBlock(LatteBlock):
    """Attention over the time steps of the video; images stay as they are: (b, f, n, d) -> (b, f, n, d)."""

    def __init__(self, widths: Widths):
        super().__init__(widths)
        self.attention = widths.attention()

    def forward(self, x: Tensor, *, given: Given) -> Tensor:
        video, images = x[:, : given.time_steps], x[:, given.time_steps :]
        attend, feed = (of_video(modulation) for modulation in self.modulations(given))
        video = given.placed(video)
        video = attend.add(video, along_time(self.attention, attend.modulate(self.attention_norm(video)), given))
        return joined(self.feed(video, feed), images)


class SequentialBlock(LatteBlock):
    """Spatial, then temporal attention, with the same modulation, each on a norm of its own."""

    def __init__(self, widths: Widths):
        super().__init__(widths)
        self.attention = widths.attention()
        self.text_attention = widths.text_attention()
        self.temporal_norm = widths.norm()
        self.temporal_attention = widths.attention()

    def forward(self, x: Tensor, *, given: Given) -> Tensor:
        x = joined(given.placed(x[:, : given.time_steps]), x[:, given.time_steps :])
        attend, feed = self.modulations(given)
        x = attend.add(x, along_space(self.attention, attend.modulate(self.attention_norm(x)), given))
        if self.text_attention is not None:
            x = self.text_attention(x, given)
        video, images = x[:, : given.time_steps], x[:, given.time_steps :]
        attend = of_video(attend)
        normed = attend.modulate(self.temporal_norm(video))
        video = attend.add(video, along_time(self.temporal_attention, normed, given))
        return self.feed(joined(video, images), feed)


class ParallelBlock(LatteBlock):
    """Spatial and temporal attention on the same norm, summed; each has half of the heads, twice as wide.

    The paper's numbers of parameters need both at the full width d.
    """

    def __init__(self, widths: Widths):
        super().__init__(widths)
        self.attention = widths.attention(heads=widths.heads // 2)
        self.temporal_attention = widths.attention(heads=widths.heads // 2)
        self.text_attention = widths.text_attention()

    def forward(self, x: Tensor, *, given: Given) -> Tensor:
        x = joined(given.placed(x[:, : given.time_steps]), x[:, given.time_steps :])
        attend, feed = self.modulations(given)
        normed = attend.modulate(self.attention_norm(x))
        change = along_space(self.attention, normed, given)
        temporal = along_time(self.temporal_attention, normed[:, : given.time_steps], given)
        x = attend.add(x, joined(change[:, : given.time_steps] + temporal, change[:, given.time_steps :]))
        if self.text_attention is not None:
            x = self.text_attention(x, given)
        return self.feed(x, feed)


class TextAttention(nn.Module):
    """x + CrossAttention(x, text), for the video and for each image: (b, f, n, d) -> (b, f, n, d)."""

    def __init__(self, widths: Widths):
        super().__init__()
        sizes = {"dim_context": widths.dim, "heads": widths.heads, "dim_head": widths.dim // widths.heads}
        self.attention = CrossAttention(widths.dim, **sizes, qk_norm=False, bias=True)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        b, f, n, _ = x.shape
        # All time steps read the same text, whose keys and values are then computed once.
        change = self.attention(rearrange(x[:, : given.time_steps], "b t n d -> b (t n) d"), given.text)
        change = rearrange(change, "b (t n) d -> b t n d", n=n)
        if f > given.time_steps:
            images = self.attention(rearrange(x[:, given.time_steps :], "b i n d -> (b i) n d"), given.image_text)
            change = torch.cat((change, rearrange(images, "(b i) n d -> b i n d", b=b)), dim=1)
        return x + change


class FinalLayer(nn.Module):
    """Norm, modulated without a gate, and a linear layer: (b, f, n, d) -> (b, f, n, outputs)."""

    def __init__(self, widths: Widths, outputs: int):
        super().__init__()
        self.to_modulation = widths.to_modulation(2)
        self.norm = widths.norm()
        self.linear = nn.Linear(widths.dim, outputs)

    def forward(self, x: Tensor, condition: Tensor | None, time_steps: int) -> Tensor:
        """`condition`: (b, s, d), of a shared modulation (b, s, 1, d); None for tokens."""
        modulation = Modulation()
        if self.to_modulation is not None:
            vectors = by_step(self.to_modulation(condition), time_steps)
            modulation = Modulation(*rearrange(vectors, "b f k d -> k b f 1 d", k=2))
        return self.linear(modulation.modulate(self.norm(x)))


def along_space(attention: Attention, x: Tensor, given: Given) -> Tensor:
    """Attention within each time step, (b, f, n, d) -> (b, f, n, d)."""
    mask = None if given.mask is None else rearrange(given.mask, "b f n -> (b f) 1 1 n")
    out = attention(rearrange(x, "b f n d -> (b f) n d"), mask=mask)
    return rearrange(out, "(b f) n d -> b f n d", b=x.shape[0])


def along_time(attention: Attention, video: Tensor, given: Given) -> Tensor:
    """Attention over the time steps at each place, (b, t, n, d) -> (b, t, n, d)."""
    out = attention(rearrange(video, "b t n d -> (b n) t d"), rotary=given.rotary)
    return rearrange(out, "(b n) t d -> b t n d", b=video.shape[0])


def by_step(x: Tensor, time_steps: int) -> Tensor:
    """(b, s, ...) -> (b, f, ...): the first is that of all t time steps; (b, 1, ...) is left as it is."""
    if x.shape[1] == 1:
        return x
    return torch.cat((x[:, :1].expand(-1, time_steps, *x.shape[2:]), x[:, 1:]), dim=1)


def of_video(modulation: Modulation) -> Modulation:
    """The modulation of the video alone, (b, 1, 1, d)."""
    return Modulation(*(None if vector is None else vector[:, :1] for vector in modulation))


def joined(video: Tensor, images: Tensor) -> Tensor:
    """A video and the images behind it, of which there may be none: one is then not copied."""
    return video if images.shape[1] == 0 else torch.cat((video, images.to(video.dtype)), dim=1)
