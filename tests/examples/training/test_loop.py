"""The training loop: learning rate, optimizers, checkpoints, and resuming."""

import itertools
import math
import resource
import signal

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from conftest import same_state, state, tiny_latte, tiny_maskgit
from training import loop
from training.checkpoints import load_newest, save_checkpoint
from training.loop import Recipe, build_optimizers, fit, lr_factor


@pytest.mark.parametrize("schedule, last", [("cosine", 0.02), ("constant", 1.0)])
def test_the_learning_rate_warms_up_and_then_falls_or_stays(schedule, last):
    recipe = Recipe(steps=1000, lr=2.0, seed=0, warmup=100, schedule=schedule)
    rates = [lr_factor(recipe, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01, rel=1e-3) and rates[49] == pytest.approx(0.5, rel=0.02)
    assert all(a >= b for a, b in itertools.pairwise(rates[100:]))
    assert rates[-1] == pytest.approx(last, rel=0.01)


@pytest.mark.parametrize("optimizer, count", [("adamw", 1), ("muon", 2)])
def test_every_trainable_parameter_has_one_optimizer_and_muon_only_matrices_of_the_blocks(optimizer, count):
    maskgit = tiny_maskgit()
    frozen = maskgit.to_logits.bias.requires_grad_(False)
    optimizers = build_optimizers(maskgit, Recipe(steps=1, lr=0.1, seed=0, optimizer=optimizer))
    held = [[id(p) for group in one.param_groups for p in group["params"]] for one in optimizers]
    assert len(optimizers) == count
    assert sorted(itertools.chain(*held)) == sorted(id(p) for p in maskgit.parameters() if p is not frozen)
    if optimizer == "muon":
        inside = {id(p) for p in maskgit.transformer.blocks.parameters() if p.ndim == 2}
        assert set(held[1]) == inside and inside
        assert optimizers[1].param_groups[0]["peak"] == pytest.approx(0.2)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_read(tmp_path, capsys):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, {"step": step, "weights": torch.full((1000,), float(step))})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002.pt", "step-00000003.pt"]
    assert load_newest(tmp_path)["step"] == 3
    newest = tmp_path / "step-00000003.pt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    checkpoint = load_newest(tmp_path)
    assert checkpoint["step"] == 2 and (checkpoint["weights"] == 2).all()
    assert str(newest) in capsys.readouterr().out


@pytest.mark.parametrize("held", [b"", b"no checkpoint", b"PK\x03\x04"])
def test_checkpoints_of_which_none_can_be_read_are_not_begun_anew(tmp_path, capsys, held):
    paths = [tmp_path / f"step-0000000{step}.pt" for step in (2, 4)]
    for path in paths:
        path.write_bytes(held)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read: delete them to begin with step 0"):
        load_newest(tmp_path)
    said = capsys.readouterr().out
    assert all(f"cannot read the checkpoint {path} (" in said for path in paths)


def test_an_empty_newest_checkpoint_is_named_and_the_one_before_it_read(tmp_path, capsys):
    save_checkpoint(tmp_path, {"step": 2})
    (tmp_path / "step-00000004.pt").touch()
    assert load_newest(tmp_path) == {"step": 2}
    assert "cannot read the checkpoint" in capsys.readouterr().out


def test_a_checkpoint_for_which_there_is_no_room_is_named_and_leaves_nothing(tmp_path):
    save_checkpoint(tmp_path, {"step": 2})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signalled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(OSError, match=r"step-00000004\.pt"):
            save_checkpoint(tmp_path, {"step": 4, "weights": torch.randn(2**16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signalled)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.pt"]


class Noisy(nn.Module):
    """A loss with randomness, so that it depends on the seed of the step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return (self.weight * x + torch.randn(3)).square().mean()


@pytest.fixture
def noisy(tmp_path, monkeypatch):
    """Train some of 8 steps in a folder; the state of the moving average."""
    monkeypatch.setattr(loop, "write_curves", lambda *_: None)
    recipe = Recipe(steps=8, lr=0.1, seed=0, log_every=3, checkpoint_every=2)
    batches = [{"x": torch.full((2, 3), float(step))} for step in range(8)]

    def train(name, steps=8, resume=False):
        folder, model = tmp_path / name, Noisy()
        folder.mkdir(exist_ok=True)
        options = {"evaluate": lambda model: {"weight": model.weight[0].item()}, "resume": resume}
        return state(fit("test", Accelerator(cpu=True), model, model, batches[:steps], recipe, folder, **options))

    return train


def test_a_resumed_training_has_the_same_weights_and_rows(tmp_path, noisy):
    whole = noisy("whole")
    with pytest.raises(IndexError):  # there are no batches for the steps after the fifth
        noisy("broken", steps=5)
    torch.manual_seed(1)  # the steps do not depend on the global random state
    assert same_state(whole, noisy("broken", resume=True))
    rows = [(tmp_path / name / "curves.csv").read_text() for name in ("whole", "broken")]
    assert rows[0] == rows[1] and len(rows[0].splitlines()) == 1 + 3


def test_a_new_training_deletes_old_checkpoints(tmp_path, noisy):
    noisy("run")
    save_checkpoint(tmp_path / "run", {"step": 1000})
    noisy("run")
    assert [path.name for path in sorted((tmp_path / "run").glob("*.pt"))] == ["step-00000006.pt", "step-00000008.pt"]


@pytest.mark.parametrize("bad", range(8))
def test_a_loss_that_is_not_finite_ends_the_training_before_its_weights_are_measured_or_saved(
    tmp_path, monkeypatch, bad
):
    monkeypatch.setattr(loop, "write_curves", lambda *_: None)
    batches = [{"x": torch.full((2, 3), math.nan if step == bad else 1.0)} for step in range(8)]
    recipe = Recipe(steps=8, lr=0.1, seed=0, log_every=3, checkpoint_every=2)
    measured = []
    watch = {"evaluate": lambda model: measured.append(model.weight.isfinite().all()) or {}, "resume": False}
    with pytest.raises(ValueError, match="the loss is not a finite number"):
        fit("test", Accelerator(cpu=True), (model := Noisy()), model, batches, recipe, tmp_path, **watch)
    assert all(measured)
    for path in tmp_path.glob("step-*.pt"):
        assert int(path.stem[5:]) <= bad


def test_muon_trains_the_matrices_inside_blocks_but_no_modulation():
    latte = tiny_latte(num_classes=3)
    adamw, muon = build_optimizers(latte, Recipe(steps=1, lr=1e-3, seed=0, optimizer="muon"))
    names = {id(parameter): name for name, parameter in latte.named_parameters()}
    matrices = [names[id(parameter)] for group in muon.param_groups for parameter in group["params"]]
    rest = [names[id(parameter)] for group in adamw.param_groups for parameter in group["params"]]
    assert len(matrices) == 8 and all(".blocks." in name for name in matrices)  # qkv, out and two of the feed-forward
    assert sum("to_modulation" in name for name in rest) == 6 and not any("to_modulation" in name for name in matrices)
