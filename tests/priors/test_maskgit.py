"""MaskGit: which tokens its loss looks at, how it reads texts, guidance, and what generation guarantees."""

import pytest
import torch
import torch.nn.functional as F

from conftest import compute_all_positions, make_context, make_ids, modes, same_state, seed, state, tiny_maskgit, train
from phenaki_pytorch.layers.attention import Context, CrossAttention
from phenaki_pytorch.priors import maskgit as module

GRID = (6, 2, 2)


@pytest.fixture
def fixed_mask(monkeypatch):
    """The training mask, bool (b, n), the same each time."""
    mask = torch.rand(2, 24) < 0.5
    monkeypatch.setattr(module, "draw_mask", lambda real, **_: mask & real)
    return mask


def no_drop(**changes):
    return tiny_maskgit(cond_drop_prob=0.0, **changes)


def padding():
    """A token mask of one clip of six time steps and one of two."""
    return (torch.arange(6) < torch.tensor([[6], [2]]))[..., None, None].expand(2, *GRID)


# loss


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_of_the_masked_tokens(fixed_mask, label_smoothing):
    model, ids, (context, context_mask) = no_drop(label_smoothing=label_smoothing), make_ids(), make_context()
    masked = fixed_mask.reshape(ids.shape)
    log_probs = model.logits(ids, masked, context, context_mask).log_softmax(dim=-1)
    expected = F.nll_loss(log_probs[masked], ids[masked])
    expected = (1 - label_smoothing) * expected - label_smoothing * log_probs[masked].mean()
    torch.testing.assert_close(model(ids, context, context_mask), expected)


def test_padding_is_neither_masked_nor_counted_nor_attended_to():
    model, ids, (context, context_mask), real = no_drop(), make_ids(), make_context(), padding()
    other = torch.where(real, ids, (ids + 1) % 32)

    def loss(ids, real):
        torch.manual_seed(1)
        return model(ids, context, context_mask, real)

    assert torch.equal(loss(ids, real), loss(other, real))
    assert not torch.equal(loss(ids, None), loss(other, None))
    at_real = torch.where(real & (torch.rand(ids.shape) < 0.5), (ids + 1) % 32, ids)
    assert not torch.equal(loss(ids, real), loss(at_real, real))


def test_logits_with_padding_are_those_without_it():
    model, ids, (context, context_mask) = no_drop().eval(), make_ids(), make_context()
    masked, real = torch.rand(ids.shape) < 0.5, torch.zeros(ids.shape, dtype=torch.bool)
    real[:, :2] = True
    padded = model.logits(ids, masked, context, context_mask, real)[:, :2]
    torch.testing.assert_close(padded, model.logits(ids[:, :2], masked[:, :2], context, context_mask))


def test_the_training_mask_covers_real_tokens_by_the_models_schedule(monkeypatch):
    model, ids, calls, real = no_drop(dim_context=None, schedule="linear"), make_ids(), [], padding()
    draw_mask = module.draw_mask
    monkeypatch.setattr(module, "draw_mask", lambda real, **o: calls.append((real, o)) or draw_mask(real, **o))
    model(ids, token_mask=real)
    assert calls[0][1]["schedule"] == "linear"
    assert torch.equal(calls[0][0], real.flatten(1))


def test_logits_depend_on_visible_ids_and_not_on_masked_ones():
    model, ids = tiny_maskgit(dim_context=None), make_ids()
    masked = torch.zeros(ids.shape, dtype=torch.bool)
    masked[:, 2:4] = True
    logits = model.logits(ids, masked)
    assert torch.equal(model.logits(torch.where(masked, (ids + 5) % 32, ids), masked), logits)
    visible = ids.clone()
    visible[:, 5, 1, 1] = (visible[:, 5, 1, 1] + 5) % 32
    assert (model.logits(visible, masked) - logits).abs().amax(dim=-1).gt(1e-5).all()


