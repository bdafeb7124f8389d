"""sampling_study.py: its orders are what they say, its passes are counted, and it writes what it found."""

import csv
import json
import re
from itertools import pairwise

import pytest
import torch
from PIL import Image

import sampling_study
from conftest import seed, tiny_cvivit, tiny_maskgit, tiny_phenaki, tiny_token_critic
from phenaki_pytorch import Phenaki, SelfCritic
from phenaki_pytorch.guidance import GuidedFeatures
from phenaki_pytorch.sampling import parallel_decode
from phenaki_pytorch.token_transformer import TokenTransformer
from sampling_study import by_chance, by_halton, ends, guided, halton, lines_of, way_of
from word_vectors import WordVectors


def test_the_halton_sequence_is_that_of_its_bases():
    torch.testing.assert_close(halton(6, 2), torch.tensor([0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]))
    torch.testing.assert_close(halton(5, 3), torch.tensor([0, 1 / 3, 2 / 3, 1 / 9, 4 / 9]))


def kept_by(trust, *, steps=5, grid=(2, 4, 4)):
    """Which tokens are kept after each step, (b, n)."""
    n, seen = grid[0] * grid[1] * grid[2], []

    def logits(ids, masked, places, progress):
        seen.append(~masked)
        return torch.zeros(3, n if places is None else places.shape[1], 7)

    ids = torch.zeros(3, n, dtype=torch.int64)
    parallel_decode(logits, ids, ids == 0, trust=trust, steps=steps, generator=seed())
    return seen


@pytest.mark.parametrize("order", ["random", "halton"])
def test_what_was_kept_stays(order):
    trust = by_chance(seed(1)) if order == "random" else by_halton((2, 4, 4), torch.device("cpu"))
    kept = kept_by(trust)
    assert all(not (now & ~later).any() for now, later in pairwise(kept)) and kept[-1].any()
    alike = all(torch.equal(each, each[:1].expand_as(each)) for each in kept)
    assert alike == (order == "halton")


def test_a_low_discrepancy_order_spreads_over_every_time_step_alike():
    for kept in kept_by(by_halton((2, 8, 8), torch.device("cpu")), grid=(2, 8, 8))[1:]:
        first, second = kept[0].view(2, 8, 8)
        assert abs(int(first.sum()) - int(second.sum())) <= 1
        quarters = first.view(2, 4, 2, 4).sum(dim=(1, 3))
        assert quarters.max() - quarters.min() <= 3


@pytest.fixture
def model(tmp_path):
    """A model with a critic, of clips of 9 frames that have learnt nothing."""
    torch.manual_seed(0)
    cvivit = tiny_cvivit()
    maskgit = tiny_maskgit(grid=cvivit.grid(9), dim_context=64)
    parts = {"text_encoder": WordVectors(), "critic": SelfCritic(maskgit)}
    Phenaki(cvivit=cvivit, maskgit=maskgit, **parts).save_pretrained(tmp_path / "run" / "model")
    plan = {"arguments": {"token_temperature": [1.2, 0.5]}}
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan))
    return tmp_path / "run" / "model"


def test_forward_passes_are_counted_alike_and_what_was_found_is_written(model, tmp_path, monkeypatch):
    passes, inside, one = [], parallel_decode, TokenTransformer.features

    def counted(model, ids, hidden, *, keys_values, **options):
        passes[-1] += len(keys_values[0][0]) // len(ids)  # guided, two contexts for each sample
        return one(model, ids, hidden, keys_values=keys_values, **options)

    monkeypatch.setattr(TokenTransformer, "features", counted)
    monkeypatch.setattr(sampling_study, "parallel_decode", lambda *args, **kw: passes.append(0) or inside(*args, **kw))
    options = ["--steps", "3", "8", "--guidance", "2", "1", "1:3", "--prompts", "2"]
    options += ["--csv", str(tmp_path / "study.csv")]
    woven = "critic,critic_inline=1,guide_every=3"
    ways = ["--ways", "confidence", "critic", "random", "halton", woven]
    sampling_study.main([str(model), *options, *ways, "--plot", str(tmp_path / "study.png")])
    assert passes == [6, 16, 5, 14, 6, 16, 6, 16, 6, 16, 8, 15, 7, 13, 8, 15, 8, 15, 8, 15]
    with (tmp_path / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["passes"]) for row in rows] == passes
    assert [(row["way"], row["budget"], row["steps"]) for row in rows[:4]] == [
        *(("confidence", "3", "3"), ("confidence", "8", "8"), ("critic", "3", "2"), ("critic", "8", "5")),
    ]
    assert {row["model"] for row in rows} == {"run"} and all(0 <= float(row["all"]) <= 1 for row in rows)
    assert [row["guidance"] for row in rows[10:]] == ["1", "1:3"] * 5
    assert Image.open(tmp_path / "study.png").size == (1000, 450)  # a legend of five below two panels


