"""Files that do not hold what their config says are refused by name, before memory is taken for what they ask for."""

import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import QUANTIZERS, same_state, state, tiny_cvivit, tiny_maskgit
from phenaki_pytorch import CViViT, MaskGit

BUILD = {CViViT: tiny_cvivit, MaskGit: tiny_maskgit}


def change_weights(directory, name, change):
    """Write a tensor of the file anew."""
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {name: change(tensors[name])}, directory / "model.safetensors")


@pytest.mark.parametrize(
    "kind, name",
    [
        (CViViT, "encoder.embed_first.weight"),
        (CViViT, "quantizer.quantizer._codebook.embed"),
        (MaskGit, "embed.weight"),
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_one_value_that_is_not_finite_is_refused(tmp_path, kind, name, bad):
    BUILD[kind]().save_pretrained(tmp_path)
    change_weights(tmp_path, name, lambda x: x.double().flatten().index_fill(0, torch.tensor(3), bad).view(x.shape))
    with pytest.raises(ValueError, match=rf"model\.safetensors must hold finite values of .*float32.* {name}"):
        kind.from_pretrained(tmp_path)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_refused(tmp_path, quantizer, dtype):
    tiny_cvivit(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer]).save_pretrained(tmp_path)
    names = [name for name, value in load_file(tmp_path / "model.safetensors").items() if value.is_floating_point()]
    first, last = names[0], [name for name in names if name.startswith("quantizer.")][-1]
    for name in (first, last):
        change_weights(tmp_path, name, lambda x: x.to(dtype))
        with pytest.raises(ValueError, match=rf"must hold torch\.float32 or its like in {name}, got"):
            CViViT.from_pretrained(tmp_path)
        change_weights(tmp_path, name, lambda x: x.float() if dtype != torch.complex64 else x.real.contiguous())


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_bools_stay_bools(tmp_path, dtype):
    tiny_cvivit().save_pretrained(tmp_path)
    name = "quantizer.quantizer._codebook.initted"
    change_weights(tmp_path, name, lambda x: torch.full_like(x, 7, dtype=dtype))
    with pytest.raises(ValueError, match=rf"must hold torch\.bool or its like in {name}"):
        CViViT.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_precision_are_cast(tmp_path, dtype):
    model = tiny_maskgit()
    model.save_pretrained(tmp_path)
    change_weights(tmp_path, "embed.weight", lambda x: x.to(dtype))
    loaded = MaskGit.from_pretrained(tmp_path)
    assert torch.equal(loaded.embed.weight, model.embed.weight.to(dtype).float())


@pytest.mark.parametrize(
    "changes",
    [
        {"codebook_size": 3 * 10**7},
        {"quantizer_kwargs": {"heads": 3 * 10**5, "separate_codebook_per_head": True}},
        {"quantizer_kwargs": {"codebook_dim": 10**6}},
        {"quantizer": "simvq", "codebook_size": 3 * 10**7},
        {"quantizer": "simvq", "quantizer_kwargs": {"frozen_codebook_dim": 10**7}},
        {"quantizer": "lfq", "codebook_size": 2**26},
        {"quantizer": "fsq", "codebook_size": 2**24, "quantizer_kwargs": {"levels": [2**12, 2**12]}},
        {"quantizer_kwargs": {"decay": 5}},
    ],
)
def test_a_quantizer_that_the_file_does_not_hold_takes_no_memory(tmp_path, changes):
    quantizer = changes.get("quantizer", "vq")
    model = tiny_cvivit(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer])
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(model.config | changes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"config\.json (asks for|holds no arguments)"):
        CViViT.from_pretrained(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_a_config_of_deep_nesting_is_named(tmp_path):
    tiny_maskgit().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"grid": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        MaskGit.from_pretrained(tmp_path)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_model_of_every_quantizer_is_loaded_as_it_was(tmp_path, quantizer):
    model = tiny_cvivit(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer])
    model.save_pretrained(tmp_path)
    assert same_state(state(CViViT.from_pretrained(tmp_path)), state(model))
