"""runs.py: what files of a run may hold, which model and tokenizer a folder has, and curves over several runs."""

import inspect
import json
import warnings
from functools import partial

import pytest

from conftest import same_state, state, tiny_cvivit, tiny_phenaki, tiny_videogpt, tiny_vqgan, tiny_vqvae
from data.runs import (
    labels_of,
    load_model,
    load_phenaki,
    load_tokenizer,
    read_json,
    read_plan,
    read_rows,
    save_model,
    tokenizer_of,
    unknown_words,
    whole_curves,
    write_rows,
)
from data.word_vectors import WordVectors, words_of


def test_what_is_left_out_of_a_saved_model_is_there_again_and_needs_no_warning(tmp_path):
    encoder = WordVectors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(tiny_phenaki(dim_context=encoder.dim, text_encoder=encoder), tmp_path)
    assert isinstance(load_model(tmp_path).text_encoder, WordVectors)


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
        ({"classes": "red"}, "classes must be a list"),
        ({"actions": [1]}, "actions must be a list"),
        ({"arguments": {"prior": "diffusion"}}, "prior must be one of maskgit, gpt, latte, got 'diffusion'"),
        ({"arguments": {"prior": ["gpt"]}}, r"prior must be one of maskgit, gpt, latte, got \['gpt'\]"),
        ({"arguments": {"condition": "text"}}, "arguments condition must be a list"),
        ({"arguments": {"prior": "gpt", "top_p": 0}}, "top_p must be above 0"),
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


SYSTEMS = {"a Phenaki": lambda: tiny_phenaki(dim_context=None), "a VideoGPT": tiny_videogpt}


@pytest.mark.parametrize("kind", SYSTEMS)
def test_a_model_over_one_of_another_kind_has_its_own_tokenizer(tmp_path, kind):
    for name in (*(SYSTEMS.keys() - {kind}), kind):
        model = SYSTEMS[name]()
        model.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(tmp_path), tokenizer_of(load_model(tmp_path))):
        assert type(loaded) is type(tokenizer_of(model)) and same_state(state(loaded), state(tokenizer_of(model)))


def test_a_program_that_needs_a_phenaki_refuses_other_models(tmp_path):
    tiny_videogpt().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a VideoGPT, expected a Phenaki"):
        load_phenaki(tmp_path)


@pytest.mark.parametrize("build", [tiny_cvivit, partial(tiny_vqgan, trained=False), partial(tiny_vqvae, trained=False)])
def test_a_tokenizer_saved_before_an_argument_was_added_is_found(tmp_path, build):
    tokenizer = build()
    tokenizer.save_pretrained(tmp_path)
    added = inspect.signature(type(tokenizer)).parameters
    config = {name: value for name, value in tokenizer.config.items() if value != added[name].default}
    assert len(config) < len(tokenizer.config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer) and same_state(state(loaded), state(tokenizer))


def test_a_tokenizer_of_an_unknown_kind_is_refused(tmp_path):
    tiny_vqvae().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"colour": 1}))
    with pytest.raises(ValueError, match=r"holds none of CViViT, VQGAN, VQVAE, but .*, colour"):
        load_tokenizer(tmp_path)


def test_classes_and_actions_have_the_names_of_the_plan_or_numbers(tmp_path):
    model = tiny_videogpt(num_classes=2, dim_action=3)
    assert labels_of(tmp_path / "model", model) == (["0", "1"], ["0", "1", "2"])
    assert labels_of(tmp_path / "model", tiny_phenaki()) == ([], [])
    plan = {"classes": ["up", "down"], "actions": ["left", "right", "stay"]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert labels_of(tmp_path / "model", model) == tuple(plan.values())
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"actions": ["left"]}))
    with pytest.raises(ValueError, match=r"has 3 actions, its plan\.json 1"):
        labels_of(tmp_path / "model", model)


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


@pytest.mark.parametrize("named", ["model", "model/cvivit", "model/tokenizer"])
def test_the_curves_of_a_tokenizer_are_those_of_the_run_that_trained_it(tmp_path, named):
    (tmp_path / "first" / "tokenizer").mkdir(parents=True)
    (tmp_path / "first" / "tokenizer" / "curves.csv").write_text("step,loss\n10,1\n")
    (tmp_path / "second").mkdir()
    plan = {"arguments": {"tokenizer": str(tmp_path / "first" / named)}}
    (tmp_path / "second" / "plan.json").write_text(json.dumps(plan))
    assert whole_curves(tmp_path / "second", "tokenizer") == [{"step": 10, "loss": "1"}]


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


def test_words_are_the_same_however_their_accents_are_encoded():
    assert words_of("Caf\u00e9") == words_of("cafe\u0301") == ["caf\u00e9"]
