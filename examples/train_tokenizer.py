"""The first stage: the tokenizer, by its pixels and, if asked for, by perceptual distances and a discriminator."""

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from adversarial import AdversarialOpponent, TokenizerStep
from arguments import fps, recipe_of, scale_of
from measures import reconstruction
from media import side_by_side, write_gif, write_sheet
from mixture import stack_clips
from perceptual import FeatureDistance, classifier, train_classifier
from phenaki_pytorch import CViViT, Discriminator, LossWeights, checkpoint_activations
from sources import DataSets, held_out, mixture
from training_loop import fit, save_whole


def build_tokenizer(args: argparse.Namespace) -> CViViT:
    fsq = args.quantizer == "fsq"
    cvivit = CViViT(
        dim=args.dim[0],
        image_size=args.size,
        patch_size=args.patch_size,
        temporal_patch_size=args.temporal_patch_size,
        spatial_depth=args.depth[0],
        temporal_depth=args.depth[1],
        heads=max(1, args.dim[0] // 32),
        dim_head=32,
        codebook_size=torch.tensor(args.levels).prod().item() if fsq else args.codebook_size,
        code_dim=len(args.levels) if fsq else 32,
        quantizer=args.quantizer,
        quantizer_kwargs={"levels": args.levels} if fsq else None,
    )
    checkpoint_activations(cvivit, args.checkpoint_activations)
    return cvivit


def collate_videos(items: list[dict]) -> dict[str, Tensor]:
    return {"video": stack_clips(items)[0]}


@torch.no_grad()
def watch_tokenizer(cvivit: CViViT, videos: Tensor) -> dict[str, float]:
    """What the curves of the first stage show."""
    cvivit.eval()
    return reconstruction(cvivit, videos.to(cvivit.encoder.to_code.weight.device))


def perceptual_networks(args: argparse.Namespace, accelerator: Accelerator) -> dict[str, FeatureDistance]:
    """Those whose weight is not 0, trained on what the moving shapes are; a resumed run finds them in --out."""
    networks = {}
    for name, weight, frames in (
        ("image_perceptual", args.image_perceptual, 1),
        ("video_perceptual", args.video_perceptual, args.frames),
    ):
        if weight <= 0:
            continue
        path = args.out / f"{name}.pt"
        if args.resume and path.is_file():
            network = classifier(frames)
            network.load_state_dict(torch.load(path, weights_only=True))
        else:
            network, right = train_classifier(args.size, frames=frames, steps=args.perceptual_steps, seed=args.seed)
            accelerator.print(f"the network of {name} is right on {right:.1%} of its labels")
            if accelerator.is_main_process:
                save_whole(path, network.state_dict())
        networks[name] = FeatureDistance(network)
    return networks


def two_sides(
    args: argparse.Namespace, accelerator: Accelerator, cvivit: CViViT, networks: dict, steps: int, start: int
) -> tuple[TokenizerStep, AdversarialOpponent | None]:
    """What is trained: the tokenizer and, if it has a weight, from step `start` on the discriminator."""
    if args.compile:
        cvivit.encoder.compile()
        cvivit.decoder.compile()
    weights = LossWeights(
        image_perceptual=args.image_perceptual, video_perceptual=args.video_perceptual, adversarial=0.0
    )
    if not args.adversarial:
        return TokenizerStep(cvivit, weights=weights, **networks), None
    discriminator = Discriminator(image_size=args.size, dim=args.discriminator_dim, r1_weight=args.r1_weight)
    tokenizer = TokenizerStep(cvivit, weights=weights, discriminator=discriminator, **networks)
    recipe = recipe_of(args, 0, steps - start)._replace(optimizer="adamw", lr=args.discriminator_lr)
    say = {"share": args.adversarial, "start": start, "ramp": int(args.adversarial_ramp * steps)}
    sides = (accelerator, discriminator, tokenizer, recipe)
    return tokenizer, AdversarialOpponent(*sides, **say, frames=args.judged_frames)


def train_tokenizer(
    args, accelerator: Accelerator, cvivit: CViViT, networks: dict, sets: Sequence[DataSets], steps: int
) -> CViViT:
    folder = args.out / "tokenizer"
    folder.mkdir(exist_ok=True)
    batches = mixture(args, 0, sets, collate_videos, accelerator, steps)
    videos, _ = held_out(args, sets, 32)
    tokenizer, opponent = two_sides(
        args, accelerator, cvivit, networks, steps, start=int(args.adversarial_start * steps)
    )
    cvivit = fit(
        "tokenizer",
        accelerator,
        tokenizer,
        cvivit,
        batches,
        recipe_of(args, 0, steps),
        folder,
        evaluate=partial(watch_tokenizer, videos=videos),
        resume=args.resume,
        workers=args.workers,
        opponent=opponent,
    ).eval()
    if accelerator.is_main_process:
        rebuilt = cvivit.reconstruct(videos[:8].to(accelerator.device)).float().cpu()
        pairs = [clip for original, copy in zip(videos, rebuilt) for clip in (("original", original), ("", copy))]
        write_sheet(folder / "reconstructions.png", pairs, columns=args.frames, scale=scale_of(args))
        write_gif(folder / "reconstructions.gif", side_by_side(videos[:8], rebuilt), fps(args), scale_of(args))
        cvivit.save_pretrained(args.out / "model" / "cvivit")
        if opponent is not None:
            opponent.discriminator.save_pretrained(args.out / "discriminator")
    return cvivit
