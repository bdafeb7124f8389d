"""torch.compile: compiled models have the same loss and generate the same ids."""

import pytest
import torch

from conftest import make_context, make_ids, seed, tiny_maskgit
from phenaki_pytorch import SelfCritic


@pytest.fixture
def graphs():
    """A backend for `compile` that runs the graphs as they are, and keeps them in `graphs.seen`."""
    torch._dynamo.reset()  # the limit of compilations counts those of all models before

    def backend(graph, inputs):
        backend.seen.append(graph)
        return graph.forward

    backend.seen = []
    return backend


def small_maskgit(**changes):
    """Few blocks, because each takes time to compile."""
    return tiny_maskgit(depth=1, grid=(3, 2, 2), **changes)


@pytest.mark.parametrize("dim_context, sizes", [(12, [2]), (None, [2, 3])])
def test_a_maskgit_with_a_compiled_transformer_has_the_same_loss_for_any_batch_size(graphs, dim_context, sizes):
    model = small_maskgit(dim_context=dim_context)
    batches = [(make_ids(b, (3, 2, 2)), *(make_context(b) if dim_context else ())) for b in sizes]

    def losses():
        torch.manual_seed(1)
        return [model(*batch) for batch in batches]

    eager = losses()
    model.transformer.compile(backend=graphs)
    compiled = losses()
    torch.testing.assert_close(compiled, eager)
    sum(compiled).backward()
    assert graphs.seen and all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.usefixtures("einops_as_operations")
@pytest.mark.parametrize("inline", [False, True])
def test_a_maskgit_with_a_compiled_transformer_generates_the_same_ids(graphs, inline):
    model = small_maskgit(dim_context=None)
    options = {"critic": SelfCritic(model), "critic_inline": True} if inline else {}

    def generated():
        return model.generate(batch_size=2, steps=2, generator=seed(), **options)

    eager = generated()
    model.transformer.compile(backend=graphs)
    assert torch.equal(generated(), eager)
    assert graphs.seen
