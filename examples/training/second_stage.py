"""The second stage: a model of the latents of a trained first stage, told captions, frames, actions or nothing."""

import argparse
import copy
import hashlib
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from data.conditions import Captions, Conditions
from data.encoded import Encoded, encode_all
from data.fitting import fitting
from data.mixture import Source
from data.runs import SYSTEMS, load_model, load_tokenizer, read_plan_file, save_model, tokenizer_of
from data.sampling import Model
from data.sources import DataSets, captioned_data, mixture
from data.vae import load_vae
from data.word_vectors import WordVectors, words_of
from phenaki_pytorch import CViViT, ImageVAE, T5TextEncoder
from phenaki_pytorch.core.contracts import TextEncoder
from phenaki_pytorch.core.lengths import usable_frames
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer
from training import gpt_prior, latte_stage, maskgit_prior
from training.arguments import recipe_of
from training.checks import check_data, check_options, take_image_weight
from training.loop import fit, seconds_per_step
from training.plans import files_of, load_plan, write_plan
from training.results import check_evaluation, show_samples, write_results
from training.stage import SECOND_STAGES, begin, check_held, open_plan, plan_steps, trial_steps

DIGEST = "tokenizer_sha256"  # in the plan
FRAMES = 9  # of a clip, where neither --frames nor the tokenizer says how many
VAE_FRAMES = 16  # the same over an image VAE, Latte's
WATCHED = 64  # clips that the curves are measured on

KINDS = {"maskgit": maskgit_prior, "gpt": gpt_prior, "latte": latte_stage}
FirstStage = VideoTokenizer | ImageVAE


def train_second_stage(args: argparse.Namespace, *, began: float | None = None) -> None:
    """The whole stage, from the arguments of train_prior.py or train_diffusion.py: train, and write the model to --out.

    `began`: the time from which results.json counts its minutes; default: now.
    """
    began = time.time() if began is None else began
    check_held(args, *SECOND_STAGES)
    accelerator, plan = begin(args), args.out / "plan.json"
    (args.out / args.prior).mkdir(parents=True, exist_ok=True)
    trained = trained_model(args)
    tokenizer = sized_tokenizer(args, trained)
    sets = captioned_data(args)
    check_data(args, *sets)
    conditions = conditions_of(args, sets)
    model = KINDS[args.prior].build_model(args, tokenizer, conditions, trained).to(accelerator.device)
    digest = digest_of(tokenizer)
    check_same_tokenizer(args, plan, digest)
    check_options(args, model)
    check_evaluation(args, model)
    files = files_of(sets)
    open_plan(plan, args, files)
    encoded, watched = encode_sets(args, accelerator, tokenizer, sets, conditions)
    mixed = KINDS[args.prior].sources(args, encoded)
    steps = args.steps
    if not args.resume:
        steps = plan_steps(args, accelerator, timed(args, accelerator, model, mixed, conditions))
        if accelerator.is_main_process:
            more = {"files": files, DIGEST: digest, **words(conditions.texts, encoded), **names_of(conditions)}
            write_plan(plan, args, steps, **more)
    held_out = KINDS[args.prior].collate(conditions, [watched[i] for i in range(len(watched))])
    model = trained_stage(args, accelerator, model, mixed, conditions, held_out, steps)
    if accelerator.is_main_process:
        save_model(model, args.out / "model")
        show_samples(args, model, next(clips for clips in encoded if clips is not None), conditions)
        write_results(args, model, sets, began=began)


# the model


def text_encoder(name: str) -> TextEncoder:
    """The text encoder of --text-encoder."""
    return WordVectors() if name == "words" else T5TextEncoder(name)


def trained_model(args: argparse.Namespace) -> Model | None:
    """The model of --model. ValueError where it is of another kind."""
    if args.model is None:
        return None
    model = load_model(Path(args.model)).cpu()
    if SYSTEMS[type(model)] != args.prior:
        raise ValueError(f"--model is a {type(model).__name__}: expected {expected_of(args)}")
    return model


def expected_of(args: argparse.Namespace) -> str:
    """What is expected in place of a --model of another kind."""
    return "a Latte" if args.prior == "latte" else f"no --prior {args.prior}"


def sized_tokenizer(args: argparse.Namespace, trained: Model | None) -> FirstStage:
    """The trained first stage. Fills in --size, --frames and --image-weight where they are not given."""
    tokenizer = load_first_stage(args) if trained is None else tokenizer_of(trained)
    tokenizer = of_size(tokenizer, args.size)
    args.size = tokenizer.image_size[0]
    if args.frames is None:
        args.frames = frames_of(tokenizer) if trained is None else trained.window
    take_image_weight(args, tokenizer, KINDS[args.prior].IMAGE_WEIGHT)
    return tokenizer


def load_first_stage(args: argparse.Namespace) -> FirstStage:
    """The image VAE of --vae, or the tokenizer of --tokenizer or of an earlier training in --out."""
    if getattr(args, "vae", None) is not None:
        return load_vae(Path(args.vae), args.size)
    return load_tokenizer(args.out / "model" if args.tokenizer is None else Path(args.tokenizer))


def frames_of(tokenizer: FirstStage) -> int:
    """The frames of the clips that a tokenizer was trained on, as far as it knows."""
    if isinstance(tokenizer, ImageVAE):
        return VAE_FRAMES
    if (shape := tokenizer.config.get("video_shape")) is not None:
        return shape[0]
    window = tokenizer.config.get("temporal_window")
    return usable_frames(tokenizer, FRAMES) if window is None else tokenizer.num_frames(window)


