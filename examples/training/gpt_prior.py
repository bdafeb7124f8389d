"""GPT as the prior of train_prior.py: the model, the part that is trained, its loss and its curves."""

import argparse

import torch
from torch import Tensor, nn

from data.conditions import Conditions
from data.encoded import Encoded
from data.fitting import fitting
from data.mixture import Source
from data.sources import sources_of
from phenaki_pytorch import GPT, FrameEncoder, FrameMapEncoder, VideoGPT
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer
from training.checks import take_sizes
from training.stage import begin_with

IMAGE_WEIGHT = 0.0  # of the batches: images are no part of VideoGPT
FRAME_DIMS = (32, 64, 128, 256)  # channels of the network that reads the first frame, half of ResNet-34's
MAP_DIMS = (32, 64, 128, 128)
FRAME_DEPTHS = (1, 1, 1, 1)

FrameNetwork = FrameEncoder | FrameMapEncoder

# the model


def build_model(
    args: argparse.Namespace, tokenizer: VideoTokenizer, conditions: Conditions, trained: VideoGPT | None
) -> VideoGPT:
    """The model to train: the tokenizer, and GPT and frame encoder, new or those of a trained model."""
    if trained is not None:
        take_sizes(args, {name: trained.gpt.config[name] for name in ("dim", "depth", "positions", "axes")})
    encoder = build_frame_encoder(args, trained) if "frames" in conditions.names else None
    gpt = build_gpt(args, tokenizer, conditions, encoder, trained)
    begin_with(gpt, getattr(trained, "gpt", None))
    begin_with(encoder, getattr(trained, "frame_encoder", None))
    text = {} if conditions.texts.encoder is None else {"text_encoder": conditions.texts.encoder}
    return VideoGPT(tokenizer=tokenizer, gpt=gpt, frame_encoder=encoder, **labels_of(conditions), **text)


def labels_of(conditions: Conditions) -> dict[str, int | None]:
    """The numbers of classes and actions, None for none."""
    return {"num_classes": len(conditions.classes) or None, "dim_action": len(conditions.actions) or None}


def build_frame_encoder(args: argparse.Namespace, trained: VideoGPT | None) -> FrameNetwork:
    """The network that reads the first frame, new or of the sizes of --model; its weights are random."""
    encoder = getattr(trained, "frame_encoder", None)
    if encoder is not None:
        take_sizes(args, {"frame_encoder": "map" if isinstance(encoder, FrameMapEncoder) else "vector"})
        return type(encoder)(**encoder.config)
    if args.frame_encoder == "vector":
        return FrameEncoder(dims=FRAME_DIMS, depths=FRAME_DEPTHS)
    return FrameMapEncoder(image_size=args.size, dims=MAP_DIMS, depths=FRAME_DEPTHS)


def build_gpt(
    args: argparse.Namespace,
    tokenizer: VideoTokenizer,
    conditions: Conditions,
    encoder: FrameNetwork | None,
    trained: VideoGPT | None,
) -> GPT:
    """A GPT for clips of --frames, of new sizes or those of --model; its weights are random."""
    with fitting("--frames"):
        grid = tokenizer.grid(args.frames)
    own = {
        "num_tokens": tokenizer.codebook_size,
        "grid": grid,
        "code_dim": tokenizer.code_dim,
        "dim_context": conditions.texts.width,
        "dim_frame_vector": encoder.dim if isinstance(encoder, FrameEncoder) else None,
        "dim_frame_map": encoder.dim if isinstance(encoder, FrameMapEncoder) else None,
        "dim_condition": VideoGPT.condition_width(tokenizer, **labels_of(conditions)),
    }
    sizes = {name: getattr(args, name) for name in ("dim", "depth", "positions", "axes")}
    sizes |= {"heads": max(1, args.dim // 32), "dim_head": 32}
    return GPT(**(sizes if trained is None else trained.gpt.config) | own)


def trainable_part(model: VideoGPT) -> nn.ModuleList:
    """GPT and, if there is one, the frame encoder, in one module."""
    return nn.ModuleList([model.gpt, *([] if model.frame_encoder is None else [model.frame_encoder])])


def with_part(model: VideoGPT, part: nn.ModuleList) -> VideoGPT:
    """A model with another `trainable_part`."""
    gpt, *encoder = part
    text = {} if model.text_encoder is None else {"text_encoder": model.text_encoder}
    labels = {"num_classes": model.labels.num_classes, "dim_action": model.labels.dim_action}
    encoder = encoder[0] if encoder else None
    return VideoGPT(tokenizer=model.tokenizer, gpt=gpt, frame_encoder=encoder, **labels, **text)


# the training


def collate(conditions: Conditions, items: list[dict]) -> dict[str, Tensor]:
    """Items of `Encoded` -> arguments of the loss."""
    return conditions.collate(items)


def training_step(args: argparse.Namespace, model: VideoGPT) -> VideoGPT:
    """The module whose call is the loss."""
    return model


def encoding(args: argparse.Namespace, tokenizer: VideoTokenizer) -> dict:
    """Further arguments of `encode_all`."""
    return {}


def sources(args: argparse.Namespace, encoded: list[Encoded | None]) -> list[Source]:
    """What is trained on: videos and images."""
    return sources_of(args, encoded)


def compile_model(model: VideoGPT) -> None:
    """Compile the transformer: VideoGPT calls more methods of a GPT than `forward`."""
    model.gpt.transformer.compile()


@torch.no_grad()
def watch(model: VideoGPT, part: nn.ModuleList, batch: dict[str, Tensor]) -> dict[str, float]:
    """The measure in the curves, over clips that are not trained on: the loss, in nats an id."""
    device = model.gpt.placement().device
    averaged = with_part(model, part).eval()
    return {"held_out_loss": averaged(**{name: value.to(device) for name, value in batch.items()}).item()}
