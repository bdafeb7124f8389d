"""Train both stages, the tokenizer and then MaskGit over its ids, and generate a story: from nothing to video.

    python examples/train.py                                        # moving shapes, judged
    python examples/train.py --data FOLDER --size 64 --frames 13    # your own captioned clips and pictures
    accelerate launch examples/train.py ...                         # several devices
    python examples/train.py --resume                               # go on from where it was stopped

Leaves in --out: model/ (what `Phenaki.from_pretrained` and generate.py read), the curves, checkpoints,
reconstructions and samples of both stages, story.gif and results.json.
"""

import argparse
import copy
import json
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset

from arguments import parse_arguments
from encoded import Captions, Encoded, encode_all
from measures import (
    OVERLAP,
    SHORTEST_JUDGED,
    SHORTEST_STORY,
    judged_reconstruction,
    reconstruction,
    story,
    table,
    text_to_video,
)
from media import side_by_side, write_gif, write_sheet
from mixture import Batches, Source, stack_clips
from moving_shapes import MovingShapes, prompts, stories
from phenaki_pytorch import CViViT, MaskGit, Phenaki, T5TextEncoder
from training_loop import Recipe, fast_bfloat16, fit, seconds_per_step
from video_folder import IMAGE_SUFFIXES, ImageFolder, VideoFolder
from word_vectors import WordVectors

MAX_SCENES = 3


# What the stages look at


def data_sets(args: argparse.Namespace, stage: str) -> tuple[Dataset | None, Dataset | None]:
    """The videos and the images of a stage; None for what has no weight in any."""
    videos = images = None
    if args.data == "moving_shapes":
        world = {"size": args.size, "seed": args.seed}
        names = ("tokenizer", "tokenizer") if stage == "tokenizer" else ("captioned_video", "captioned_images")
        videos = MovingShapes(names[0], num_frames=args.frames, **world)
        images = MovingShapes(names[1], num_frames=1, **world)
        return (videos if args.video_weight else None), (images if any(args.image_weight) else None)
    look = {"size": args.size, "flip": args.flip, "seed": args.seed}
    if args.video_weight:
        rate = {"fps": args.fps} if args.fps else {"stride": args.stride}
        videos = VideoFolder(args.data, num_frames=args.frames, **rate, **look)
    if any(args.image_weight) and any(path.suffix.lower() in IMAGE_SUFFIXES for path in Path(args.data).rglob("*")):
        images = ImageFolder(args.data, **look)
    return videos, images


def mixture(args, stage: int, sets: tuple, collate, accelerator: Accelerator, steps: int) -> Batches:
    """Videos and images by their weights in a stage."""
    weights = args.video_weight, args.image_weight[stage]
    sizes = args.batch_size[stage], 4 * args.batch_size[stage]
    return Batches(
        [Source(*source) for source in zip(sets, weights, sizes) if source[0] is not None],
        collate,
        seed=args.seed,
        steps=steps,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )


def held_out(args: argparse.Namespace, sets: tuple, count: int) -> Tensor:
    """Clips to look at, (b, 3, f, h, w): of moving shapes others than those trained on, of a folder its first."""
    dataset = sets[0] if sets[0] is not None else sets[1]
    if args.data == "moving_shapes":
        dataset = MovingShapes("tokenizer", size=args.size, num_frames=dataset.num_frames, seed=args.seed + 1)
    return stack_clips([dataset[i] for i in range(min(count, len(dataset)))])[0]


# Stage 1


def build_tokenizer(args: argparse.Namespace) -> CViViT:
    fsq = args.quantizer == "fsq"
    return CViViT(
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


def collate_videos(items: list[dict]) -> dict[str, Tensor]:
    return {"video": stack_clips(items)[0]}


@torch.no_grad()
def watch_tokenizer(cvivit: CViViT, videos: Tensor) -> dict[str, float]:
    """What the curves of the first stage show."""
    cvivit.eval()
    return reconstruction(cvivit, videos.to(cvivit.to_code.weight.device))


def train_tokenizer(args, accelerator: Accelerator, cvivit: CViViT, sets: tuple, steps: int) -> CViViT:
    folder = args.out / "tokenizer"
    folder.mkdir(exist_ok=True)
    batches = mixture(args, 0, sets, collate_videos, accelerator, steps)
    videos = held_out(args, sets, 32)
    watch = {"evaluate": partial(watch_tokenizer, videos=videos), **how(args)}
    recipe = recipe_of(args, 0, steps)
    cvivit = fit("tokenizer", accelerator, cvivit, cvivit, batches, recipe, folder, **watch).eval()
    if accelerator.is_main_process:
        rebuilt = cvivit.reconstruct(videos[:8].to(accelerator.device)).float().cpu()
        pairs = [clip for original, copy in zip(videos, rebuilt) for clip in (("original", original), ("", copy))]
        write_sheet(folder / "reconstructions.png", pairs, columns=args.frames, scale=scale_of(args))
        write_gif(folder / "reconstructions.gif", side_by_side(videos[:8], rebuilt), fps(args), scale_of(args))
        cvivit.save_pretrained(args.out / "model" / "cvivit")
    return cvivit


# Stage 2


def build_maskgit(args: argparse.Namespace, cvivit: CViViT, width: int) -> MaskGit:
    return MaskGit(
        num_tokens=cvivit.codebook_size,
        grid=cvivit.grid(args.frames),
        dim=args.dim[1],
        depth=args.depth[2],
        heads=max(1, args.dim[1] // 32),
        dim_head=32,
        dim_context=width,
    )


@torch.no_grad()
def watch_maskgit(maskgit: MaskGit, batch: dict[str, Tensor]) -> dict[str, float]:
    """Loss and accuracy over clips that are not trained on, two thirds of each masked."""
    maskgit.eval()
    ids = batch["video_ids"].to(maskgit.to_logits.weight.device)
    masked = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)).to(ids.device) < 2 / 3
    context, mask = batch["text_embeds"].to(ids.device), batch["text_mask"].to(ids.device)
    logits = maskgit.logits(ids, masked, context, mask)[masked].float()
    loss = nn.functional.cross_entropy(logits, ids[masked]).item()
    return {"held_out_loss": loss, "accuracy": (logits.argmax(-1) == ids[masked]).float().mean().item()}