def of_size(tokenizer: FirstStage, size: int | None) -> FirstStage:
    """The same tokenizer for square clips of `size` pixels; None: the size of its training."""
    height, width = tokenizer.image_size
    if size is None and height != width:
        raise ValueError(f"the tokenizer was trained on {height}×{width} pixels: expected --size, as clips are square")
    if size in (None, height) and height == width:
        return tokenizer
    if not isinstance(tokenizer, CViViT):
        raise ValueError(f"a {type(tokenizer).__name__} has the size of its training: expected --size {height}")
    with fitting("--size"):
        other = CViViT(**tokenizer.config | {"image_size": size})
    other.load_state_dict(tokenizer.state_dict())
    return other


def digest_of(tokenizer: FirstStage) -> str:
    """The SHA-256 of the tokenizer's weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_same_tokenizer(args: argparse.Namespace, plan: Path, digest: str) -> None:
    """Refuse, with a ValueError, to go on with another tokenizer, if the plan knows the one of its training."""
    if args.resume and load_plan(plan).get(DIGEST, digest) != digest:
        raise ValueError(f"the tokenizer is not the one that the training in {plan} began with: --resume expects that")


# the data


def conditions_of(args: argparse.Namespace, sets: DataSets) -> Conditions:
    """What the model is told. ValueError where the data lack something.

    Classes and actions are those of --model, or of the plan of a training that is resumed, so that they keep their
    numbers.
    """
    begun = args.out / "model" if args.resume else args.model
    named = {} if begun is None else read_plan_file(Path(begun))
    return Conditions(
        args.condition,
        encoder=text_encoder(args.text_encoder) if "text" in args.condition else None,
        classes=classes_of(sets, named.get("classes")) if "classes" in args.condition else (),
        actions=actions_of(*sets, named.get("actions")) if "actions" in args.condition else (),
    )


def classes_of(sets: DataSets, known: list[str] | None) -> list[str]:
    """The captions of the data, each of which is a class, or the known ones, which must have all of them."""
    captions = sorted({text for dataset in sets if dataset is not None for text in dataset.every_caption()})
    classes = captions if known is None else known
    if foreign := sorted(set(captions) - set(classes)):
        raise ValueError(f"the training has the classes {', '.join(classes)}, --data also has {', '.join(foreign)}")
    if "" in classes or len(classes) < 2:
        raise ValueError(f"--condition classes needs a caption for every clip, and two of them, got {classes}")
    return classes


def actions_of(videos: Dataset | None, images: Dataset | None, known: list[str] | None) -> list[str]:
    """The names of the actions, which must be the known ones; every video must have actions."""
    actions = list(getattr(videos, "action_names", ()))
    if not actions or images is not None:
        raise ValueError("--condition actions needs videos with an actions.csv in --data, and no images")
    if without := [path.name for path, rows in zip(videos.paths, videos.actions) if rows is None]:
        shown = ", ".join(without[:3]) + (" ..." if len(without) > 3 else "")
        raise ValueError(f"--condition actions needs rows in actions.csv for all videos, got none for {shown}")
    if known not in (None, actions):
        raise ValueError(f"the training has the actions {', '.join(known)}, --data has {', '.join(actions)}")
    return actions


def encode_sets(
    args: argparse.Namespace,
    accelerator: Accelerator,
    tokenizer: FirstStage,
    sets: DataSets,
    conditions: Conditions,
) -> tuple[list[Encoded | None], Encoded]:
    """Videos and images to train on, encoded, and clips that are held out; images where there are no videos."""
    accelerator.print("encoding the clips")
    options = {
        "seed": args.seed,
        "device": accelerator.device,
        "tell": conditions.tell,
        **KINDS[args.prior].encoding(args, tokenizer),
    }
    encoded = [None if each is None else encode_all(tokenizer, each, args.encoded, **options) for each in sets]
    place = 0 if encoded[0] is not None else 1
    count = len(encoded[place])
    encoded[place], watched = encoded[place].split(count - min(WATCHED, count // 10))
    return encoded, watched


def words(captions: Captions, encoded: list[Encoded | None]) -> dict[str, list[str]]:
    """The words of the captions, for the plan, if the text encoder knows no others; generate.py warns of others."""
    if not isinstance(captions.encoder, WordVectors):
        return {}
    texts = {text for clips in encoded if clips is not None for each in clips.captions for text in each}
    return {"words": sorted({word for text in texts for word in words_of(text)})}


def names_of(conditions: Conditions) -> dict[str, list[str]]:
    """The names of classes and actions, for the plan."""
    named = {"classes": conditions.classes, "actions": conditions.actions}
    return {name: values for name, values in named.items() if values}


# the training


def timed(
    args: argparse.Namespace, accelerator: Accelerator, model: Model, mixed: list[Source], conditions: Conditions
) -> float:
    """Seconds of a step, by training a copy."""
    steps, kind = trial_steps(args), KINDS[args.prior]
    model = kind.with_part(model, copy.deepcopy(kind.trainable_part(model)))
    if args.compile:
        kind.compile_model(model)
    batches = mixture(args, mixed, partial(kind.collate, conditions), accelerator, steps)
    return seconds_per_step(accelerator, kind.training_step(args, model), batches, recipe_of(args, steps))


def trained_stage(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: Model,
    mixed: list[Source],
    conditions: Conditions,
    held_out: dict[str, Tensor],
    steps: int,
) -> Model:
    """The model with the moving average of the trained part."""
    kind = KINDS[args.prior]
    if args.compile:
        kind.compile_model(model)
    part = fit(
        args.prior,
        accelerator,
        kind.training_step(args, model),
        kind.trainable_part(model),
        mixture(args, mixed, partial(kind.collate, conditions), accelerator, steps),
        recipe_of(args, steps),
        args.out / args.prior,
        evaluate=partial(kind.watch, model, batch=held_out),
        resume=args.resume,
        workers=args.workers,
    )
    return kind.with_part(model, part).eval()
