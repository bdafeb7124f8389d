"""What both stages do around their training: begin it, hold its folder, count its steps, keep its plan.

No stage replaces what an earlier training left in --out, unless --overwrite says so.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn

from data.outputs import alone
from data.targets import made
from training.checkpoints import newest_step, remove_checkpoints
from training.plans import change_of_files, load_plan, say, write_plan

TRIAL = 1000  # steps in the plan of a training that is only timed
TOKENIZERS = ("cvivit", "tokenizer")  # the folders of their weights in model/
SECOND_STAGES = {"maskgit": ("maskgit",), "gpt": ("gpt",), "latte": ("transformer",)}  # and their weights in model/
STAGES = {"tokenizer": TOKENIZERS, **SECOND_STAGES}
FURTHER_PARTS = ("critic", "frame_encoder", "codec", "standardisation")  # of models, in model/
STOPPED = "stopped; if the training had begun, --resume goes on from its newest checkpoint"


@contextmanager
def one_run(folder: Path) -> Iterator[None]:
    """Keep a folder for this run, whose main process holds it for all. ValueError while another run does.

    A folder that the run made is deleted after an error, unless files are in it.
    """
    if PartialState().is_main_process:
        with made(folder, keep_files=True), alone(folder):
            yield
    else:
        yield


def check_held(args: argparse.Namespace, *stages: str) -> None:
    """Refuse, with a ValueError, to replace a training of one of the stages in --out without --overwrite."""
    if args.resume or args.overwrite:
        return
    for stage in stages:
        if steps := newest_step(args.out / stage):
            held = f"{args.out / stage} holds a training of {steps} steps"
            raise ValueError(f"{held}: --resume goes on with it, --overwrite replaces it")
        for weights in (args.out / "model" / name for name in STAGES[stage]):
            if weights.is_dir():
                here = f"{weights} is of another training"
                raise ValueError(f"{here}: expected another --out, or --overwrite to replace it")


def remove_second_stage(out: Path, *, keep: str) -> None:
    """Delete the second stage in --out, which has learnt the latents of a tokenizer that is replaced, and say so.

    keep  the folder in model/ that the new tokenizer will replace; that of a tokenizer of another kind is deleted
    """
    parts = [part for weights in STAGES.values() for part in weights]
    folders = [out / "model" / name for name in (*parts, *FURTHER_PARTS) if name != keep]
    files = out / "model" / "config.json", out / "plan.json"
    if any(newest_step(out / name) for name in SECOND_STAGES) or any(path.exists() for path in (*folders, *files)):
        say(f"deleted the model, plan.json and checkpoints of the second stage in {out}: its tokenizer is replaced")
    if PartialState().is_main_process:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        for file in files:
            file.unlink(missing_ok=True)
        for name in SECOND_STAGES:
            remove_checkpoints(out / name)


def begin(args: argparse.Namespace) -> Accelerator:
    """Choose the precision, seed the random numbers, and return the accelerator."""
    if args.precision == "auto":
        args.precision = "bf16" if fast_bfloat16() else "no"
    # A batch of images alone leaves the weights of the tubelets without a gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision=args.precision, kwargs_handlers=[unused])
    set_seed(args.seed)
    return accelerator


def fast_bfloat16() -> bool:
    """Whether bfloat16 is faster here: on CUDA from Ampere on, on processors with units for matrices (AMX)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def begin_with(module: nn.Module | None, trained: nn.Module | None) -> None:
    """Copy the weights of a trained module; without either, nothing. ValueError where their sizes differ."""
    if module is None or trained is None:
        return
    try:
        module.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise ValueError(f"--model was trained with other sizes or another critic than asked for: {error}") from error


def trial_steps(args: argparse.Namespace) -> int:
    """The number of steps of a training that is only timed."""
    return args.steps if args.minutes is None else TRIAL


def plan_steps(args: argparse.Namespace, accelerator: Accelerator, seconds: float) -> int:
    """The number of steps: --steps, or as many as fit into --minutes; the same in all processes."""
    steps = args.steps if args.minutes is None else max(1, int(60 * args.minutes / seconds))
    [steps] = broadcast_object_list([steps])
    minutes = steps * seconds / 60
    accelerator.print(f"{steps} steps of {seconds:.2f} s, about {minutes:.0f} minutes and the evaluation", flush=True)
    return steps


def open_plan(path: Path, args: argparse.Namespace, files: Sequence[str]) -> None:
    """Once all is checked: delete the plan of an earlier run, or bring the plan of this one up to date.

    Says how the files of the data differ from those of the plan.
    """
    main = PartialState().is_main_process
    if not args.resume:
        if main:
            path.unlink(missing_ok=True)
        return
    plan = load_plan(path)
    if line := change_of_files(plan.get("files", files), files):
        say(line)
    if main:
        more = {name: value for name, value in plan.items() if name not in ("steps", "arguments")}
        write_plan(path, args, args.steps, **more)
