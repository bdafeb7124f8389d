"""The text encoder: its embeddings and masks, and that its model is no part of the module that holds it."""

import copy
import pickle
import shutil

import pytest
import torch
from torch import nn

from phenaki_pytorch.conditions.t5 import T5TextEncoder

TEXTS = ["a cat runs", "a", "", "snow falls on the hills"]


@pytest.fixture(scope="module", params=["byte_dir", "word_dir"])
def encoder(request):
    return T5TextEncoder(request.getfixturevalue(request.param))


# embeddings and masks


def test_embeddings_are_padded_to_the_longest_text(encoder):
    embeddings, mask = encoder(TEXTS)
    assert embeddings.shape == (*mask.shape, encoder.dim) == (4, mask.shape[1], 16)
    assert embeddings.dtype == torch.float32 and mask.dtype == torch.bool
    lengths = mask.sum(dim=1).tolist()
    assert lengths[3] == max(lengths) == mask.shape[1] and lengths[2] == 1 < lengths[1]
    assert (embeddings[~mask] == 0).all() and (embeddings[mask] != 0).any(dim=-1).all()


def test_word_tokenizers_give_one_token_per_word_and_the_end_mark(word_dir):
    _, mask = T5TextEncoder(word_dir)(TEXTS)
    assert mask.sum(dim=1).tolist() == [4, 2, 1, 6]


def test_byte_tokenizers_give_one_token_per_byte_and_the_end_mark(byte_dir):
    _, mask = T5TextEncoder(byte_dir)(TEXTS)
    assert mask.sum(dim=1).tolist() == [len(text) + 1 for text in TEXTS]


def test_padding_does_not_change_the_embeddings_of_a_text(encoder):
    embeddings, mask = encoder(TEXTS)
    for text, padded, real in zip(TEXTS, embeddings, mask):
        alone, alone_mask = encoder([text])
        assert alone_mask.all()
        torch.testing.assert_close(alone[0], padded[real], atol=1e-5, rtol=0)


def test_different_texts_have_different_embeddings(encoder):
    first, second = encoder(["a cat", "a dog"])[0]
    assert not torch.allclose(first, second, atol=1e-3)


def test_texts_are_cut_at_max_length_and_keep_the_end_mark(byte_dir):
    embeddings, mask = T5TextEncoder(byte_dir, max_length=5)(TEXTS)
    assert embeddings.shape == (4, 5, 16) and mask.sum(dim=1).tolist() == [5, 2, 1, 5]
    whole, _ = T5TextEncoder(byte_dir)(["a ca"])
    torch.testing.assert_close(embeddings[0], whole[0], atol=1e-5, rtol=0)


def test_the_model_is_frozen_and_in_eval_mode_always(encoder):
    encoder.train()
    first, _ = encoder(TEXTS)
    assert not first.requires_grad and torch.equal(first, encoder(tuple(TEXTS))[0])
    assert not any(m.training for m in encoder._loaded[1].modules())
    assert not any(p.requires_grad for p in encoder._loaded[1].parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bfloat16_autocast_is_used_and_float16_is_not(byte_dir, dtype):
    encoder = T5TextEncoder(byte_dir)
    plain, _ = encoder(TEXTS)
    with torch.autocast("cpu", dtype=dtype):
        cast, _ = encoder(TEXTS)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast) == (dtype == torch.float16)
    torch.testing.assert_close(plain, cast, atol=0.1, rtol=0.1)


def test_weights_keep_their_saved_dtype_and_embeddings_are_float32(byte_dir, tmp_path):
    from transformers import T5EncoderModel

    shutil.copytree(byte_dir, tmp_path, dirs_exist_ok=True)
    T5EncoderModel.from_pretrained(byte_dir, dtype=torch.bfloat16).save_pretrained(tmp_path)
    encoder = T5TextEncoder(tmp_path)
    assert encoder(TEXTS)[0].dtype == torch.float32
    assert encoder._loaded[1].dtype == torch.bfloat16


def test_it_can_be_called_in_a_compiled_function(byte_dir):
    encoder = T5TextEncoder(byte_dir)
    expected, _ = encoder(TEXTS)
    compiled = torch.compile(lambda texts: encoder(texts)[0] * 2, backend="eager")
    torch.testing.assert_close(compiled(TEXTS), expected * 2)


# the module that holds it


def test_the_model_has_no_parameters_in_its_owner(byte_dir):
    owner = nn.Sequential(nn.Linear(2, 2), T5TextEncoder(byte_dir))
    owner[1](TEXTS)
    assert set(owner.state_dict()) == {"0.weight", "0.bias"}
    assert len(list(owner.parameters())) == 2 and not list(owner.buffers())
    assert len(list(owner.modules())) == 3


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_do_not_hold_the_model_and_load_it_again(byte_dir, clone):
    owner = nn.Sequential(nn.Linear(2, 2), T5TextEncoder(byte_dir, max_length=7))
    expected, _ = owner[1](TEXTS)
    other = clone(owner)
    assert other[1]._loaded is None and owner[1]._loaded is not None
    assert torch.equal(other[1](TEXTS)[0], expected)


def test_it_follows_its_owner_to_the_meta_device_and_back(byte_dir):
    owner = nn.Sequential(T5TextEncoder(byte_dir))
    expected, _ = owner[0](TEXTS)
    owner.to("meta")
    assert owner[0]._device.type == "meta"
    owner.to_empty(device="cpu")
    assert torch.equal(owner[0](TEXTS)[0], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_follows_its_owner_to_the_gpu(byte_dir):
    owner = nn.Sequential(T5TextEncoder(byte_dir))
    expected, _ = owner[0](TEXTS)
    embeddings, mask = owner.cuda()[0](TEXTS)
    assert embeddings.is_cuda and mask.is_cuda and owner.half()[0](TEXTS)[0].is_cuda
    torch.testing.assert_close(embeddings.cpu(), expected, atol=1e-4, rtol=0)


def test_a_move_moves_the_loaded_model(byte_dir, monkeypatch):
    encoder = T5TextEncoder(byte_dir)
    encoder(TEXTS)
    model, moves = encoder._loaded[1], []
    monkeypatch.setattr(model, "to", lambda device: moves.append(device) or model)
    encoder._device = torch.device("cpu", 0)  # differs from the device "cpu", which has no index
    encoder.cpu()
    assert moves == [torch.device("cpu")] and encoder._loaded[1] is model


def test_half_and_share_memory_leave_the_model_as_it_is(byte_dir):
    encoder = T5TextEncoder(byte_dir)
    expected, _ = encoder(TEXTS)
    assert torch.equal(encoder.half()(TEXTS)[0], expected)
    assert torch.equal(encoder.share_memory()(TEXTS)[0], expected)


def test_its_device_is_the_one_it_is_built_on(byte_dir):
    with torch.device("meta"):
        assert T5TextEncoder(byte_dir)._device.type == "meta"


# width


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
def test_the_width_is_known_from_public_names(name, dim):
    assert T5TextEncoder(name).dim == dim


def test_the_width_is_read_from_a_directory(byte_dir, tmp_path):
    assert T5TextEncoder(byte_dir).dim == T5TextEncoder(str(byte_dir)).dim == 16
    assert T5TextEncoder(tmp_path).dim is None
