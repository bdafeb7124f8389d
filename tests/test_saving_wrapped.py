"""What could not be loaded again is not saved: the error says what to do, and an earlier model stays whole."""

import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from conftest import QUANTIZERS, same_state, state, tiny_cvivit, tiny_maskgit, tiny_phenaki
from phenaki_pytorch import CViViT, MaskGit, Phenaki, SelfCritic


def adapted(module):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(module, peft.LoraConfig(r=2, target_modules=["to_qkv"])).base_model.model


def parametrized(module):
    weight_norm(next(part for part in module.modules() if isinstance(part, nn.Linear)))
    return module


def int8(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear})


def torchao_int8(module):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(module, torchao.Int8WeightOnlyConfig())
    return module


def offloaded(module):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(module, execution_device="cpu")
    return module


def without_memory(module):
    return module.to("meta")


def resized(module):
    name = "to_logits" if isinstance(module, MaskGit) else "encoder"
    setattr(module, name, nn.Linear(8, 8))
    return module


def compiled_inside(module):
    name = "transformer" if isinstance(module, MaskGit) else "encoder"
    setattr(module, name, torch.compile(getattr(module, name), backend="eager"))
    return module


WRAPPERS = [adapted, parametrized, int8, torchao_int8, offloaded, without_memory, resized, compiled_inside]


@pytest.mark.parametrize("build", [tiny_cvivit, tiny_maskgit])
@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, build, wrap):
    old = build()
    old.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"only a plain .* can be saved.*merge adapters.*before it is wrapped"):
        wrap(build()).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert same_state(state(type(old).from_pretrained(tmp_path)), state(old))


@pytest.mark.parametrize("wrap", [adapted, parametrized, offloaded], ids=lambda wrap: wrap.__name__)
def test_a_system_with_such_a_part_is_not_saved(tmp_path, wrap):
    model = tiny_phenaki(dim_context=None)
    model.maskgit = wrap(model.maskgit)
    with pytest.raises(ValueError, match="only a plain MaskGit"):
        model.save_pretrained(tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_modules_of_any_quantizer_and_dtype_are_saved(tmp_path, quantizer, dtype):
    model = tiny_cvivit(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer]).to(dtype)
    model.save_pretrained(tmp_path)
    assert same_state(state(CViViT.from_pretrained(tmp_path).to(dtype)), state(model))


def test_saving_leaves_the_random_state_alone(tmp_path):
    model, before = tiny_phenaki(critic=SelfCritic), torch.get_rng_state()
    model.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_that_save_into_one_directory_do_not_disturb_each_other(tmp_path):
    models, errors = [tiny_maskgit() for _ in range(4)], []

    def save(model):
        try:
            for _ in range(3):
                model.save_pretrained(tmp_path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(model,)) for model in models]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert any(same_state(state(MaskGit.from_pretrained(tmp_path)), state(model)) for model in models)


def test_parts_of_an_earlier_model_are_named_and_kept(tmp_path):
    tiny_phenaki(critic=SelfCritic, dim_context=None).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"parts of an earlier model, which are not this one's: \['critic'\]"):
        tiny_phenaki(dim_context=None).save_pretrained(tmp_path)
    assert (tmp_path / "critic" / "model.safetensors").exists()
    assert Phenaki.from_pretrained(tmp_path).critic is None


def test_saving_the_same_parts_again_warns_of_nothing(tmp_path):
    model = tiny_phenaki(critic=SelfCritic, dim_context=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            model.save_pretrained(tmp_path)
    assert isinstance(Phenaki.from_pretrained(tmp_path).critic, SelfCritic)
