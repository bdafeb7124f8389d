"""What is left out, done once or compiled changes nothing: masked places alone, guidance as one batch, graphs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import make_ids, seed, tiny_maskgit, tiny_phenaki, tiny_token_critic
from phenaki_pytorch import SelfCritic, maskgit, sampling
from phenaki_pytorch.attention import FeedForward
from phenaki_pytorch.guidance import GuidedFeatures
from phenaki_pytorch.sampling import by_confidence, parallel_decode

GRID = (6, 2, 2)
CRITICS = [None, lambda maskgit: tiny_token_critic(), SelfCritic]


def shapes_into(module):
    """The shapes of a module's inputs, as it is called."""
    shapes = []
    module.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


# masked places alone


def test_the_loss_and_its_gradients_do_not_depend_on_what_is_left_out(monkeypatch):
    model, ids, context = tiny_maskgit(prime_prob=0.5), make_ids(3), torch.randn(3, 4, 12)
    real = (torch.arange(6) < torch.tensor([[6], [3], [1]]))[..., None, None].expand(ids.shape)

    def outcome():
        torch.manual_seed(1)
        losses = model.losses(ids, context, token_mask=real)
        return losses, torch.autograd.grad(losses.total, list(model.parameters()), allow_unused=True)

    (few, gradients), asked = outcome(), []
    counts = few.masked.flatten(1).sum(dim=1)
    assert counts.unique().numel() > 1 and counts.max() <= 0.9 * 24  # some samples fill up with visible places
    monkeypatch.setattr(maskgit, "masked_places", asked.append)
    every, expected = outcome()
    assert torch.equal(asked[0], few.masked.flatten(1)) and torch.equal(every.masked, few.masked)
    torch.testing.assert_close(every.logits, few.logits)
    torch.testing.assert_close(every.total, few.total)
    for (name, _), one, other in zip(model.named_parameters(), gradients, expected, strict=True):
        assert one is not None, name
        torch.testing.assert_close(one, other, msg=name)


def test_only_what_the_loss_looks_at_goes_through_the_last_block_and_the_output_projection(monkeypatch):
    masked = torch.arange(24) < torch.tensor([[5], [2], [9]])
    monkeypatch.setattr(maskgit, "draw_mask", lambda real, **_: masked)
    model = tiny_maskgit(dim_context=None)
    parts = *(block.ff for block in model.transformer.blocks), model.to_logits
    seen = [shapes_into(part) for part in parts]
    model(make_ids(3))
    assert seen == [[(3, 24, 32)], [(3, 9, 32)], [(16, 32)]]


def test_visible_tokens_get_no_gradient_at_the_output(monkeypatch):
    masked, kept = torch.arange(24) < torch.tensor([[5], [2], [9]]), []
    monkeypatch.setattr(maskgit, "draw_mask", lambda real, **_: masked)
    model = tiny_maskgit(dim_context=None)
    model.transformer.register_forward_hook(lambda *args: args[2].retain_grad() or kept.append(args[2]))
    model(make_ids(3)).backward()
    reached = kept[0].grad.abs().sum(dim=-1) > 0
    assert reached.tolist() == [[place < count for place in range(9)] for count in (5, 2, 9)]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_logits_of_some_places_are_those_of_all(scale):
    model, ids, places = tiny_maskgit().eval(), make_ids(3).flatten(1), torch.randint(0, 24, (3, 7))
    features = GuidedFeatures(model, GRID, torch.randn(3, 4, 12), None, scale)
    masked = torch.rand(ids.shape) < 0.5
    with torch.no_grad():
        some, every = (model.to_logits(features(ids, masked, wanted, 0)) for wanted in (places, None))
        torch.testing.assert_close(some, every[[[0], [1], [2]], places])


