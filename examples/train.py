"""Train both stages, the tokenizer and then MaskGit over its ids, and generate a story: from nothing to video.

    python examples/train.py                                        # moving shapes, judged
    python examples/train.py --data FOLDER --size 64 --frames 13    # your own captioned clips and pictures
    accelerate launch examples/train.py ...                         # several devices
    python examples/train.py --resume                               # go on from where it was stopped
    python examples/train.py --stage maskgit --model FOLDER ...     # begin with a trained model
    python examples/train.py --stage maskgit --model FOLDER --distil-guidance 2 ...    # and learn to need no guidance

Leaves in --out: model/ (what `Phenaki.from_pretrained` and generate.py read), the curves, checkpoints,
reconstructions and samples of both stages, story.gif and results.json.

--image-perceptual, --video-perceptual and --adversarial make the tokenizer's whole loss. What was learnt of its
stability, on moving shapes at 64×64 (8×8 patches, 4 clips of 9 frames a step, float32, 8,000 steps planned); PSNR of
first frames / of the others, and edge energy over the original's:

- The paper's weights drown the pixels here. Norms of the gradients at a reconstruction of 28 dB: pixels 1.1e-4, image
  perceptual 2.4e-3, video perceptual 2.9e-3, adversarial 1.3e-3 at first and 0.06 once the discriminator can tell.
  Hence perceptual weights of thousandths, and --adversarial is a share: of its gradient over that of the other terms,
  measured again every 16 steps, the weight never above the paper's 0.1. It falls from 0.04 to 1e-4 within some hundred
  steps.
- With both perceptual weights at 0.005, after 2,800 steps: 31.7 / 31.8 dB and 0.689, the codes no longer spreading, at
  0.55 % of the codebook; pixels alone 32.9 / 32.2 and 0.700, at 0.64 %.
- The discriminator beside them costs 0.1 dB and brings the edges: 31.6 / 31.8 and 0.726 with a share of 0.2, and
  31.5 / 31.7 and 0.762 with 0.4. With 0.2 they fell behind pixels alone later (0.758 and 0.767 after 4,600 steps).
- First frames are a ninth of what the pixels' error sees, and when they overtake the others is chance: in runs that
  differ in little they are 1.4 dB apart for thousands of steps. With a fifth of image batches, --image-weight 0.2 0.05,
  runs agree. At the end, pixels alone: 34.6 / 33.5 and 0.773; with perceptual weights of 0.001 34.2 / 33.2 and 0.753;
  with a share of 0.4 beside them 34.2 / 33.3 and 0.785 (after 3,000 steps 0.679, 0.668 and 0.732). No run fell back:
  each ended within 0.1 dB of its best. The discriminator's mean logits grew from 0.2 and −0.2 to 0.7 and −0.7.
- The share is measured at the reconstruction. The adversarial gradient is the more coherent one: where both are as
  large there, it is 3.5 times the other in the decoder's last layer, 2.4 times in the decoder, 0.3 times in the encoder
  (means of 6 batches after 4,000 steps).
- The discriminator starts at a tenth of the steps, when reconstructions are blurred, and its say grows over another
  tenth. Begun at a fifth, with a share of 0.4, it lost what it knew once, its weight went to 0.01 for 200 steps, and it
  recovered.
- Its gradient is not clipped. The penalty comes in every 16th step, sixteenfold, and clipped to the norm of the other
  steps it held nothing: with a share of 0.2 it grew to 14 by step 4,200, mean logits to 3.6 and −6.0. Not clipped from
  there on, it was 0.2 after 200 steps, logits 0.6 and −0.6. The next three were seen in clipped runs.
- Begun against reconstructions of 35 dB it could not tell them after 450 steps.
- R1 with weight 1: it can tell after 120 to 160 steps. With 10, it could not after 300.
- Its rate of 1e-3 keeps it ahead. At 3e-4 its loss, penalty included, stayed at 1.30 to 1.34 (1.39 is chance) and it
  brought no edges. At 2e-3 and without momentum (StyleGAN2's) it lost what it knew, its weight rose to 0.03, and the
  reconstruction fell from 28.9 to 25.4 dB in 400 steps.
- It learns from 3 of each clip's 9 frames, which look alike: a third of the cost.
"""

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn

from arguments import parse_arguments, recipe_of, sampling
from claims import OVERLAP, SHORTEST_JUDGED, SHORTEST_STORY, story, text_to_video
from distillation import learner, lessons
from encoded import Captions, Encoded
from generate import load_model
from measures import judged_reconstruction, reconstruction, table
from moving_shapes import prompts
from phenaki_pytorch import CViViT, MaskGit, Phenaki, T5TextEncoder
from sources import DataSets, data_sets, held_out, mixture
from train_maskgit import build_critic, build_maskgit, build_phenaki, compile_transformers, train_maskgit
from train_tokenizer import build_tokenizer, collate_videos, perceptual_networks, train_tokenizer, two_sides
from training_loop import fast_bfloat16, seconds_per_step
from word_vectors import WordVectors


