"""Critics: what they learn from, whom their loss reaches, and that in sampling earlier choices can be taken back."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import (
    WordEncoder,
    make_context,
    make_ids,
    same_state,
    seed,
    state,
    tiny_cvivit,
    tiny_maskgit,
    tiny_phenaki,
    tiny_token_critic,
    train,
)
from phenaki_pytorch import MaskGit, Phenaki, SelfCritic, TokenCritic
from phenaki_pytorch.critic import filled_in
from phenaki_pytorch.maskgit import MaskGitLosses

GRID = (6, 2, 2)
OWN = pytest.param(lambda maskgit: tiny_token_critic(), id="token")
BOTH = [OWN, pytest.param(SelfCritic, id="self")]


def reached(module):
    """The parameters that a gradient has reached."""
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


# what it learns from


def test_what_is_seen_stays_and_what_was_masked_is_drawn_from_the_models_softmax():
    ids, masked = make_ids(2000, (1, 2, 2)), torch.zeros(2000, 1, 2, 2, dtype=torch.bool)
    masked[:, 0, 1] = True
    probs = torch.zeros(32).index_fill(0, torch.tensor([3]), 0.25).index_fill(0, torch.tensor([7]), 0.75)
    filled, wrong = filled_in(ids, MaskGitLosses(torch.zeros(()), masked, probs.log().expand(4000, 32)))
    assert torch.equal(filled[~masked], ids[~masked]) and not wrong[~masked].any()
    counts = filled[masked].bincount(minlength=32) / 4000
    torch.testing.assert_close(counts, probs, atol=0.03, rtol=0)
    assert torch.equal(wrong[masked], filled[masked] != ids[masked]) and 0 < (~wrong[masked]).sum() < 400


def test_each_draw_goes_to_its_own_place():
    ids, masked = make_ids(), torch.rand(2, *GRID) < 0.5
    target = make_ids()
    certain = 1000.0 * F.one_hot(target[masked], 32)
    filled, wrong = filled_in(ids, MaskGitLosses(torch.zeros(()), masked, certain))
    assert torch.equal(filled, torch.where(masked, target, ids))
    assert torch.equal(wrong, masked & (target != ids))


@pytest.mark.parametrize("build", BOTH)
def test_the_loss_is_the_cross_entropy_of_its_doubts(build):
    critic = build(tiny_maskgit()).eval()
    critic.reader.eval()
    ids, wrong, (context, mask) = make_ids(), torch.rand(2, *GRID) < 0.3, make_context()
    doubts = critic.doubts(GRID, context, mask)(ids.flatten(1)).unflatten(1, GRID)
    right = torch.where(wrong, doubts.sigmoid(), (-doubts).sigmoid())
    torch.testing.assert_close(critic(ids, wrong, context, mask), -right.log().mean())


@pytest.mark.parametrize("build", BOTH)
def test_padding_is_neither_looked_at_nor_counted(build):
    critic = build(tiny_maskgit()).eval()
    critic.reader.eval()
    ids, wrong, text = make_ids(), torch.rand(2, *GRID) < 0.5, make_context()
    real = (torch.arange(6) < torch.tensor([[6], [2]]))[..., None, None].expand(ids.shape)
    other = torch.where(real, ids, (ids + 1) % 32), torch.where(real, wrong, ~wrong)
    assert torch.equal(critic(ids, wrong, *text, real), critic(*other, *text, real))
    assert not torch.equal(critic(ids, wrong, *text), critic(*other, *text))


# whom its loss reaches


@pytest.mark.parametrize("build", BOTH)
def test_the_parts_add_up_and_a_critic_of_its_own_leaves_maskgit_alone(build):
    model = tiny_phenaki(critic=build)
    losses = model.losses(video_ids=make_ids(4), texts=["a", "b", "c", "d"])
    torch.testing.assert_close(losses.total, losses.maskgit + losses.critic)
    losses.critic.backward()
    assert {name for name in reached(model.critic) if "to_logits" in name}
    inside = reached(model.maskgit.transformer)
    assert bool(inside) == isinstance(model.critic, SelfCritic)
    assert not reached(model.maskgit.to_logits)


@pytest.mark.parametrize("build", BOTH)
def test_one_training_step_reaches_every_parameter(build):
    model = tiny_phenaki(critic=build)
    model(video_ids=make_ids(8), texts=["a b"] * 8).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    assert any(name.startswith("critic.") for name in trained)


def test_without_a_critic_the_loss_is_maskgits():
    model = tiny_phenaki()
    losses = model.losses(video_ids=make_ids(), texts=["a", "b"])
    assert losses.critic == 0 and losses.total == losses.maskgit


def test_the_critic_sees_what_maskgit_drew_and_is_told_where_it_is_wrong(monkeypatch):
    model, ids = tiny_phenaki(critic=OWN.values[0]), make_ids()
    seen, parts = [], []
    inside, before = model.critic.forward, model.maskgit.losses
    monkeypatch.setattr(model.critic, "forward", lambda *given: seen.append(given) or inside(*given))
    monkeypatch.setattr(model.maskgit, "losses", lambda *given: parts.append(before(*given)) or parts[-1])
    model(video_ids=ids, texts=["a", "b"])
    [(filled, wrong, *_)], [losses] = seen, parts
    assert torch.equal(filled[~losses.masked], ids[~losses.masked])
    assert torch.equal(wrong, losses.masked & (filled != ids)) and wrong.any()


def test_a_critic_without_text_judges_for_a_model_with_text():
    model = tiny_phenaki(critic=lambda maskgit: tiny_token_critic(dim_context=None))
    model(video_ids=make_ids(), texts=["a", "b"]).backward()
    assert model.generate(["a", "b"], num_frames=5, steps=3, critic_scale=3.0).shape == (2, 3, 5, 16, 16)


@pytest.mark.parametrize("build", BOTH)
def test_it_learns_which_ids_are_wrong(build):
    """All ids of a clip are the same; one that is not is wrong."""
    maskgit = tiny_maskgit(dim_context=None)
    critic = build(maskgit) if build is SelfCritic else tiny_token_critic(dim_context=None)

    def draw(b=32):
        ids = torch.randint(0, 4, (b, 1, 1, 1)).expand(b, *GRID)
        drawn = torch.where(torch.rand(ids.shape) < 0.2, torch.randint(0, 4, ids.shape), ids)
        return drawn, drawn != ids

    train(nn.ModuleList([critic, maskgit]), lambda: critic(*draw()), 100, lr=1e-2)
    critic.eval(), maskgit.eval()
    ids, wrong = draw(64)
    doubts = critic.doubts(GRID)(ids.flatten(1)).unflatten(1, GRID)
    assert ((doubts > 0) == wrong).float().mean() > 0.97


# sampling


class Oracle(TokenCritic):
    """A critic that knows what the ids ought to be."""

    def __init__(self, target):
        super().__init__(num_tokens=32, grid=GRID, dim=8, depth=1, heads=1, dim_head=8)
        self.target, self.asked = target, []

    def doubts(self, *_):
        return lambda ids: self.asked.append(ids) or (ids != self.target.flatten(1)).float()


def test_what_a_critic_doubts_is_drawn_again_wherever_it_stands():
    model, target = tiny_maskgit(dim_context=None), make_ids(8)
    draw = {"batch_size": 8, "steps": 24, "temperature": 0.0}
    right = [
        (model.generate(critic=critic, generator=seed(), **draw) == target).float().mean()
        for critic in (None, Oracle(target))
    ]
    assert right[0] < 0.1 and right[1] > 2.5 * right[0]  # an untrained model guesses: 1 in 32
    oracle = Oracle(target)
    model.generate(critic=oracle, generator=seed(), **draw)
    assert len(oracle.asked) == 23  # what the last step draws is the result
    for step, (now, later) in enumerate(zip(oracle.asked, oracle.asked[1:]), 1):
        right, masked = now == target.flatten(1), math.floor(24 * math.cos(math.pi / 2 * step / 24))
        enough = (~right).sum(dim=1) >= masked  # wrong ones, to be drawn again in place of any right one
        assert torch.equal(now[enough][right[enough]], later[enough][right[enough]])
    taken_back = [(now != later).any() for now, later in zip(oracle.asked[12:], oracle.asked[13:])]
    assert all(taken_back)


@pytest.mark.parametrize("build", BOTH)
def test_prime_ids_stay_however_they_are_doubted(build):
    model = tiny_maskgit(dim_context=None)
    critic = Oracle(make_ids(2)) if build is not SelfCritic else SelfCritic(model)
    prime = make_ids(grid=(3, 2, 2))
    result = model.generate(batch_size=2, prime_ids=prime, critic=critic, steps=6)
    assert torch.equal(result[:, :3], prime)


def test_the_critics_guidance_goes_from_its_null_doubts_through_the_conditional_ones():
    critic, ids, (context, mask) = tiny_token_critic().eval(), make_ids().flatten(1), make_context()
    with torch.no_grad():
        null_text = critic.null_context.expand(2, 1, 12)
        one = critic.doubts(GRID, context, mask)(ids)
        keys_values = critic.transformer.keys_values(null_text)
        null = critic.to_logits(critic.features(ids, None, layout=critic.layout(GRID), keys_values=keys_values))[..., 0]
        assert (one - null).abs().max() > 1e-2
        for scale in (0.0, 1.0, 4.0):
            guided = critic.doubts(GRID, context, mask, scale)(ids)
            torch.testing.assert_close(guided, null + scale * (one - null), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", BOTH)
def test_in_generation_nothing_drops_out_and_every_mode_comes_back(build):
    maskgit = tiny_maskgit(ff_dropout=0.5)
    critic = build(maskgit) if build is SelfCritic else tiny_token_critic(ff_dropout=0.5)
    context = make_context()[0]
    draw = {"context": context, "critic": critic, "steps": 4, "critic_scale": 2.0}
    in_training = maskgit.generate(generator=seed(), **draw)
    assert critic.training and maskgit.training and maskgit.transformer.training
    critic.eval(), maskgit.eval()
    assert torch.equal(in_training, maskgit.generate(generator=seed(), **draw))
    assert not (critic.training or maskgit.training)


@pytest.mark.parametrize("build", BOTH)
def test_the_generator_is_the_only_source_of_chance(build):
    model, before = tiny_phenaki(critic=build), torch.get_rng_state()
    one, again, other = (model.generate("a", num_frames=20, steps=3, generator=seed(i)) for i in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_and_scale_change_what_is_drawn():
    model = tiny_phenaki(critic=OWN.values[0])
    nn.init.normal_(model.critic.to_logits.weight, std=3.0)
    draw = {"num_frames": 11, "steps": 8}
    plain, loud, guided = (
        model.generate("a", **draw, **options, generator=seed())
        for options in ({"temperature": 0.0}, {"temperature": 50.0}, {"temperature": 0.0, "critic_scale": 9.0})
    )
    assert not torch.equal(plain, loud) and not torch.equal(plain, guided)
    image = model.generate_images("a", steps=4, critic_scale=0.0)
    whole, _ = model.generate_story(["a", "b"], num_frames=6, steps=2, critic_scale=2.0)
    assert image.shape == (1, 3, 16, 16) and whole.shape == (1, 3, 12, 16, 16)


def test_bfloat16_autocast_trains_and_draws():
    for build in BOTH:
        model = tiny_phenaki(critic=build.values[0])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(video_ids=make_ids(), texts=["a", "b"])
            video = model.generate("a", num_frames=5, steps=2)
        loss.backward()
        assert loss.dtype == torch.float32 and torch.isfinite(video).all()


# part of the whole


@pytest.mark.parametrize("build", BOTH)
def test_it_is_saved_and_loaded_with_the_whole(build, tmp_path):
    model = tiny_phenaki(critic=build)
    train(model, lambda: model(video_ids=make_ids(), texts=["a", "b"]), 2)
    model.save_pretrained(tmp_path)
    loaded = Phenaki.from_pretrained(tmp_path, text_encoder=WordEncoder())
    assert type(loaded.critic) is type(model.critic) and loaded.critic.config == model.critic.config
    assert same_state(loaded.state_dict(), model.state_dict())
    draw = {"num_frames": 11, "steps": 4}
    one, other = (each.generate("a", **draw, generator=seed()) for each in (model, loaded))
    assert torch.equal(one, other)
    if build is SelfCritic:
        assert loaded.critic.reader is loaded.maskgit
        again = SelfCritic.from_pretrained(tmp_path / "critic", maskgit=model.maskgit)
        assert same_state(again.state_dict(), model.critic.state_dict())


def test_a_self_critic_owns_its_map_alone_and_follows_its_maskgit_into_copies():
    model = tiny_phenaki(critic=SelfCritic)
    assert set(state(model.critic)) == {"to_logits.weight", "to_logits.bias"}
    twin = copy.deepcopy(model)
    assert twin.critic.reader is twin.maskgit and twin.maskgit is not model.maskgit


# wrong arguments


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_tokens": 31}, "num_tokens must be maskgit's, 32, got 31"),
        ({"grid": (5, 2, 2)}, r"grid must be maskgit's, \(6, 2, 2\), got \(5, 2, 2\)"),
        ({"dim_context": 13}, "dim_context must be None or maskgit's, 12, got 13"),
    ],
)
def test_critics_of_other_models_are_refused(changes, message):
    critic, maskgit = tiny_token_critic(**changes), tiny_maskgit()
    with pytest.raises(ValueError, match=message):
        Phenaki(cvivit=tiny_cvivit(), maskgit=maskgit, text_encoder=WordEncoder(), critic=critic)
    with pytest.raises(ValueError, match=message):
        maskgit.generate(context=make_context()[0], critic=critic)


def test_the_self_critic_of_another_maskgit_is_refused():
    with pytest.raises(ValueError, match="that this SelfCritic was built on"):
        tiny_phenaki(critic=lambda _: SelfCritic(tiny_maskgit()))


@pytest.mark.parametrize(
    "given, kind, message",
    [
        ((make_ids(), torch.zeros(2, *GRID)), ValueError, r"wrong must be bool \(2, 6, 2, 2\), got torch.float32"),
        ((make_ids(), torch.zeros(2, 6, 4, dtype=torch.bool)), ValueError, r"got torch.bool \(2, 6, 4\)"),
        ((make_ids() + 32, torch.zeros(2, *GRID, dtype=torch.bool)), ValueError, r"in \[0, 32\)"),
        ((make_ids(grid=(7, 2, 2)), torch.zeros(2, 7, 2, 2, dtype=torch.bool)), ValueError, "fit in the window"),
        (("ids", "wrong"), TypeError, "str"),
    ],
)
def test_what_a_critic_cannot_learn_from_is_refused(given, kind, message):
    with pytest.raises(kind, match=message):
        tiny_token_critic(dim_context=None)(*given)


def test_critics_need_the_text_that_they_read():
    wrong = torch.zeros(2, *GRID, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"needs a context \(b, m, 12\), got none"):
        tiny_token_critic()(make_ids(), wrong)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        tiny_token_critic(depth=0)
    with pytest.raises(TypeError):
        SelfCritic(nn.Linear(2, 2))
    with pytest.raises(TypeError):
        MaskGit.generate(tiny_maskgit(dim_context=None), critic="token")
