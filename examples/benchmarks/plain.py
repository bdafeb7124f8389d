"""A plain implementation of the same sizes as the library's, straight from the formulas, as what benchmark.py compares.

Attention is PyTorch's. Keys and values of the text are computed in every pass, guidance is two passes, and all ids get
logits and are sampled, masked or not.

b = batch · t, h, w = grid · n = t · h · w · m = text tokens · d = width
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.tokenizers.quantize import build_quantizer


class Attention(nn.Module):
    """Self-attention, or with `dim_context` attention to a text."""

    def __init__(self, dim: int, heads: int, dim_head: int, dim_context: int | None = None):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim_context or dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, causal: bool = False) -> Tensor:
        x = self.norm(x)
        q = rearrange(self.to_q(x), "b n (h e) -> b h n e", h=self.heads)
        k, v = rearrange(self.to_kv(x if context is None else context), "b n (k h e) -> k b h n e", k=2, h=self.heads)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.to_out(rearrange(out, "b h n e -> b n (h e)"))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, dim_context: int | None = None):
        super().__init__()
        self.attention = Attention(dim, heads, dim_head)
        self.cross = None if dim_context is None else Attention(dim, heads, dim_head, dim_context)
        self.ff = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, context: Tensor | None = None, causal: bool = False) -> Tensor:
        x = x + self.attention(x, causal=causal)
        if self.cross is not None:
            x = x + self.cross(x, context)
        return x + self.ff(x)


class PlainTokenizer(nn.Module):
    """C-ViViT with the config of a CViViT."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        dim, width = config["dim"], config["code_dim"]
        sizes = dim, config["heads"], config["dim_head"]
        self.patch, self.tubelet = config["patch_size"], config["temporal_patch_size"]
        pixels = self.patch**2 * config["channels"]
        self.first, self.rest = nn.Linear(pixels, dim), nn.Linear(pixels * self.tubelet, dim)
        self.to_code, self.from_code = nn.Linear(dim, width), nn.Linear(width, dim)
        self.pixels_first, self.pixels_rest = nn.Linear(dim, pixels), nn.Linear(dim, pixels * self.tubelet)
        self.quantizer = build_quantizer(
            config["quantizer"],
            dim=width,
            codebook_size=config["codebook_size"],
            kwargs=config["quantizer_kwargs"] or {},
        )
        for half in ("encoder", "decoder"):
            for axis in ("spatial", "temporal"):
                blocks = nn.ModuleList(Block(*sizes) for _ in range(config[f"{axis}_depth"]))
                self.add_module(f"{half}_{axis}", blocks)
        window = config["temporal_window"]
        height, wide = (side // self.patch for side in _pair(config["image_size"]))
        self.positions = nn.Parameter(torch.randn(1, window, height, wide, dim) * 0.02)

    def _along(self, half: str, axis: str, x: Tensor) -> Tensor:
        b, t, h, w, _ = x.shape
        to = {"spatial": "(b t) (h w) d", "temporal": "(b h w) t d"}[axis]
        x = rearrange(x, f"b t h w d -> {to}")
        for block in getattr(self, f"{half}_{axis}"):
            x = block(x, causal=axis == "temporal")
        return rearrange(x, f"{to} -> b t h w d", b=b, t=t, h=h, w=w)

    def features(self, video: Tensor) -> Tensor:
        p = {"ph": self.patch, "pw": self.patch}
        first = rearrange(video[:, :, :1], "b c pt (h ph) (w pw) -> b 1 h w (c pt ph pw)", **p)
        rest = rearrange(video[:, :, 1:], "b c (t pt) (h ph) (w pw) -> b t h w (c pt ph pw)", pt=self.tubelet, **p)
        x = torch.cat((self.first(first), self.rest(rest)), dim=1) + self.positions
        x = self._along("encoder", "temporal", self._along("encoder", "spatial", x))
        return rearrange(self.to_code(x), "b t h w d -> b (t h w) d")

    def pixels(self, codes: Tensor, t: int, h: int, w: int) -> Tensor:
        x = rearrange(self.from_code(codes), "b (t h w) d -> b t h w d", t=t, h=h, w=w) + self.positions
        x = self._along("decoder", "spatial", self._along("decoder", "temporal", x))
        p = {"ph": self.patch, "pw": self.patch}
        first = rearrange(self.pixels_first(x[:, :1]), "b 1 h w (c ph pw) -> b c 1 (h ph) (w pw)", **p)
        rest = self.pixels_rest(x[:, 1:])
        rest = rearrange(rest, "b t h w (c pt ph pw) -> b c (t pt) (h ph) (w pw)", pt=self.tubelet, **p)
        return torch.cat((first, rest), dim=2)

    def forward(self, video: Tensor) -> Tensor:
        quantized, _, *rest = self.quantizer(self.features(video))
        rebuilt = self.pixels(quantized, *self.positions.shape[1:4])
        return F.mse_loss(rebuilt, video) + (rest[0] if rest else 0)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        t, h, w = self.positions.shape[1:4]
        return rearrange(self.quantizer(self.features(video))[1], "b (t h w) -> b t h w", t=t, h=h, w=w)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        flat = rearrange(ids, "b t h w -> b (t h w)")
        if hasattr(self.quantizer, "get_output_from_indices"):
            codes = self.quantizer.get_output_from_indices(flat)
        else:
            codes = self.quantizer.indices_to_codes(flat)
        return self.pixels(codes, *ids.shape[1:])


class PlainMaskGit(nn.Module):
    """MaskGIT with the config of a MaskGit; training masks the share `mask_share` of the ids."""

    def __init__(self, config: dict, mask_share: float):
        super().__init__()
        self.config, self.mask_share = config, mask_share
        dim, self.num_tokens = config["dim"], config["num_tokens"]
        self.embed = nn.Embedding(self.num_tokens + 1, dim)
        self.positions = nn.Parameter(torch.randn(1, math.prod(config["grid"]), dim) * 0.02)
        sizes = dim, config["heads"], config["dim_head"], config["dim_context"]
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(config["depth"]))
        self.norm, self.to_logits = nn.LayerNorm(dim), nn.Linear(dim, self.num_tokens)

    def logits(self, ids: Tensor, text: Tensor) -> Tensor:
        x = self.embed(ids) + self.positions
        for block in self.blocks:
            x = block(x, text)
        return self.to_logits(self.norm(x))

    def forward(self, ids: Tensor, text: Tensor) -> Tensor:
        ids = rearrange(ids, "b t h w -> b (t h w)")
        rank = torch.rand(ids.shape, device=ids.device).argsort(dim=1)
        masked = rank < self.mask_share * ids.shape[1]
        return F.cross_entropy(self.logits(ids.masked_fill(masked, self.num_tokens), text)[masked], ids[masked])

    @torch.no_grad()
    def generate(self, *, context: Tensor, steps: int, cond_scale: float = 7.0, temperature: float = 4.0) -> Tensor:
        b, n = len(context), self.positions.shape[1]
        ids = torch.full((b, n), self.num_tokens, device=context.device)
        for step in range(steps):
            masked = ids == self.num_tokens
            cond, null = self.logits(ids, context), self.logits(ids, torch.zeros_like(context))
            probs = (null + cond_scale * (cond - null)).float().softmax(dim=-1)
            sampled = torch.multinomial(probs.flatten(0, 1), 1).view(b, n)
            ids = torch.where(masked, sampled, ids)
            r = (step + 1) / steps
            confidence = probs.gather(-1, ids[..., None])[..., 0].log()
            confidence -= temperature * (1 - r) * torch.empty_like(confidence).exponential_().log()
            confidence = confidence.masked_fill(~masked, torch.inf)
            if step + 1 < steps:
                again = confidence.topk(max(1, int(n * math.cos(math.pi * r / 2))), dim=1, largest=False).indices
                ids = ids.scatter(1, again, self.num_tokens)
        t, h, w = self.config["grid"]
        return rearrange(ids, "b (t h w) -> b t h w", t=t, h=h, w=w)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
