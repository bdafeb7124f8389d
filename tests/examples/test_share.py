"""share.py: half the bytes, the same model to within half precision, its plan and curves, a shared tokenizer."""

import errno
import json
import shutil
import subprocess
import sys

import pytest
import torch
from test_generate import tiny

import share
from conftest import same_state, tiny_latte, tiny_videogpt
from data.runs import load_model, read_plan, read_plan_file, write_rows
from data.sampling import planned_sampling
from image_vae_models import plain_codec
from phenaki_pytorch import Phenaki


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    tiny().save_pretrained(run / "model")
    (run / "plan.json").write_text(json.dumps({"arguments": {"sampling_steps": 3}, "words": ["a"]}))
    (run / "maskgit").mkdir()
    (run / "maskgit" / "curves.csv").write_text("step,loss\n1,2\n")
    return run


def test_weights_take_half_the_bytes_and_are_loaded_as_float32(run, tmp_path, capsys):
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


def test_plan_and_curves_are_written(run, tmp_path):
    share.main([str(run), str(tmp_path / "small")])
    assert read_plan(tmp_path / "small" / "model") == {"sampling_steps": 3}
    assert (tmp_path / "small" / "maskgit_curves.csv").read_text() == "step,loss\n1,2\n"
    assert (tmp_path / "small" / "maskgit_curves.png").is_file()
    assert not list((tmp_path / "small").glob("tokenizer_*"))


def test_the_curves_begin_with_those_of_the_model_that_the_training_began_with(run, tmp_path):
    for number in (2, 3):
        again = tmp_path / f"run {number}"
        shutil.copytree(run, again)
        before = run.with_name(f"run {number - 1}") if number > 2 else run
        (again / "plan.json").write_text(json.dumps({"arguments": {"model": str(before / "model")}}))
        (again / "maskgit" / "curves.csv").write_text(f"step,loss\n1,{number}\n2,{number}.5\n")
    share.main([str(tmp_path / "run 3"), str(tmp_path / "small")])
    lines = (tmp_path / "small" / "maskgit_curves.csv").read_text().splitlines()
    assert lines == ["step,loss", "1,2", "2,2", "3,2.5", "4,3", "5,3.5"]


def test_shared_curves_are_whole(run, tmp_path):
    for number in (2, 3):  # each begins with the shared model of the one before
        small, again = tmp_path / f"small {number - 1}", tmp_path / f"run {number}"
        share.main([str(tmp_path / f"run {number - 1}") if number > 2 else str(run), str(small)])
        shutil.copytree(run, again)
        (again / "plan.json").write_text(json.dumps({"arguments": {"model": str(small / "model")}}))
        (again / "maskgit" / "curves.csv").write_text(f"step,loss\n1,{number}\n")
    share.main([str(tmp_path / "run 3"), str(tmp_path / "last")])
    lines = (tmp_path / "last" / "maskgit_curves.csv").read_text().splitlines()
    assert lines == ["step,loss", "1,2", "2,2", "3,3"]


def test_given_sampling_options_replace_those_of_the_plan(run, tmp_path):
    options = ["--temperature", "8", "--token-temperature", "1", "0.4", "--guide-every", "3", "--steps", "12"]
    share.main([str(run), str(tmp_path / "small"), *options])
    plan = read_plan(tmp_path / "small" / "model")
    assert plan == {"sampling_steps": 12, "temperature": 8.0, "token_temperature": [1.0, 0.4], "guide_every": 3}
    assert read_plan_file(tmp_path / "small" / "model")["words"] == ["a"]
    assert planned_sampling(plan)["steps"] == 12


def test_impossible_sampling_options_are_refused(run, tmp_path):
    (run / "plan.json").write_text(json.dumps({"arguments": {"temperature": -1}}))
    with pytest.raises(SystemExit, match=r"share\.py: .*plan\.json: temperature must be finite and at least 0"):
        share.main([str(run), str(tmp_path / "small")])
    assert not (tmp_path / "small").exists()


def test_no_plan_is_an_error(run, tmp_path):
    (run / "plan.json").unlink()
    with pytest.raises(SystemExit, match=r"share\.py: .*plan\.json"):
        share.main([str(run), str(tmp_path / "small")])


def test_no_model_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"share\.py: no model in .*empty"):
        share.main([str(tmp_path / "empty"), str(tmp_path / "small")])


@pytest.fixture
def shared(run, tmp_path):
    """A folder with a shared model, whose tokenizer others may use."""
    share.main([str(run), str(tmp_path / "shared")])
    return tmp_path / "shared"