@pytest.mark.parametrize("critic", CRITICS)
def test_the_ids_that_are_drawn_do_not_depend_on_what_is_left_out(monkeypatch, critic):
    model, context, prime = tiny_maskgit(), torch.randn(3, 4, 12), make_ids(3)[:, :2]
    critic = None if critic is None else critic(model)

    def drawn():
        options = {"critic": critic, "critic_scale": 2.0, "cond_scale": 3.0, "steps": 6}
        return model.generate(context=context, prime_ids=prime, generator=seed(), **options)

    few, seen = drawn(), shapes_into(model.to_logits)
    again = drawn()
    assert torch.equal(few, again) and [shape[1] for shape in seen] == [16, 15, 13, 11, 8, 4]
    seen.clear()
    monkeypatch.setattr(sampling, "masked_places", lambda masked: None)
    assert torch.equal(drawn(), few)
    assert [shape[1] for shape in seen] == [24] * 6


# guidance


def test_what_no_context_has_told_apart_yet_is_computed_once(monkeypatch):
    model, batches = tiny_maskgit(depth=3), []
    for block in model.transformer.blocks:
        for part in (block.attention, block.cross_attention):
            part.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    model.generate(context=torch.randn(3, 4, 12), steps=1)
    assert batches == [3, 6, 6, 6, 6, 6]


# in place


def test_what_is_done_in_place_without_a_gradient_is_the_same_and_leaves_what_is_given_alone():
    layer, x = FeedForward(16), torch.randn(2, 5, 16)
    with_gradient, before, inside = layer(x), x.clone(), []
    for part in list(layer)[:2]:
        part.register_forward_hook(lambda *args: inside.append(args[2].data_ptr()))
    with torch.no_grad():
        assert torch.equal(layer(x), with_gradient) and torch.equal(x, before)
    assert inside[0] == inside[1]
    inside.clear()
    layer(x)
    assert inside[0] != inside[1]


# graphs


@pytest.fixture
def graphs():
    """A backend for `compile`, which runs the graphs as they are; those that it was given are in its `seen`."""
    torch._dynamo.reset()  # how often a function may be compiled is counted over all models

    def backend(graph, inputs):
        backend.seen.append(graph)
        return graph.forward

    backend.seen = []
    return backend


@pytest.mark.parametrize(
    "critic, settings",
    [
        (lambda maskgit: tiny_token_critic(), {"critic_scale": 2.0}),
        (SelfCritic, {"guide_every": 2, "critic_inline": True, "steps": 5}),
    ],
)
def test_compiled_transformers_draw_and_decode_the_same(graphs, critic, settings):
    model = tiny_phenaki(critic=critic)

    def made():
        return model.generate(["up", "down"], num_frames=15, generator=seed(), **{"steps": 3, **settings})

    eager = made()
    transformers = {reader.transformer for reader in (model.maskgit, model.critic.reader)}
    parts = [*transformers, model.cvivit.encoder, model.cvivit.decoder]
    for part in parts:
        part.compile(backend=graphs)
    torch.testing.assert_close(made(), eager, atol=1e-5, rtol=0)
    assert len(graphs.seen) >= len(parts)


def test_a_compiled_transformer_is_what_phenaki_trains(graphs):
    model = tiny_phenaki()
    model.maskgit.transformer.compile(backend=graphs)
    model(video_ids=make_ids(2), texts=["up", "down"]).backward()
    assert graphs.seen


class Copies(TorchDispatchMode):
    """Counts what is copied from one kind of device to another."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [each for each in (*args, result) if isinstance(each, torch.Tensor)]
        self.count += len({each.device.type for each in tensors if each.ndim > 0 or each.is_meta}) > 1
        if operation in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            self.count += len({each.device.type for each in tensors}) > 1
        return result


def test_on_a_device_the_sampling_loop_neither_copies_to_it_nor_waits_for_it():
    """On the meta device, which refuses to give values: waiting for one would fail."""
    masked = torch.ones(2, 24, dtype=torch.bool, device="meta")
    logits = torch.empty(2, 24, 32, device="meta")
    with Copies() as copies:
        torch.zeros(3).to("meta")
        assert copies.count > 0  # the positive control
        copies.count = 0
        ids = parallel_decode(lambda *_: logits, masked.long(), masked, trust=by_confidence(4.0), steps=5)
    assert ids.shape == (2, 24) and copies.count == 0
