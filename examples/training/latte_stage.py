"""Latte as the second stage of train_diffusion.py: the model, the part that is trained, its loss and its curves.

b = batch · i = images of a clip · t, h, w, e = latents of a clip · m, d = text tokens and their width
"""

import argparse
from functools import partial

import torch
from torch import Tensor, nn

from data.conditions import Conditions
from data.encoded import Encoded, WithImages
from data.fitting import fitting
from data.mixture import Source
from data.sources import sources_of
from phenaki_pytorch import ImageVAE, Latte, LatteTransformer
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer
from training.checks import take_sizes
from training.stage import begin_with

IMAGE_WEIGHT = 0.0  # of the batches: images follow clips instead, see --joint-images
SIZES = ("dim", "depth", "heads", "variant", "patches", "conditioning", "time_positions")
WATCHED_SEED = 0  # of the diffusion steps and the noise with which held-out clips are measured


# the model


def build_model(
    args: argparse.Namespace, codec: VideoTokenizer | ImageVAE, conditions: Conditions, trained: Latte | None
) -> Latte:
    """The model to train: the first stage, and a LatteTransformer, new or that of a trained model."""
    if trained is not None:
        take_model(args, trained)
    transformer = build_transformer(args, codec, conditions)
    begin_with(transformer, getattr(trained, "transformer", None))
    latte = Latte(codec=codec, transformer=transformer, text_encoder=conditions.texts.encoder)
    begin_with(latte.standardisation, getattr(trained, "standardisation", None))
    return latte


def take_model(args: argparse.Namespace, trained: Latte) -> None:
    """Take the sizes of --model."""
    config = trained.transformer.config
    sizes = {name: config[name] for name in SIZES} | {"model_patch_size": config["patch_size"]}
    take_sizes(args, sizes | {"no_learned_variance": not config["learned_variance"]})


def build_transformer(
    args: argparse.Namespace, codec: VideoTokenizer | ImageVAE, conditions: Conditions
) -> LatteTransformer:
    """A LatteTransformer for clips of --frames; its weights are random, and 0 where they start at 0."""
    with fitting("--frames"):
        grid = codec.grid(args.frames)
    with fitting("a size of the model"):
        return LatteTransformer(
            code_dim=codec.code_dim,
            grid=grid,
            patch_size=args.model_patch_size,
            num_classes=len(conditions.classes) or None,
            dim_context=conditions.texts.width,
            learned_variance=not args.no_learned_variance,
            **{name: getattr(args, name) for name in SIZES},
        )


def trainable_part(latte: Latte) -> nn.ModuleList:
    """The transformer, and the mean and variance of the latents, which are measured in the first steps."""
    return nn.ModuleList([latte.transformer, latte.standardisation])


def with_part(latte: Latte, part: nn.ModuleList) -> Latte:
    """A model with another `trainable_part`."""
    transformer, standardisation = part
    other = Latte(codec=latte.codec, transformer=transformer, text_encoder=latte.text_encoder)
    other.standardisation.load_state_dict(standardisation.state_dict())
    return other.to(latte.transformer.placement().device)


# the training


def encoding(args: argparse.Namespace, codec: VideoTokenizer | ImageVAE) -> dict:
    """Further arguments of `encode_all`: the latents of an image VAE are drawn once."""
    device = next(codec.parameters()).device
    generator = torch.Generator(device).manual_seed(args.seed)
    return {"encode": partial(codec.latents, generator=generator)}


def collate(conditions: Conditions, items: list[dict]) -> dict[str, Tensor]:
    """Items of `Encoded` or `WithImages` -> arguments of the loss."""
    latents = {"latents": torch.stack([item["latents"] for item in items])}
    images = [image for item in items for image in item.get("images", ())]
    given = conditions.given([*items, *images])  # at once, so that all texts are padded alike
    b, i = len(items), len(images) // len(items)
    of_clips = {name: values[:b] for name, values in given.items()}
    if not images:
        return latents | of_clips
    of_images = {f"image_{name}": values[b:].unflatten(0, (b, i)) for name, values in given.items()}
    of_images["image_latents"] = torch.cat([image["latents"] for image in images]).unflatten(0, (b, i))
    return latents | of_clips | of_images


def training_step(args: argparse.Namespace, latte: Latte) -> Latte:
    """The module whose call is the loss."""
    return latte


def sources(args: argparse.Namespace, encoded: list[Encoded | None]) -> list[Source]:
    """What is trained on: videos, each followed by --joint-images images, and images."""
    videos, images = encoded
    if args.joint_images:
        videos = WithImages(videos, images, args.joint_images)
    return sources_of(args, [videos, images])


def compile_model(latte: Latte) -> None:
    """Compile the transformer."""
    latte.transformer.compile()


@torch.no_grad()
def watch(latte: Latte, part: nn.ModuleList, batch: dict[str, Tensor]) -> dict[str, float]:
    """The measures in the curves, over clips that are not trained on, always with the same steps and noise.

    The loss, that of the noise ("simple") and that of the variance ("variational", 0 without one).
    """
    device = latte.transformer.placement().device
    averaged = with_part(latte, part).eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(WATCHED_SEED)
        losses = averaged.losses(**{name: value.to(device) for name, value in batch.items()})
    total, simple, variational = (float(value) for value in losses)
    return {"held_out_loss": total, "held_out_simple": simple, "held_out_variational": variational}
