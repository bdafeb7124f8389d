"""VQVAE under torch.compile: the quantizer is the only place where a graph breaks. Tiny, because tracing is slow."""

import pytest
import torch

from phenaki_pytorch.tokenizers.vqvae import ResidualBlock
from tiny_vqvae import trained_vqvae

pytestmark = pytest.mark.usefixtures("einops_as_operations")


def compiled(call, backend="eager"):
    torch._dynamo.reset()
    return torch.compile(call, backend=backend, fullgraph=True)


def test_a_block_with_axial_attention_is_one_graph():
    block, x, positions = ResidualBlock(12, heads=2), torch.randn(1, 2, 3, 4, 12), torch.randn(2, 3, 4, 12)
    out = compiled(block, "aot_eager")(x, positions)  # with a backward graph
    torch.testing.assert_close(out, block(x, positions))
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_encoder_and_decoder_are_one_graph_each():
    model, video = trained_vqvae(depth=0)
    features = model.features(video)
    encoded = compiled(model.features)(video)
    torch.testing.assert_close(encoded, features)
    encoded.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())
    torch.testing.assert_close(compiled(model.decode_features)(features), model.decode_features(features))


def test_the_positions_are_one_graph():
    model, _ = trained_vqvae()
    positions = model._positions((2, 4, 4), torch.device("cpu"))
    assert positions.shape == (2, 4, 4, 12)
    torch.testing.assert_close(compiled(model._positions)((2, 4, 4), torch.device("cpu")), positions)
