"""Train both stages, the tokenizer and then MaskGit over its ids, and generate a story: from nothing to video.

    python examples/train.py                                        # moving shapes, about 20 minutes on 2 cores
    python examples/train.py --data FOLDER --size 64 --frames 11    # your own captioned clips and pictures
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
from phenaki_pytorch import CViViT, MaskGit, Phenaki, T5TextEncoder
from torch import Tensor, nn
from torch.utils.data import Dataset

from encoded import Captions, Encoded, encode_all
from measures import judged_reconstruction, reconstruction, story, table, text_to_video
from media import side_by_side, write_gif, write_sheet
from mixture import Batches, Source, stack_clips
from moving_shapes import MovingShapes, prompts, stories
from training_loop import Recipe, fast_bfloat16, fit, seconds_per_step
from video_folder import ImageFolder, VideoFolder
from word_vectors import WordVectors

MAX_SCENES = 3


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="moving_shapes", help="moving_shapes, or a folder of videos and images with captions")
    add("--out", type=Path, default=Path("runs/phenaki"))
    add("--stage", choices=("both", "tokenizer", "maskgit"), default="both")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    add("--seed", type=int, default=0)
    add("--minutes", type=float, default=20.0, help="for the stages together; fixes the steps when it starts")
    add("--steps", type=int, nargs="+", help="steps of the tokenizer and of MaskGit, in place of --minutes")
    add("--text-encoder", default="words", help="a T5 name or directory; 'words' needs no file")

    data = parser.add_argument_group("data").add_argument
    data("--size", type=int, default=32, help="height and width, pixels")
    data("--frames", type=int, default=9, help="frames of a clip, 1 + k · --temporal-patch-size")
    data("--fps", type=float, help="take a folder's frames at this rate")
    data("--stride", type=int, default=1, help="take every n-th frame of a folder's videos, without --fps")
    data("--flip", action="store_true", help="mirror a folder's clips at random: makes 'left' wrong")
    data("--video-weight", type=float, default=0.7, help="share of the batches that are videos")
    data("--image-weight", type=float, default=0.3, help="share of the batches that are images")
    data("--workers", type=int, default=0, help="processes that load data")
    data("--encoded", type=int, default=6000, help="clips, and as many images, to encode for the second stage")

    model = parser.add_argument_group("model").add_argument
    model("--patch-size", type=int, default=4)
    model("--temporal-patch-size", type=int, default=2)
    model("--quantizer", default="fsq", choices=("vq", "lfq", "fsq", "simvq"))
    model("--levels", type=int, nargs="+", default=[4, 4, 4, 4, 4], help="of fsq")
    model("--codebook-size", type=int, default=512, help="of the other quantizers")
    model("--dim", type=int, nargs=2, default=(128, 160), help="of the tokenizer and of MaskGit")
    model("--depth", type=int, nargs=3, default=(2, 1, 5), help="spatial, temporal, MaskGit")

    recipe = parser.add_argument_group("recipe").add_argument
    recipe("--batch-size", type=int, default=8, help="clips; image batches have four times as many")
    recipe("--lr", type=float, nargs=2, default=(1e-3, 1e-3), help="of the tokenizer and of MaskGit")
    recipe("--warmup", type=int, default=50)
    recipe("--schedule", choices=("cosine", "constant"), default="cosine", help="after the warm-up")
    recipe("--clip", type=float, default=1.0, help="largest norm of the gradient")
    recipe("--ema", type=float, default=0.99)
    recipe("--checkpoint-every", type=int, default=250)
    recipe("--share", type=float, default=0.4, help="the tokenizer's share of --minutes")
    recipe("--precision", choices=("auto", "no", "bf16"), default="auto")

    sampling = parser.add_argument_group("sampling").add_argument
    sampling("--sampling-steps", type=int, default=18)
    sampling("--cond-scale", type=float, default=3.0)
    sampling("--temperature", type=float, default=4.0)
    sampling("--prompts", type=int, default=200, help="prompts to judge at the end, for moving shapes")
    sampling("--stories", type=int, default=50, help="stories to judge at the end, for moving shapes")
    return parser.parse_args()


# What the stages look at


def data_sets(args: argparse.Namespace, stage: str) -> tuple[Dataset | None, Dataset | None]:
    """The videos and the images of a stage; None where the folder has none or the weight is 0."""
    if args.data == "moving_shapes":
        names = ("tokenizer",) * 2 if stage == "tokenizer" else ("captioned_video", "captioned_images")
        world = {"size": args.size, "seed": args.seed}
        return MovingShapes(names[0], num_frames=args.frames, **world), MovingShapes(
            names[1], num_frames=1, **world
        )
    look = {"size": args.size, "flip": args.flip, "seed": args.seed}
    rate = {"fps": args.fps} if args.fps else {"stride": args.stride}
    videos = VideoFolder(args.data, num_frames=args.frames, **rate, **look)
    try:
        images = ImageFolder(args.data, **look)
    except ValueError:  # a folder of videos alone
        images = None
    return videos, images


def mixture(args, sets: tuple, collate, accelerator: Accelerator, steps: int) -> Batches:
    """Videos and images by their weights."""
    videos, images = sets
    sources = [Source(videos, args.video_weight, args.batch_size)]
    if images is not None:
        sources.append(Source(images, args.image_weight, 4 * args.batch_size))
    return Batches(
        sources,
        collate,
        seed=args.seed,
        steps=steps,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )


def held_out(args: argparse.Namespace, count: int) -> tuple[Tensor, list[str]]:
    """Clips to look at: of moving shapes others than those trained on, of a folder its first."""
    if args.data == "moving_shapes":
        dataset = MovingShapes("tokenizer", size=args.size, num_frames=args.frames, seed=args.seed + 1)
    else:
        dataset, _ = data_sets(args, "tokenizer")
    return stack_clips([dataset[i] for i in range(min(count, len(dataset)))])


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
    batches = mixture(args, sets, collate_videos, accelerator, steps)
    videos, _ = held_out(args, 32)
    evaluate = partial(watch_tokenizer, videos=videos)
    recipe = recipe_of(args, steps, args.lr[0])
    cvivit = fit(
        "tokenizer", accelerator, cvivit, cvivit, batches, recipe, folder, evaluate=evaluate, **how(args)
    ).eval()
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


def train_maskgit(args, accelerator: Accelerator, phenaki: Phenaki, captions: Captions, steps: int) -> Phenaki:
    folder = args.out / "maskgit"
    folder.mkdir(exist_ok=True)
    phenaki.to(accelerator.device)
    accelerator.print("encoding clips for the second stage")
    draw = {"seed": args.seed, "device": accelerator.device}
    encoded = [
        None if dataset is None else encode_all(phenaki.cvivit, dataset, args.encoded, **draw)
        for dataset in data_sets(args, "maskgit")
    ]
    videos = encoded[0]
    spare = min(64, len(videos) // 10)
    watched = captions.collate([videos[i] for i in range(len(videos) - spare, len(videos))])
    encoded[0] = Encoded(videos.ids[:-spare], videos.captions[:-spare])
    batches = mixture(args, encoded, captions.collate, accelerator, steps)
    evaluate = partial(watch_maskgit, batch=watched)
    recipe = recipe_of(args, steps, args.lr[1])
    maskgit = fit(
        "maskgit", accelerator, phenaki, phenaki.maskgit, batches, recipe, folder, evaluate=evaluate, **how(args)
    )
    phenaki = Phenaki(cvivit=phenaki.cvivit, maskgit=maskgit, text_encoder=phenaki.text_encoder).eval()
    if accelerator.is_main_process:
        phenaki.save_pretrained(args.out / "model")
        show_samples(args, phenaki, videos.captions)
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
    write_sheet(
        args.out / "story.png", [(text, scene[0].float().cpu()) for text, scene in zip(told, scenes)], **sheet
    )


# What both stages share


def recipe_of(args: argparse.Namespace, steps: int, lr: float) -> Recipe:
    return Recipe(
        steps=steps,
        lr=lr,
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
    return args.fps or 8.0


def plan_steps(
    args, accelerator: Accelerator, cvivit: CViViT, sets: tuple, maskgit: MaskGit, captions
) -> list[int]:
    """The steps of both stages: as asked for, or as many as fit in --minutes by the time that one takes now."""
    trial = recipe_of(args, 1000, args.lr[0])
    first = seconds_per_step(accelerator, cvivit, mixture(args, sets, collate_videos, accelerator, 1000), trial)
    t, h, w = maskgit.grid
    texts = [""] * 100 if args.data != "moving_shapes" else prompts("seen", 100)
    draws = [Encoded(torch.randint(maskgit.num_tokens, (100, frames, h, w)), texts) for frames in (t, 1)]
    phenaki = Phenaki(cvivit=copy.deepcopy(cvivit), maskgit=maskgit, text_encoder=captions.encoder)
    draws[1] = draws[1] if sets[1] is not None else None
    second = seconds_per_step(
        accelerator, phenaki, mixture(args, draws, captions.collate, accelerator, 1000), trial
    )
    if args.steps:
        steps = [args.steps[0], args.steps[-1]]
    else:
        seconds = args.minutes * 60
        steps = [max(1, int(seconds * args.share / first)), max(1, int(seconds * (1 - args.share) / second))]
    accelerator.print(
        f"tokenizer: {steps[0]} steps of {first:.2f} s, maskgit: {steps[1]} steps of {second:.2f} s, "
        f"in all about {(steps[0] * first + steps[1] * second) / 60:.0f} minutes and what evaluation takes"
    )
    return steps


def measure(args: argparse.Namespace, phenaki: Phenaki) -> dict[str, float]:
    """The closing table: reconstruction, and for moving shapes SPEC's measures 1 and 7."""
    device = phenaki.maskgit.to_logits.weight.device
    videos, _ = held_out(args, 200)
    measured = reconstruction(phenaki.cvivit, videos.to(device))
    if args.data == "moving_shapes":
        measured |= judged_reconstruction(phenaki.cvivit, videos.to(device))
        if args.prompts:
            measured |= text_to_video(
                phenaki, args.prompts, num_frames=args.frames, seed=args.seed, **sampling(args)
            )
        if args.stories:
            for verb in ("turns", "moves"):
                measured |= story(phenaki, args.stories, seed=args.seed, verb=verb, **sampling(args))
    return measured


def main() -> None:
    args = parse_arguments()
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
        steps = plan_steps(args, accelerator, cvivit, sets, maskgit, captions)
        if accelerator.is_main_process:
            arguments = {name: value for name, value in vars(args).items() if name not in ("out", "resume")}
            plan.write_text(json.dumps({"steps": steps, "arguments": arguments}, indent=2) + "\n")
    steps = broadcast_object_list(steps)

    if args.stage != "maskgit":
        cvivit = train_tokenizer(args, accelerator, cvivit, sets, steps[0])
    if args.stage != "tokenizer":
        phenaki = Phenaki(cvivit=cvivit, maskgit=maskgit, text_encoder=encoder)
        phenaki = train_maskgit(args, accelerator, phenaki, captions, steps[1])
        if accelerator.is_main_process:
            measured = measure(args, phenaki) | {"minutes": (time.time() - began) / 60}
            table(measured)
            (args.out / "results.json").write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
