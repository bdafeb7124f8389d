"""Guidance over the passes of one generation: when both sides are computed, and what stands in between."""

import pytest
import torch

from conftest import make_context, make_ids, seed, tiny_maskgit, tiny_phenaki, tiny_token_critic
from phenaki_pytorch import SelfCritic, sampling
from phenaki_pytorch.guidance import GuidedFeatures
from phenaki_pytorch.sampling import by_critic

GRID = (6, 2, 2)


def passes_of(model, *, steps=8, **options):
    """How many contexts go through MaskGit's last block in each pass, over how many samples; and the ids."""
    torch.manual_seed(0)
    seen, (context, context_mask) = [], make_context()
    hook = model.transformer.blocks[-1].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    ids = model.generate(context=context, context_mask=context_mask, steps=steps, generator=seed(), **options)
    hook.remove()
    return [count // len(context) for count in seen], ids


def some(count):
    """Hide so many of the 24 places, others in each of the two samples."""
    return torch.rand(2, 24).argsort(dim=1) < count


@pytest.mark.parametrize(
    "every, expected",
    [(1, [2] * 8), (2, [2, 1] * 4), (3, [2, 1, 1, 2, 1, 1, 2, 1]), (7, [2] + [1] * 6 + [2]), (100, [2] + [1] * 7)],
)
def test_both_sides_are_computed_in_each_so_manieth_step(every, expected):
    model = tiny_maskgit()
    assert passes_of(model, cond_scale=3.0, guide_every=every)[0] == expected
    assert passes_of(model, cond_scale=1.0, guide_every=every)[0] == [1] * 8


def test_the_steps_between_change_what_is_drawn_and_are_guided():
    model = tiny_maskgit()
    for block in model.transformer.blocks:  # so that what both sides differ in hangs on the ids
        for last in (block.attention.to_out, block.cross_attention.to_out, block.ff[-1]):
            last.weight.data *= 10
    drawn = {every: passes_of(model, cond_scale=6.0, guide_every=every)[1] for every in (1, 2, 8)}
    assert torch.equal(drawn[1], passes_of(model, cond_scale=6.0)[1])
    assert not torch.equal(drawn[1], drawn[2]) and not torch.equal(drawn[2], drawn[8])
    assert not torch.equal(drawn[8], passes_of(model, cond_scale=1.0)[1])


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("pick", [sampling.masked_places, lambda masked: None], ids=["masked", "all"])
def test_between_them_the_difference_of_when_a_place_was_last_hidden_is_added(pick, everywhere):
    model, text, scale = tiny_maskgit().eval(), make_context(), 4.0
    features = GuidedFeatures(model, GRID, *text, scale, every=2)
    features.everywhere = everywhere
    known = torch.full((2, 24, model.dim), torch.nan)
    with torch.no_grad():
        for step, count in enumerate((21, 20, 9, 15, 15, 2)):  # places are shown and hidden again
            ids, hidden = make_ids().flatten(1), some(count) if step else torch.arange(24).expand(2, 24) < count
            if step > 0:
                hidden &= torch.arange(24) < 21  # the others are given
            places = pick(hidden)
            cond, null = (GuidedFeatures(model, GRID, *text, side)(ids, hidden, None, 0) for side in (1.0, 0.0))
            if step % 2 == 0:
                known = torch.where(hidden[..., None], cond - null, known)
            expected = cond + (scale - 1) * known
            made = features(ids, hidden, places, step)
            if places is not None:
                made = torch.zeros_like(cond).scatter(1, places[..., None].expand_as(made), made)
            torch.testing.assert_close(made[hidden], expected[hidden], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_what_a_critic_reads_is_unguided_and_of_all_places(scale):
    model, text, ids, hidden = tiny_maskgit().eval(), make_context(), make_ids().flatten(1), some(7)
    features = GuidedFeatures(model, GRID, *text, scale, every=2)
    features.everywhere = True
    places = sampling.masked_places(hidden)
    with torch.no_grad():
        for step in (0, 1):
            made = features(ids, hidden, places, step)
            assert made.shape == (2, 7, model.dim)
            plain = GuidedFeatures(model, GRID, *text, 1.0)(ids, hidden, None, 0)
            torch.testing.assert_close(features.conditional, plain)


def test_a_scale_can_be_set_between_passes():
    model, text, ids, hidden = tiny_maskgit().eval(), make_context(), make_ids().flatten(1), some(12)
    features = GuidedFeatures(model, GRID, *text, 3.0)
    with torch.no_grad():
        for scale in (3.0, 1.0, 0.5):
            features.cond_scale = scale
            expected = GuidedFeatures(model, GRID, *text, scale)(ids, hidden, None, 0)
            torch.testing.assert_close(features(ids, hidden, None, 0), expected)


@pytest.mark.parametrize(
    "build, inline",
    [
        (lambda maskgit: None, False),
        (lambda maskgit: tiny_token_critic(), False),
        (SelfCritic, False),
        (SelfCritic, True),
    ],
)
def test_the_ids_do_not_depend_on_which_places_are_computed(monkeypatch, build, inline):
    model, context, prime = tiny_maskgit(), torch.randn(3, 4, 12), make_ids(3)[:, :2]
    critic = build(model)

    def drawn():
        options = {"critic": critic, "cond_scale": 5.0, "guide_every": 3, "critic_inline": inline, "steps": 8}
        return model.generate(context=context, prime_ids=prime, generator=seed(), **options)

    few = drawn()
    monkeypatch.setattr(sampling, "masked_places", lambda masked: None)
    assert torch.equal(drawn(), few) and torch.equal(few[:, :2], prime)


def test_a_critic_inside_makes_no_pass_of_its_own():
    model = tiny_maskgit()
    settings = {"critic": SelfCritic(model), "cond_scale": 2.0}
    assert passes_of(model, **settings)[0] == [2, 1] * 7 + [2]
    assert passes_of(model, **settings, critic_inline=True)[0] == [2] * 8
    assert passes_of(model, **settings, critic_inline=True, guide_every=4)[0] == [2, 1, 1, 1] * 2


def test_a_critic_inside_sees_what_stands_and_not_what_has_just_been_drawn(monkeypatch):
    """It takes back what it doubts, and asks of the features of the pass that has just been made."""
    model = tiny_maskgit(dim_context=None)
    critic, ids, hidden = SelfCritic(model).eval(), make_ids().flatten(1), some(12)
    model.eval()
    features = GuidedFeatures(model, GRID, None, None, 1.0)
    with torch.no_grad():
        trust = critic.inline_trust(features, 0.0)
        for _ in range(2):
            features(ids, hidden, sampling.masked_places(hidden), 0)
            log_probs = torch.rand(2, 24).log().masked_fill(~hidden, torch.inf)
            doubts = critic.to_logits(model.features(ids, hidden, layout=model.layout(GRID)))[..., 0]
            expected = torch.where(hidden, log_probs, (-doubts).sigmoid().log())
            torch.testing.assert_close(trust(ids + 1, log_probs, 0.5), expected)
            ids, hidden = ids.flip(1), some(5)
    doubted = by_critic(lambda ids: (ids >= 4) * 1e4, 0.0, inline=True)
    monkeypatch.setattr(critic, "inline_trust", lambda features, temperature, generator: doubted)
    drawn = model.generate(batch_size=8, critic=critic, critic_inline=True, steps=24, temperature=0.0, generator=seed())
    plain = model.generate(batch_size=8, steps=24, temperature=0.0, generator=seed())
    assert (drawn < 4).float().mean() > 2.5 * (plain < 4).float().mean()  # 4 of 32 codes


def test_a_critic_of_its_own_cannot_look_inside():
    with pytest.raises(ValueError, match="critic_inline needs a SelfCritic, got a TokenCritic"):
        tiny_phenaki(critic=lambda _: tiny_token_critic()).generate("a", num_frames=5, steps=2, critic_inline=True)


def test_under_autocast_both_draw():
    model = tiny_phenaki(critic=SelfCritic)
    with torch.autocast("cpu", torch.bfloat16):
        video = model.generate("a", num_frames=5, cond_scale=3.0, guide_every=2, critic_inline=True, steps=4)
    assert torch.isfinite(video).all()


def test_contexts_that_do_not_fit_are_refused():
    for model in (tiny_maskgit(), tiny_token_critic()):
        with pytest.raises(ValueError, match=r"needs a context.*got none"):
            GuidedFeatures(model, GRID, None, None, 2.0)
        with pytest.raises(ValueError, match=r"got \(2, 3, 13\)"):
            GuidedFeatures(model, GRID, torch.randn(2, 3, 13), None, 2.0)
    with pytest.raises(ValueError, match=r"needs a context.*got none"):
        tiny_token_critic().doubts(GRID)
    doubts = tiny_token_critic().doubts(GRID, torch.randn(2, 3, 12))  # a mask is not needed
    assert doubts(make_ids().flatten(1)).shape == (2, 24)
