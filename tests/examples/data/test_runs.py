"""runs.py: what files of a run may hold, curves over several runs, and the sampling options of programs."""

import argparse
import json

import pytest

from conftest import tiny_phenaki, tiny_token_critic
from data.runs import (
    add_sampling,
    asked_sampling,
    check_sampling,
    load_model,
    load_tokenizer,
    planned_sampling,
    read_json,
    read_plan,
    read_rows,
    unknown_words,
    whole_curves,
    write_rows,
)
from data.word_vectors import WordVectors, words_of
from phenaki_pytorch import SelfCritic
from phenaki_pytorch.priors.decoding import sampling_options


@pytest.mark.parametrize("held", [b"", b"no JSON", b'{"a": 1', b"[1]", b"3", b"null", b"\x80\x81", b"[" * 100_000])
def test_a_file_that_holds_no_json_object_is_named(tmp_path, held):
    (tmp_path / "plan.json").write_bytes(held)
    with pytest.raises(ValueError, match=r"plan\.json (is no JSON|must hold a JSON object)"):
        read_json(tmp_path / "plan.json")


@pytest.mark.parametrize(
    "plan, message",
    [
        ({"arguments": []}, "arguments must be an object"),
        ({"arguments": {"sampling_steps": "a"}}, "steps"),
        ({"arguments": {"sampling_steps": 0}}, "steps must be at least 1, got 0"),
        ({"arguments": {"cond_scale": float("nan")}}, "cond_scale must be finite"),
        ({"arguments": {"token_temperature": [1.0, "b"]}}, "token_temperature"),
        ({"arguments": {"token_temperature": [1.0]}}, "token_temperature"),
        ({"arguments": {"cond_scale": None}}, "cond_scale"),
        ({"arguments": {"sampling_steps": None}}, "steps"),
        ({"arguments": {"fps": "8"}}, "fps must be at least 0.01"),
        ({"arguments": {"fps": float("inf")}}, "fps must be at least 0.01"),
        ({"arguments": {"stride": 0}}, "stride must be a whole number"),
        ({"arguments": {"model": ["a"]}}, "arguments model must be the name of a folder"),
        ({"tokenizer": 3}, "tokenizer must be the name of a folder"),
        ({"words": "red"}, "words must be a list"),
        ({"words": [1]}, "words must be a list"),
    ],
)
def test_a_plan_with_wrong_values_is_named(tmp_path, plan, message):
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    for read in (read_plan, lambda folder: unknown_words(folder, ["red"])):
        with pytest.raises(ValueError, match=rf"plan\.json: .*{message}"):
            read(tmp_path / "model")


# models


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_run_in_place_of_its_model_is_answered_with_the_folder_of_the_model(tmp_path, load):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=f"in {tmp_path}: expected {tmp_path / 'model'}$"):
        load(tmp_path)
    with pytest.raises(ValueError, match="expected the folder model/"):
        load(tmp_path / "model")


@pytest.mark.parametrize("config", [{}, {"dim_context": "wide"}, {"dim_context": None}, {"dim_context": 32}])
def test_a_config_without_the_right_text_width_is_refused(tmp_path, config):
    tiny_phenaki(dim_context=64, text_encoder=WordVectors()).save_pretrained(tmp_path)
    path = tmp_path / "maskgit" / "config.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | config if config else {}))
    message = "with another text encoder, 32 wide" if config.get("dim_context") == 32 else "config.json"
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


# curves


def run_of(folder, model, loss):
    """A run that began with the model of another, with one row of curves of its second stage."""
    (folder / "maskgit").mkdir(parents=True)
    (folder / "maskgit" / "curves.csv").write_text(f"step,loss\n10,{loss}\n")
    (folder / "plan.json").write_text(json.dumps({"arguments": {"model": str(model)}}))
    return folder


