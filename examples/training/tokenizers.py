"""The tokenizers that train_tokenizer.py trains: what differs between them, in arguments, lengths and networks."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from data.fitting import fitting
from data.flags import flag_of
from data.runs import kind_of as saved_kind_of
from data.runs import saved_tokenizer
from phenaki_pytorch import VQGAN, VQVAE, CViViT, Discriminator, PatchDiscriminator
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer

HEAD = 32  # channels of an attention head


class Kind(NamedTuple):
    """A kind of tokenizer.

    model     its class
    defaults  the arguments that it has, with their defaults
    sizes     the arguments of its constructor that do not depend on the clips
    clips     those that do
    """

    model: type[VideoTokenizer]
    defaults: dict[str, object]
    sizes: Callable[[argparse.Namespace], dict[str, object]]
    clips: Callable[[argparse.Namespace], dict[str, object]]


def codes(args: argparse.Namespace, code_dim: int) -> dict[str, object]:
    """The arguments about the quantizer; the codes of fsq are as wide as it has levels."""
    fsq = args.quantizer == "fsq"
    return {
        "codebook_size": math.prod(args.levels) if fsq else args.codebook_size,
        "code_dim": len(args.levels) if fsq else code_dim,
        "quantizer": args.quantizer,
        "quantizer_kwargs": {"levels": args.levels} if fsq else None,
    }


def cvivit_sizes(args: argparse.Namespace) -> dict[str, object]:
    names = ("dim", "patch_size", "temporal_patch_size", "spatial_depth", "temporal_depth")
    heads = {"heads": max(1, args.dim // HEAD), "dim_head": HEAD}
    return {name: getattr(args, name) for name in names} | heads | codes(args, code_dim=32)


def cvivit_clips(args: argparse.Namespace) -> dict[str, object]:
    """It sees as many time steps of the past as its clips have."""
    return {"image_size": args.size, "temporal_window": 1 + (args.frames - 1) // args.temporal_patch_size}


def vqvae_sizes(args: argparse.Namespace) -> dict[str, object]:
    shape = {"dim": args.dim, "depth": args.depth, "heads": args.heads, "strides": list(args.strides)}
    return shape | {"axial_attention": not args.no_axial_attention} | codes(args, code_dim=64)


def vqvae_clips(args: argparse.Namespace) -> dict[str, object]:
    return {"video_shape": [args.frames, args.size, args.size]}


def vqgan_sizes(args: argparse.Namespace) -> dict[str, object]:
    return {"dim": args.dim, "depth": args.depth} | codes(args, code_dim=16)


def vqgan_clips(args: argparse.Namespace) -> dict[str, object]:
    return {"image_size": args.size}


SHARED = {"codebook_size": 512, "levels": [4, 4, 4, 4, 4]}
CVIVIT = {"patch_size": 4, "temporal_patch_size": 2, "spatial_depth": 2, "temporal_depth": 1}
CVIVIT |= {"dim": 128, "quantizer": "fsq", "frames": 9, "discriminator_dim": 32}
CONVOLUTIONS = {"depth": 2, "quantizer": "ema"}
VQVAE_ONLY = {"strides": [2, 4, 4], "heads": 2, "no_axial_attention": False}
KINDS = {
    "cvivit": Kind(CViViT, SHARED | CVIVIT, cvivit_sizes, cvivit_clips),
    "vqvae": Kind(
        VQVAE,
        SHARED | CONVOLUTIONS | VQVAE_ONLY | {"dim": 64, "frames": 16, "discriminator_dim": 32},
        vqvae_sizes,
        vqvae_clips,
    ),
    "vqgan": Kind(
        VQGAN, SHARED | CONVOLUTIONS | {"dim": 128, "frames": 9, "discriminator_dim": 64}, vqgan_sizes, vqgan_clips
    ),
}


def kind_of(args: argparse.Namespace) -> str:
    """The name of the kind to train: that of --model, if there is one, or of --tokenizer."""
    if args.model is None:
        return args.tokenizer or "cvivit"
    model = saved_kind_of(saved_tokenizer(Path(args.model)))
    kind = next(name for name, kind in KINDS.items() if model is kind.model)
    if args.tokenizer not in (None, kind):
        raise ValueError(f"--model is a {model.__name__}: expected no --tokenizer {args.tokenizer}")
    return kind


def lacking(kind: str) -> set[str]:
    """The names of the arguments that other kinds have."""
    return {name for each in KINDS.values() for name in each.defaults} - KINDS[kind].defaults.keys()


def build_tokenizer(args: argparse.Namespace, trained: VideoTokenizer | None) -> VideoTokenizer:
    """A new tokenizer, of the sizes asked for or those of a trained one. ValueError for sizes that do not fit."""
    kind = KINDS[args.tokenizer]
    *flags, last = [flag_of(name) for name in ("size", *kind.defaults) if name not in ("frames", "discriminator_dim")]
    sizes = f"{', '.join(flags)} or {last}"
    with fitting(sizes if trained is None else "--size"):
        tokenizer = kind.model(**(kind.sizes(args) if trained is None else trained.config) | kind.clips(args))
    with fitting("--size, --other-sizes or --frames"):
        for size in (args.size, *args.other_sizes):
            tokenizer.grid(args.frames, size, size)
    return tokenizer


def build_discriminator(args: argparse.Namespace) -> nn.Module:
    """LAION's discriminator for its tokenizer, StyleGAN's for the others."""
    if args.tokenizer == "vqgan":
        return PatchDiscriminator(dim=args.discriminator_dim, depth=max(1, int(math.log2(args.size)) - 1))
    return Discriminator(image_size=args.size, dim=args.discriminator_dim, r1_weight=args.r1_weight)


def sizes_of(tokenizer: VideoTokenizer, kind: str) -> dict[str, object]:
    """The sizes of a trained tokenizer, by the names of the arguments. ValueError where its clips are not square.

    A CViViT goes on with clips of any size, the others with those of their training.
    """
    config = tokenizer.config
    sizes = {name: config[name] for name in KINDS[kind].defaults if name in config and name != "levels"}
    levels = (config["quantizer_kwargs"] or {}).get("levels")
    sizes["levels"] = None if levels is None else list(levels)
    sizes["codebook_size"] = tokenizer.codebook_size if levels is None else None
    if kind == "cvivit":
        return sizes | {"patch_size": side_of(tokenizer.patch_size, "patches")}
    sizes["size"] = side_of(tokenizer.image_size, "clips")
    if kind == "vqvae":
        sizes |= {"no_axial_attention": not config["axial_attention"], "frames": config["video_shape"][0]}
    return sizes


def side_of(size: tuple[int, int], name: str) -> int:
    """The side of a square."""
    height, width = size
    if height != width:
        raise ValueError(f"--model has {name} of {height}×{width} pixels: expected square ones")
    return height
