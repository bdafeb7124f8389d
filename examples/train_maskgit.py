"""The second stage: MaskGit over the tokenizer's ids, given the captions."""

import argparse
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn

from arguments import fps, recipe_of, sampling, scale_of
from distillation import learner, lessons
from encoded import Captions, encode_all
from media import side_by_side, write_gif, write_sheet, written
from moving_shapes import prompts, stories
from phenaki_pytorch import CViViT, MaskGit, Phenaki, SelfCritic, TokenCritic
from phenaki_pytorch.critic import Critic, filled_in
from phenaki_pytorch.guidance import GuidedFeatures
from phenaki_pytorch.maskgit import MaskGitLosses
from phenaki_pytorch.texts import TextEncoder
from sources import DataSets, mixture
from training_loop import fit
from word_vectors import WordVectors, words_of

MAX_SCENES = 3


def build_phenaki(cvivit: CViViT, maskgit: MaskGit, critic: Critic | None, encoder: TextEncoder | None) -> Phenaki:
    text = {} if encoder is None else {"text_encoder": encoder}
    return Phenaki(cvivit=cvivit, maskgit=maskgit, critic=critic, **text)


def build_maskgit(args: argparse.Namespace, cvivit: CViViT, width: int | None) -> MaskGit:
    return MaskGit(
        num_tokens=cvivit.codebook_size,
        grid=cvivit.grid(args.frames),
        dim=args.dim[1],
        depth=args.depth[2],
        heads=max(1, args.dim[1] // 32),
        dim_head=32,
        dim_context=width,
        schedule=args.mask_schedule,
    )


def build_critic(args: argparse.Namespace, maskgit: MaskGit) -> Critic | None:
    """A TokenCritic of MaskGit's size, a SelfCritic, or none."""
    if args.critic == "self":
        return SelfCritic(maskgit)
    if args.critic == "none":
        return None
    names = ("num_tokens", "grid", "dim", "depth", "heads", "dim_head", "dim_context", "cond_drop_prob")
    return TokenCritic(**{name: maskgit.config[name] for name in names})


@torch.no_grad()
def watch_prior(prior: nn.ModuleList, batch: dict[str, Tensor]) -> dict[str, float]:
    """Loss and accuracy of MaskGit, and the critic's loss, over clips that are not trained on, two thirds masked.

    And MaskGit's loss where all is masked, with the captions and without: what the text alone says.
    """
    maskgit, *critics = prior.eval()
    ids = batch["video_ids"].to(maskgit.to_logits.weight.device)
    generator = torch.Generator().manual_seed(0)
    masked = torch.rand(ids.shape, generator=generator).to(ids.device) < 2 / 3
    context, mask = (batch[name].to(ids.device) if name in batch else None for name in ("text_embeds", "text_mask"))
    logits = maskgit.logits(ids, masked, context, mask)[masked].float()
    loss = nn.functional.cross_entropy(logits, ids[masked])
    watched = {"held_out_loss": loss.item(), "accuracy": (logits.argmax(-1) == ids[masked]).float().mean().item()}
    if context is not None:
        flat = rearrange(ids, "b t h w -> b (t h w)")
        for name, scale in (("blank_loss", 1.0), ("blank_loss_no_text", 0.0)):
            features = GuidedFeatures(maskgit, tuple(ids.shape[1:]), context, mask, scale)
            blank = maskgit.to_logits(features(flat, torch.ones_like(flat, dtype=torch.bool), None, 0)).float()
            watched[name] = nn.functional.cross_entropy(rearrange(blank, "b n k -> b k n"), flat).item()
    for critic in critics:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            filled, wrong = filled_in(ids, MaskGitLosses(loss, masked, logits))
        watched |= {"critic_loss": critic(filled, wrong, context, mask).item(), "wrong": wrong.float().mean().item()}
    return watched


def compile_transformers(phenaki: Phenaki) -> None:
    """`Phenaki` asks MaskGit for more than its `forward` gives, so what is compiled are the transformers inside."""
    for reader in {phenaki.maskgit} | ({phenaki.critic.reader} if phenaki.critic else set()):
        reader.transformer.compile()


def note_words(plan: Path, captions: Iterable[Sequence[str]]) -> None:
    """Put the words that the model reads into its plan, so that generate.py can name them."""
    noted = json.loads(plan.read_text())
    noted["words"] = sorted({word for texts in captions for text in texts for word in words_of(text)})
    with written(plan) as temporary:  # a run that is stopped here can still be resumed
        temporary.write_text(json.dumps(noted, indent=2) + "\n")


def train_maskgit(
    args, accelerator: Accelerator, phenaki: Phenaki, sets: DataSets, captions: Captions, steps: int
) -> Phenaki:
    folder = args.out / "maskgit"
    folder.mkdir(exist_ok=True)
    phenaki.to(accelerator.device)
    accelerator.print("encoding clips for the second stage")
    draw = {"seed": args.seed, "device": accelerator.device, "prime_prob": args.prime_prob}
    encoded = [
        encode_all(phenaki.cvivit, dataset, args.encoded, **draw) if dataset is not None and weight else None
        for dataset, weight in zip(sets, (args.video_weight, args.image_weight[1]))
    ]
    if isinstance(phenaki.text_encoder, WordVectors) and accelerator.is_main_process:
        read = (texts for clips in encoded if clips is not None for texts in clips.captions)
        note_words(args.out / "plan.json", read)
    # The last clips are watched, not trained on.
    place = 0 if encoded[0] is not None else 1
    clips = encoded[place]
    encoded[place], last = clips.split(len(clips) - min(64, len(clips) // 10))
    watched = captions.collate([last[i] for i in range(len(last))])
    batches = mixture(args, 1, [lessons(args, encoded)], captions.collate, accelerator, steps)
    watch = {"evaluate": partial(watch_prior, batch=watched), "resume": args.resume, "workers": args.workers}
    recipe = recipe_of(args, 1, steps)
    if args.compile:
        compile_transformers(phenaki)
    prior = nn.ModuleList([phenaki.maskgit, *([] if phenaki.critic is None else [phenaki.critic])])
    maskgit, *critic = fit("maskgit", accelerator, learner(args, phenaki), prior, batches, recipe, folder, **watch)
    phenaki = build_phenaki(phenaki.cvivit, maskgit, critic[0] if critic else None, phenaki.text_encoder).eval()
    if accelerator.is_main_process:
        phenaki.save_pretrained(args.out / "model")
        show_samples(args, phenaki, [texts[0] for texts in clips.captions])
    return phenaki


def show_samples(args: argparse.Namespace, phenaki: Phenaki, captions: list[str]) -> None:
    """Samples and, of a model that reads texts, a story, as PNG and GIF."""
    if args.data == "moving_shapes":
        texts, told = prompts("seen", 8, seed=args.seed), list(stories(1, seed=args.seed)[0])
    else:
        texts = list(dict.fromkeys(captions))[:8]
        told = texts[:MAX_SCENES]
    generator = torch.Generator(phenaki.maskgit.to_logits.weight.device).manual_seed(args.seed)
    asked = {"num_frames": args.frames, "generator": generator, **sampling(args)}
    if phenaki.text_encoder is None:
        made = phenaki.generate(batch_size=len(texts), **asked)
        texts = [""] * len(texts)
    else:
        made = phenaki.generate(texts, **asked)
    made = made.float().cpu()
    sheet = {"columns": args.frames, "scale": scale_of(args)}
    write_sheet(args.out / "maskgit" / "samples.png", list(zip(texts, made)), **sheet)
    write_gif(args.out / "maskgit" / "samples.gif", side_by_side(made), fps(args), scale_of(args))
    if args.frames == 1 or phenaki.text_encoder is None:
        return
    step = args.temporal_patch_size
    overlap = 1 + (args.frames - 1) // step // 2 * step
    asked |= {"num_frames": [args.frames, *[args.frames - overlap] * (len(told) - 1)], "overlap": overlap}
    whole, scenes = phenaki.generate_story(told, **asked)
    write_gif(args.out / "story.gif", whole[0].float().cpu(), fps(args), scale_of(args))
    write_sheet(args.out / "story.png", [(text, scene[0].float().cpu()) for text, scene in zip(told, scenes)], **sheet)
