"""C-ViViT under torch.compile: the same results, and the quantizer is the only place where a graph breaks.

The graphs run as Dynamo captures them, so that no C++ compiler is needed.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from conftest import QUANTIZERS, same_state, state, tiny_cvivit


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.fixture
def graphs():
    """A list for the graphs of a compiled call: one more than it has graph breaks."""
    torch._dynamo.reset()
    return []


def compiled(call, graphs, **options):
    """The compiled call, which adds its graphs to the list."""

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return torch.compile(call, backend=keep, **options)


def without_layers():
    return tiny_cvivit(spatial_depth=0, temporal_depth=0)


def test_encoder_and_decoder_compile_without_a_graph_break(graphs):
    """The decoder has no layers here, because they are those of the encoder, called by the same functions."""
    model, decoder, clip = tiny_cvivit(), without_layers(), torch.rand(2, 3, 5, 16, 16)
    features = model.features(clip)
    torch.testing.assert_close(compiled(model.features, graphs, fullgraph=True)(clip), features)
    decoded = decoder.decode_features(features)
    torch.testing.assert_close(compiled(decoder.decode_features, graphs, fullgraph=True)(features), decoded)
    assert len(graphs) == 2


class SmallEncoder(nn.Linear):
    """(b, 3, f, 16, 16) -> (b, t, 2, 2, 8)."""

    def forward(self, video):
        return super().forward(rearrange(video[:, :, ::2, ::8, ::8], "b c t h w -> b t h w c"))


class SmallDecoder(nn.Linear):
    """(b, 3, 2, 2, 8) -> (b, 3, 5, 16, 16)."""

    def forward(self, features):
        return F.interpolate(rearrange(super().forward(features), "b t h w c -> b c t h w"), (5, 16, 16))


def with_small_halves():
    """A tokenizer with an encoder and a decoder of one layer each.

    The real ones have no graph break, as the test above shows. Dynamo traces all before a graph break several times,
    which is slow.
    """
    model = without_layers()
    model.encoder, model.decoder = SmallEncoder(3, 8), SmallDecoder(8, 3)
    return model


@pytest.mark.usefixtures("einops_as_operations")
def test_the_compiled_loss_is_the_same_and_breaks_at_the_quantizer_only(graphs):
    model, clip = with_small_halves(), torch.rand(2, 3, 5, 16, 16)
    twin = copy.deepcopy(model)
    expected, loss = model(clip), compiled(twin.losses, graphs)(clip).total
    torch.testing.assert_close(loss, expected)
    assert len(graphs) == 2
    expected.backward()
    loss.backward()
    torch.testing.assert_close(gradients(twin), gradients(model))
    assert same_state(state(twin), state(model))


@pytest.mark.usefixtures("einops_as_operations")
def test_compiled_encoding_and_decoding_are_the_same_with_at_most_one_graph_break(graphs):
    model, clip = with_small_halves(), torch.rand(2, 3, 5, 16, 16)
    ids = model.encode(clip)
    assert torch.equal(compiled(model.encode, graphs)(clip), ids)
    assert len(graphs) <= 2
    graphs.clear()
    torch.testing.assert_close(compiled(model.decode, graphs)(ids), model.decode(ids))
    assert len(graphs) <= 2


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_compiled_ids_become_features_with_at_most_one_graph_break(graphs, quantizer):
    model = tiny_cvivit(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer])
    ids = torch.randint(32, (2, 3, 2, 2))
    torch.testing.assert_close(compiled(model.code_features, graphs)(ids), model.code_features(ids))
    assert len(graphs) <= 2
