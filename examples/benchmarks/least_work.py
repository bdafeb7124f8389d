"""The least work of one pass, in operations, counted from the sizes of a model and not from an implementation.

Only matrix products count, with 2 operations per multiply-add, and none is counted twice: keys and values of a context
once per generation, logits of masked tokens only, attention only to keys that the mask shows. A training step is three
times its forward pass. An implementation at the machine's peak of matrix products would take exactly this work's time.

The functions take the configs of CViViT and MaskGit, which are their constructors' arguments.
"""

import math

import torch

from phenaki_pytorch.priors.masking import mask_share


def layers(
    tokens: float, depth: int, *, dim: int, inner: int, visible: float, dim_context: int | None = None, context: int = 0
) -> float:
    """`depth` layers over a number of tokens, without the keys and values of the text, which `context_work` counts.

    inner    heads · dim_head
    visible  tokens that each token attends to, on average
    context  tokens of the text
    """
    weights = 4 * dim * inner + 8 * dim**2 + (2 * dim * inner if dim_context is not None else 0)
    return 2 * tokens * depth * (weights + 2 * inner * (visible + context))


def encode_work(config: dict, frames: int, height: int, width: int) -> float:
    """Encode one clip with C-ViViT, with the search for the nearest codes."""
    embed, transformers = _halves(config, frames, height, width)
    t, hw = _grid(config, frames, height, width)
    codes = config["codebook_size"] * config["code_dim"] if config["quantizer"] == "vq" else 0
    return embed + transformers + 2 * t * hw * (config["dim"] * config["code_dim"] + codes)


def decode_work(config: dict, frames: int, height: int, width: int) -> float:
    """Decode one clip with C-ViViT."""
    pixels, transformers = _halves(config, frames, height, width)
    t, hw = _grid(config, frames, height, width)
    return pixels + transformers + 2 * t * hw * config["dim"] * config["code_dim"]


def tokenizer_step_work(config: dict, frames: int, height: int, width: int) -> float:
    """Encode and decode one clip, forward and backward."""
    return 3 * (encode_work(config, frames, height, width) + decode_work(config, frames, height, width))


def context_work(config: dict, context: int) -> float:
    """The keys and values of one text of `context` tokens, in all layers."""
    if config["dim_context"] is None:
        return 0
    return 2 * config["depth"] * context * config["dim_context"] * 2 * config["heads"] * config["dim_head"]


def features_work(config: dict, tokens: int, context: int) -> float:
    """One pass of MaskGit's transformer over the ids of one clip."""
    inner, dim_context = config["heads"] * config["dim_head"], config["dim_context"]
    sizes = {"dim": config["dim"], "inner": inner, "visible": tokens, "dim_context": dim_context}
    return layers(tokens, config["depth"], **sizes, context=0 if dim_context is None else context)


def output_work(config: dict, tokens: float) -> float:
    """The logits of a number of tokens."""
    return 2 * tokens * config["dim"] * config["num_tokens"]


def mean_share(schedule: str) -> float:
    """The mean share that training masks."""
    return mask_share((torch.arange(1000) + 0.5) / 1000, schedule).mean().item()


def maskgit_step_work(config: dict, tokens: int, context: int) -> float:
    """A training step on one clip, forward and backward, with the schedule's mean share masked."""
    masked = tokens * mean_share(config["schedule"])
    return 3 * (context_work(config, context) + features_work(config, tokens, context) + output_work(config, masked))


def generate_work(
    config: dict, tokens: int, context: int, steps: int, *, guided: bool, masked: int | None = None
) -> float:
    """`steps` passes over one clip, twice as many with guidance; each computes the logits of the masked tokens.

    `masked`: how many tokens are masked at first, all if None.
    """
    progress = torch.arange(steps) / steps
    sampled = (tokens if masked is None else masked) * mask_share(progress, config["schedule"]).sum().item()
    work = context_work(config, context) + steps * features_work(config, tokens, context) + output_work(config, sampled)
    return (2 if guided else 1) * work


def _grid(config: dict, frames: int, height: int, width: int) -> tuple[int, int]:
    """The number of time steps of C-ViViT's ids, and of ids in each."""
    patch = _patch(config)
    return 1 + (frames - 1) // config["temporal_patch_size"], (height // patch[0]) * (width // patch[1])


def _patch(config: dict) -> tuple[int, int]:
    size = config["patch_size"]
    return (size, size) if isinstance(size, int) else tuple(size)


def _halves(config: dict, frames: int, height: int, width: int) -> tuple[float, float]:
    """The work of one half, encoder or decoder: the maps between pixels and features, and the transformers."""
    t, hw = _grid(config, frames, height, width)
    pixels = math.prod(_patch(config)) * config["channels"]
    maps = 2 * hw * config["dim"] * pixels * (1 + (t - 1) * config["temporal_patch_size"])
    inner = config["heads"] * config["dim_head"]
    window = min(t, config["temporal_window"] or t)
    seen = sum(min(step, window) for step in range(1, t + 1)) / t
    sizes = {"tokens": t * hw, "dim": config["dim"], "inner": inner}
    spatial = layers(depth=config["spatial_depth"], visible=hw, **sizes)
    return maps, spatial + layers(depth=config["temporal_depth"], visible=seen, **sizes)
