"""The training loop: learning rate, optimizers, checkpoints, and resuming."""

import itertools

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from conftest import same_state, state, tiny_maskgit
from training import loop
from training.loop import Recipe, build_optimizers, fit, load_newest, lr_factor, save_checkpoint


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
