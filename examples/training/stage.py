"""What both stages do around their training: begin or resume, count the steps, write the plan."""

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn

from data.media import written

TRIAL = 1000  # steps in the plan of a training that is only timed

NOT_PLANNED = ("out", "resume")


def begin(args: argparse.Namespace, plan: Path) -> tuple[argparse.Namespace, int | None, Accelerator]:
    """The arguments and, of a run that is resumed, the number of its steps, both from its plan; the accelerator.

    A new run deletes the plan of an earlier one. SystemExit where there is nothing to resume.
    """
    steps = None
    if args.resume:
        if not plan.is_file():
            raise SystemExit(f"nothing to resume: {plan} is not there")
        saved = json.loads(plan.read_text())
        args = argparse.Namespace(**vars(args) | saved["arguments"])  # an argument that the plan lacks has its default
        steps = saved["steps"]
    else:
        plan.unlink(missing_ok=True)
    if args.precision == "auto":
        args.precision = "bf16" if fast_bfloat16() else "no"
    # A batch of images alone leaves the weights of the tubelets without a gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision=args.precision, kwargs_handlers=[unused])
    set_seed(args.seed)
    return args, steps, accelerator


def fast_bfloat16() -> bool:
    """Whether bfloat16 is faster here: on CUDA from Ampere on, on processors with units for matrices (AMX)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def begin_with(module: nn.Module | None, trained: nn.Module | None) -> None:
    """Copy the weights of a trained module; without either, nothing. SystemExit where their sizes differ."""
    if module is None or trained is None:
        return
    try:
        module.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise SystemExit(f"--model was trained with other sizes or another critic than asked for: {error}") from error


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


def write_plan(path: Path, args: argparse.Namespace, steps: int, **more: object) -> None:
    """Write plan.json: the steps, the arguments, and what else is given. It is there whole or not at all."""
    arguments = {name: value for name, value in vars(args).items() if name not in NOT_PLANNED}
    with written(path) as temporary:
        temporary.write_text(json.dumps({"steps": steps, "arguments": arguments, **more}, indent=2) + "\n")
