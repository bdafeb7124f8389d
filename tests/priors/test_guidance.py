"""Guidance over the passes of one generation: when the null side is computed, and what is used in between."""

import pytest
import torch

from conftest import compute_all_positions, make_context, make_ids, seed, tiny_maskgit, tiny_token_critic
from phenaki_pytorch import SelfCritic

GRID = (6, 2, 2)


def passes_of(model, *, steps=8, **options):
    """How many contexts each pass computes every sample with, 1 or 2; and the ids."""
    torch.manual_seed(0)
    seen, (context, context_mask) = [], make_context()
    hook = model.transformer.blocks[-1].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    ids = model.generate(context=context, context_mask=context_mask, steps=steps, generator=seed(), **options)
    hook.remove()
    return [count // len(context) for count in seen], ids


def random_mask(count):
    """Mask `count` of the 24 ids, others in each of the two samples: bool (2, 6, 2, 2)."""
    return (torch.rand(2, 24).argsort(dim=1) < count).unflatten(1, GRID)


@pytest.mark.parametrize(
    "every, expected",
    [(1, [2] * 8), (2, [2, 1] * 4), (3, [2, 1, 1, 2, 1, 1, 2, 1]), (7, [2] + [1] * 6 + [2]), (100, [2] + [1] * 7)],
)
def test_the_null_side_is_computed_in_every_nth_step(every, expected):
    model = tiny_maskgit()
    assert passes_of(model, cond_scale=3.0, guide_every=every)[0] == expected
    assert passes_of(model, cond_scale=1.0, guide_every=every)[0] == [1] * 8


def test_ids_depend_on_guide_every_and_the_steps_between_are_guided():
    model = tiny_maskgit()
    for block in model.transformer.blocks:  # so that cond − null depends strongly on the ids
        for last in (block.attention.to_out, block.cross_attention.to_out, block.ff[-1]):
            last.weight.data *= 10
    ids = {every: passes_of(model, cond_scale=6.0, guide_every=every)[1] for every in (1, 2, 8)}
    assert torch.equal(ids[1], passes_of(model, cond_scale=6.0)[1])
    assert not torch.equal(ids[1], ids[2]) and not torch.equal(ids[2], ids[8])
    assert not torch.equal(ids[8], passes_of(model, cond_scale=1.0)[1])


@pytest.mark.parametrize("all_positions", [False, True])
def test_between_them_the_difference_is_that_of_when_a_token_was_last_masked(monkeypatch, all_positions):
    model, text, scale = tiny_maskgit().eval(), make_context(), 4.0
    guidance = model.guidance(*text, cond_scale=scale, every=2)
    known, given = torch.full((2, *GRID, 32), torch.nan), (torch.arange(24) >= 21).unflatten(0, GRID)
    if all_positions:
        compute_all_positions(monkeypatch)
    with torch.no_grad():
        for step, count in enumerate((24, 20, 9, 15, 15, 2)):  # tokens are filled in and masked again
            ids, mask = make_ids(), random_mask(count) & ~given
            cond, null = (model.logits(ids, mask, *text, cond_scale=side) for side in (1.0, 0.0))
            if step % 2 == 0:
                known = torch.where(mask[..., None], cond - null, known)
            expected = (cond + (scale - 1) * known)[mask]
            guided = model.masked_logits(ids, mask, guidance, step)
            torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", [lambda maskgit: None, lambda maskgit: tiny_token_critic(), SelfCritic])
@pytest.mark.parametrize("every", [1, 3])
def test_ids_do_not_depend_on_which_positions_are_computed(monkeypatch, build, every):
    model, context, prime = tiny_maskgit(), torch.randn(3, 4, 12), make_ids(3)[:, :2]
    critic = build(model)
    options = {"critic": critic, "cond_scale": 5.0, "guide_every": every, "steps": 6}
    options["critic_scale"] = 1.0 if critic is None else 2.0
    widths = []
    model.transformer.blocks[-1].ff.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))

    def generated():
        widths.clear()
        return model.generate(context=context, prime_ids=prime, generator=seed(), **options)

    few = generated()
    assert [width for width in widths if width < 24] == [16, 15, 13, 11, 8, 4]  # the passes of MaskGit
    compute_all_positions(monkeypatch)
    assert torch.equal(generated(), few) and torch.equal(few[:, :2], prime)
    assert set(widths) == {24}


@pytest.mark.parametrize(
    "call",
    [
        lambda *text: tiny_maskgit().logits(make_ids(), random_mask(5), *text),
        lambda *text: tiny_token_critic().critic_logits(GRID, *text),
    ],
)
def test_missing_contexts_and_those_of_another_width_are_refused(call):
    with pytest.raises(ValueError, match=r"needs a context.*got none"):
        call()
    with pytest.raises(ValueError, match=r"got \(2, 3, 13\)"):
        call(torch.randn(2, 3, 13))


def test_a_scale_of_0_does_not_read_the_text():
    model, ids, masked = tiny_maskgit(), make_ids(), random_mask(9)
    one, other = (model.logits(ids, masked, torch.randn(2, 3, 12), cond_scale=0.0) for _ in range(2))
    assert torch.equal(one, other)
    one, other = (
        model.generate(context=torch.randn(2, 3, 12), cond_scale=0.0, guide_every=2, steps=4, generator=seed())
        for _ in range(2)
    )
    assert torch.equal(one, other)


def test_the_mask_of_a_context_is_optional():
    logits = tiny_token_critic().critic_logits(GRID, torch.randn(2, 3, 12))
    assert logits(make_ids().flatten(1)).shape == (2, 24)
