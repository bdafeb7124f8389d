"""The first stage of a system: trained and frozen; it fits the second stage, and is saved with the system.

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

TOKENIZER = ("encode", "decode", "grid", "num_frames", "codebook_size")  # what a system needs of one
CODEC = ("latents", "decode_features", "grid", "num_frames", "code_dim")
KINDS = {kind.__name__: kind for kind in (CViViT, VQGAN, VQVAE)}  # by the name that is saved


def frozen_tokenizer(name: str, tokenizer: nn.Module, prior: nn.Module, prior_name: str) -> nn.Module:
    """The tokenizer in eval mode and without gradients, whose ids are those of the prior.

    `name`, `prior_name`: what messages call them. TypeError for another kind of module, ValueError where they differ.
    """
    check_members(name, tokenizer, TOKENIZER)
    if prior.num_tokens != tokenizer.codebook_size:
        raise ValueError(
            f"{prior_name} must have as many tokens as the tokenizer has codes, {tokenizer.codebook_size}, "
            f"got {prior.num_tokens}"
        )
    check_grid(name, tokenizer, prior_name, prior.grid)
    return tokenizer.requires_grad_(False).eval()


def frozen_codec(codec: nn.Module, transformer: nn.Module) -> nn.Module:
    """The codec in eval mode and without gradients, whose latents are those of the transformer. Errors as above."""
    check_members("codec", codec, CODEC)
    if transformer.code_dim != codec.code_dim:
        raise ValueError(
            f"transformer's code_dim must be that of the codec, {codec.code_dim}, got {transformer.code_dim}"
        )
    check_grid("codec", codec, "transformer", transformer.grid)
    return codec.requires_grad_(False).eval()


def check_members(name: str, module: nn.Module, needed: tuple) -> None:
    """Refuse, with a TypeError, a module that lacks some members."""
    if missing := [member for member in needed if not hasattr(module, member)]:
        raise TypeError(f"{name} must have {', '.join(needed)}; {type(module).__name__} lacks {missing}")


def check_grid(name: str, first_stage: nn.Module, other_name: str, grid: tuple[int, int, int]) -> None:
    """Refuse, with a ValueError, a second stage whose grid the first stage does not give."""
    expected = first_stage.grid(first_stage.num_frames(grid[0]))
    if expected != grid:
        raise ValueError(f"{other_name}'s grid must be that of the {name}, {expected}, got {grid}")


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