def plan(
    args,
    accelerator: Accelerator,
    cvivit: CViViT,
    networks: dict,
    sets: Sequence[DataSets],
    maskgit: MaskGit,
    captions: Captions,
) -> list[int]:
    """The steps of both stages: --steps, or as many as fit in --minutes by the time that one takes now.

    Prints how long they will take. A tokenizer's step is timed with the discriminator, if there is one.
    """
    seconds = [0.0, 0.0]
    if args.stage != "maskgit":
        batches = mixture(args, 0, sets, collate_videos, accelerator, 1000)
        tokenizer, opponent = two_sides(args, accelerator, copy.deepcopy(cvivit), networks, steps=1000, start=0)
        seconds[0] = seconds_per_step(accelerator, tokenizer, batches, recipe_of(args, 0, 1000), opponent)
    if args.stage != "tokenizer":
        t, h, w = maskgit.grid
        texts = [""] * 100 if args.data != "moving_shapes" else prompts("seen", 100)
        draws = tuple(
            None
            if dataset is None
            else Encoded(
                torch.randint(maskgit.num_tokens, (100, steps, h, w)),
                [[text] * steps for text in texts],
                prime_prob=args.prime_prob,
            )
            for dataset, steps in zip(sets[0], (t, 1))
        )
        prior = copy.deepcopy(maskgit)
        phenaki = build_phenaki(copy.deepcopy(cvivit), prior, build_critic(args, prior), captions.encoder)
        if args.compile:
            compile_transformers(phenaki)
        batches = mixture(args, 1, [lessons(args, draws)], captions.collate, accelerator, 1000)
        seconds[1] = seconds_per_step(accelerator, learner(args, phenaki), batches, recipe_of(args, 1, 1000))
    steps = list(args.steps)
    if args.minutes is not None:
        share = {"both": args.share, "tokenizer": 1.0, "maskgit": 0.0}[args.stage]
        steps = [
            max(1, int(60 * args.minutes * part / one)) if one > 0 else 0
            for part, one in zip((share, 1 - share), seconds)
        ]
    each = [
        f"{name}: {count} steps of {one:.2f} s"
        for name, count, one in zip(("tokenizer", "maskgit"), steps, seconds)
        if one > 0
    ]
    whole = sum(count * one for count, one in zip(steps, seconds)) / 60
    accelerator.print(f"{', '.join(each)}, in all about {whole:.0f} minutes and what evaluation takes", flush=True)
    return steps


def begin_with(module: nn.Module | None, learnt: nn.Module | None) -> None:
    """Give a module the weights of one like it; without either, nothing. SystemExit for one of another make."""
    if module is None or learnt is None:
        return
    try:
        module.load_state_dict(learnt.state_dict())
    except RuntimeError as error:
        raise SystemExit(f"--model was trained with other sizes or another critic than asked for: {error}") from error


def measure(args: argparse.Namespace, phenaki: Phenaki, sets: Sequence[DataSets]) -> dict[str, float]:
    """The closing table: reconstruction, and of moving shapes what the judge says."""
    videos, captions = held_out(args, sets, 200)
    videos = videos.to(phenaki.maskgit.to_logits.weight.device)
    measured = reconstruction(phenaki.cvivit, videos)
    if args.data != "moving_shapes":
        return measured
    measured |= judged_reconstruction(phenaki.cvivit, videos, captions)
    if phenaki.text_encoder is None:
        return measured
    draw = {"seed": args.seed, **sampling(args)}
    if args.prompts and args.frames >= SHORTEST_JUDGED:
        shares = text_to_video(phenaki, args.prompts, **draw).shares()
        measured |= {f"text to video {name}": share for name, share in shares.items()}
    if args.stories and args.frames >= SHORTEST_STORY and (OVERLAP - 1) % args.temporal_patch_size == 0:
        for verb in ("turns", "moves"):
            told = story(phenaki, args.stories, verb=verb, **draw)
            measured |= {f"story ({verb}) {name}": figure for name, figure in told.items()}
    return measured


def main() -> None:
    args = parse_arguments(__doc__)
    planned = args.out / "plan.json"
    steps = None
    if args.resume:
        if not planned.is_file():
            raise SystemExit(f"nothing to resume: {planned} is not there")
        saved = json.loads(planned.read_text())
        args = argparse.Namespace(**vars(args) | saved["arguments"])  # what a plan of before has not is as by default
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
    own = {"words": WordVectors, "none": lambda: None}
    captions = Captions(own[args.text_encoder]() if args.text_encoder in own else T5TextEncoder(args.text_encoder))
    learnt = None if args.model is None else load_model(Path(args.model)).cpu()
    if args.stage != "maskgit":
        cvivit = build_tokenizer(args)
        begin_with(cvivit, getattr(learnt, "cvivit", None))
    elif learnt is None:
        cvivit = CViViT.from_pretrained(args.out / "model" / "cvivit")
    else:
        cvivit = learnt.cvivit
    maskgit = build_maskgit(args, cvivit, captions.width)
    begin_with(maskgit, getattr(learnt, "maskgit", None))
    networks = perceptual_networks(args, accelerator) if args.stage != "maskgit" else {}
    if steps is None:
        steps = plan(args, accelerator, cvivit, networks, sets, maskgit, captions)
        if accelerator.is_main_process:
            arguments = {name: value for name, value in vars(args).items() if name not in ("out", "resume")}
            planned.write_text(json.dumps({"steps": steps, "arguments": arguments}, indent=2) + "\n")
    set_seed(args.seed)  # how many random numbers were drawn up to here is another matter in a resumed run
    steps = broadcast_object_list(steps)

    if args.stage != "maskgit":
        cvivit = train_tokenizer(args, accelerator, cvivit, networks, sets, steps[0])
    if args.stage != "tokenizer":
        critic = build_critic(args, maskgit)
        begin_with(critic, getattr(learnt, "critic", None))
        phenaki = build_phenaki(cvivit, maskgit, critic, captions.encoder)
        [captioned] = data_sets(args, "maskgit") if args.data == "moving_shapes" else sets[:1]
        phenaki = train_maskgit(args, accelerator, phenaki, captioned, captions, steps[1])
        if accelerator.is_main_process:
            measured = measure(args, phenaki, sets) | {"minutes": (time.time() - began) / 60}
            table(measured)
            (args.out / "results.json").write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
