"""The loop that both stages share: schedule, clipping, EMA, curves, checkpoints, and going on from one.

Everything random in a step is seeded by (seed, step, process), so a checkpoint needs no generator's state: a run
that was killed and resumed computes the very steps of one that was not.
"""

import csv
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from diagnosis import Diagnosis
from media import write_curves
from muon import Muon
from phenaki_pytorch.losses import TokenizerLosses


class Opponent(Protocol):
    """What is trained along, against the model, on what it has just made."""

    def before(self, step: int) -> None: ...

    def after(self, step: int, batch: dict, outcome: TokenizerLosses) -> None: ...

    def row(self) -> dict[str, float]: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class Recipe(NamedTuple):
    """How a stage is trained: AdamW, warm-up, then cosine or constant, as in the paper (appendix B.1).

    With `optimizer` "muon", Muon moves the matrices inside the transformers, at twice the rate, and AdamW the rest.
    """

    steps: int
    lr: float
    seed: int
    optimizer: str = "adamw"
    warmup: int = 50
    schedule: str = "cosine"
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.99
    log_every: int = 200
    checkpoint_every: int = 250


def fast_bfloat16() -> bool:
    """Whether bfloat16 is a gain here: on CUDA from Ampere on, on processors with units for matrices (AMX)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def lr_factor(recipe: Recipe, step: int) -> float:
    """What the peak of the learning rate is multiplied by: linear warm-up, then cosine to 2 %, or constant."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    if recipe.schedule == "constant":
        return warm
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))


def build_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """One optimizer, or two; every group remembers its own peak of the learning rate."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = {}
    if recipe.optimizer == "muon":
        matrices = {name: value for name, value in trainable.items() if ".blocks." in name and value.ndim == 2}
    rest = [parameter for name, parameter in trainable.items() if name not in matrices]
    decay = {"weight_decay": recipe.weight_decay}
    optimizers = [torch.optim.AdamW(rest, lr=recipe.lr, betas=recipe.betas, fused=True, **decay)]
    if matrices:
        optimizers.append(Muon(matrices.values(), lr=2 * recipe.lr, **decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batch: dict,
    recipe: Recipe,
    step: int,
    opponent: Opponent | None = None,
) -> Tensor:
    """One step of the model, then one of its opponent; returns the model's loss, without gradient."""
    if opponent is not None:
        opponent.before(step)
    torch.manual_seed(hash((recipe.seed, step, accelerator.process_index)) % 2**63)
    outcome = model(**batch)
    loss = outcome if isinstance(outcome, Tensor) else outcome.total
    update(accelerator, model, optimizers, loss, recipe, step)
    if opponent is not None:
        opponent.after(step, batch, outcome)
    return loss.detach()


def update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loss: Tensor,
    recipe: Recipe,
    step: int,
) -> None:
    """Backwards, clip, and let the optimizers take the step's learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * lr_factor(recipe, step)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def to_device(batch: dict, device: torch.device) -> dict:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def seconds_per_step(
    accelerator: Accelerator, model: nn.Module, batches: Dataset, recipe: Recipe, opponent: Opponent | None = None
) -> float:
    """Train a model that may be spoilt, and its opponent, for some steps: the mean time after the first three."""
    prepared, *optimizers = accelerator.prepare(model, *build_optimizers(model, recipe))
    prepared.train()
    began, done = time.perf_counter(), 0
    for step in range(min(43, len(batches))):
        if step == 3:
            began = time.perf_counter()
        batch = to_device(batches[step], accelerator.device)
        train_step(accelerator, prepared, optimizers, batch, recipe, step, opponent)
        done = step - 2
        # Of the slowest process, so that all of them stop at the same step.
        passed = torch.tensor(time.perf_counter() - began, device=accelerator.device)
        if done >= 10 and accelerator.gather(passed).max() > 3:
            break
    accelerator.free_memory()
    return (time.perf_counter() - began) / max(done, 1)


def fit(
    name: str,
    accelerator: Accelerator,
    model: nn.Module,
    averaged: nn.Module,
    batches: Dataset,
    recipe: Recipe,
    folder: Path,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]],
    resume: bool,
    workers: int = 0,
    opponent: Opponent | None = None,
) -> nn.Module:
    """Train `model`, whose call gives the loss, and return the moving average of its part `averaged`.

    Every `log_every` steps, `evaluate` measures the average; the curves go to `folder` as CSV and PNG. With
    `resume`, the newest whole checkpoint in `folder` is gone on from; without, those of an earlier run are deleted.
    An `opponent` is trained along. What looks like a failure is said as soon as the curves show it.
    """
    if not resume and accelerator.is_main_process:
        for old in folder.glob("step-*.pt"):
            old.unlink()
    ema = AveragedModel(averaged, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
    ema.to(accelerator.device)
    prepared, *optimizers = accelerator.prepare(model, *build_optimizers(model, recipe))
    state = load_newest(folder) if resume else None
    first, rows = 0, []
    if state is not None:
        first, rows = state["step"], state["rows"]
        averaged.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if opponent is not None:
            opponent.load_state_dict(state["opponent"])
        accelerator.print(f"{name}: going on from step {first}")

    prepared.train()
    loader = DataLoader(Subset(batches, range(first, recipe.steps)), batch_size=None, num_workers=workers)
    bar = tqdm(
        loader, desc=name, total=recipe.steps, initial=first, disable=not accelerator.is_main_process, mininterval=5
    )
    losses, diagnose = [], Diagnosis(bar.write if accelerator.is_main_process else lambda text: None)
    for step, batch in enumerate(bar, first + 1):
        batch = to_device(batch, accelerator.device)
        losses.append(train_step(accelerator, prepared, optimizers, batch, recipe, step - 1, opponent))
        ema.update_parameters(averaged)
        if step % recipe.log_every == 0 or step == recipe.steps:
            row = {"step": step, "loss": torch.stack(losses).mean().item(), "lr": optimizers[0].param_groups[0]["lr"]}
            row |= evaluate(ema.module) | ({} if opponent is None else opponent.row())
            prepared.train()
            losses.clear()
            rows.append(row)
            bar.set_postfix({key: f"{value:.3g}" for key, value in row.items() if key not in ("step", "lr")})
            diagnose(row, step / recipe.steps)
            if accelerator.is_main_process:
                write_rows(folder / "curves.csv", rows)
        if (step % recipe.checkpoint_every == 0 or step == recipe.steps) and accelerator.is_main_process:
            # The mean over the logging interval starts anew after a checkpoint, in this run as in a resumed one.
            losses.clear()
            if opponent is not None:
                opponent.row()
            state = {"step": step, "rows": rows, "model": averaged.state_dict(), "ema": ema.state_dict()}
            state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            if opponent is not None:
                state["opponent"] = opponent.state_dict()
            save_checkpoint(folder, state)
            if rows:
                write_curves(folder / "curves.png", folder / "curves.csv")
    bar.close()
    accelerator.free_memory()
    return ema.module


# curves and checkpoints


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def save_whole(path: Path, state: dict) -> None:
    """Write a file that is there whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write step-00001000.pt, and keep the one before it."""
    save_whole(folder / f"step-{state['step']:08d}.pt", state)
    for old in sorted(folder.glob("step-*.pt"))[:-2]:
        old.unlink()


def load_newest(folder: Path) -> dict | None:
    """The newest checkpoint that can be read, None where there is none; those that cannot are named."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what a damaged file raises depends on where it is damaged
            print(f"cannot read the checkpoint {path} ({str(error).splitlines()[0]}): trying the one before it")
    return None
