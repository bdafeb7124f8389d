"""The training loop of both stages: learning rate, clipping, moving average, curves, checkpoints, resuming.

All randomness of a step is seeded by (seed, step, process). So a checkpoint needs no state of a random generator, and
a training that was killed and resumed computes exactly the steps of one that was not.
"""

import math
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

from data.media import write_curves
from data.runs import write_rows
from phenaki_pytorch.tokenizers.losses import TokenizerLosses
from training.checkpoints import load_newest, remove_checkpoints, save_checkpoint
from training.diagnosis import Diagnosis, check_loss
from training.muon import Muon

UNTIMED_STEPS = 3  # the first ones, which are slower
TIMED_STEPS = (10, 40)  # at least, unless the training is shorter, and at most
TIMED_SECONDS = 3.0


class Adversary(Protocol):
    """A second network that is trained in the same steps, against the model, such as a discriminator."""

    def before(self, step: int) -> None:
        """Called before the model's step."""

    def after(self, step: int, batch: dict, losses: TokenizerLosses) -> None:
        """The network's own step, after the model's."""

    def row(self) -> dict[str, float]:
        """Means for the curves, since the last call."""

    def state_dict(self) -> dict:
        """The state for a checkpoint."""

    def load_state_dict(self, state: dict) -> None:
        """Go on from a checkpoint."""


class Recipe(NamedTuple):
    """How a stage is trained: AdamW, warm-up, then cosine or constant, as in the paper (appendix B.1).

    With `optimizer` "muon", Muon trains the matrices inside the transformers' blocks, at twice the learning rate, and
    AdamW the other parameters.
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


def lr_factor(recipe: Recipe, step: int) -> float:
    """The learning rate over its peak: linear warm-up, then cosine down to 2 %, or constant."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    if recipe.schedule == "constant":
        return warm
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))


def in_a_block(name: str) -> bool:
    """Whether a parameter is inside the blocks of a transformer and no modulation.

    Modulation layers and tables start at 0: their scale is learnt, and Muon gives every step the same one.
    """
    return ".blocks." in name and "modulation" not in name


def build_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW and, with Muon, a second one; every group keeps its own peak of the learning rate."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = {}
    if recipe.optimizer == "muon":
        matrices = {name: value for name, value in trainable.items() if value.ndim == 2 and in_a_block(name)}
    rest = [parameter for name, parameter in trainable.items() if name not in matrices]
    decay = {"weight_decay": recipe.weight_decay}
    optimizers = [torch.optim.AdamW(rest, lr=recipe.lr, betas=recipe.betas, fused=True, **decay)]
    if matrices:
        optimizers.append(Muon(matrices.values(), lr=2 * recipe.lr, **decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


# one step


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batch: dict,
    recipe: Recipe,
    step: int,
    adversary: Adversary | None = None,
) -> Tensor:
    """One step of the model, then one of its adversary; returns the model's loss, without gradient."""
    if adversary is not None:
        adversary.before(step)
    torch.manual_seed(hash((recipe.seed, step, accelerator.process_index)) % 2**63)
    losses = model(**batch)
    loss = losses if isinstance(losses, Tensor) else losses.total
    update(accelerator, model, optimizers, loss, recipe, step)
    if adversary is not None:
        adversary.after(step, batch, losses)
    return loss.detach()


def update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loss: Tensor,
    recipe: Recipe,
    step: int,
) -> None:
    """The backward pass, clipping, and a step of the optimizers at the step's learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * lr_factor(recipe, step)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def to_device(batch: dict, device: torch.device) -> dict:
    """Move the tensors of a batch."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def seconds_per_step(
    accelerator: Accelerator, model: nn.Module, batches: Dataset, recipe: Recipe, adversary: Adversary | None = None
) -> float:
    """Train a model, which is changed, and its adversary for some steps; the mean time of all but the first ones."""
    prepared, *optimizers = accelerator.prepare(model, *build_optimizers(model, recipe))
    prepared.train()
    least, most = TIMED_STEPS
    began, done = time.perf_counter(), 0
    for step in range(min(UNTIMED_STEPS + most, len(batches))):
        if step == UNTIMED_STEPS:
            began = time.perf_counter()
        batch = to_device(batches[step], accelerator.device)
        train_step(accelerator, prepared, optimizers, batch, recipe, step, adversary)
        done = step + 1 - UNTIMED_STEPS
        # The time of the slowest process, so that all of them stop at the same step.
        passed = torch.tensor(time.perf_counter() - began, device=accelerator.device)
        if done >= least and accelerator.gather(passed).max() > TIMED_SECONDS:
            break
    accelerator.free_memory()
    return (time.perf_counter() - began) / max(done, 1)


# a whole training


