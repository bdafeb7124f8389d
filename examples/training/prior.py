"""The second stage: MaskGit over the ids of a trained tokenizer, given the captions.

b = batch · t, h, w = grid of ids · m = text tokens · d = width of the text embeddings
"""

import argparse
import copy
import hashlib
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.encoded import Captions, Encoded, encode_all
from data.fitting import fitting
from data.mixture import Source
from data.runs import load_model, load_tokenizer
from data.sources import DataSets, captioned_data, mixture, sources_of
from data.word_vectors import WordVectors, words_of
from phenaki_pytorch import CViViT, MaskGit, Phenaki, SelfCritic, T5TextEncoder, TokenCritic
from phenaki_pytorch.core.contracts import TextEncoder
from phenaki_pytorch.core.lengths import usable_frames
from phenaki_pytorch.priors.critic import Critic, fill_in
from phenaki_pytorch.priors.maskgit import MaskGitLosses
from training.arguments import recipe_of
from training.checks import check_data, check_options, take_sizes
from training.distillation import crossed_clips, training_step
from training.loop import fit, seconds_per_step
from training.plans import files_of, load_plan, write_plan
from training.results import check_evaluation, show_samples, write_results
from training.stage import begin, begin_with, check_held, open_plan, plan_steps, trial_steps

DIGEST = "tokenizer_sha256"  # in the plan
FRAMES = 9  # of a clip, where neither --frames nor the tokenizer's temporal_window says how many
WATCHED = 64  # clips that the curves are measured on


def train_prior(args: argparse.Namespace, *, began: float | None = None) -> None:
    """The whole stage, from the arguments of train_prior.py: train MaskGit and write the model to --out.

    `began`: the time from which results.json counts its minutes; default: now.
    """
    began = time.time() if began is None else began
    check_held(args, "maskgit")
    accelerator, plan = begin(args), args.out / "plan.json"
    (args.out / "maskgit").mkdir(parents=True, exist_ok=True)
    captions = Captions(text_encoder(args.text_encoder))
    phenaki = build_model(args, captions).to(accelerator.device)
    digest = digest_of(phenaki.cvivit)
    check_same_tokenizer(args, plan, digest)
    check_options(args, phenaki)
    check_evaluation(args, phenaki)
    sets = captioned_data(args)
    check_data(args, *sets)
    files = files_of(sets)
    open_plan(plan, args, files)
    encoded, watched = encode_sets(args, accelerator, phenaki.cvivit, sets)
    mixed = sources_of(args, encoded)
    if (crossed := crossed_clips(args, encoded)) is not None:
        mixed.append(Source(crossed, args.crossed_weight, args.batch_size))
    steps = args.steps
    if not args.resume:
        steps = plan_steps(args, accelerator, timed(args, accelerator, phenaki, mixed, captions))
        if accelerator.is_main_process:
            more = {"files": files, DIGEST: digest, **words(captions, encoded)}
            write_plan(plan, args, steps, **more)
    held_out = captions.collate([watched[i] for i in range(len(watched))])
    phenaki = trained(args, accelerator, phenaki, mixed, captions, held_out, steps)
    if accelerator.is_main_process:
        phenaki.save_pretrained(args.out / "model")
        show_samples(args, phenaki, next(clips for clips in encoded if clips is not None))
        write_results(args, phenaki, sets, began=began)


# the model


def text_encoder(name: str) -> TextEncoder | None:
    """The text encoder of --text-encoder."""
    if name == "none":
        return None
    return WordVectors() if name == "words" else T5TextEncoder(name)


