"""What both stages do around their training: whose weights they begin with, whose plan they keep."""

from argparse import Namespace

import pytest
from torch import nn

from training.plans import load_plan, write_plan
from training.stage import begin_with, one_run, open_plan


def test_a_part_that_only_one_side_has_is_left_as_it_is():
    begin_with(None, nn.Linear(2, 2))
    module = nn.Linear(2, 2)
    weight = module.weight.clone()
    begin_with(module, None)
    assert (module.weight == weight).all()


def test_weights_of_another_size_are_refused():
    with pytest.raises(ValueError, match="--model was trained with other sizes"):
        begin_with(nn.Linear(2, 2), nn.Linear(3, 2))


def test_a_new_run_deletes_the_plan_of_an_earlier_one_and_a_resumed_one_brings_it_up_to_date(tmp_path, capsys):
    path = tmp_path / "plan.json"
    write_plan(path, Namespace(seed=1, workers=0), 2, words=["red"], files=["a.mp4"])
    open_plan(path, Namespace(seed=1, workers=3, resume=True, steps=5), ["b.mp4", "c.mp4"])
    assert "2 added, 1 removed" in capsys.readouterr().out
    arguments = {"seed": 1, "workers": 3, "steps": 5}
    assert load_plan(path) == {"steps": 5, "arguments": arguments, "words": ["red"], "files": ["a.mp4"]}
    open_plan(path, Namespace(resume=False), [])
    assert not path.exists()


def test_a_folder_is_kept_for_one_run(tmp_path):
    with one_run(tmp_path), pytest.raises(ValueError, match="another run is writing to"), one_run(tmp_path):
        pytest.fail("two runs in one folder")
    with one_run(tmp_path):
        pass