def test_a_tokenizer_that_is_shared_already_is_left_out_and_named_in_the_plan(run, shared, tmp_path):
    (run / "tokenizer").mkdir()
    write_rows(run / "tokenizer" / "curves.csv", [{"step": 1, "loss": 2.0}])
    other = shared / "other"
    share.main([str(run), str(other), "--tokenizer", str(shared / "model" / "cvivit")])
    assert read_plan_file(other / "model")["tokenizer"] == "../model/cvivit"
    assert read_plan(other / "model") == {"sampling_steps": 3}
    assert not (other / "model" / "cvivit").exists() and not list(other.glob("tokenizer_*"))
    loaded, whole = load_model(other / "model"), load_model(shared / "model")
    weights = whole.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())
    # Shared again, with its tokenizer and without.
    share.main([str(other), str(tmp_path / "whole")])
    assert (tmp_path / "whole" / "model" / "cvivit").is_dir()
    assert "tokenizer" not in read_plan_file(tmp_path / "whole" / "model")
    share.main([str(other), str(tmp_path / "again"), "--tokenizer", str(shared / "model")])
    assert read_plan_file(tmp_path / "again" / "model")["tokenizer"] == "../shared/model/cvivit"
    assert same_state(load_model(tmp_path / "again" / "model").state_dict(), weights)
    assert (tmp_path / "again" / "model" / "config.json").read_text() == (other / "model" / "config.json").read_text()


@pytest.mark.parametrize(
    "model, stage, part",
    [(lambda: tiny_videogpt(dim_context=None), "gpt", "tokenizer"), (tiny_latte, "latte", "codec")],
)
def test_every_system_is_shared_with_a_tokenizer_and_without(model, stage, part, tmp_path):
    run, whole, other = (tmp_path / name for name in ("run", "whole", "other"))
    model().save_pretrained(run / "model")
    (run / "plan.json").write_text(json.dumps({"arguments": {"prior": stage}}))
    (run / stage).mkdir()
    write_rows(run / stage / "curves.csv", [{"step": 1, "loss": 2.0}])
    share.main([str(run), str(whole)])
    share.main([str(run), str(other), "--tokenizer", str(whole / "model" / part)])
    assert (other / f"{stage}_curves.csv").read_text() == (run / stage / "curves.csv").read_text()
    assert not (other / "model" / part).exists()
    before, after, again = (load_model(folder / "model").state_dict() for folder in (run, whole, other))
    assert same_state(after, again)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    assert not same_state(after, before)
    with pytest.raises(SystemExit, match=r"expected another folder than the --out of a training"):
        share.main([str(whole), str(run)])


def test_a_model_of_another_system_is_not_replaced(run, shared, tmp_path):
    tiny_latte().save_pretrained(tmp_path / "latte" / "model")
    (tmp_path / "latte" / "plan.json").write_text(json.dumps({"arguments": {"prior": "latte"}}))
    before = (shared / "plan.json").read_text()
    with pytest.raises(SystemExit, match=r"shared/model holds a Phenaki: expected another folder for a Latte"):
        share.main([str(tmp_path / "latte"), str(shared)])
    assert (shared / "plan.json").read_text() == before and not (shared / "model" / "transformer").exists()
    share.main([str(run), str(shared), "--steps", "5"])
    assert read_plan(shared / "model") == {"sampling_steps": 5}


def test_another_tokenizer_is_refused(run, shared, tmp_path):
    phenaki = load_model(shared / "model").cpu()
    phenaki.cvivit.decoder.pixels_first.weight.data[0, 0] += 1
    phenaki.cvivit.save_pretrained(tmp_path / "different")
    with pytest.raises(SystemExit, match=r"share\.py: the tokenizer in .*different is not that of the model"):
        share.main([str(run), str(tmp_path / "small"), "--tokenizer", str(tmp_path / "different")])
    with pytest.raises(ValueError, match=r"the tokenizer in .* is not that of the model"):
        share.check_same_tokenizer(plain_codec(), shared / "model")
    with pytest.raises(SystemExit, match=r"share\.py: no tokenizer in .*nowhere"):
        share.main([str(run), str(tmp_path / "small"), "--tokenizer", str(tmp_path / "nowhere")])
    assert not (tmp_path / "small").exists()


