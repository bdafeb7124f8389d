"""MaskGit: what its loss looks at, what guidance is, and that generation keeps to its rules."""

import pytest
import torch
import torch.nn.functional as F

from conftest import make_context, make_ids, seed, state, tiny_maskgit, train
from phenaki_pytorch import maskgit as module
from phenaki_pytorch.attention import CrossAttention
from phenaki_pytorch.guidance import GuidedFeatures

GRID = (6, 2, 2)


@pytest.fixture
def fixed_mask(monkeypatch):
    """The tokens that training hides, bool (b, n), the same each time."""
    masked = torch.rand(2, 24) < 0.5
    monkeypatch.setattr(module, "draw_mask", lambda real, **_: masked & real)
    return masked


def no_drop(**changes):
    return tiny_maskgit(cond_drop_prob=0.0, **changes)


# loss


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_of_the_masked_tokens(fixed_mask, label_smoothing):
    model, ids, (context, context_mask) = no_drop(label_smoothing=label_smoothing), make_ids(), make_context()
    masked = fixed_mask.reshape(ids.shape)
    log_probs = model.logits(ids, masked, context, context_mask).log_softmax(dim=-1)
    expected = F.nll_loss(log_probs[masked], ids[masked])
    expected = (1 - label_smoothing) * expected - label_smoothing * log_probs[masked].mean()
    torch.testing.assert_close(model(ids, context, context_mask), expected)


def test_padded_tokens_are_neither_hidden_nor_counted_nor_seen():
    model, ids, (context, context_mask) = no_drop(), make_ids(), make_context()
    real = (torch.arange(6) < torch.tensor([[6], [2]]))[..., None, None].expand(ids.shape)
    other = torch.where(real, ids, (ids + 1) % 32)

    def loss(ids, real):
        torch.manual_seed(1)
        return model(ids, context, context_mask, real)

    assert torch.equal(loss(ids, real), loss(other, real))
    assert not torch.equal(loss(ids, None), loss(other, None))
    at_real = torch.where(real & (torch.rand(ids.shape) < 0.5), (ids + 1) % 32, ids)
    assert not torch.equal(loss(ids, real), loss(at_real, real))


def test_padded_tokens_might_as_well_be_absent():
    model, ids, (context, context_mask) = no_drop().eval(), make_ids(), make_context()
    masked, real = torch.rand(ids.shape) < 0.5, torch.zeros(ids.shape, dtype=torch.bool)
    real[:, :2] = True
    padded = model.logits(ids, masked, context, context_mask, real)[:, :2]
    torch.testing.assert_close(padded, model.logits(ids[:, :2], masked[:, :2], context, context_mask))


def test_the_mask_is_drawn_among_real_tokens_by_the_schedule(monkeypatch):
    model, ids, asked = no_drop(dim_context=None, schedule="linear"), make_ids(), []
    drawn = module.draw_mask
    monkeypatch.setattr(module, "draw_mask", lambda real, **o: asked.append((real, o)) or drawn(real, **o))
    real = (torch.arange(6) < torch.tensor([[6], [1]]))[..., None, None].expand(ids.shape)
    model(ids, token_mask=real)
    assert asked[0][1]["schedule"] == "linear"
    assert torch.equal(asked[0][0], real.flatten(1))


def test_compiled_for_any_batch_size_the_loss_is_the_same():
    model = tiny_maskgit(prime_prob=0.5)
    compiled = torch.compile(model, backend="eager", dynamic=True)
    for b in (2, 3):
        ids, given = make_ids(b), make_context(b)
        losses = []
        for loss in (model, compiled):
            torch.manual_seed(b)
            losses.append(loss(ids, *given))
        torch.testing.assert_close(*losses)


def test_visible_tokens_tell_of_the_hidden_ones_and_hidden_ones_tell_nothing():
    model, ids = tiny_maskgit(dim_context=None), make_ids()
    masked = torch.zeros(ids.shape, dtype=torch.bool)
    masked[:, 2:4] = True
    logits = model.logits(ids, masked)
    hidden = torch.where(masked, (ids + 5) % 32, ids)
    assert torch.equal(model.logits(hidden, masked), logits)
    visible = ids.clone()
    visible[:, 5, 1, 1] = (visible[:, 5, 1, 1] + 5) % 32
    assert (model.logits(visible, masked) - logits).abs().amax(dim=-1).gt(1e-5).all()


