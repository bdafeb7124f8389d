"""Self-attention and cross-attention, with queries and keys that are layer-normalised per head, or not.

The normalisation (Dehghani et al. 2023, https://arxiv.org/abs/2302.05442) bounds the attention logits at any width
and learning rate. Models of papers that lack it leave it out, with `qk_norm=False`.

b = batch · n = tokens · m = keys · d = dim · h = heads · e = dim_head · c = dim_context · p = positions
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.layers.positions import rotate

KeysValues = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Self-attention, (b, n, d) -> (b, n, d).

    causal  each token sees itself and those before it
    bias    queries, keys and values have a bias
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        causal: bool = False,
        dropout: float = 0.0,
        qk_norm: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.dropout = dropout
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=bias)
        self.q_norm, self.k_norm = (head_norm(dim_head, qk_norm) for _ in range(2))
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(
        self,
        x: Tensor,
        *,
        rotary: Tensor | None = None,
        mask: Tensor | None = None,
        cache: "KeyValueCache | PreallocatedCache | None" = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """
        rotary     cosines and sines (m, e/2, 2) of the cached tokens and of these
        mask       bool, broadcast to (b, h, n, m), True where a query sees a key; it replaces the causal mask
        cache      keys and values of the tokens before, to which those of these tokens are added
        positions  int64 (b, p), the tokens whose output is wanted if not all -> (b, p, d)
        """
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q = q if positions is None else take(q, positions)
        q, k, v = (rearrange(part, "b n (h e) -> b n h e", h=self.heads) for part in (q, k, v))
        q, k = self.q_norm(q), self.k_norm(k)
        if cache is not None:
            k, v = cache.extend(k, v)
        if rotary is not None:
            angles = rotary[-x.shape[1] :]
            q, k = rotate(q, angles if positions is None else angles[positions]), rotate(k, rotary)
        causal = self.causal and mask is None and x.shape[1] > 1  # one query sees all keys that there are
        return self.to_out(attend(q, k, v, mask=mask, causal=causal, dropout=self.dropout if self.training else 0.0))


class CrossAttention(nn.Module):
    """Attention of tokens (b, n, d) to a context, whose keys and values are read at its own width.

    dim_value  width of the values of a head, by default `dim_head`
    bias       queries, keys and values have a bias
    """

    def __init__(
        self,
        dim: int,
        *,
        dim_context: int,
        heads: int,
        dim_head: int,
        dim_value: int | None = None,
        dropout: float = 0.0,
        qk_norm: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.widths = heads * dim_head, heads * (dim_head if dim_value is None else dim_value)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=bias)
        self.to_kv = nn.Linear(dim_context, sum(self.widths), bias=bias)
        self.q_norm, self.k_norm = (head_norm(dim_head, qk_norm) for _ in range(2))
        self.to_out = nn.Linear(self.widths[1], dim)

    def forward(self, x: Tensor, context: "Context") -> Tensor:
        q = self.q_norm(rearrange(self.to_q(x), "b n (h e) -> b n h e", h=self.heads))
        k, v = context.keys_values_of(self)
        mask = None if context.mask is None else rearrange(context.mask, "b m -> b 1 1 m")
        return self.to_out(attend(q, k, v, mask=mask, dropout=self.dropout if self.training else 0.0))

    def keys_values(self, embeddings: Tensor) -> KeysValues:
        """(b, m, c) -> keys and values, (b, m, h, e) each."""
        k, v = self.to_kv(embeddings).split(self.widths, dim=-1)
        k, v = (rearrange(part, "b m (h e) -> b m h e", h=self.heads) for part in (k, v))
        return self.k_norm(k), v


def head_norm(dim_head: int, on: bool) -> nn.Module:
    """The norm of queries or of keys, or none."""
    return nn.LayerNorm(dim_head, bias=False) if on else nn.Identity()


class Context:
    """What cross-attention looks at: embeddings (b, m, c), and their mask, bool (b, m), True where real.

    Where no gradients are recorded, each layer's keys and values are computed once and kept for later passes.
    """

    def __init__(self, embeddings: Tensor, mask: Tensor | None):
        self.embeddings = embeddings
        self.mask = mask
        self._kept: dict[nn.Module, KeysValues] = {}

    def __len__(self) -> int:
        return len(self.embeddings)

    def keys_values_of(self, layer: CrossAttention) -> KeysValues:
        """The keys and values of one layer, (b, m, h, e) each."""
        if torch.is_grad_enabled():
            return layer.keys_values(self.embeddings)
        if layer not in self._kept:
            self._kept[layer] = layer.keys_values(self.embeddings)
        return self._kept[layer]


class KeyValueCache:
    """Keys, before they are rotated, and values of the last `size` tokens that a causal attention has seen.

    None keeps all. Tokens that come in pieces then see what they would see in one sequence.
    """

    def __init__(self, size: int | None):
        self.size = size
        self.kept: KeysValues | None = None

    def __len__(self) -> int:
        return 0 if self.kept is None else self.kept[0].shape[1]

    def extend(self, k: Tensor, v: Tensor) -> KeysValues:
        """Add keys and values (b, n, h, e); those kept before and these come back, (b, m, h, e) each."""
        if self.kept is not None:
            k, v = (torch.cat(parts, dim=1) for parts in zip(self.kept, (k, v)))
        first = 0 if self.size is None else max(0, k.shape[1] - self.size)
        # Copied, because a view would keep the memory of all of them.
        self.kept = (k, v) if first == 0 else (k[:, first:].clone(), v[:, first:].clone())
        return k, v


class PreallocatedCache:
    """As `KeyValueCache`, for a number of tokens that is known: memory is taken once, and nothing is copied again."""

    def __init__(self, length: int):
        self.length = length
        self.filled = 0
        self.kept: KeysValues | None = None

    def __len__(self) -> int:
        return self.filled

    def extend(self, k: Tensor, v: Tensor) -> KeysValues:
        """Add keys and values (b, n, h, e); all so far come back as views, (b, m, h, e) each."""
        if self.kept is None:
            self.kept = tuple(part.new_empty(len(part), self.length, *part.shape[2:]) for part in (k, v))
        first, self.filled = self.filled, self.filled + k.shape[1]
        for kept, new in zip(self.kept, (k, v)):
            kept[:, first : self.filled] = new
        return self.kept[0][:, : self.filled], self.kept[1][:, : self.filled]


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool = False, dropout: float) -> Tensor:
    """softmax(q kᵀ / √e) v for q (b, n, h, e) and k, v (b, m, h, e) -> (b, n, h · e).

    `mask`: bool, broadcast to (b, h, n, m). `causal`: n = m, and no query sees a later key; without a mask.
    For second derivatives use `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`: PyTorch's fast kernels have none.
    """
    assert not causal or q.shape[1] == k.shape[1], "with a cache or selected positions, pass a causal mask"
    q, k, v = (rearrange(part, "b n h e -> b h n e") for part in (q, k, v))
    # Under autocast the norms leave queries and keys in another dtype than the values.
    out = F.scaled_dot_product_attention(
        q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, is_causal=causal, dropout_p=dropout
    )
    return rearrange(out, "b h n e -> b n (h e)")


def causal_mask(queries: int, past: int, window: int, device: torch.device) -> Tensor:
    """Which keys the last `queries` of past + queries tokens see, bool (n, m): themselves and window − 1 before."""
    keys = torch.arange(past + queries, device=device)
    distance = keys[past:, None] - keys
    return (distance >= 0) & (distance < window)


def take(x: Tensor, positions: Tensor) -> Tensor:
    """The tokens of x (b, n, d) at positions (b, p) -> (b, p, d)."""
    return x.take_along_dim(positions[..., None], dim=1)
