"""GPT as a prior: the part of the model that is trained, what its curves measure, what is compiled."""

import copy

import pytest
import torch
from torch import nn

from conftest import make_ids, tiny_frame_encoder, tiny_videogpt
from training.gpt_prior import compile_model, trainable_part, watch, with_part


def model_and_batch():
    """A VideoGPT that is told everything, and a batch for it."""
    model = tiny_videogpt(frame_encoder=tiny_frame_encoder(), num_classes=3, dim_action=2, dim_context=12)
    batch = {"video_ids": make_ids(), "text_embeds": torch.randn(2, 4, 12), "text_mask": torch.ones(2, 4).bool()}
    told = {"frames": torch.rand(2, 3, 1, 16, 16), "actions": torch.rand(2, 12, 2), "classes": torch.tensor([0, 2])}
    return model, batch | told


def test_the_measure_is_the_loss_of_the_part_that_is_given_and_changes_nothing():
    model, batch = model_and_batch()
    part = copy.deepcopy(trainable_part(model))
    nn.init.normal_(part[0].to_logits.weight)
    training = model.training
    loss = watch(model, part, batch)["held_out_loss"]
    assert loss == watch(model, part, batch)["held_out_loss"] and model.training == training
    assert loss == pytest.approx(with_part(model, part).eval()(**batch).item())
    assert loss != pytest.approx(model.eval()(**batch).item(), rel=1e-3)


@pytest.mark.parametrize("encoder", [None, tiny_frame_encoder])
def test_the_part_that_is_trained_is_all_but_the_tokenizer(encoder):
    model = tiny_videogpt(frame_encoder=encoder and encoder())
    trained = {id(weight) for weight in trainable_part(model).parameters()}
    assert trained == {id(weight) for weight in model.parameters() if weight.requires_grad}
    assert trained.isdisjoint(id(weight) for weight in model.tokenizer.parameters())


def test_the_transformer_is_compiled_and_called(monkeypatch):
    (model, batch), compiled, reached = model_and_batch(), [], []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    compile_model(model)
    for part in compiled:
        part.register_forward_hook(lambda module, *_: reached.append(module))
    model(**batch)
    assert compiled and set(reached) == set(compiled)