def build_model(args: argparse.Namespace, captions: Captions) -> Phenaki:
    """The model to train: the trained tokenizer, and MaskGit and critic, new or from --model.

    Fills in --size and --frames, where they are not given, by those of the tokenizer, and of a --model its other sizes.
    """
    trained = None if args.model is None else load_model(Path(args.model)).cpu()
    cvivit = load_tokenizer(tokenizer_folder(args)) if trained is None else trained.cvivit
    cvivit = of_size(cvivit, args.size)
    args.size = cvivit.image_size[0]
    if trained is not None:
        take_model(args, trained)
    elif args.frames is None:
        window = cvivit.temporal_window
        args.frames = usable_frames(cvivit, FRAMES) if window is None else cvivit.num_frames(window)
    maskgit = build_maskgit(args, cvivit, captions.width, trained)
    critic = build_critic(args, maskgit)
    begin_with(maskgit, getattr(trained, "maskgit", None))
    begin_with(critic, getattr(trained, "critic", None))
    return build_phenaki(cvivit, maskgit, critic, captions.encoder)


def take_model(args: argparse.Namespace, trained: Phenaki) -> None:
    """Take the sizes of --model and, if --critic is not given, its kind of critic."""
    take_sizes(args, {name: trained.maskgit.config[name] for name in ("dim", "depth")})
    args.frames = args.frames or trained.window
    if not args.resume and "critic" not in args.given:
        kinds = {type(None): "none", SelfCritic: "self", TokenCritic: "token"}
        args.critic = kinds[type(trained.critic)]


def tokenizer_folder(args: argparse.Namespace) -> Path:
    """Where the tokenizer lies."""
    return args.out / "model" / "cvivit" if args.tokenizer is None else Path(args.tokenizer)


def of_size(cvivit: CViViT, size: int | None) -> CViViT:
    """The same tokenizer for square clips of `size` pixels; None: the size of its training."""
    height, width = cvivit.image_size
    if size is None and height != width:
        raise ValueError(f"the tokenizer was trained on {height}×{width} pixels: expected --size, as clips are square")
    if size in (None, height) and height == width:
        return cvivit
    with fitting("--size"):
        other = CViViT(**cvivit.config | {"image_size": size})
    other.load_state_dict(cvivit.state_dict())
    return other


