"""The text encoder: when it loads its model, from where, and what its errors say."""

import json
import shutil
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from phenaki_pytorch.conditions import t5
from phenaki_pytorch.conditions.t5 import T5TextEncoder
from t5_models import run_fresh, save_model, save_words

FRESH = """
import json, sys, time
from phenaki_pytorch.conditions.t5 import T5TextEncoder

encoder = T5TextEncoder()
outcome = {"dim": encoder.dim, "name": T5TextEncoder("no/such/directory").name}
outcome["imported"] = sorted({"transformers", "tokenizers"} & set(sys.modules))
start = time.perf_counter()
try:
    encoder(["a cat"])
except OSError as error:
    outcome["message"] = str(error)
    outcome["has_cause"] = error.__cause__ is not None or not (error.__context__ is None or error.__suppress_context__)
outcome["seconds"] = time.perf_counter() - start
print(json.dumps(outcome))
"""


@pytest.fixture(scope="module")
def without_network(tmp_path_factory):
    """The outcome of building and calling an encoder in a new interpreter that can reach no hub."""
    cache = tmp_path_factory.mktemp("cache")
    done = run_fresh(FRESH, HF_HOME=str(cache), HF_ENDPOINT="http://hub.invalid")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_construction_loads_nothing_and_imports_no_transformers(without_network):
    assert without_network["imported"] == []
    assert without_network["dim"] == 768
    assert without_network["name"] == "no/such/directory"


def assert_says_what_to_do(message):
    for expected in ("'google/t5-v1_1-base'", "directory", "text_embeds=", "text_encoder=", "cannot be reached"):
        assert expected in message


def test_without_a_network_the_error_comes_within_two_seconds(without_network):
    assert_says_what_to_do(without_network["message"])
    assert not without_network["has_cause"]
    assert without_network["seconds"] < 2


def test_offline_mode_is_respected(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="offline mode is enabled") as raised:
        T5TextEncoder()(["a cat"])
    assert_says_what_to_do(str(raised.value))


def test_the_hub_has_limited_time_to_answer(monkeypatch):
    class SilentHub:
        def head(self, *_, **__):
            time.sleep(3)

    monkeypatch.setattr(t5, "_HUB_TIMEOUT", 0.05)
    monkeypatch.setattr(huggingface_hub, "get_session", SilentHub)
    start = time.perf_counter()
    with pytest.raises(OSError, match=r"no answer within 0\.05 s"):
        T5TextEncoder("nobody/no-such-model")(["a cat"])
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("status, refused", [(200, False), (307, False), (404, True), (503, True)])
def test_the_hub_must_have_the_model(monkeypatch, status, refused):
    class Hub:
        status_code = status

        def head(self, url, **_):
            assert url.endswith("/nobody/no-such-model/resolve/main/config.json")
            return self

    monkeypatch.setattr(huggingface_hub, "get_session", Hub)
    reason = t5._why_unreachable("nobody/no-such-model")
    assert (f"status {status}" in reason) if refused else reason is None


def test_a_model_in_the_cache_needs_no_network(byte_dir, tmp_path, monkeypatch):
    repository = tmp_path / "models--somebody--tiny-t5"
    shutil.copytree(byte_dir, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(t5, "_why_unreachable", lambda name: f"{name} cannot be reached")

    encoder = T5TextEncoder("somebody/tiny-t5")
    assert encoder.dim == 16
    assert encoder(["a cat"])[0].shape == (1, 6, 16)

    (repository / "snapshots" / "abc" / "model.safetensors").unlink()
    with pytest.raises(OSError, match="somebody/tiny-t5 cannot be reached"):
        T5TextEncoder("somebody/tiny-t5")(["a cat"])


def test_a_model_on_a_reachable_hub_is_loaded_by_its_name(monkeypatch):
    import transformers

    sources = []

    def from_pretrained(source, **_):
        sources.append(source)
        raise OSError("loading stops here")

    monkeypatch.setattr(t5, "_why_unreachable", lambda name: None)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(OSError, match="loading stops here"):
        T5TextEncoder("nobody/no-such-model")(["a cat"])
    assert sources == ["nobody/no-such-model"]


@pytest.mark.parametrize(
    "file, part",
    [("config.json", "config"), ("model.safetensors", "weights"), ("tokenizer.json", "tokenizer")],
)
def test_the_error_names_the_missing_part_of_a_directory(word_dir, tmp_path, file, part):
    shutil.copytree(word_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks its .*{part}"):
        T5TextEncoder(tmp_path)(["a cat"])


def test_missing_shards_are_missing_weights(word_dir, tmp_path):
    shutil.copytree(word_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "shard-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "shard-1.safetensors", "b": "2"}}')
    with pytest.raises(FileNotFoundError, match="weights"):
        T5TextEncoder(tmp_path)(["a cat"])


@pytest.mark.parametrize("saved", [False, True])
def test_tokenizers_without_a_vocabulary_are_refused(tmp_path, saved):
    from transformers import AutoTokenizer

    save_model(tmp_path, vocab_size=128)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    if saved:  # then the empty tokenizer has a tokenizer.json
        AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no vocabulary: 104 tokens"):
        T5TextEncoder(tmp_path)(["a cat"])


def test_the_error_names_the_packages_that_sentencepiece_files_need(tmp_path):
    save_model(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"not readable")
    with pytest.raises(OSError, match="sentencepiece and protobuf"):
        T5TextEncoder(tmp_path)(["a cat"])


def test_weights_that_are_not_those_of_t5_are_refused(word_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(word_dir, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.final_layer_norm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=r"1 weights are missing, as encoder\.final_layer_norm\.weight"):
        T5TextEncoder(tmp_path)(["a cat"])


def test_tokenizers_with_more_tokens_than_the_model_are_refused(tmp_path):
    save_model(tmp_path, vocab_size=8)
    save_words(tmp_path)
    with pytest.raises(OSError, match="tokens, the model knows only 8"):
        T5TextEncoder(tmp_path)(["a cat"])


def test_a_directory_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        T5TextEncoder(tmp_path / "absent")(["a cat"])


@pytest.mark.parametrize("texts", ["a cat", None, {"a"}, ["a", 1], [1, "a"], [["a"]], [b"a"]])
def test_anything_but_a_list_of_str_is_refused(texts):
    with pytest.raises(TypeError, match="str"):
        T5TextEncoder()(texts)


@pytest.mark.parametrize("texts", [[], ()])
def test_an_empty_list_of_texts_is_refused(texts):
    with pytest.raises(ValueError, match="at least one text, got none"):
        T5TextEncoder()(texts)


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="name"):
        T5TextEncoder(7)
    with pytest.raises(TypeError, match="max_length"):
        T5TextEncoder(max_length=2.0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        T5TextEncoder(max_length=0)
