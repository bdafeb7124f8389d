"""The first stage of a system: a trained tokenizer, which is frozen, fits the prior, and is saved with the system.

b = batch · c = channels · f = frames · t, h, w = grid of ids
"""

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.core.lengths import real_tokens, zero_padding
from phenaki_pytorch.core.modules import uncompiled
from phenaki_pytorch.core.saving import Pretrained, Stage
from phenaki_pytorch.tokenizers.cvivit import CViViT
from phenaki_pytorch.tokenizers.vqgan import VQGAN
from phenaki_pytorch.tokenizers.vqvae import VQVAE

NEEDED = ("encode", "decode", "grid", "num_frames", "codebook_size")
KINDS = {kind.__name__: kind for kind in (CViViT, VQGAN, VQVAE)}  # by the name that is saved


def frozen_tokenizer(name: str, tokenizer: nn.Module, prior: nn.Module, prior_name: str) -> nn.Module:
    """The tokenizer in eval mode and without gradients, whose ids are those of the prior.

    `name`, `prior_name`: what messages call them. TypeError for another kind of module, ValueError where they differ.
    """
    if missing := [member for member in NEEDED if not hasattr(tokenizer, member)]:
        raise TypeError(f"{name} must have {', '.join(NEEDED)}; {type(tokenizer).__name__} lacks {missing}")
    if prior.num_tokens != tokenizer.codebook_size:
        raise ValueError(
            f"{prior_name} must have as many tokens as the tokenizer has codes, {tokenizer.codebook_size}, "
            f"got {prior.num_tokens}"
        )
    grid = tokenizer.grid(tokenizer.num_frames(prior.grid[0]))
    if grid != prior.grid:
        raise ValueError(f"{prior_name}'s grid must be the tokenizer's, {grid}, got {prior.grid}")
    return tokenizer.requires_grad_(False).eval()


def encode(tokenizer: nn.Module, videos: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Ids (b, t, h, w) of videos (b, c, f, h, w) or images (b, c, h, w), and which ids are real, or None for all.

    frame_mask  bool (b, f), True for the real frames, which come first, in a number that the tokenizer takes

    Padding would change the ids of a tokenizer that is not causal: there each length is encoded by itself.
    """
    if frame_mask is None:
        return tokenizer.encode(videos), None
    if videos.ndim == 4:
        videos = rearrange(videos, "b c h w -> b c 1 h w")
    videos = zero_padding(videos, frame_mask)
    token_mask = real_tokens(frame_mask, (len(videos), *tokenizer.grid(*videos.shape[2:])), tokenizer)
    if getattr(uncompiled(tokenizer), "causal", False):
        return tokenizer.encode(videos), token_mask
    ids = torch.zeros(token_mask.shape, dtype=torch.int64, device=videos.device)
    lengths = frame_mask.sum(dim=1)
    for length in lengths.unique().tolist():
        rows = lengths == length
        real = tokenizer.encode(videos[rows, :, :length])
        ids[rows, : real.shape[1]] = real
    return ids, token_mask


def kind_of(tokenizer: nn.Module) -> str:
    """What is saved about a tokenizer: the name of its class, or that it is the user's own."""
    tokenizer = uncompiled(tokenizer)
    return next((name for name, kind in KINDS.items() if type(tokenizer) is kind), Pretrained.GIVEN)


def save_tokenizer(tokenizer: nn.Module, directory: Path, stage: Stage) -> None:
    """Write a tokenizer into a directory, unless it is the user's own."""
    if kind_of(tokenizer) in KINDS:
        uncompiled(tokenizer).write_to(directory, stage)


def load_tokenizer(kind: str | nn.Module, directory: Path, given: dict[str, Any]) -> nn.Module:
    """What `kind_of` said, read from the directory, or the user's own tokenizer, which stands in its place.

    `given`: a quantizer of the user's own, if the tokenizer has one. ValueError for another kind.
    """
    if isinstance(kind, nn.Module):
        if given:
            raise ValueError(f"the tokenizer is the user's own: expected no {', '.join(given)}, got some")
        return kind
    if kind not in KINDS:
        raise ValueError(f"{directory} must hold one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind].from_pretrained(directory, **given)