def test_where_all_ids_are_masked_every_position_has_other_logits():
    model, ids = tiny_maskgit(dim_context=None), make_ids(1)
    logits = model.logits(ids, torch.ones_like(ids, dtype=torch.bool)).flatten(1, 3)[0]
    assert torch.pdist(logits).min() > 1e-3


@pytest.mark.parametrize("dim_context, cond_drop_prob", [(None, 0.1), (12, 0.0), (12, 0.5), (12, 1.0)])
def test_every_parameter_has_a_gradient_if_only_zero_as_ddp_needs_it(dim_context, cond_drop_prob):
    model = tiny_maskgit(dim_context=dim_context, cond_drop_prob=cond_drop_prob)
    model(make_ids(), *(make_context() if dim_context else ())).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


# only masked positions are computed


def test_the_loss_and_its_gradients_do_not_depend_on_which_positions_are_computed(monkeypatch):
    model, ids, context = tiny_maskgit(prime_prob=0.5), make_ids(3), torch.randn(3, 4, 12)
    real = (torch.arange(6) < torch.tensor([[6], [3], [1]]))[..., None, None].expand(ids.shape)

    def outcome():
        torch.manual_seed(1)
        losses = model.losses(ids, context, token_mask=real)
        return losses, torch.autograd.grad(losses.total, list(model.parameters()), allow_unused=True)

    few, gradients = outcome()
    counts = few.masked.flatten(1).sum(dim=1)
    assert counts.unique().numel() > 1 and counts.max() <= 0.9 * 24  # some samples are filled up with visible ones
    compute_all_positions(monkeypatch)
    every, expected = outcome()
    assert torch.equal(every.masked, few.masked)
    torch.testing.assert_close(every.logits, few.logits)
    torch.testing.assert_close(every.total, few.total)
    for (name, _), one, other in zip(model.named_parameters(), gradients, expected, strict=True):
        assert one is not None, name
        torch.testing.assert_close(one, other, msg=name)


def test_the_last_block_and_the_logits_are_computed_for_masked_tokens_only(monkeypatch):
    mask, shapes, outputs = torch.arange(24) < torch.tensor([[5], [2], [9]]), [], []
    monkeypatch.setattr(module, "draw_mask", lambda real, **_: mask)
    model = tiny_maskgit(dim_context=None)
    for part in (*(block.ff for block in model.transformer.blocks), model.to_logits):
        part.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    model.transformer.register_forward_hook(lambda *args: args[2].retain_grad() or outputs.append(args[2]))
    model(make_ids(3)).backward()
    assert shapes == [(3, 24, 32), (3, 9, 32), (16, 32)]
    with_gradient = outputs[0].grad.abs().sum(dim=-1) > 0
    assert with_gradient.tolist() == [[position < count for position in range(9)] for count in (5, 2, 9)]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_logits_of_the_masked_ids_are_a_part_of_the_logits_of_all(scale):
    model, ids, (context, mask) = tiny_maskgit().eval(), make_ids(3), make_context(3)
    masked = torch.rand(ids.shape) < 0.5
    with torch.no_grad():
        some = model.masked_logits(ids, masked, model.guidance(context, mask, cond_scale=scale))
        every = model.logits(ids, masked, context, mask, cond_scale=scale)
    torch.testing.assert_close(some, every[masked])


# texts


@pytest.mark.parametrize("probability, depends", [(0.0, True), (1.0, False)])
def test_the_loss_does_not_depend_on_dropped_texts(probability, depends):
    model, ids = tiny_maskgit(cond_drop_prob=probability), make_ids()

    def loss(context, context_mask):
        torch.manual_seed(1)
        return model(ids, context, context_mask)

    one, other = make_context(), make_context()
    assert torch.equal(loss(*one), loss(*other)) != depends
    model.eval()
    assert not torch.equal(loss(*one), loss(*other))  # none is dropped in eval mode


