"""plan.json: what it holds, and that it is there whole or not at all."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from torch import nn

from training.stage import begin_with, write_plan


def test_a_plan_is_never_half_written(tmp_path, monkeypatch):
    plan, write_text = tmp_path / "plan.json", Path.write_text
    write_plan(plan, Namespace(seed=1, out=tmp_path, resume=True), 2)
    before = {"steps": 2, "arguments": {"seed": 1}}
    assert json.loads(plan.read_text()) == before

    def killed(path, text):
        write_text(path, text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        write_plan(plan, Namespace(seed=2), 3, words=["a", "red", "circle"])
    assert json.loads(plan.read_text()) == before
    monkeypatch.undo()
    write_plan(plan, Namespace(seed=2), 3, words=["a", "red", "circle"])
    assert json.loads(plan.read_text())["words"] == ["a", "red", "circle"]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_part_that_only_one_side_has_is_left_as_it_is():
    begin_with(None, nn.Linear(2, 2))
    module = nn.Linear(2, 2)
    weight = module.weight.clone()
    begin_with(module, None)
    assert (module.weight == weight).all()
