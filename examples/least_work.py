"""The least work of one pass, counted by a rule and not by what an implementation does.

Matrix products alone, 2 operations per multiply-add; nothing computed twice: keys and values of a context once a
generation, the output projection at masked places only; attention to what is visible. A training step is three times
its forward pass. What remains of a measured time beside this work, at the machine's peak of matrix products, is the
implementation's.

Functions of the configs of CViViT and MaskGit (their constructors' arguments) -> operations.
"""

import math

import torch

from phenaki_pytorch.sampling import mask_share


def layers(
    tokens: float, depth: int, *, dim: int, inner: int, visible: float, dim_context: int | None = None, context: int = 0
) -> float:
    """`depth` layers over so many tokens, each of which sees `visible` tokens and `context` tokens of a text.

    `inner` is heads · dim_head. Keys and values of the text are not in it: `context_work`.
    """
    weights = 4 * dim * inner + 8 * dim**2 + (2 * dim * inner if dim_context is not None else 0)
    return 2 * tokens * depth * (weights + 2 * inner * (visible + context))


def encode_work(config: dict, frames: int, height: int, width: int) -> float:
    """One clip through C-ViViT's encoder and its nearest codes."""
    embed, transformers = _halves(config, frames, height, width)
    t, hw = _grid(config, frames, height, width)
    codes = config["codebook_size"] * config["code_dim"] if config["quantizer"] == "vq" else 0
    return embed + transformers + 2 * t * hw * (config["dim"] * config["code_dim"] + codes)


def decode_work(config: dict, frames: int, height: int, width: int) -> float:
    """One clip through C-ViViT's decoder."""
    pixels, transformers = _halves(config, frames, height, width)
    t, hw = _grid(config, frames, height, width)
    return pixels + transformers + 2 * t * hw * config["dim"] * config["code_dim"]


def tokenizer_step_work(config: dict, frames: int, height: int, width: int) -> float:
    """One clip there and back, forwards and backwards."""
    return 3 * (encode_work(config, frames, height, width) + decode_work(config, frames, height, width))


def context_work(config: dict, context: int) -> float:
    """The keys and values of one text of so many tokens, for all layers."""
    if config["dim_context"] is None:
        return 0
    return 2 * config["depth"] * context * config["dim_context"] * 2 * config["heads"] * config["dim_head"]


def features_work(config: dict, tokens: int, context: int) -> float:
    """One pass of MaskGit's transformer over one clip of so many ids."""
    inner, dim_context = config["heads"] * config["dim_head"], config["dim_context"]
    sizes = {"dim": config["dim"], "inner": inner, "visible": tokens, "dim_context": dim_context}
    return layers(tokens, config["depth"], **sizes, context=0 if dim_context is None else context)


def output_work(config: dict, places: float) -> float:
    """The logits of so many ids."""
    return 2 * places * config["dim"] * config["num_tokens"]


def mean_share(schedule: str) -> float:
    """The share that training masks on average."""
    return mask_share((torch.arange(1000) + 0.5) / 1000, schedule).mean().item()


def maskgit_step_work(config: dict, tokens: int, context: int) -> float:
    """One clip, forwards and backwards; the share that is masked is the schedule's mean."""
    places = tokens * mean_share(config["schedule"])
    return 3 * (context_work(config, context) + features_work(config, tokens, context) + output_work(config, places))


def generate_work(
    config: dict, tokens: int, context: int, steps: int, *, guided: bool, drawn: int | None = None
) -> float:
    """`steps` passes over one clip, with guidance two of each; logits of all ids that are drawn, then of fewer.

    `drawn`: all ids where nothing is given.
    """
    progress = torch.arange(steps) / steps
    places = (tokens if drawn is None else drawn) * mask_share(progress, config["schedule"]).sum().item()
    work = context_work(config, context) + steps * features_work(config, tokens, context) + output_work(config, places)
    return (2 if guided else 1) * work


def _grid(config: dict, frames: int, height: int, width: int) -> tuple[int, int]:
    """Time steps, and places of each."""
    patch = _patch(config)
    return 1 + (frames - 1) // config["temporal_patch_size"], (height // patch[0]) * (width // patch[1])


def _patch(config: dict) -> tuple[int, int]:
    size = config["patch_size"]
    return (size, size) if isinstance(size, int) else tuple(size)


def _halves(config: dict, frames: int, height: int, width: int) -> tuple[float, float]:
    """The maps between pixels and features, and the transformers, of either half."""
    t, hw = _grid(config, frames, height, width)
    pixels = math.prod(_patch(config)) * config["channels"]
    maps = 2 * hw * config["dim"] * pixels * (1 + (t - 1) * config["temporal_patch_size"])
    inner = config["heads"] * config["dim_head"]
    window = min(t, config["temporal_window"] or t)
    seen = sum(min(step, window) for step in range(1, t + 1)) / t
    sizes = {"tokens": t * hw, "dim": config["dim"], "inner": inner}
    spatial = layers(depth=config["spatial_depth"], visible=hw, **sizes)
    return maps, spatial + layers(depth=config["temporal_depth"], visible=seen, **sizes)
