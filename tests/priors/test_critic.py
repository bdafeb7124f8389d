"""Critics: what they learn from, which parameters their loss trains, and how generation uses them."""

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
    modes,
    same_state,
    seed,
    state,
    tiny_cvivit,
    tiny_maskgit,
    tiny_phenaki,
    tiny_token_critic,
    train,
)
from phenaki_pytorch import GuidedTeacher, Phenaki, SelfCritic, TokenCritic
from phenaki_pytorch.layers.attention import Context
from phenaki_pytorch.priors.critic import fill_in
from phenaki_pytorch.priors.maskgit import MaskGitLosses

GRID = (6, 2, 2)
TOKEN = pytest.param(lambda maskgit: tiny_token_critic(), id="token")
BOTH = [TOKEN, pytest.param(SelfCritic, id="self")]


def reached(module):
    """The parameters with a gradient that is not 0."""
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


# what it learns from


def test_known_ids_stay_and_masked_ones_are_sampled_from_the_softmax():
    ids, masked = make_ids(2000, (1, 2, 2)), torch.zeros(2000, 1, 2, 2, dtype=torch.bool)
    masked[:, 0, 1] = True
    probs = torch.zeros(32).index_fill(0, torch.tensor([3]), 0.25).index_fill(0, torch.tensor([7]), 0.75)
    filled, wrong = fill_in(ids, MaskGitLosses(torch.zeros(()), masked, probs.log().expand(4000, 32)))
    assert torch.equal(filled[~masked], ids[~masked]) and not wrong[~masked].any()
    frequencies = filled[masked].bincount(minlength=32) / 4000
    torch.testing.assert_close(frequencies, probs, atol=0.03, rtol=0)
    assert torch.equal(wrong[masked], filled[masked] != ids[masked]) and 0 < (~wrong[masked]).sum() < 400


def test_each_sampled_id_is_written_to_its_own_position():
    ids, masked = make_ids(), torch.rand(2, *GRID) < 0.5
    target = make_ids()
    certain = 1000.0 * F.one_hot(target[masked], 32)
    filled, wrong = fill_in(ids, MaskGitLosses(torch.zeros(()), masked, certain))
    assert torch.equal(filled, torch.where(masked, target, ids))
    assert torch.equal(wrong, masked & (target != ids))


@pytest.mark.parametrize("build", BOTH)
def test_the_loss_is_the_cross_entropy_of_the_critic_logits(build):
    critic = build(tiny_maskgit()).eval()
    critic.backbone.eval()
    ids, wrong, text = make_ids(), torch.rand(2, *GRID) < 0.3, make_context()
    logits = critic.critic_logits(GRID, *text)(ids.flatten(1)).unflatten(1, GRID)
    right = torch.where(wrong, logits.sigmoid(), (-logits).sigmoid())
    torch.testing.assert_close(critic(ids, wrong, *text), -right.log().mean())


@pytest.mark.parametrize("build", BOTH)
def test_padding_is_neither_attended_to_nor_counted(build):
    critic = build(tiny_maskgit()).eval()
    critic.backbone.eval()
    ids, wrong, text = make_ids(), torch.rand(2, *GRID) < 0.5, make_context()
    real = (torch.arange(6) < torch.tensor([[6], [2]]))[..., None, None].expand(ids.shape)
    other = torch.where(real, ids, (ids + 1) % 32), torch.where(real, wrong, ~wrong)
    assert torch.equal(critic(ids, wrong, *text, real), critic(*other, *text, real))
    assert not torch.equal(critic(ids, wrong, *text), critic(*other, *text))


# which parameters its loss trains


@pytest.mark.parametrize("build", BOTH)
def test_the_total_is_the_sum_and_only_a_self_critics_loss_reaches_maskgit(build):
    model = tiny_phenaki(critic=build)
    losses = model.losses(video_ids=make_ids(4), texts=["a", "b", "c", "d"])
    torch.testing.assert_close(losses.total, losses.maskgit + losses.critic)
    losses.critic.backward()
    assert any("to_logits" in name for name in reached(model.critic))
    assert bool(reached(model.maskgit.transformer)) == isinstance(model.critic, SelfCritic)
    assert not reached(model.maskgit.to_logits)


@pytest.mark.parametrize("build", BOTH)
def test_every_trainable_parameter_has_a_gradient(build):
    model = tiny_phenaki(critic=build)
    model(video_ids=make_ids(8), texts=["a b"] * 8).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    assert any(name.startswith("critic.") for name in trained)


def test_without_a_critic_the_loss_is_maskgits():
    model = tiny_phenaki()
    losses = model.losses(video_ids=make_ids(), texts=["a", "b"])
    assert losses.critic == 0 and losses.total == losses.maskgit


