"""The text encoder: what it gives, what it keeps out of its owner, how it fails without files or network."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from phenaki_pytorch.t5 import T5TextEncoder

ROOT = Path(__file__).parent.parent
TEXTS = ["a cat runs", "a", "", "snow falls on the hills"]


def save_model(directory, vocab_size=384, d_model=16):
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(vocab_size=vocab_size, d_model=d_model, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(directory)


def save_words(directory):
    from transformers import T5Tokenizer

    words = [f"▁{word}" for word in ("a", "cat", "dog", "runs", "snow", "falls", "on", "the", "hills")]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -5.0), *((word, -2.0) for word in words)]
    T5Tokenizer(vocab=vocab, extra_ids=4).save_pretrained(directory)


@pytest.fixture(scope="module")
def byte_dir(tmp_path_factory):
    from transformers import ByT5Tokenizer

    directory = tmp_path_factory.mktemp("byt5")
    save_model(directory)
    ByT5Tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def word_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("t5")
    save_model(directory, vocab_size=64)
    save_words(directory)
    return directory


@pytest.fixture(scope="module", params=["byte_dir", "word_dir"])
def encoder(request):
    return T5TextEncoder(request.getfixturevalue(request.param))


def run_fresh(code, **environment):
    """Run code in a new interpreter that knows no hub settings and no cache but those given."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


# What it gives


def test_shapes_mask_and_padding_to_the_longest(encoder):
    embeddings, mask = encoder(TEXTS)
    assert embeddings.shape == (*mask.shape, encoder.dim) == (4, mask.shape[1], 16)
    assert embeddings.dtype == torch.float32 and mask.dtype == torch.bool
    lengths = mask.sum(dim=1).tolist()
    assert lengths[3] == max(lengths) == mask.shape[1] and lengths[2] == 1 < lengths[1]
    assert (embeddings[~mask] == 0).all() and (embeddings[mask] != 0).any(dim=-1).all()


def test_words_are_tokens(word_dir):
    _, mask = T5TextEncoder(word_dir)(TEXTS)
    assert mask.sum(dim=1).tolist() == [4, 2, 1, 6]


def test_bytes_are_tokens(byte_dir):
    _, mask = T5TextEncoder(byte_dir)(TEXTS)
    assert mask.sum(dim=1).tolist() == [len(text) + 1 for text in TEXTS]


def test_padding_does_not_change_a_text(encoder):
    embeddings, mask = encoder(TEXTS)
    for text, padded, real in zip(TEXTS, embeddings, mask):
        alone, alone_mask = encoder([text])
        assert alone_mask.all()
        torch.testing.assert_close(alone[0], padded[real], atol=1e-5, rtol=0)


def test_different_texts_differ(encoder):
    first, second = encoder(["a cat", "a dog"])[0]
    assert not torch.allclose(first, second, atol=1e-3)


def test_truncates_at_max_length_and_keeps_the_end_mark(byte_dir):
    embeddings, mask = T5TextEncoder(byte_dir, max_length=5)(TEXTS)
    assert embeddings.shape == (4, 5, 16) and mask.sum(dim=1).tolist() == [5, 2, 1, 5]
    whole, _ = T5TextEncoder(byte_dir)(["a ca"])
    torch.testing.assert_close(embeddings[0], whole[0], atol=1e-5, rtol=0)


def test_frozen_and_deterministic(encoder):
    encoder.train()
    first, _ = encoder(TEXTS)
    assert not first.requires_grad and torch.equal(first, encoder(tuple(TEXTS))[0])
    assert not any(m.training for m in encoder._loaded[1].modules())
    assert not any(p.requires_grad for p in encoder._loaded[1].parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(byte_dir, dtype):
    encoder = T5TextEncoder(byte_dir)
    plain, _ = encoder(TEXTS)
    with torch.autocast("cpu", dtype=dtype):
        cast, _ = encoder(TEXTS)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast) == (dtype == torch.float16)
    torch.testing.assert_close(plain, cast, atol=0.1, rtol=0.1)


def test_keeps_the_saved_dtype_and_gives_float32(byte_dir, tmp_path):
    from transformers import T5EncoderModel

    shutil.copytree(byte_dir, tmp_path, dirs_exist_ok=True)
    T5EncoderModel.from_pretrained(byte_dir, dtype=torch.bfloat16).save_pretrained(tmp_path)
    encoder = T5TextEncoder(tmp_path)
    assert encoder(TEXTS)[0].dtype == torch.float32
    assert encoder._loaded[1].dtype == torch.bfloat16