@pytest.mark.parametrize("stage", ["maskgit", "tokenizer"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_runs_that_name_each_other_in_a_circle_count_once(tmp_path, length, stage):
    runs = [tmp_path / str(number) for number in range(length)]
    for number, run in enumerate(runs):
        run_of(run, runs[(number + 1) % length] / "model", number)
    rows = whole_curves(runs[0], stage)
    expected = [(10 * (length - number), str(number)) for number in reversed(range(length))]
    assert [(row["step"], row["loss"]) for row in rows] == (expected if stage == "maskgit" else [])


def test_a_run_that_went_on_from_its_own_model_by_another_path_counts_once(tmp_path):
    run = run_of(tmp_path / "run", tmp_path / "link" / "model", 0)
    (tmp_path / "link").symlink_to(run)
    assert len(whole_curves(run, "maskgit")) == 1


@pytest.mark.parametrize(
    "held",
    [
        b"",
        b"\n",
        b"loss,accuracy\n1,2\n",
        b"step,loss\n1,many\n",
        b"step,loss\none,2\n",
        b"step,loss\n-1,2\n",
        b"step,loss\n,2\n",
        b"step,loss\n1\n",
        b"step,loss\n1,2,3\n",
        b'step,loss\n1,"2\n',
        b"step,loss\n1,\xff\n",
    ],
)
def test_a_file_that_holds_no_curves_is_named(tmp_path, held):
    (tmp_path / "curves.csv").write_bytes(held)
    with pytest.raises(ValueError, match=r"curves\.csv holds no curves"):
        read_rows(tmp_path / "curves.csv")


def test_rows_of_different_columns_are_written_with_empty_cells(tmp_path):
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "critic_loss": 0.5}]
    write_rows(tmp_path / "curves.csv", rows)
    assert (tmp_path / "curves.csv").read_text() == "step,loss,critic_loss\n1,2.0,\n2,1.0,0.5\n"
    assert read_rows(tmp_path / "curves.csv")[0] == {"step": "1", "loss": "2.0", "critic_loss": ""}


# sampling


@pytest.mark.parametrize(
    "flag, taken, refused",
    [
        ("steps", ["1", "48"], ["0", "-1", "1.5"]),
        ("guide-every", ["1", "3"], ["0", "-1", "1.5"]),
        ("cond-scale", ["0", "7.5"], ["-0.1"]),
        ("critic-scale", ["0", "2"], ["-0.1"]),
        ("temperature", ["0", "4"], ["-0.1"]),
        ("token-temperature", ["1e-6", "2"], ["0", "-1"]),
    ],
)
def test_programs_take_the_sampling_options_that_the_library_takes(capsys, flag, taken, refused):
    parser = argparse.ArgumentParser()
    add_sampling(parser)
    words = 2 if flag == "token-temperature" else 1
    for text in taken:
        args = parser.parse_args([f"--{flag}", *[text] * words])
        sampling_options({name: value for name, value in asked_sampling(args).items() if value is not None})
    for text in [*refused, "nan", "inf"]:
        with pytest.raises(SystemExit):
            parser.parse_args([f"--{flag}", *[text] * words])
        assert f"--{flag}" in capsys.readouterr().err
        if text != "1.5":
            value = int(text) if text.lstrip("-").isdigit() else float(text)
            with pytest.raises((ValueError, TypeError)):
                sampling_options({flag.replace("-", "_"): value})


@pytest.mark.parametrize(
    "given, critic, dim_context, message",
    [
        ({"critic_scale": 2.0}, None, 12, "--critic-scale would have no effect on a model without a critic"),
        ({"critic_inline": False}, None, 12, "--critic-inline would have no effect on a model without a critic"),
        ({"cond_scale": 1.0}, None, None, "--cond-scale would have no effect on an unconditional model"),
        ({"guide_every": 2}, None, None, "--guide-every would have no effect on an unconditional model"),
        ({"guide_every": 2, "cond_scale": 1.0}, None, 12, "--guide-every would have no effect with --cond-scale 1"),
        ({"steps": 1, "temperature": 2.0}, None, 12, "--temperature would have no effect in a single step"),
        ({"critic_scale": 2.0}, lambda _: tiny_token_critic(dim_context=None), 12, "as the critic reads no text"),
        ({"critic_inline": True}, lambda _: tiny_token_critic(), 12, "--critic-inline needs a SelfCritic"),
        ({"critic_inline": True, "critic_scale": 2.0}, SelfCritic, 12, "critic_scale must be 1"),
    ],
)
def test_sampling_options_without_effect_on_a_model_are_refused(given, critic, dim_context, message):
    encoder = None if dim_context is None else lambda texts: None
    phenaki = tiny_phenaki(critic=critic, dim_context=dim_context, text_encoder=encoder)
    with pytest.raises(ValueError, match=message):
        check_sampling(given, planned_sampling({}) | given, phenaki)


def test_sampling_options_that_have_an_effect_are_taken():
    given = {"critic_inline": True, "guide_every": 2, "steps": 3, "temperature": 1.0}
    check_sampling(given, planned_sampling({}) | given, tiny_phenaki(critic=SelfCritic))
    check_sampling({}, planned_sampling({}) | {"steps": 1, "cond_scale": 1.0}, tiny_phenaki(dim_context=None))


def test_words_are_the_same_however_their_accents_are_encoded():
    assert words_of("Caf\u00e9") == words_of("cafe\u0301") == ["caf\u00e9"]
