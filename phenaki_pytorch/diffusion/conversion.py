"""Published weights as weights of a LatteTransformer: functions from one state_dict to another.

    model.load_state_dict(from_diffusers(weights, null_context))

A state_dict that lacks something, or holds what no such model has, is refused with a ValueError that names it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

# Our layer -> theirs; of several, the rows stand one after the other in ours.
Names = dict[str, tuple[str, ...]]

QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
DIFFUSERS_BLOCK: Names = {
    "attention.to_qkv": QKV,
    "attention.to_out": ("attn1.to_out.0",),
    "ff.0": ("ff.net.0.proj",),
    "ff.3": ("ff.net.2",),
}
DIFFUSERS_TEXT_ATTENTION: Names = {
    "text_attention.attention.to_q": ("attn2.to_q",),
    "text_attention.attention.to_kv": ("attn2.to_k", "attn2.to_v"),
    "text_attention.attention.to_out": ("attn2.to_out.0",),
}
DIFFUSERS_LATTE: Names = {
    "patches": ("pos_embed.proj",),
    "conditioning.time.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
    "conditioning.time.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2",),
    "conditioning.text.0": ("caption_projection.linear_1",),
    "conditioning.text.2": ("caption_projection.linear_2",),
    "shared_modulation.linear": ("adaln_single.linear",),
    "final.linear": ("proj_out",),
}
DIFFUSERS_DIT: Names = {
    "patches": ("pos_embed.proj",),
    "conditioning.time.mlp.0": ("transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",),
    "conditioning.time.mlp.2": ("transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",),
    "final.to_modulation.linear": ("proj_out_1",),
    "final.linear": ("proj_out_2",),
}
DIT: Names = {
    "patches": ("x_embedder.proj",),
    "conditioning.time.mlp.0": ("t_embedder.mlp.0",),
    "conditioning.time.mlp.2": ("t_embedder.mlp.2",),
    "final.to_modulation.linear": ("final_layer.adaLN_modulation.1",),
    "final.linear": ("final_layer.linear",),
}
DIT_BLOCK: Names = {
    "to_modulation.linear": ("adaLN_modulation.1",),
    "attention.to_qkv": ("attn.qkv",),
    "attention.to_out": ("attn.proj",),
    "ff.0": ("mlp.fc1",),
    "ff.3": ("mlp.fc2",),
}


def from_diffusers(weights: Mapping[str, Tensor], null_context: Tensor) -> dict[str, Tensor]:
    """Weights of diffusers' LatteTransformer3DModel -> those of a LatteTransformer of variant 1 with a text.

    weights       those of the published text-to-video model, say (https://huggingface.co/maxin-cn/Latte-1)
    null_context  (c,), what stands for a missing text: the published model was trained with the empty text, which T5
                  encodes as one token

    The model needs the same widths, two blocks here for each of diffusers' `num_layers`, and dim_context c.
    """
    rest, moved = dict(weights), {"conditioning.null_context": null_context}
    moved |= _layers(rest, DIFFUSERS_LATTE)
    moved["final.to_modulation.table"] = _take(rest, "scale_shift_table")
    for number in range(_blocks(rest, "transformer_blocks.")):
        for block, kind in ((2 * number, "transformer_blocks"), (2 * number + 1, "temporal_transformer_blocks")):
            ours, theirs = f"transformer.blocks.{block}.", f"{kind}.{number}."
            names = DIFFUSERS_BLOCK if block % 2 else DIFFUSERS_BLOCK | DIFFUSERS_TEXT_ATTENTION
            moved |= _layers(rest, names, ours, theirs)
            moved[f"{ours}to_modulation.table"] = _take(rest, f"{theirs}scale_shift_table")
    return _complete(moved, rest)


def from_dit(weights: Mapping[str, Tensor], *, num_classes: int | None = None) -> dict[str, Tensor]:
    """Weights of DiT, a model of images, -> those of a LatteTransformer of variant 1 as deep, to begin training with.

    weights      of DiT's own code (https://github.com/facebookresearch/DiT) or of diffusers' DiTTransformer2DModel. The
                 class-conditional checkpoints of Latte's code have the names of the first
    num_classes  that of the model; the table of classes is left out where it has another number of rows than that and
                 the null class: `load_state_dict` then needs `strict=False`

    Spatial and temporal blocks are filled in turn, as in Latte's code. It learns faster at first, but ended worse than
    from random weights in the paper.
    """
    rest = {name: value for name, value in weights.items() if name not in ("pos_embed", "temp_embed")}
    if "x_embedder.proj.weight" in rest:
        moved, theirs, names = _layers(rest, DIT), "blocks.", DIT_BLOCK
        table = rest.pop("y_embedder.embedding_table.weight", None)
    else:
        moved, theirs = _layers(rest, DIFFUSERS_DIT), "transformer_blocks."
        names = DIFFUSERS_BLOCK | {"to_modulation.linear": ("norm1.linear",)}
        table = rest.get("transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight")
        # Each block holds a copy of both embeddings.
        rest = {name: value for name, value in rest.items() if ".norm1.emb." not in name}
    for number in range(_blocks(rest, theirs)):
        moved |= _layers(rest, names, f"transformer.blocks.{number}.", f"{theirs}{number}.")
    if table is not None and num_classes is not None and len(table) == num_classes + 1:
        moved["conditioning.classes.weight"] = table
    return _complete(moved, rest)


def _layers(rest: dict[str, Tensor], names: Names, ours: str = "", theirs: str = "") -> dict[str, Tensor]:
    """The weights and biases of layers under our names, which are taken out of `rest`."""
    return {
        f"{ours}{name}.{kind}": torch.cat([_take(rest, f"{theirs}{part}.{kind}") for part in parts])
        for name, parts in names.items()
        for kind in ("weight", "bias")
    }


def _take(rest: dict[str, Tensor], name: str) -> Tensor:
    if name not in rest:
        raise ValueError(f"expected weights that hold {name}, got none of this name")
    return rest.pop(name)


def _blocks(rest: dict[str, Tensor], theirs: str) -> int:
    """How many blocks there are, which are numbered from 0."""
    return len({name.removeprefix(theirs).split(".")[0] for name in rest if name.startswith(theirs)})


def _complete(moved: dict[str, Tensor], rest: dict[str, Tensor]) -> dict[str, Tensor]:
    if rest:
        raise ValueError(f"expected weights of such a model alone, got {sorted(rest)[0]} too")
    moved["patches.weight"] = moved["patches.weight"].flatten(1)  # of a convolution whose stride is its kernel
    return moved
