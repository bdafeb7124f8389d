"""The first stage: a tokenizer that learns from pixels and, if asked for, perceptual distances and a discriminator.

b = batch · c = channels · f = frames
"""

import argparse
import copy
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from data.fitting import fitting
from data.media import side_by_side, write_gif, write_sheet
from data.mixture import Source, stack_clips
from data.runs import folder_of, load_tokenizer
from data.sources import held_out, mixture, sources_of, tokenizer_data
from evaluation.measures import reconstruction
from phenaki_pytorch import LossWeights, checkpoint_activations
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer
from training.adversarial import DiscriminatorTraining, TokenizerStep
from training.arguments import fps, recipe_of, scale_of
from training.checkpoints import reason_of, save_whole
from training.checks import check_data, take_image_weight, take_sizes
from training.loop import fit, seconds_per_step
from training.perceptual import Classifier, FeatureDistance, classifier, train_classifier
from training.plans import files_of, load_plan, write_plan
from training.stage import (
    SECOND_STAGES,
    STAGES,
    begin,
    begin_with,
    check_held,
    open_plan,
    plan_steps,
    remove_second_stage,
    trial_steps,
)
from training.tokenizers import build_discriminator, build_tokenizer, sizes_of

WATCHED = 32  # clips that the curves are measured on
SHOWN = 8  # clips in the pictures
IMAGE_WEIGHT = 0.02  # of the batches, where a tokenizer takes images

Networks = dict[str, FeatureDistance]  # by the name of their term


def train_tokenizer(args: argparse.Namespace) -> None:
    """The whole stage, from the arguments of train_tokenizer.py: train a tokenizer and write it to --out."""
    check_held(args, *STAGES)
    folder = args.out / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    accelerator, plan = begin(args), folder / "plan.json"
    tokenizer = prepared_tokenizer(args)
    sets = tokenizer_data(args)
    check_data(args, *sets[0])
    files = files_of([dataset for both in sets for dataset in both])
    check_prior_beside(args, plan)
    open_plan(plan, args, files)
    if not args.resume:
        remove_second_stage(args.out, keep=folder_of(tokenizer))
    mixed = [source for of_size in sets for source in sources_of(args, of_size)]
    networks = perceptual_networks(args, accelerator)
    steps = args.steps
    if not args.resume:
        steps = plan_steps(args, accelerator, timed(args, accelerator, copy.deepcopy(tokenizer), networks, mixed))
        if accelerator.is_main_process:
            write_plan(plan, args, steps, files=files)
    set_seed(args.seed)  # a resumed run has drawn fewer random numbers up to here
    videos, _ = held_out(args, sets[0], WATCHED)
    tokenizer, adversary = trained(args, accelerator, tokenizer, networks, mixed, videos, steps)
    if accelerator.is_main_process:
        show_reconstructions(args, tokenizer, videos[:SHOWN].to(accelerator.device))
        tokenizer.save_pretrained(args.out / "model" / folder_of(tokenizer))
        if adversary is not None:
            adversary.discriminator.save_pretrained(args.out / "discriminator")
    accelerator.wait_for_everyone()  # so that no process looks for the files before they are written


def check_prior_beside(args: argparse.Namespace, plan: Path) -> None:
    """Refuse, with a ValueError, more steps of a tokenizer whose latents a second stage in --out has already learnt."""
    for trained in (args.out / "model" / name for names in SECOND_STAGES.values() for name in names):
        if args.resume and trained.is_dir() and args.steps != load_plan(plan)["steps"]:
            raise ValueError(f"{trained} was trained with the tokenizer beside it: expected no more --steps")


def prepared_tokenizer(args: argparse.Namespace) -> VideoTokenizer:
    """The tokenizer to train, new or that of --model. Fills in the weight of the images.

    Raises ValueError for sizes that do not fit, those of a discriminator included.
    """
    trained = None if args.model is None else load_tokenizer(Path(args.model))
    if trained is not None:
        take_sizes(args, sizes_of(trained, args.tokenizer))
    tokenizer = build_tokenizer(args, trained)
    take_image_weight(args, tokenizer, IMAGE_WEIGHT)
    if args.adversarial:
        with torch.device("meta"), fitting("--size or --discriminator-dim"):
            build_discriminator(args)
    begin_with(tokenizer, trained)
    checkpoint_activations(tokenizer, args.checkpoint_activations)
    return tokenizer


def collate_videos(items: list[dict]) -> dict[str, Tensor]:
    """Items of the data sets -> arguments of the loss."""
    return {"video": stack_clips(items)[0]}


