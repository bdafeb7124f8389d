"""The text encoder: how it loads, and how it says what it needs."""

import shutil

import pytest

from phenaki_pytorch.t5 import T5TextEncoder
from t5_models import run_fresh, save_model, save_words

TEXTS = ["a cat runs", "a", "", "snow falls on the hills"]


@pytest.mark.parametrize("settings", [{"HF_ENDPOINT": "http://hub.invalid"}, {"HF_HUB_OFFLINE": "1"}])
def test_says_within_two_seconds_that_there_is_no_network(tmp_path, settings):
    done = run_fresh(
        "import time, torch\n"
        "from phenaki_pytorch.t5 import T5TextEncoder\n"
        "start = time.perf_counter()\n"
        "try:\n"
        "    T5TextEncoder()(['a cat'])\n"
        "except OSError as error:\n"
        "    assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)\n"
        "    print(time.perf_counter() - start, error)",
        HF_HOME=str(tmp_path),
        **settings,
    )
    seconds, _, message = done.stdout.partition(" ")
    assert done.returncode == 0 and message, done.stderr
    assert float(seconds) < 2
    for expected in (
        "'google/t5-v1_1-base'",
        "directory",
        "text_embeds=",
        "text_encoder=",
        "cannot be reached",
    ):
        assert expected in message


def test_an_unanswered_name_lookup_is_not_waited_for(monkeypatch):
    import time

    import huggingface_hub

    from phenaki_pytorch import t5

    class Silence:
        def head(self, *_, **__):
            time.sleep(3)

    monkeypatch.setattr(t5, "_HUB_PATIENCE", 0.05)
    monkeypatch.setattr(huggingface_hub, "get_session", Silence)
    start = time.perf_counter()
    with pytest.raises(OSError, match=r"no answer within 0\.05 s"):
        T5TextEncoder("nobody/no-such-model")(["a cat"])
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("status, refused", [(200, False), (307, False), (404, True), (503, True)])
def test_what_answers_must_have_the_model(monkeypatch, status, refused):
    import huggingface_hub

    from phenaki_pytorch import t5

    class Hub:
        status_code = status

        def head(self, url, **_):
            assert url.endswith("/nobody/no-such-model/resolve/main/config.json")
            return self

    monkeypatch.setattr(huggingface_hub, "get_session", Hub)
    reason = t5._why_unreachable("nobody/no-such-model")
    assert (f"status {status}" in reason) if refused else reason is None


def test_the_cache_is_enough(byte_dir, tmp_path, monkeypatch):
    from huggingface_hub import constants

    from phenaki_pytorch import t5

    repository = tmp_path / "models--somebody--tiny-t5"
    shutil.copytree(byte_dir, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(t5, "_why_unreachable", lambda name: f"{name} was asked for")

    encoder = T5TextEncoder("somebody/tiny-t5")
    assert encoder.dim == 16
    assert encoder(["a cat"])[0].shape == (1, 6, 16)

    (repository / "snapshots" / "abc" / "model.safetensors").unlink()
    with pytest.raises(OSError, match="somebody/tiny-t5 was asked for"):
        T5TextEncoder("somebody/tiny-t5")(["a cat"])


def test_a_reachable_hub_is_loaded_from_by_name(monkeypatch):
    import transformers

    from phenaki_pytorch import t5

    asked = []

    def from_pretrained(source, **_):
        asked.append(source)
        raise OSError("stop here")

    monkeypatch.setattr(t5, "_why_unreachable", lambda name: None)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(OSError, match="stop here"):
        T5TextEncoder("nobody/no-such-model")(["a cat"])
    assert asked == ["nobody/no-such-model"]


@pytest.mark.parametrize(
    "file, part",
    [("config.json", "config"), ("model.safetensors", "weights"), ("tokenizer.json", "tokenizer")],
)
def test_names_the_missing_part_of_a_directory(word_dir, tmp_path, file, part):
    shutil.copytree(word_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks its .*{part}"):
        T5TextEncoder(tmp_path)(["a cat"])


def test_names_the_missing_shard(word_dir, tmp_path):
    shutil.copytree(word_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "shard-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "shard-1.safetensors", "b": "2"}}')
    with pytest.raises(FileNotFoundError, match="weights"):
        T5TextEncoder(tmp_path)(["a cat"])


@pytest.mark.parametrize("saved", [False, True])
def test_refuses_a_tokenizer_without_vocabulary(tmp_path, saved):
    from transformers import AutoTokenizer

    save_model(tmp_path, vocab_size=128)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    if saved:  # the made-up tokenizer then has a tokenizer.json
        AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no vocabulary: 104 tokens"):
        T5TextEncoder(tmp_path)(["a cat"])


def test_says_what_a_sentencepiece_file_needs(tmp_path):
    save_model(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"not readable")
    with pytest.raises(OSError, match="sentencepiece and protobuf"):
        T5TextEncoder(tmp_path)(["a cat"])


def test_refuses_weights_of_something_else(word_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(word_dir, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.final_layer_norm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=r"1 weights are missing, as encoder\.final_layer_norm\.weight"):
        T5TextEncoder(tmp_path)(["a cat"])


def test_refuses_more_tokens_than_the_model_knows(tmp_path):
    save_model(tmp_path, vocab_size=8)
    save_words(tmp_path)
    with pytest.raises(OSError, match="tokens, the model knows only 8"):
        T5TextEncoder(tmp_path)(["a cat"])


def test_no_such_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        T5TextEncoder(tmp_path / "absent")(["a cat"])


@pytest.mark.parametrize("texts", ["a cat", None, {"a"}, ["a", 1], [1, "a"], [["a"]], [b"a"]])
def test_refuses_what_is_no_list_of_str(texts):
    with pytest.raises(TypeError, match="str"):
        T5TextEncoder()(texts)


@pytest.mark.parametrize("texts", [[], ()])
def test_refuses_no_texts(texts):
    with pytest.raises(ValueError, match="at least one text, got none"):
        T5TextEncoder()(texts)


def test_refuses_wrong_arguments():
    with pytest.raises(TypeError, match="name"):
        T5TextEncoder(7)
    with pytest.raises(TypeError, match="max_length"):
        T5TextEncoder(max_length=2.0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        T5TextEncoder(max_length=0)