class Training:
    """The state of a training: the model, its optimizers, the moving average, the rows of the curves."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        averaged: nn.Module,
        recipe: Recipe,
        folder: Path,
        adversary: Adversary | None = None,
    ):
        self.accelerator, self.averaged, self.recipe = accelerator, averaged, recipe
        self.folder, self.adversary = folder, adversary
        self.ema = AveragedModel(averaged, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        self.ema.to(accelerator.device)
        self.model, *self.optimizers = accelerator.prepare(model, *build_optimizers(model, recipe))
        self.model.train()
        self.step, self.rows, self.losses = 0, [], []

    def load(self) -> None:
        """Go on from the newest checkpoint, if there is one.

        ValueError for one of another training, and where none can be read.
        """
        state = load_newest(self.folder)
        if state is None:
            return
        try:
            self._take(state)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError) as error:
            raise ValueError(f"the newest checkpoint in {self.folder} is not of this training: {error!r}") from error

    def _take(self, state: dict) -> None:
        self.step, self.rows = state["step"], state["rows"]
        self.averaged.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])

    def train(self, batch: dict) -> None:
        """One step."""
        batch = to_device(batch, self.accelerator.device)
        parts = (self.accelerator, self.model, self.optimizers, batch, self.recipe, self.step, self.adversary)
        self.losses.append(train_step(*parts))
        self.ema.update_parameters(self.averaged)
        self.step += 1

    def log(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """Add a row to the curves: the mean loss since the last one, and what `evaluate` measures of the average.

        ValueError where the loss is not finite.
        """
        lr = self.optimizers[0].param_groups[0]["lr"]
        row = {"step": self.step, "loss": self.mean_loss(), "lr": lr}
        row |= self.measured(evaluate) | ({} if self.adversary is None else self.adversary.row())
        self.model.train()
        self.losses.clear()
        self.rows.append(row)
        if self.accelerator.is_main_process:
            write_rows(self.folder / "curves.csv", self.rows)
        return row

    def mean_loss(self) -> float:
        """The mean of the losses since the last row or checkpoint. ValueError where it is not finite."""
        loss = torch.stack(self.losses).mean().item()
        check_loss(loss, self.step)
        return loss

    def measured(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """What `evaluate` measures of the average. ValueError, with what to try, where it fails.

        The loss of the last step says nothing about the weights after it.
        """
        try:
            return evaluate(self.ema.module)
        except ValueError as error:
            say = f"the model of step {self.step} cannot be measured: lower --lr, or use --precision no"
            raise ValueError(f"{say} ({error})") from error

    def save(self) -> None:
        """Write a checkpoint, in the main process only. ValueError where a loss since the last one is not finite.

        The running means begin anew, so that a resumed run logs the same values.
        """
        if self.losses:
            self.mean_loss()
        if not self.accelerator.is_main_process:
            return
        self.losses.clear()
        state = {"step": self.step, "rows": self.rows}
        state |= {"model": self.averaged.state_dict(), "ema": self.ema.state_dict()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        if self.adversary is not None:
            self.adversary.row()
            state["adversary"] = self.adversary.state_dict()
        save_checkpoint(self.folder, state)
        if self.rows:
            write_curves(self.folder / "curves.png", self.folder / "curves.csv")


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
    adversary: Adversary | None = None,
) -> nn.Module:
    """Train `model`, whose call gives the loss, and return the moving average of its part `averaged`.

    Every `log_every` steps, `evaluate` measures the average; the curves are written to `folder` as CSV and PNG, and
    warnings are printed where they show a failure. With `resume`, training goes on from the newest whole checkpoint in
    `folder`; without, the checkpoints of an earlier run are deleted.
    """
    main = accelerator.is_main_process
    if not resume and main:
        remove_checkpoints(folder)
    training = Training(accelerator, model, averaged, recipe, folder, adversary)
    if resume:
        training.load()
        accelerator.print(f"{name}: going on from step {training.step}")
    rest = Subset(batches, range(training.step, recipe.steps))
    loader = DataLoader(rest, batch_size=None, num_workers=workers)
    progress = {"desc": name, "total": recipe.steps, "initial": training.step, "mininterval": 5}
    with tqdm(loader, disable=not main, **progress) as bar:
        diagnose = Diagnosis(bar.write if main else lambda text: None)
        for batch in bar:
            training.train(batch)
            last = training.step == recipe.steps
            if last or training.step % recipe.log_every == 0:
                row = training.log(evaluate)
                bar.set_postfix({key: f"{value:.3g}" for key, value in row.items() if key not in ("step", "lr")})
                diagnose(row, training.step / recipe.steps)
            if last or training.step % recipe.checkpoint_every == 0:
                training.save()
    accelerator.free_memory()
    return training.ema.module