def test_the_critic_gets_the_ids_that_maskgit_sampled_and_which_are_wrong(monkeypatch):
    model, ids = tiny_phenaki(critic=TOKEN.values[0]), make_ids()
    calls, parts = [], []
    forward, losses_of = model.critic.forward, model.maskgit.losses
    monkeypatch.setattr(model.critic, "forward", lambda *given: calls.append(given) or forward(*given))
    monkeypatch.setattr(model.maskgit, "losses", lambda *given: parts.append(losses_of(*given)) or parts[-1])
    model(video_ids=ids, texts=["a", "b"])
    [(filled, wrong, *_)], [losses] = calls, parts
    assert torch.equal(filled[~losses.masked], ids[~losses.masked])
    assert torch.equal(wrong, losses.masked & (filled != ids)) and wrong.any()


def test_a_critic_without_text_works_with_a_maskgit_that_reads_texts():
    model = tiny_phenaki(critic=lambda maskgit: tiny_token_critic(dim_context=None))
    model(video_ids=make_ids(), texts=["a", "b"]).backward()
    assert model.generate(["a", "b"], num_frames=5, steps=3).shape == (2, 3, 5, 16, 16)


@pytest.mark.parametrize("build", BOTH)
def test_it_learns_which_ids_are_wrong(build):
    """The right ids of a clip are all the same, so that another one is wrong."""
    sizes = {"dim_context": None, "grid": (2, 2, 2), "depth": 1}
    maskgit = tiny_maskgit(**sizes)
    critic = build(maskgit) if build is SelfCritic else tiny_token_critic(**sizes)

    def batch(b=32):
        ids = torch.randint(0, 4, (b, 1, 1, 1)).expand(b, 2, 2, 2)
        sampled = torch.where(torch.rand(ids.shape) < 0.2, torch.randint(0, 4, ids.shape), ids)
        return sampled, sampled != ids

    train(nn.ModuleList([critic, maskgit]), lambda: critic(*batch()), 80, lr=1e-2)
    critic.eval(), maskgit.eval()
    ids, wrong = batch(64)
    logits = critic.critic_logits((2, 2, 2))(ids.flatten(1)).unflatten(1, (2, 2, 2))
    assert ((logits > 0) == wrong).float().mean() > 0.94


# generation


class Oracle(TokenCritic):
    """A critic with the right answer: ids that differ from `target` are wrong. It keeps the ids of its calls."""

    def __init__(self, target):
        super().__init__(num_tokens=32, grid=GRID, dim=8, depth=1, heads=1, dim_head=8)
        self.target, self.seen = target, []

    def critic_logits(self, *_):
        return lambda ids: self.seen.append(ids) or (ids != self.target.flatten(1)).float()


def test_ids_that_the_critic_calls_wrong_are_masked_again_at_any_position():
    model, target = tiny_maskgit(dim_context=None), make_ids(8)
    options = {"batch_size": 8, "steps": 24, "temperature": 0.0}
    right = [
        (model.generate(critic=critic, generator=seed(), **options) == target).float().mean()
        for critic in (None, Oracle(target))
    ]
    assert right[0] < 0.1 and right[1] > 2.5 * right[0]  # an untrained model is right in 1 of 32
    oracle = Oracle(target)
    model.generate(critic=oracle, generator=seed(), **options)
    assert len(oracle.seen) == 23  # all steps but the last, whose samples are the result
    for step, (now, later) in enumerate(zip(oracle.seen, oracle.seen[1:]), 1):
        right, masked = now == target.flatten(1), math.floor(24 * math.cos(math.pi / 2 * step / 24))
        enough = (~right).sum(dim=1) >= masked  # then no right id is masked
        assert torch.equal(now[enough][right[enough]], later[enough][right[enough]])
    changed = [(now != later).any() for now, later in zip(oracle.seen[12:], oracle.seen[13:])]
    assert all(changed)


@pytest.mark.parametrize("build", BOTH)
def test_prime_ids_never_change(build):
    model = tiny_maskgit(dim_context=None)
    critic = Oracle(make_ids(2)) if build is not SelfCritic else SelfCritic(model)
    prime = make_ids(grid=(3, 2, 2))
    result = model.generate(batch_size=2, prime_ids=prime, critic=critic, steps=6)
    assert torch.equal(result[:, :3], prime)


