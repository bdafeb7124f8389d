"""A SelfCritic that reads the passes of its own MaskGit during generation, without a pass of its own."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from conftest import make_context, make_ids, modes, seed, tiny_maskgit, tiny_phenaki, tiny_token_critic
from phenaki_pytorch import SelfCritic

GRID = (6, 2, 2)


def random_mask(count):
    """Mask `count` of the 24 ids, others in each of the two samples: bool (2, 24)."""
    return torch.rand(2, 24).argsort(dim=1) < count


def spied_features(model):
    """The ids and masks, (b, t, h, w), of each pass of MaskGit, kept in a list."""
    calls, inside = [], model.features
    model.features = lambda ids, mask=None, **options: calls.append((ids, mask)) or inside(ids, mask, **options)
    return calls


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_logits_are_maskgits_under_guidance(scale):
    model, text = tiny_maskgit().eval(), make_context()
    guidances = [model.guidance(*text, cond_scale=scale, every=2) for _ in range(2)]
    inline = SelfCritic(model).eval().inline(GRID, guidances[0], 0.0)
    with torch.no_grad():
        mask = random_mask(20)
        for step in range(4):
            ids, mask = make_ids(), mask & random_mask(20)  # masked before: the steps between need a difference
            expected = model.masked_logits(ids, mask.unflatten(1, GRID), guidances[1], step)
            torch.testing.assert_close(inline.logits(ids.flatten(1), mask, step), expected)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_confidence_is_the_critics_for_known_ids_and_the_log_probability_for_new_ones(scale):
    model, text = tiny_maskgit().eval(), make_context()
    critic = SelfCritic(model).eval()
    inline = critic.inline(GRID, model.guidance(*text, cond_scale=scale), 0.0)
    with torch.no_grad():
        for count in (12, 5):
            ids, mask = make_ids(), random_mask(count)
            inline.logits(ids.flatten(1), mask, 0)
            log_probs = torch.rand(2, 24).log().masked_fill(~mask, torch.inf)
            features = model.features(ids, mask.unflatten(1, GRID), context=model.read_context(*text))
            expected = torch.where(mask, log_probs, F.logsigmoid(-critic.read(features)))  # without guidance
            torch.testing.assert_close(inline.confidence(ids.flatten(1) + 1, log_probs, 0.5), expected)


def test_the_confidence_has_the_annealed_noise_of_the_temperature():
    model, ids, mask = tiny_maskgit(dim_context=None).eval(), make_ids().flatten(1), random_mask(12)
    confidence = []
    for temperature in (0.0, 3.0):
        guidance = model.guidance(None, None, cond_scale=1.0)
        inline = SelfCritic(model).inline(GRID, guidance, temperature, seed())
        inline.critic.to_logits.weight.data.fill_(0.1)
        inline.logits(ids, mask, 0)
        confidence.append([inline.confidence(ids, torch.zeros(2, 24), progress) for progress in (0.5, 1.0)])
    (cold, cold_end), (hot, hot_end) = confidence
    assert not torch.equal(cold, hot) and torch.equal(cold_end, hot_end)


def test_the_critic_makes_no_pass_of_its_own():
    model, (context, mask), passes = tiny_maskgit(), make_context(), []
    model.transformer.register_forward_pre_hook(lambda _, args: passes.append(len(args[0]) // 2))
    options = {"context": context, "context_mask": mask, "critic": SelfCritic(model), "cond_scale": 2.0, "steps": 8}
    for more, expected in (
        ({}, [2, 1] * 7 + [2]),
        ({"critic_inline": True}, [2] * 8),
        ({"critic_inline": True, "guide_every": 4}, [2, 1, 1, 1] * 2),
    ):
        passes.clear()
        model.generate(**options, **more)
        assert passes == expected


def test_known_ids_that_the_critic_calls_wrong_are_masked_again():
    model = tiny_maskgit(dim_context=None)
    critic, calls = SelfCritic(model), spied_features(model)
    critic.read = lambda x: (calls[-1][0].flatten(1) >= 4) * 1e4  # 28 of the 32 codes are wrong
    options = {"batch_size": 8, "steps": 24, "temperature": 0.0}
    ids = model.generate(critic=critic, critic_inline=True, generator=seed(), **options)
    masks = [mask for _, mask in calls]
    assert any((later & ~now).any() for now, later in pairwise(masks))
    plain = model.generate(generator=seed(), **options)
    assert (ids < 4).float().mean() > 2.5 * (plain < 4).float().mean()


def test_prime_ids_never_change():
    model, prime = tiny_maskgit(dim_context=None), make_ids(grid=(3, 2, 2))
    calls = spied_features(model)
    ids = model.generate(batch_size=2, prime_ids=prime, critic=SelfCritic(model), critic_inline=True, steps=6)
    assert len(calls) == 6 and torch.equal(ids[:, :3], prime)
    for given, mask in calls:
        assert torch.equal(given[:, :3], prime) and not mask[:, :3].any()


def test_a_token_critic_cannot_be_inline_and_modes_are_as_before():
    model = tiny_phenaki(critic=lambda _: tiny_token_critic())
    before = modes(model)
    with pytest.raises(ValueError, match="critic_inline needs a SelfCritic, got a TokenCritic"):
        model.generate("a", num_frames=5, steps=2, critic_inline=True)
    assert modes(model) == before


def test_it_works_under_bfloat16_autocast():
    model = tiny_phenaki(critic=SelfCritic)
    with torch.autocast("cpu", torch.bfloat16):
        video = model.generate("a", num_frames=5, cond_scale=3.0, guide_every=2, critic_inline=True, steps=4)
    assert torch.isfinite(video).all()
