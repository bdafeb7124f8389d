"""MaskGit as the prior of train_prior.py: the model, the part that is trained, its loss and its curves.

b = batch · t, h, w = grid of ids
"""

import argparse

import torch
from torch import Tensor, nn

from data.conditions import Conditions
from data.encoded import Encoded
from data.fitting import fitting
from data.mixture import Source
from data.sources import sources_of
from phenaki_pytorch import GuidedTeacher, MaskGit, Phenaki, SelfCritic, TokenCritic
from phenaki_pytorch.core.contracts import TextEncoder
from phenaki_pytorch.priors.critic import Critic, fill_in
from phenaki_pytorch.priors.maskgit import MaskGitLosses
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer
from training.checks import take_sizes
from training.distillation import DistillationStep, crossed_clips
from training.stage import begin_with

IMAGE_WEIGHT = 0.05  # of the batches, where the tokenizer takes images


# the model


def build_model(
    args: argparse.Namespace, tokenizer: VideoTokenizer, conditions: Conditions, trained: Phenaki | None
) -> Phenaki:
    """The model to train: the tokenizer, and MaskGit and critic, new or those of a trained model."""
    if trained is not None:
        take_model(args, trained)
    maskgit = build_maskgit(args, tokenizer, conditions.texts.width, trained)
    critic = build_critic(args, maskgit)
    begin_with(maskgit, getattr(trained, "maskgit", None))
    begin_with(critic, getattr(trained, "critic", None))
    return build_phenaki(tokenizer, maskgit, critic, conditions.texts.encoder)


def take_model(args: argparse.Namespace, trained: Phenaki) -> None:
    """Take the sizes of --model and, if --critic is not given, its kind of critic."""
    take_sizes(args, {name: trained.maskgit.config[name] for name in ("dim", "depth")})
    if not args.resume and "critic" not in args.given:
        kinds = {type(None): "none", SelfCritic: "self", TokenCritic: "token"}
        args.critic = kinds[type(trained.critic)]


def build_maskgit(
    args: argparse.Namespace, tokenizer: VideoTokenizer, width: int | None, trained: Phenaki | None
) -> MaskGit:
    """A MaskGit for clips of --frames and --size, of new sizes or those of --model; its weights are random."""
    with fitting("--frames"):
        grid = tokenizer.grid(args.frames)
    sizes = {"dim": args.dim, "depth": args.depth, "heads": max(1, args.dim // 32), "dim_head": 32}
    if trained is not None:
        sizes = trained.maskgit.config
    own = {"num_tokens": tokenizer.codebook_size, "grid": grid, "dim_context": width, "schedule": args.mask_schedule}
    return MaskGit(**sizes | own)


def build_critic(args: argparse.Namespace, maskgit: MaskGit) -> Critic | None:
    """A TokenCritic of MaskGit's size, a SelfCritic, or none."""
    if args.critic == "self":
        return SelfCritic(maskgit)
    if args.critic == "none":
        return None
    names = ("num_tokens", "grid", "dim", "depth", "heads", "dim_head", "dim_context", "cond_drop_prob")
    return TokenCritic(**{name: maskgit.config[name] for name in names})


def build_phenaki(
    tokenizer: VideoTokenizer, maskgit: MaskGit, critic: Critic | None, encoder: TextEncoder | None
) -> Phenaki:
    """The whole model."""
    text = {} if encoder is None else {"text_encoder": encoder}
    return Phenaki(cvivit=tokenizer, maskgit=maskgit, critic=critic, **text)


def trainable_part(phenaki: Phenaki) -> nn.ModuleList:
    """MaskGit and, if there is one, the critic, in one module, so that a copy links a SelfCritic to its own MaskGit."""
    return nn.ModuleList([phenaki.maskgit, *([] if phenaki.critic is None else [phenaki.critic])])


def with_part(phenaki: Phenaki, part: nn.ModuleList) -> Phenaki:
    """A model with another `trainable_part`."""
    maskgit, *critic = part
    return build_phenaki(phenaki.cvivit, maskgit, critic[0] if critic else None, phenaki.text_encoder)


# the training


def training_step(args: argparse.Namespace, phenaki: Phenaki) -> Phenaki | DistillationStep:
    """The module whose call is the loss; with --distil-guidance the teacher is MaskGit as it is now."""
    if args.distil_guidance is None:
        return phenaki
    return DistillationStep(phenaki, GuidedTeacher(phenaki.maskgit, cond_scale=args.distil_guidance))


def collate(conditions: Conditions, items: list[dict]) -> dict[str, Tensor]:
    """Items of `Encoded` -> arguments of the loss."""
    batch = conditions.collate(items)
    batch["prime_steps"] = torch.tensor([item["prime_steps"] for item in items])
    if "crossed" in items[0]:
        batch["crossed"] = items[0]["crossed"]
    return batch


def encoding(args: argparse.Namespace, tokenizer: VideoTokenizer) -> dict:
    """Further arguments of `encode_all`."""
    return {"prime_prob": args.prime_prob}


def sources(args: argparse.Namespace, encoded: list[Encoded | None]) -> list[Source]:
    """What is trained on: videos, images and, with --distil-guidance, videos under the captions of images."""
    crossed = crossed_clips(args, encoded)
    more = [] if crossed is None else [Source(crossed, args.crossed_weight, args.batch_size)]
    return sources_of(args, encoded) + more


def compile_model(phenaki: Phenaki) -> None:
    """Compile the transformers of MaskGit and critic: Phenaki calls more methods of them than `forward`."""
    for model in {phenaki.maskgit} | ({phenaki.critic.backbone} if phenaki.critic else set()):
        model.transformer.compile()


@torch.no_grad()
def watch(phenaki: Phenaki, part: nn.ModuleList, batch: dict[str, Tensor]) -> dict[str, float]:
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