def test_guided_critic_logits_are_null_plus_scale_times_the_difference():
    critic, ids, text = tiny_token_critic().eval(), make_ids(), make_context()
    null_text = Context(critic.null_context.expand(2, 1, 12), torch.ones(2, 1, dtype=torch.bool))
    with torch.no_grad():
        cond = critic.critic_logits(GRID, *text)(ids.flatten(1))
        null = critic.read(critic.features(ids, context=null_text))
        assert (cond - null).abs().max() > 1e-2
        for scale in (0.0, 1.0, 4.0):
            guided = critic.critic_logits(GRID, *text, scale)(ids.flatten(1))
            torch.testing.assert_close(guided, null + scale * (cond - null), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", BOTH)
def test_generation_is_without_dropout_and_all_modes_are_as_before(build):
    maskgit = tiny_maskgit(ff_dropout=0.5)
    critic = build(maskgit) if build is SelfCritic else tiny_token_critic(ff_dropout=0.5)
    critic.to_logits.eval(), maskgit.embed.eval()  # by themselves: they stay so
    before = modes(critic, maskgit)
    options = {"context": make_context()[0], "critic": critic, "steps": 4, "critic_scale": 2.0}
    in_training = maskgit.generate(generator=seed(), **options)
    assert modes(critic, maskgit) == before
    with pytest.raises(ZeroDivisionError):
        maskgit.generate(**options, progress=lambda passes: [1 / 0 for _ in passes])
    assert modes(critic, maskgit) == before
    critic.eval(), maskgit.eval()
    assert torch.equal(in_training, maskgit.generate(generator=seed(), **options))
    assert not (critic.training or maskgit.training)


@pytest.mark.parametrize("build", BOTH)
def test_all_randomness_comes_from_the_generator(build):
    model, before = tiny_phenaki(critic=build), torch.get_rng_state()
    one, again, other = (model.generate("a", num_frames=12, steps=3, generator=seed(i)) for i in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_videos_depend_on_temperature_and_critic_scale():
    model = tiny_phenaki(critic=TOKEN.values[0])
    nn.init.normal_(model.critic.to_logits.weight, std=3.0)
    plain, hot, guided = (
        model.generate("a", num_frames=11, steps=8, **options, generator=seed())
        for options in ({"temperature": 0.0}, {"temperature": 50.0}, {"temperature": 0.0, "critic_scale": 9.0})
    )
    assert not torch.equal(plain, hot) and not torch.equal(plain, guided)


@pytest.mark.parametrize("build", BOTH)
def test_training_and_generation_work_under_bfloat16_autocast(build):
    model = tiny_phenaki(critic=build)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(video_ids=make_ids(), texts=["a", "b"])
        video = model.generate("a", num_frames=5, steps=2)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(video).all()


# as a part of Phenaki


@pytest.mark.parametrize("build", BOTH)
def test_it_is_saved_and_loaded_with_phenaki(build, tmp_path):
    model = tiny_phenaki(critic=build)
    train(model, lambda: model(video_ids=make_ids(), texts=["a", "b"]), 2)
    model.save_pretrained(tmp_path)
    loaded = Phenaki.from_pretrained(tmp_path, text_encoder=WordEncoder())
    assert type(loaded.critic) is type(model.critic) and loaded.critic.config == model.critic.config
    assert same_state(loaded.state_dict(), model.state_dict())
    one, other = (each.generate("a", num_frames=11, steps=4, generator=seed()) for each in (model, loaded))
    assert torch.equal(one, other)
    if build is SelfCritic:
        assert loaded.critic.backbone is loaded.maskgit
        again = SelfCritic.from_pretrained(tmp_path / "critic", maskgit=model.maskgit)
        assert same_state(again.state_dict(), model.critic.state_dict())


def test_a_self_critic_owns_only_its_linear_map_and_a_copy_belongs_to_the_copied_maskgit():
    model = tiny_phenaki(critic=SelfCritic)
    assert set(state(model.critic)) == {"to_logits.weight", "to_logits.bias"}
    twin = copy.deepcopy(model)
    assert twin.critic.backbone is twin.maskgit and twin.maskgit is not model.maskgit


# wrong arguments


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_tokens": 31}, "num_tokens must be maskgit's, 32, got 31"),
        ({"grid": (5, 2, 2)}, r"grid must be maskgit's, \(6, 2, 2\), got \(5, 2, 2\)"),
        ({"dim_context": 13}, "dim_context must be None or maskgit's, 12, got 13"),
    ],
)
def test_critics_of_other_ids_or_texts_are_refused(changes, message):
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
        ((make_ids(grid=(7, 2, 2)), torch.zeros(2, 7, 2, 2, dtype=torch.bool)), ValueError, "fit into the grid"),
        (("ids", "wrong"), TypeError, "str"),
    ],
)
def test_wrong_training_batches_are_refused(given, kind, message):
    with pytest.raises(kind, match=message):
        tiny_token_critic(dim_context=None)(*given)


def test_wrong_arguments_of_critics_are_refused():
    with pytest.raises(ValueError, match=r"needs a context \(b, m, 12\), got none"):
        tiny_token_critic()(make_ids(), torch.zeros(2, *GRID, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        tiny_token_critic(depth=0)
    with pytest.raises(TypeError):
        SelfCritic(nn.Linear(2, 2))
    for other in (nn.Linear(2, 2), tiny_maskgit(), GuidedTeacher(tiny_maskgit(), cond_scale=2.0)):
        with pytest.raises(TypeError, match=f"a TokenCritic or a SelfCritic, got a {type(other).__name__}"):
            Phenaki(cvivit=tiny_cvivit(), maskgit=tiny_maskgit(), text_encoder=WordEncoder(), critic=other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_self_critic_works_on_a_maskgit_of_another_dtype(dtype):
    maskgit, ids, (context, context_mask) = tiny_maskgit().to(dtype), make_ids(), make_context()
    critic = SelfCritic(maskgit)
    assert critic(ids, ids > 3, context.to(dtype), context_mask).isfinite()
    for inline in (False, True):
        options = {"critic": critic, "critic_inline": inline, "steps": 2}
        assert maskgit.generate(context=context.to(dtype), **options).shape == (2, *GRID)
    with pytest.raises(TypeError):
        tiny_maskgit(dim_context=None).generate(critic="token")