def test_the_given_share_of_texts_is_replaced_by_the_null_context():
    model = tiny_maskgit(cond_drop_prob=0.3)
    context, mask = torch.randn(2000, 3, 12), torch.ones(2000, 3, dtype=torch.bool)
    dropped = model.draw_dropped(context)
    read = model.read_context(context, mask, dropped)
    assert 0.26 < dropped.float().mean() < 0.34
    assert torch.equal(read.embeddings[~dropped], model.context_norm(context)[~dropped])
    assert torch.equal(read.embeddings[dropped][:, 0], model.null_context.expand(int(dropped.sum()), 12))
    assert read.mask[~dropped].all()
    assert read.mask[dropped].sum(dim=1).eq(1).all() and read.mask[dropped][:, 0].all()
    assert model.eval().draw_dropped(context) is None and model.train().draw_dropped(None) is None


def test_padding_of_texts_is_not_read():
    model, ids, (context, context_mask) = no_drop(), make_ids(), make_context()
    masked = torch.rand(ids.shape) < 0.5
    logits = model.logits(ids, masked, context, context_mask)
    other = context.clone()
    other[:, 2] = torch.randn(2, 12)
    assert torch.equal(model.logits(ids, masked, other, context_mask), logits)
    torch.testing.assert_close(model.logits(ids, masked, context[:, :2]), logits)
    assert not torch.allclose(model.logits(ids, masked, other), model.logits(ids, masked, context))


# guidance


def test_guided_logits_are_null_plus_scale_times_the_difference():
    model, ids, (context, context_mask) = tiny_maskgit().eval(), make_ids(), make_context()
    masked = torch.rand(ids.shape) < 0.5
    null_text = Context(model.null_context.expand(2, 1, 12), torch.ones(2, 1, dtype=torch.bool))
    with torch.no_grad():
        cond = model.logits(ids, masked, context, context_mask)
        null = model.to_logits(model.features(ids, masked, context=null_text)).unflatten(1, GRID)
        assert (cond - null).abs().max() > 0.1
        for scale in (0, 0.5, 1, 7.0):
            expected = null + scale * (cond - null)
            guided = model.logits(ids, masked, context, context_mask, cond_scale=scale)
            torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)


def test_keys_and_values_of_the_text_are_computed_once_per_generation(monkeypatch):
    model, (context, context_mask), calls, passes = tiny_maskgit(), make_context(), [], []
    inside = CrossAttention.keys_values
    monkeypatch.setattr(CrossAttention, "keys_values", lambda self, x: calls.append(len(x)) or inside(self, x))
    model.transformer.register_forward_hook(lambda *args: passes.append(len(args[2])))
    model.generate(context=context, context_mask=context_mask, steps=5)
    assert calls == [4, 4]  # one call for each of 2 layers, of 2 texts and their 2 null contexts
    assert passes == [4] * 5
    calls.clear(), passes.clear()
    model.generate(context=context, steps=3, cond_scale=1)
    assert calls == [2, 2] and passes == [2] * 3


def test_ids_depend_on_guidance_and_on_the_text():
    model, one, other = tiny_maskgit(), make_context()[0], make_context()[0]
    ids = [
        model.generate(context=context, cond_scale=scale, steps=3, generator=seed())
        for context, scale in ((one, 1), (one, 9), (other, 1))
    ]
    assert not torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[0], ids[2])


# generation


@pytest.mark.parametrize("grid", [None, (1, 2, 2), (3, 1, 2), GRID])
def test_shapes_and_range_of_generated_ids(grid):
    for model, options in (
        (tiny_maskgit(), {"context": make_context(3)[0]}),
        (tiny_maskgit(dim_context=None), {"batch_size": 3}),
    ):
        ids = model.generate(grid, steps=2, **options)
        assert ids.shape == (3, *(grid or GRID)) and ids.dtype == torch.int64
        assert ids.min() >= 0 and ids.max() < 32