def test_guidance_goes_from_its_first_scale_to_its_last():
    model, text = tiny_maskgit(), (torch.randn(2, 3, 12), None)
    asked = torch.zeros(2, 24, dtype=torch.int64), torch.ones(2, 24, dtype=torch.bool), None
    for scales, way in ((ends("1:3"), "confidence"), (ends("2"), "critic,critic_inline=1")):
        made = guided(way_of(way, {}).features(model, text, scales), scales, steps=3)
        for step, scale in enumerate(torch.linspace(*scales, 3).tolist()):
            expected = model.to_logits(GuidedFeatures(model, model.grid, *text, scale)(*asked, 0))
            torch.testing.assert_close(made(*asked, step), expected)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("confidence", [True, True, True]),
        ("critic", [False, True, True]),
        ("critic,critic_inline=1", [False, False, True]),
        ("halton,critic_inline=1", [True, True, True]),
    ],
)
def test_a_way_is_for_models_with_its_critic(text, expected):
    models = [tiny_phenaki(critic=critic) for critic in (None, lambda _: tiny_token_critic(), SelfCritic)]
    assert [way_of(text, {}).is_for(model) for model in models] == expected


@pytest.mark.parametrize("passes", [1, 2, 8, 24])
@pytest.mark.parametrize(
    "text", ["critic", "critic,critic_scale=2", "critic,critic_inline=1,guide_every=3", "confidence,guide_every=2"]
)
def test_a_way_gets_as_many_steps_as_fit(passes, text):
    way = way_of(text, {})
    for guidance in ((1.0, 1.0), (2.0, 2.0), (1.0, 3.0)):
        if passes >= way.passes(1, guidance):
            steps = way.steps_within(passes, guidance)
            assert way.passes(steps, guidance) <= passes < way.passes(steps + 1, guidance)


def test_a_way_is_the_trainings_settings_but_for_what_it_says():
    plan = {"temperature": 3.0, "token_temperature": (1.2, 0.1), "critic_scale": 2.0, "sampling_steps": 12}
    usual = way_of("confidence", plan)
    assert (usual.temperature, usual.token_temperature, usual.critic_scale) == (3.0, (1.2, 0.1), 2.0)
    changed = way_of("critic,temperature=8,token_temperature=1:0.4,guide_every=3", plan)
    assert (changed.order, changed.temperature, changed.token_temperature) == ("critic", 8.0, (1.0, 0.4))
    assert (changed.critic_scale, changed.guide_every, changed.critic_inline) == (2.0, 3, False)


@pytest.mark.parametrize(
    "text, message",
    [
        ("doubt", "one of confidence"),
        ("critic,heat=8", "sets temperature.*heat=8"),
        ("critic,temperature=-1", "temperature must be at least 0"),
    ],
)
def test_ways_that_are_none_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        way_of(text, {})


def test_lines_go_along_their_axis():
    rows = [{"model": "a", "way": "critic", "passes": p, "all": p / 10} for p in (8, 1, 4)]
    assert lines_of(rows, "passes") == {"a, critic": [(1, 0.1), (4, 0.4), (8, 0.8)]}


@pytest.mark.parametrize(
    "words, message",
    [
        (("--steps", "0"), "above 0"),
        (("--prompts", "0"), "above 0"),
        (("--guidance", "2", "1:-3"), "cond_scale must be at least 0, got -3"),
        (("--guidance", "much"), "much"),
        (("--ways", "critic", "critic,guide_every=0"), "guide_every must be at least 1, got 0"),
        (("--ways", "critic", "critic,critic_inline=1,critic_scale=2"), "critic_scale must be 1, got 2"),
    ],
)
def test_a_study_that_cannot_end_does_not_begin(model, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        sampling_study.main([str(model), *words, "--csv", str(tmp_path / "study.csv")])
    assert caught.value.code == 2 and re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "study.csv").exists()


def test_a_folder_without_a_model_is_named(model, tmp_path):
    with pytest.raises(SystemExit, match=r"sampling_study.py: no model in .*nowhere"):
        sampling_study.main([str(model), str(tmp_path / "nowhere"), "--csv", str(tmp_path / "study.csv")])
    assert not (tmp_path / "study.csv").exists()