@torch.no_grad()
def watch_tokenizer(tokenizer: VideoTokenizer, videos: Tensor) -> dict[str, float]:
    """The measures in the curves."""
    tokenizer.eval()
    return reconstruction(tokenizer, videos.to(next(tokenizer.parameters()).device))


def perceptual_networks(args: argparse.Namespace, accelerator: Accelerator) -> Networks:
    """The networks whose term has a weight, trained on the labels of moving shapes; a resumed run reads them."""
    networks = {}
    for name, frames in (("image_perceptual", 1), ("video_perceptual", args.frames)):
        if getattr(args, name) <= 0:
            continue
        path = args.out / f"{name}.pt"
        if args.resume and path.is_file():
            network = read_classifier(path, frames)
        else:
            network, right = train_classifier(args.size, frames=frames, steps=args.perceptual_steps, seed=args.seed)
            accelerator.print(f"the network of {name} is right about {right:.1%} of its labels")
            if accelerator.is_main_process:
                save_whole(path, network.state_dict())
        networks[name] = FeatureDistance(network)
    return networks


def read_classifier(path: Path, frames: int) -> Classifier:
    """The trained network of a file. ValueError where it cannot be read."""
    network = classifier(frames)
    try:
        network.load_state_dict(torch.load(path, weights_only=True))
    except Exception as error:  # the kind of error depends on where the file is damaged
        raise ValueError(f"cannot read {path} ({reason_of(error)}): delete it to train it anew") from error
    return network


def build_step(
    args: argparse.Namespace,
    accelerator: Accelerator,
    tokenizer: VideoTokenizer,
    networks: Networks,
    *,
    steps: int,
    start: int,
) -> tuple[TokenizerStep, DiscriminatorTraining | None]:
    """The tokenizer's loss and, with --adversarial, the training of a discriminator that starts at step `start`."""
    if args.compile:
        tokenizer.encoder.compile()
        tokenizer.decoder.compile()
    weights = LossWeights(
        image_perceptual=args.image_perceptual, video_perceptual=args.video_perceptual, adversarial=0.0
    )
    if not args.adversarial:
        return TokenizerStep(tokenizer, weights=weights, **networks), None
    discriminator = build_discriminator(args)
    step = TokenizerStep(tokenizer, weights=weights, discriminator=discriminator, **networks)
    recipe = recipe_of(args, steps - start)._replace(optimizer="adamw", lr=args.discriminator_lr)
    ramp = int(args.adversarial_ramp * steps)
    options = {"ratio": args.adversarial, "start": start, "ramp": ramp, "frames": args.judged_frames}
    return step, DiscriminatorTraining(accelerator, discriminator, step, recipe, **options)


def timed(
    args: argparse.Namespace,
    accelerator: Accelerator,
    tokenizer: VideoTokenizer,
    networks: Networks,
    mixed: list[Source],
) -> float:
    """Seconds of a step, with the discriminator if there is one. It changes the tokenizer."""
    steps = trial_steps(args)
    step, adversary = build_step(args, accelerator, tokenizer, networks, steps=steps, start=0)
    batches = mixture(args, mixed, collate_videos, accelerator, steps)
    return seconds_per_step(accelerator, step, batches, recipe_of(args, steps), adversary)


def trained(
    args: argparse.Namespace,
    accelerator: Accelerator,
    tokenizer: VideoTokenizer,
    networks: Networks,
    mixed: list[Source],
    videos: Tensor,
    steps: int,
) -> tuple[VideoTokenizer, DiscriminatorTraining | None]:
    """The moving average of the trained tokenizer, and the discriminator's training if there was one."""
    start = int(args.adversarial_start * steps)
    step, adversary = build_step(args, accelerator, tokenizer, networks, steps=steps, start=start)
    tokenizer = fit(
        "tokenizer",
        accelerator,
        step,
        tokenizer,
        mixture(args, mixed, collate_videos, accelerator, steps),
        recipe_of(args, steps),
        args.out / "tokenizer",
        evaluate=partial(watch_tokenizer, videos=videos),
        resume=args.resume,
        workers=args.workers,
        adversary=adversary,
    )
    return tokenizer.eval(), adversary


def show_reconstructions(args: argparse.Namespace, tokenizer: VideoTokenizer, videos: Tensor) -> None:
    """Write clips and their reconstructions as PNG and GIF."""
    folder, rebuilt, videos = args.out / "tokenizer", tokenizer.reconstruct(videos).float().cpu(), videos.cpu()
    rows = [row for original, copied in zip(videos, rebuilt) for row in (("original", original), ("", copied))]
    write_sheet(folder / "reconstructions.png", rows, columns=args.frames, scale=scale_of(args))
    write_gif(folder / "reconstructions.gif", side_by_side(videos, rebuilt), fps(args), scale_of(args))