def test_every_place_of_an_empty_canvas_is_told_apart():
    model, ids = tiny_maskgit(dim_context=None), make_ids(1)
    logits = model.logits(ids, torch.ones_like(ids, dtype=torch.bool)).flatten(1, 3)[0]
    assert torch.pdist(logits).min() > 1e-3


@pytest.mark.parametrize("dim_context, cond_drop_prob", [(None, 0.1), (12, 0.0), (12, 0.5), (12, 1.0)])
def test_every_parameter_gets_a_gradient(dim_context, cond_drop_prob):
    """Or a zero in its place: DDP asks for no more."""
    model = tiny_maskgit(dim_context=dim_context, cond_drop_prob=cond_drop_prob)
    model(make_ids(), *(make_context() if dim_context else ())).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


# captions


@pytest.mark.parametrize("probability, depends", [(0.0, True), (1.0, False)])
def test_dropped_captions_are_really_gone(probability, depends):
    model, ids = tiny_maskgit(cond_drop_prob=probability), make_ids()

    def loss(context, context_mask):
        torch.manual_seed(1)
        return model(ids, context, context_mask)

    one, other = make_context(), make_context()
    assert torch.equal(loss(*one), loss(*other)) != depends
    model.eval()
    assert not torch.equal(loss(*one), loss(*other))  # none is dropped outside training


def test_the_given_share_of_captions_is_dropped():
    model = tiny_maskgit(cond_drop_prob=0.3)
    context, mask = torch.randn(2000, 3, 12), torch.ones(2000, 3, dtype=torch.bool)
    dropped = model.draw_dropped(context)
    after, after_mask = model.with_null(context, mask, dropped)
    assert 0.26 < dropped.float().mean() < 0.34
    assert torch.equal(after[~dropped], context[~dropped])
    assert torch.equal(after[dropped][:, 0], model.null_context.expand(int(dropped.sum()), 12))
    assert after_mask[~dropped].all()
    assert after_mask[dropped].sum(dim=1).eq(1).all() and after_mask[dropped][:, 0].all()
    assert model.eval().draw_dropped(context) is None and model.train().draw_dropped(None) is None


def test_padded_words_are_not_read():
    model, ids, (context, context_mask) = no_drop(), make_ids(), make_context()
    masked = torch.rand(ids.shape) < 0.5
    logits = model.logits(ids, masked, context, context_mask)
    other = context.clone()
    other[:, 2] = torch.randn(2, 12)
    assert torch.equal(model.logits(ids, masked, other, context_mask), logits)
    torch.testing.assert_close(model.logits(ids, masked, context[:, :2]), logits)
    assert not torch.allclose(model.logits(ids, masked, other), model.logits(ids, masked, context))


# guidance


def guided(model, context, context_mask, scale, ids, masked):
    features = GuidedFeatures(model, tuple(ids.shape[1:]), context, context_mask, scale)
    return model.to_logits(features(ids.flatten(1), masked.flatten(1), None, 0)).unflatten(1, ids.shape[1:])


def test_guidance_goes_from_the_null_logits_through_the_conditional_ones():
    model, ids, (context, context_mask) = tiny_maskgit().eval(), make_ids(), make_context()
    masked = torch.rand(ids.shape) < 0.5
    with torch.no_grad():
        cond = model.logits(ids, masked, context, context_mask)
        keys_values = model.transformer.keys_values(model.null_context.expand(2, 1, 12))
        flat = model.features(ids.flatten(1), masked.flatten(1), layout=model.layout(GRID), keys_values=keys_values)
        null = model.to_logits(flat).unflatten(1, GRID)
        assert (cond - null).abs().max() > 0.1
        for scale in (0, 0.5, 1, 7.0):
            expected = null + scale * (cond - null)
            torch.testing.assert_close(
                guided(model, context, context_mask, scale, ids, masked), expected, atol=1e-4, rtol=1e-4
            )


def test_keys_and_values_of_the_context_are_computed_once_a_generation(monkeypatch):
    model, (context, context_mask), calls, passes = tiny_maskgit(), make_context(), [], []
    inside = CrossAttention.keys_values
    monkeypatch.setattr(
        CrossAttention, "keys_values", lambda self, context: calls.append(len(context)) or inside(self, context)
    )
    model.transformer.register_forward_hook(lambda *args: passes.append(len(args[2])))
    model.generate(context=context, context_mask=context_mask, steps=5)
    assert calls == [4, 4]  # one call for each of 2 layers, of 2 samples and their 2 nulls
    assert passes == [4] * 5
    calls.clear(), passes.clear()
    model.generate(context=context, steps=3, cond_scale=1)
    assert calls == [2, 2] and passes == [2] * 3