def train_maskgit(
    args, accelerator: Accelerator, phenaki: Phenaki, sets: tuple, captions: Captions, steps: int
) -> Phenaki:
    folder = args.out / "maskgit"
    folder.mkdir(exist_ok=True)
    phenaki.to(accelerator.device)
    accelerator.print("encoding clips for the second stage")
    draw = {"seed": args.seed, "device": accelerator.device}
    encoded = [
        encode_all(phenaki.cvivit, dataset, args.encoded, **draw) if dataset is not None and weight else None
        for dataset, weight in zip(sets, (args.video_weight, args.image_weight[1]))
    ]
    # The last clips are watched, not trained on.
    place = 0 if encoded[0] is not None else 1
    clips = encoded[place]
    kept = len(clips) - min(64, len(clips) // 10)
    watched = captions.collate([clips[i] for i in range(kept, len(clips))])
    encoded[place] = Encoded(clips.ids[:kept], clips.captions[:kept])
    batches = mixture(args, 1, encoded, captions.collate, accelerator, steps)
    watch = {"evaluate": partial(watch_maskgit, batch=watched), **how(args)}
    recipe = recipe_of(args, 1, steps)
    maskgit = fit("maskgit", accelerator, phenaki, phenaki.maskgit, batches, recipe, folder, **watch)
    phenaki = Phenaki(cvivit=phenaki.cvivit, maskgit=maskgit, text_encoder=phenaki.text_encoder).eval()
    if accelerator.is_main_process:
        phenaki.save_pretrained(args.out / "model")
        show_samples(args, phenaki, clips.captions)
    return phenaki


def show_samples(args: argparse.Namespace, phenaki: Phenaki, captions: list[str]) -> None:
    """Samples and a story, as PNG and GIF."""
    if args.data == "moving_shapes":
        texts, told = prompts("seen", 8, seed=args.seed), list(stories(1, seed=args.seed)[0])
    else:
        texts = list(dict.fromkeys(captions))[:8]
        told = texts[:MAX_SCENES]
    generator = torch.Generator(phenaki.maskgit.to_logits.weight.device).manual_seed(args.seed)
    made = phenaki.generate(texts, num_frames=args.frames, generator=generator, **sampling(args)).float().cpu()
    sheet = {"columns": args.frames, "scale": scale_of(args)}
    write_sheet(args.out / "maskgit" / "samples.png", list(zip(texts, made)), **sheet)
    write_gif(args.out / "maskgit" / "samples.gif", side_by_side(made), fps(args), scale_of(args))
    if args.frames == 1:
        return
    step = args.temporal_patch_size
    overlap = 1 + (args.frames - 1) // step // 2 * step
    whole, scenes = phenaki.generate_story(
        told,
        num_frames=[args.frames, *[args.frames - overlap] * (len(told) - 1)],
        overlap=overlap,
        generator=generator,
        **sampling(args),
    )
    write_gif(args.out / "story.gif", whole[0].float().cpu(), fps(args), scale_of(args))
    write_sheet(args.out / "story.png", [(text, scene[0].float().cpu()) for text, scene in zip(told, scenes)], **sheet)


# What both stages share


def recipe_of(args: argparse.Namespace, stage: int, steps: int) -> Recipe:
    return Recipe(
        steps=steps,
        lr=args.lr[stage],
        optimizer=args.optimizer[stage],
        seed=args.seed,
        warmup=args.warmup,
        schedule=args.schedule,
        clip=args.clip,
        ema=args.ema,
        checkpoint_every=args.checkpoint_every,
    )


def how(args: argparse.Namespace) -> dict:
    return {"resume": args.resume, "workers": args.workers}


def sampling(args: argparse.Namespace) -> dict:
    return {"steps": args.sampling_steps, "cond_scale": args.cond_scale, "temperature": args.temperature}


def scale_of(args: argparse.Namespace) -> int:
    """How much to enlarge pictures, so that small ones can be seen."""
    return max(1, 128 // args.size)


def fps(args: argparse.Namespace) -> float:
    """The rate of the pictures that are left."""
    return min(args.fps or 8.0, 50.0)  # more than a GIF can say


def plan_steps(args, accelerator: Accelerator, cvivit: CViViT, sets: tuple, maskgit: MaskGit, captions) -> list[int]:
    """As many steps of both stages as fit in --minutes by the time that one takes now."""
    batches = mixture(args, 0, sets, collate_videos, accelerator, 1000)
    first = seconds_per_step(accelerator, cvivit, batches, recipe_of(args, 0, 1000))
    t, h, w = maskgit.grid
    texts = [""] * 100 if args.data != "moving_shapes" else prompts("seen", 100)
    draws = [
        None if dataset is None else Encoded(torch.randint(maskgit.num_tokens, (100, frames, h, w)), texts)
        for dataset, frames in zip(sets, (t, 1))
    ]
    phenaki = Phenaki(cvivit=copy.deepcopy(cvivit), maskgit=maskgit, text_encoder=captions.encoder)
    batches = mixture(args, 1, draws, captions.collate, accelerator, 1000)
    second = seconds_per_step(accelerator, phenaki, batches, recipe_of(args, 1, 1000))
    seconds = args.minutes * 60
    steps = [max(1, int(seconds * args.share / first)), max(1, int(seconds * (1 - args.share) / second))]
    accelerator.print(
        f"tokenizer: {steps[0]} steps of {first:.2f} s, maskgit: {steps[1]} steps of {second:.2f} s, "
        f"in all about {(steps[0] * first + steps[1] * second) / 60:.0f} minutes and what evaluation takes",
        flush=True,
    )
    return steps


def measure(args: argparse.Namespace, phenaki: Phenaki, videos: Tensor) -> dict[str, float]:
    """The closing table: reconstruction, and of moving shapes what the judge says."""
    videos = videos.to(phenaki.maskgit.to_logits.weight.device)
    measured = reconstruction(phenaki.cvivit, videos)
    if args.data != "moving_shapes":
        return measured
    measured |= judged_reconstruction(phenaki.cvivit, videos)
    draw = {"num_frames": args.frames, "seed": args.seed, **sampling(args)}
    if args.prompts and args.frames >= SHORTEST_JUDGED:
        measured |= text_to_video(phenaki, args.prompts, **draw)
    if args.stories and args.frames >= SHORTEST_STORY and (OVERLAP - 1) % args.temporal_patch_size == 0:
        for verb in ("turns", "moves"):
            measured |= story(phenaki, args.stories, verb=verb, **draw)
    return measured


def main() -> None:
    args = parse_arguments(__doc__)
    plan = args.out / "plan.json"
    steps = None
    if args.resume:
        if not plan.is_file():
            raise SystemExit(f"nothing to resume: {plan} is not there")
        saved = json.loads(plan.read_text())
        args = argparse.Namespace(**saved["arguments"], out=args.out, resume=True)
        steps = saved["steps"]
    if args.precision == "auto":
        args.precision = "bf16" if fast_bfloat16() else "no"
    # A batch of images alone leaves the tubelets' weights without a gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision=args.precision, kwargs_handlers=[unused])
    set_seed(args.seed)
    began = time.time()
    (args.out / "model").mkdir(parents=True, exist_ok=True)

    sets = data_sets(args, "tokenizer")
    encoder = WordVectors() if args.text_encoder == "words" else T5TextEncoder(args.text_encoder)
    captions = Captions(encoder)
    if args.stage == "maskgit":
        cvivit = CViViT.from_pretrained(args.out / "model" / "cvivit")
    else:
        cvivit = build_tokenizer(args)
    width = captions([""])[0].shape[-1]
    maskgit = build_maskgit(args, cvivit, width)
    if steps is None:
        steps = list(args.steps)
        if args.minutes is not None:
            steps = plan_steps(args, accelerator, cvivit, sets, maskgit, captions)
        if accelerator.is_main_process:
            arguments = {name: value for name, value in vars(args).items() if name not in ("out", "resume")}
            plan.write_text(json.dumps({"steps": steps, "arguments": arguments}, indent=2) + "\n")
    steps = broadcast_object_list(steps)

    if args.stage != "maskgit":
        cvivit = train_tokenizer(args, accelerator, cvivit, sets, steps[0])
    if args.stage != "tokenizer":
        phenaki = Phenaki(cvivit=cvivit, maskgit=maskgit, text_encoder=encoder)
        captioned = data_sets(args, "maskgit") if args.data == "moving_shapes" else sets
        phenaki = train_maskgit(args, accelerator, phenaki, captioned, captions, steps[1])
        if accelerator.is_main_process:
            measured = measure(args, phenaki, held_out(args, sets, 200)) | {"minutes": (time.time() - began) / 60}
            table(measured)
            (args.out / "results.json").write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