@pytest.mark.parametrize("given", [1, 3, 5])
def test_prime_ids_are_the_same_in_every_step_and_at_the_end(given):
    model, prime, seen = tiny_maskgit(dim_context=None), make_ids(grid=(given, 2, 2)), []
    inside = model.features
    model.features = lambda ids, mask, **options: seen.append((ids, mask)) or inside(ids, mask, **options)
    result = model.generate(batch_size=2, prime_ids=prime, steps=4)
    assert torch.equal(result[:, :given], prime)
    assert len(seen) == 4
    assert seen[0][1][:, given:].all()
    for ids, mask in seen:
        assert torch.equal(ids[:, :given], prime)
        assert not mask[:, :given].any()


def test_generated_ids_depend_on_prime_ids():
    model = tiny_maskgit(dim_context=None)
    one, other = (
        model.generate(batch_size=8, prime_ids=torch.full((8, 2, 2, 2), i), temperature=0, steps=3, generator=seed())
        for i in (1, 2)
    )
    assert not torch.equal(one[:, 2:], other[:, 2:])


def test_generation_is_without_dropout_and_changes_neither_modes_nor_weights():
    model, (context, _) = tiny_maskgit(attn_dropout=0.5, ff_dropout=0.5, cond_drop_prob=0.9), make_context()
    model.transformer.blocks[0].eval()  # by itself: it stays so
    weights, before = state(model), modes(model)
    in_training = model.generate(context=context, steps=3, generator=seed())
    assert modes(model) == before
    with pytest.raises(ZeroDivisionError):
        model.generate(context=context, progress=lambda passes: [1 / 0 for _ in passes])
    assert modes(model) == before
    model.eval()
    assert torch.equal(in_training, model.generate(context=context, steps=3, generator=seed()))
    assert not any(part.training for part in model.modules())
    assert same_state(model.state_dict(), weights)


def test_all_randomness_comes_from_the_generator():
    model, (context, _) = tiny_maskgit(), make_context()
    before = torch.get_rng_state()
    one, again, other = (model.generate(context=context, steps=4, generator=seed(i)) for i in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_on_in_training_mode_only():
    model, ids, masked = tiny_maskgit(dim_context=None, ff_dropout=0.5), make_ids(), torch.ones(2, *GRID).bool()
    assert not torch.equal(model.logits(ids, masked), model.logits(ids, masked))
    model.eval()
    assert torch.equal(model.logits(ids, masked), model.logits(ids, masked))


# learning


def test_it_learns_which_ids_belong_to_which_text():
    model = tiny_maskgit(grid=(2, 2, 2), depth=1)
    ids, context = make_ids(4, (2, 2, 2)), torch.randn(4, 2, 12)
    losses = train(model, lambda: model(ids, context), 120, lr=1e-2)
    assert losses[0] > 3.2
    assert sum(losses[-10:]) / 10 < 1.5
    options = {"steps": 8, "cond_scale": 1, "temperature": 0, "generator": seed()}
    assert (model.generate(context=context, **options) == ids).float().mean() > 0.9
    assert (model.generate(context=context.flip(0), **options) == ids.flip(0)).float().mean() > 0.9


def test_an_unconditional_model_learns_images_and_videos():
    model = tiny_maskgit(dim_context=None, grid=(3, 2, 2), depth=1)
    assert "null_context" not in model.state_dict()
    video, image = torch.full((2, 3, 2, 2), 7), torch.full((2, 1, 2, 2), 9)
    losses = train(model, lambda: model(video) + model(image), 30, lr=1e-2)
    assert sum(losses[-5:]) / 5 < 0.3 * losses[0]


@pytest.mark.parametrize("context", [True, False])
def test_training_and_generation_work_under_bfloat16_autocast(context):
    model, ids = tiny_maskgit(dim_context=12 if context else None), make_ids()
    options = {"context": make_context()[0]} if context else {}
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, **options)
        generated = model.generate(steps=2, **options)
    loss.backward()
    assert loss.dtype == torch.float32 and generated.dtype == torch.int64
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
