"""share.py: half the bytes, the same model to within half precision, and what goes with it."""

import json
import shutil

import pytest
import torch

import share
from generate import load_model, planned_sampling, read_note, read_plan
from test_generate import tiny


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    tiny().save_pretrained(run / "model")
    (run / "plan.json").write_text(json.dumps({"arguments": {"sampling_steps": 3}, "words": ["a"]}))
    (run / "maskgit").mkdir()
    (run / "maskgit" / "curves.csv").write_text("step,loss\n1,2\n")
    return run


def test_weights_take_half_the_room_and_come_back_in_float32(run, tmp_path, capsys):
    share.main([str(run), str(tmp_path / "small")])
    sizes = [sum(path.stat().st_size for path in folder.rglob("*.safetensors")) for folder in (run, tmp_path / "small")]
    assert sizes[1] < 0.6 * sizes[0]
    assert capsys.readouterr().out.count("wrote") == 2
    one, other = load_model(run / "model"), load_model(tmp_path / "small" / "model")
    for weight, rounded in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert weight.dtype == rounded.dtype
        torch.testing.assert_close(rounded, weight, rtol=1e-3, atol=1e-6)
    ids = torch.randint(64, (1, 5, 4, 4))
    torch.testing.assert_close(other.cvivit.decode(ids), one.cvivit.decode(ids), rtol=0, atol=0.02)


def test_plan_and_curves_go_along(run, tmp_path):
    share.main([str(run), str(tmp_path / "small")])
    assert read_plan(tmp_path / "small" / "model") == {"sampling_steps": 3}
    assert (tmp_path / "small" / "maskgit_curves.csv").read_text() == "step,loss\n1,2\n"
    assert (tmp_path / "small" / "maskgit_curves.png").is_file()
    assert not list((tmp_path / "small").glob("tokenizer_*"))


def test_the_curves_of_what_a_training_began_with_come_before_its_own(run, tmp_path):
    for number in (2, 3):
        again = tmp_path / f"run {number}"
        shutil.copytree(run, again)
        before = run.with_name(f"run {number - 1}") if number > 2 else run
        (again / "plan.json").write_text(json.dumps({"arguments": {"model": str(before / "model")}}))
        (again / "maskgit" / "curves.csv").write_text(f"step,loss\n1,{number}\n2,{number}.5\n")
    share.main([str(tmp_path / "run 3"), str(tmp_path / "small")])
    lines = (tmp_path / "small" / "maskgit_curves.csv").read_text().splitlines()
    assert lines == ["step,loss", "1,2", "2,2", "3,2.5", "4,3", "5,3.5"]


def test_curves_that_were_shared_already_are_whole(run, tmp_path):
    for number in (2, 3):  # each begins with what was shared of the one before
        small, again = tmp_path / f"small {number - 1}", tmp_path / f"run {number}"
        share.main([str(tmp_path / f"run {number - 1}") if number > 2 else str(run), str(small)])
        shutil.copytree(run, again)
        (again / "plan.json").write_text(json.dumps({"arguments": {"model": str(small / "model")}}))
        (again / "maskgit" / "curves.csv").write_text(f"step,loss\n1,{number}\n")
    share.main([str(tmp_path / "run 3"), str(tmp_path / "last")])
    lines = (tmp_path / "last" / "maskgit_curves.csv").read_text().splitlines()
    assert lines == ["step,loss", "1,2", "2,2", "3,3"]


def test_the_plan_says_how_to_sample_where_it_was_told(run, tmp_path):
    settings = ["--temperature", "8", "--token-temperature", "1", "0.4", "--guide-every", "3", "--steps", "12"]
    share.main([str(run), str(tmp_path / "small"), *settings])
    plan = read_plan(tmp_path / "small" / "model")
    assert plan == {"sampling_steps": 12, "temperature": 8.0, "token_temperature": [1.0, 0.4], "guide_every": 3}
    assert read_note(tmp_path / "small" / "model")["words"] == ["a"]
    assert planned_sampling(plan)["steps"] == 12


def test_settings_that_no_sampling_can_follow_are_refused(run, tmp_path):
    with pytest.raises(SystemExit, match=r"share\.py: guide_every must be at least 1, got 0"):
        share.main([str(run), str(tmp_path / "small"), "--guide-every", "0"])
    assert not (tmp_path / "small").exists()


def test_no_plan_is_an_error(run, tmp_path):
    (run / "plan.json").unlink()
    with pytest.raises(SystemExit, match=r"share\.py: .*plan\.json"):
        share.main([str(run), str(tmp_path / "small")])


def test_no_model_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"share\.py: no model in .*empty"):
        share.main([str(tmp_path / "empty"), str(tmp_path / "small")])