def test_a_run_is_not_replaced_by_its_shared_model(run, tmp_path, monkeypatch):
    before = (run / "model" / "maskgit" / "model.safetensors").read_bytes()
    monkeypatch.chdir(tmp_path)
    for folder in (str(run), "run", "run/model/.."):
        with pytest.raises(SystemExit, match=r"share\.py: expected another folder than the run's own"):
            share.main([str(run), folder])
    assert (run / "model" / "maskgit" / "model.safetensors").read_bytes() == before


def test_a_shared_tokenizer_is_not_deleted_with_the_model_that_is_replaced(run, shared):
    with pytest.raises(SystemExit, match=r"share\.py: expected a tokenizer outside of .*shared/model"):
        share.main([str(run), str(shared), "--tokenizer", str(shared / "model" / "cvivit")])
    assert (shared / "model" / "cvivit" / "model.safetensors").is_file()


def test_curves_of_a_run_with_more_columns_than_the_one_before_are_whole(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    (again / "plan.json").write_text(json.dumps({"arguments": {"model": str(run / "model")}}))
    (again / "maskgit" / "curves.csv").write_text("step,loss,critic_loss\n1,3,0.5\n")
    share.main([str(again), str(tmp_path / "small")])
    lines = (tmp_path / "small" / "maskgit_curves.csv").read_text().splitlines()
    assert lines == ["step,loss,critic_loss", "1,2,", "2,3,0.5"]


def test_nothing_is_written_where_the_curves_are_broken(run, tmp_path):
    (run / "maskgit" / "curves.csv").write_text("")
    with pytest.raises(SystemExit, match=r"share\.py: .*curves\.csv holds no curves"):
        share.main([str(run), str(tmp_path / "small")])
    assert not (tmp_path / "small").exists()


def test_sampling_options_without_effect_are_refused(run, tmp_path):
    with pytest.raises(SystemExit, match="--critic-inline would have no effect on a model without a critic"):
        share.main([str(run), str(tmp_path / "small"), "--critic-inline"])
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    "folder", ["run/model", "run/model/cvivit", "run/maskgit", "run/tokenizer/new", "run/discriminator"]
)
def test_the_folders_of_the_run_are_no_place_for_its_shared_model(run, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=r"share\.py: expected another folder than the run's own"):
        share.main(["run", folder])
    assert sorted(tmp_path.rglob("*")) == before


def test_another_training_is_not_replaced_and_a_folder_inside_the_run_is_taken(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    before = (tmp_path / "other" / "plan.json").read_text()
    with pytest.raises(SystemExit, match=r"share\.py: expected another folder than the --out of a training"):
        share.main([str(run), str(tmp_path / "other"), "--temperature", "2"])
    assert (tmp_path / "other" / "plan.json").read_text() == before
    share.main([str(run), str(run / "small")])
    assert (run / "small" / "plan.json").is_file()


def test_a_run_inside_of_what_is_replaced_is_refused(run, tmp_path):
    inside = tmp_path / "other" / "model"
    inside.parent.mkdir()
    run.rename(inside)
    with pytest.raises(SystemExit, match=r"share\.py: expected a run outside of .*other/model"):
        share.main([str(inside), str(inside.parent)])


def test_weights_that_are_not_finite_in_half_precision_are_refused_by_name(run, tmp_path):
    phenaki = load_model(run / "model").cpu()
    phenaki.maskgit.to_logits.weight.data[0, 0] = 1e5  # finite in float32
    phenaki.save_pretrained(run / "model")
    with pytest.raises(SystemExit, match=r"the weights maskgit\.to_logits\.weight are not finite in half precision"):
        share.main([str(run), str(tmp_path / "small")])
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("file", ["save_pretrained", "write_rows"])
def test_a_full_disk_leaves_no_half_of_a_shared_model(run, tmp_path, monkeypatch, there, file):
    small = tmp_path / "new" / "small"
    if there:
        small.mkdir(parents=True)

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((Phenaki, file) if file == "save_pretrained" else (share, file)), full)
    with pytest.raises(SystemExit, match=r"share\.py: .*No space left on device"):
        share.main([str(run), str(small)])
    assert (small.exists(), (small / "model").exists(), (tmp_path / "new").exists()) == (there, False, there)


def test_a_disk_that_is_full_while_weights_are_written_ends_in_one_line(run, tmp_path):
    limited = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import share; "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000)); share.main(sys.argv[1:])"
    words = [sys.executable, "-W", "ignore", "-c", limited, str(run), str(tmp_path / "small")]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=share.Path(share.__file__).parent)
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("share.py: ") and not (tmp_path / "small").exists()