def test_guidance_and_context_change_what_is_drawn():
    model, one, other = tiny_maskgit(), make_context()[0], make_context()[0]
    drawn = [
        model.generate(context=context, cond_scale=scale, steps=3, generator=seed())
        for context, scale in ((one, 1), (one, 9), (other, 1))
    ]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# generation


@pytest.mark.parametrize("grid", [None, (1, 2, 2), (3, 1, 2), GRID])
def test_shapes_of_what_is_drawn(grid):
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

    def spy(ids, masked, **options):
        seen.append((ids.unflatten(1, GRID).clone(), masked.unflatten(1, GRID).clone()))
        return inside(ids, masked, **options)

    model.features = spy
    result = model.generate(batch_size=2, prime_ids=prime, steps=4)
    assert torch.equal(result[:, :given], prime)
    assert len(seen) == 4
    assert seen[0][1][:, given:].all()
    for ids, masked in seen:
        assert torch.equal(ids[:, :given], prime)
        assert not masked[:, :given].any()


def test_prime_ids_change_what_follows():
    model = tiny_maskgit(dim_context=None)
    one, other = (
        model.generate(batch_size=8, prime_ids=torch.full((8, 2, 2, 2), i), temperature=0, steps=3, generator=seed())
        for i in (1, 2)
    )
    assert not torch.equal(one[:, 2:], other[:, 2:])


def test_generation_has_no_dropout_and_leaves_the_mode_and_weights_alone():
    model, (context, _) = tiny_maskgit(attn_dropout=0.5, ff_dropout=0.5, cond_drop_prob=0.9), make_context()
    before = state(model)
    in_training = model.generate(context=context, steps=3, generator=seed())
    assert all(part.training for part in model.modules())
    model.eval()
    assert torch.equal(in_training, model.generate(context=context, steps=3, generator=seed()))
    assert not any(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()
    with pytest.raises(ZeroDivisionError):
        model.generate(context=context, progress=lambda passes: [1 / 0 for _ in passes])
    assert model.training


def test_the_generator_is_the_only_source_of_chance():
    model, (context, _) = tiny_maskgit(), make_context()
    before = torch.get_rng_state()
    one, again, other = (model.generate(context=context, steps=4, generator=seed(i)) for i in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_wraps_the_steps():
    seen = []
    tiny_maskgit(dim_context=None).generate(steps=5, progress=lambda passes: seen.append(len(passes)) or passes)
    assert seen == [5]


def test_dropout_drops_in_training():
    model, ids, masked = tiny_maskgit(dim_context=None, ff_dropout=0.5), make_ids(), torch.ones(2, *GRID).bool()
    assert not torch.equal(model.logits(ids, masked), model.logits(ids, masked))
    model.eval()
    assert torch.equal(model.logits(ids, masked), model.logits(ids, masked))


# learning


def test_it_learns_which_text_goes_with_which_ids():
    model = tiny_maskgit(grid=(2, 2, 2))
    ids, context = make_ids(4, (2, 2, 2)), torch.randn(4, 2, 12)
    losses = train(model, lambda: model(ids, context), 150, lr=5e-3)
    assert losses[0] > 3.2
    assert sum(losses[-10:]) / 10 < 1.5
    drawn = model.generate(context=context, steps=8, cond_scale=1, temperature=0, generator=seed())
    assert (drawn == ids).float().mean() > 0.9
    mixed = model.generate(context=context.flip(0), steps=8, cond_scale=1, temperature=0, generator=seed())
    assert (mixed == ids.flip(0)).float().mean() > 0.9


def test_images_videos_and_no_texts_at_all_are_learnt():
    model = tiny_maskgit(dim_context=None, grid=(3, 2, 2))
    assert "null_context" not in model.state_dict()
    video, image = torch.full((2, 3, 2, 2), 7), torch.full((2, 1, 2, 2), 9)
    losses = train(model, lambda: model(video) + model(image), 60, lr=5e-3)
    assert sum(losses[-5:]) / 5 < 0.3 * losses[0]


@pytest.mark.parametrize("context", [True, False])
def test_bfloat16_autocast_trains_and_draws(context):
    model, ids = tiny_maskgit(dim_context=12 if context else None), make_ids()
    options = {"context": make_context()[0]} if context else {}
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, **options)
        drawn = model.generate(steps=2, **options)
    loss.backward()
    assert loss.dtype == torch.float32 and drawn.dtype == torch.int64
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