def test_works_under_compile(byte_dir):
    encoder = T5TextEncoder(byte_dir)
    expected, _ = encoder(TEXTS)
    compiled = torch.compile(lambda texts: encoder(texts)[0] * 2, backend="eager")
    torch.testing.assert_close(compiled(TEXTS), expected * 2)


# What it keeps out of its owner


def test_is_no_part_of_its_owner(byte_dir):
    owner = nn.Sequential(nn.Linear(2, 2), T5TextEncoder(byte_dir))
    owner[1](TEXTS)
    assert set(owner.state_dict()) == {"0.weight", "0.bias"}
    assert len(list(owner.parameters())) == 2 and not list(owner.buffers())
    assert len(list(owner.modules())) == 3


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_leave_the_model_out_and_still_work(byte_dir, clone):
    owner = nn.Sequential(nn.Linear(2, 2), T5TextEncoder(byte_dir, max_length=7))
    expected, _ = owner[1](TEXTS)
    other = clone(owner)
    assert other[1]._loaded is None and owner[1]._loaded is not None
    assert torch.equal(other[1](TEXTS)[0], expected)


def test_follows_its_owner_to_a_device_and_back(byte_dir):
    owner = nn.Sequential(T5TextEncoder(byte_dir))
    expected, _ = owner[0](TEXTS)
    owner.to("meta")
    assert owner[0]._device.type == "meta"
    owner.to_empty(device="cpu")
    assert torch.equal(owner[0](TEXTS)[0], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_follows_its_owner_to_the_gpu(byte_dir):
    owner = nn.Sequential(T5TextEncoder(byte_dir))
    expected, _ = owner[0](TEXTS)
    embeddings, mask = owner.cuda()[0](TEXTS)
    assert embeddings.is_cuda and mask.is_cuda and owner.half()[0](TEXTS)[0].is_cuda
    torch.testing.assert_close(embeddings.cpu(), expected, atol=1e-4, rtol=0)


def test_moves_the_loaded_model(byte_dir, monkeypatch):
    encoder = T5TextEncoder(byte_dir)
    encoder(TEXTS)
    model, moves = encoder._loaded[1], []
    monkeypatch.setattr(model, "to", lambda device: moves.append(device) or model)
    encoder._device = torch.device("cpu", 0)  # so that the plain "cpu" is another device
    encoder.cpu()
    assert moves == [torch.device("cpu")] and encoder._loaded[1] is model


def test_keeps_dtype_and_device_through_half(byte_dir):
    encoder = T5TextEncoder(byte_dir)
    expected, _ = encoder(TEXTS)
    assert torch.equal(encoder.half()(TEXTS)[0], expected)
    assert torch.equal(encoder.share_memory()(TEXTS)[0], expected)


def test_heeds_the_device_it_is_built_on(byte_dir):
    with torch.device("meta"):
        assert T5TextEncoder(byte_dir)._device.type == "meta"


def test_constructing_imports_and_touches_nothing():
    done = run_fresh(
        "import sys, phenaki_pytorch.t5 as t5\n"
        "encoder = t5.T5TextEncoder()\n"
        "assert encoder.dim == 768\n"
        "assert t5.T5TextEncoder('no/such/directory').name == 'no/such/directory'\n"
        "assert not {'transformers', 'tokenizers'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


# How it fails


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
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "shard-1.safetensors", "b": "2"}}'
    )
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


# Its width


@pytest.mark.parametrize(
    "name, dim",
    [
        ("t5-small", 512),
        ("google-t5/t5-large", 1024),
        ("t5-3b", 1024),
        ("t5-11b", 1024),
        ("google/t5-v1_1-small", 512),
        ("google/t5-v1_1-base", 768),
        ("google/t5-v1_1-xl", 2048),
        ("google/t5-v1_1-xxl", 4096),
        ("google/flan-t5-xxl", 4096),
        ("google/t5-v1_1-3b", None),
        ("nobody/no-such-model", None),
        ("no/such/directory", None),
    ],
)
def test_dim_of_names(name, dim):
    assert T5TextEncoder(name).dim == dim


def test_dim_of_directories(byte_dir, tmp_path):
    assert T5TextEncoder(byte_dir).dim == T5TextEncoder(str(byte_dir)).dim == 16
    assert T5TextEncoder(tmp_path).dim is None