def build_maskgit(args: argparse.Namespace, cvivit: CViViT, width: int | None, trained: Phenaki | None) -> MaskGit:
    """A MaskGit for clips of --frames and --size, of new sizes or those of --model; its weights are random."""
    with fitting("--frames"):
        grid = cvivit.grid(args.frames)
    sizes = {"dim": args.dim, "depth": args.depth, "heads": max(1, args.dim // 32), "dim_head": 32}
    if trained is not None:
        sizes = trained.maskgit.config
    own = {"num_tokens": cvivit.codebook_size, "grid": grid, "dim_context": width, "schedule": args.mask_schedule}
    return MaskGit(**sizes | own)


def build_critic(args: argparse.Namespace, maskgit: MaskGit) -> Critic | None:
    """A TokenCritic of MaskGit's size, a SelfCritic, or none."""
    if args.critic == "self":
        return SelfCritic(maskgit)
    if args.critic == "none":
        return None
    names = ("num_tokens", "grid", "dim", "depth", "heads", "dim_head", "dim_context", "cond_drop_prob")
    return TokenCritic(**{name: maskgit.config[name] for name in names})


def build_phenaki(cvivit: CViViT, maskgit: MaskGit, critic: Critic | None, encoder: TextEncoder | None) -> Phenaki:
    """The whole model."""
    text = {} if encoder is None else {"text_encoder": encoder}
    return Phenaki(cvivit=cvivit, maskgit=maskgit, critic=critic, **text)


def trainable_part(phenaki: Phenaki) -> nn.ModuleList:
    """MaskGit and, if there is one, the critic, in one module, so that a copy links a SelfCritic to its own MaskGit."""
    return nn.ModuleList([phenaki.maskgit, *([] if phenaki.critic is None else [phenaki.critic])])


def with_part(phenaki: Phenaki, part: nn.ModuleList) -> Phenaki:
    """A model with another `trainable_part`."""
    maskgit, *critic = part
    return build_phenaki(phenaki.cvivit, maskgit, critic[0] if critic else None, phenaki.text_encoder)


def digest_of(cvivit: CViViT) -> str:
    """The SHA-256 of the tokenizer's weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(cvivit.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_same_tokenizer(args: argparse.Namespace, plan: Path, digest: str) -> None:
    """Refuse, with a ValueError, to go on with another tokenizer, if the plan knows the one of its training."""
    if args.resume and load_plan(plan).get(DIGEST, digest) != digest:
        raise ValueError(f"the tokenizer is not the one that the training in {plan} began with: --resume expects that")


# the data


def encode_sets(
    args: argparse.Namespace, accelerator: Accelerator, cvivit: CViViT, sets: DataSets
) -> tuple[list[Encoded | None], Encoded]:
    """Videos and images to train on, encoded, and clips that are held out; images where there are no videos."""
    accelerator.print("encoding the clips")
    options = {"seed": args.seed, "device": accelerator.device, "prime_prob": args.prime_prob}
    encoded = [None if dataset is None else encode_all(cvivit, dataset, args.encoded, **options) for dataset in sets]
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


# the training


def compile_transformers(phenaki: Phenaki) -> None:
    """Compile the transformers of MaskGit and critic: Phenaki calls more methods of them than `forward`."""
    for model in {phenaki.maskgit} | ({phenaki.critic.backbone} if phenaki.critic else set()):
        model.transformer.compile()


def timed(
    args: argparse.Namespace, accelerator: Accelerator, phenaki: Phenaki, mixed: list[Source], captions: Captions
) -> float:
    """Seconds of a step, by training a copy."""
    steps = trial_steps(args)
    phenaki = with_part(phenaki, copy.deepcopy(trainable_part(phenaki)))
    if args.compile:
        compile_transformers(phenaki)
    batches = mixture(args, mixed, captions.collate, accelerator, steps)
    return seconds_per_step(accelerator, training_step(args, phenaki), batches, recipe_of(args, steps))


def trained(
    args: argparse.Namespace,
    accelerator: Accelerator,
    phenaki: Phenaki,
    mixed: list[Source],
    captions: Captions,
    held_out: dict[str, Tensor],
    steps: int,
) -> Phenaki:
    """The model with the moving average of the trained MaskGit and critic."""
    if args.compile:
        compile_transformers(phenaki)
    part = fit(
        "maskgit",
        accelerator,
        training_step(args, phenaki),
        trainable_part(phenaki),
        mixture(args, mixed, captions.collate, accelerator, steps),
        recipe_of(args, steps),
        args.out / "maskgit",
        evaluate=partial(watch_prior, batch=held_out),
        resume=args.resume,
        workers=args.workers,
    )
    return with_part(phenaki, part).eval()


@torch.no_grad()
def watch_prior(part: nn.ModuleList, batch: dict[str, Tensor]) -> dict[str, float]:
    """The measures in the curves, over clips that are not trained on.

    MaskGit's loss and accuracy with two thirds of the ids masked; its loss with all ids masked, with the captions and
    without ("blank_loss", "blank_loss_no_text"); the critic's loss, and the share of wrong ids that it is given.
    """
    maskgit, *critics = part.eval()
    ids = batch["video_ids"].to(maskgit.to_logits.weight.device)
    masked = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)).to(ids.device) < 2 / 3
    text = [batch[name].to(ids.device) for name in ("text_embeds", "text_mask") if name in batch]
    logits = maskgit.logits(ids, masked, *text)[masked].float()
    loss = nn.functional.cross_entropy(logits, ids[masked])
    watched = {"held_out_loss": loss.item(), "accuracy": (logits.argmax(-1) == ids[masked]).float().mean().item()}
    if text:
        for name, scale in (("blank_loss", 1.0), ("blank_loss_no_text", 0.0)):
            blank = maskgit.logits(ids, torch.ones_like(masked), *text, cond_scale=scale).float()
            watched[name] = nn.functional.cross_entropy(blank.flatten(0, 3), ids.flatten()).item()
    for critic in critics:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            filled, wrong = fill_in(ids, MaskGitLosses(loss, masked, logits))
        watched |= {"critic_loss": critic(filled, wrong, *text).item(), "wrong": wrong.float().mean().item()}
    return watched
