"""The conditions of LatteTransformer: images, classes and texts, and which of them training drops."""

import math

import pytest
import torch

from conftest import tiny_latte_transformer
from latte_models import (
    BOTH,
    CONDITIONS,
    TIME,
    every_condition,
    every_conditioning,
    every_variant,
    given_for,
    make_latents,
)


def changed_steps(one, other):
    """Which time steps of two outputs differ, over all samples."""
    return ((one - other).abs().amax(dim=(0, 2, 3, 4)) > 0).tolist()


# images


@every_variant
@every_conditioning
@every_condition
@pytest.mark.parametrize("time_positions", ["absolute", "rotary"])
def test_an_image_changes_its_own_output_alone(variant, conditioning, conditions, time_positions):
    options = {"variant": variant, "conditioning": conditioning, "time_positions": time_positions, **conditions}
    model, latents = tiny_latte_transformer(**options).eval(), make_latents(t=6)
    given = given_for(conditions, images=2)
    out = model(latents, TIME, **given)
    assert out.shape == (2, 6, 4, 4, 8)
    video = {name: value for name, value in given.items() if not name.startswith("image")}
    torch.testing.assert_close(out[:, :4], model(latents[:, :4], TIME, **video), atol=1e-5, rtol=1e-5)
    other = latents.clone()
    other[:, 4] = torch.randn_like(other[:, 4])
    assert changed_steps(model(other, TIME, **given), out) == [False] * 4 + [True, False]
    if "num_classes" in conditions:
        image_classes = (given["image_classes"] + torch.tensor([0, 1])) % 3
        got = model(latents, TIME, **{**given, "image_classes": image_classes})
        assert changed_steps(got, out) == [False] * 5 + [True]
    if "dim_context" in conditions:
        texts = given["image_context"].clone()
        texts[:, 0] = torch.randn(2, 3, 5)
        got = model(latents, TIME, **{**given, "image_context": texts})
        assert changed_steps(got, out) == [False] * 4 + [True, False]


@every_variant
def test_temporal_attention_is_never_given_images(variant):
    model, latents, lengths = tiny_latte_transformer(variant=variant).eval(), make_latents(t=7), []
    for name, part in model.named_modules():
        if name.endswith("temporal_attention") or (variant < 3 and name == "transformer.blocks.1.attention"):
            part.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[:2]))
    model(latents, TIME, images=3)
    assert lengths == [(2 * 4, 4)] * (1 if variant < 3 else 2)


# conditions


@every_conditioning
@every_variant
@every_condition
def test_each_sample_depends_on_its_own_time_and_conditions(variant, conditioning, conditions):
    model = tiny_latte_transformer(variant=variant, conditioning=conditioning, **conditions).eval()
    latents, given = make_latents(), given_for(conditions)
    out = model(latents, TIME, **given)
    changes = [({"time": torch.tensor([4, 977])}, [True, False])]
    if "num_classes" in conditions:
        changes.append(({"classes": torch.tensor([0, 1])}, [False, True]))
    if "dim_context" in conditions:
        context = given["context"].clone()
        context[1, 2] = math.nan  # padding may hold anything
        changes.append(({"context": context}, [False, False]))
        context = given["context"].clone()
        context[0, 2] += 1
        changes.append(({"context": context}, [True, False]))
    for change, expected in changes:
        got = model(latents, **{"time": TIME, **given, **change})
        assert ((got - out).abs().amax(dim=(1, 2, 3, 4)) > 0).tolist() == expected


@every_conditioning
@pytest.mark.parametrize("conditions", CONDITIONS[1:])
def test_a_dropped_sample_does_not_depend_on_its_class_and_text(conditioning, conditions):
    model, latents = tiny_latte_transformer(conditioning=conditioning, **conditions).eval(), make_latents(t=6)
    one, other = given_for(conditions, images=2), given_for(conditions, images=2)
    if "num_classes" in conditions:
        other |= {"classes": 2 - one["classes"], "image_classes": 2 - one["image_classes"]}
    dropped = torch.tensor([True, False])
    outs = [model(latents, TIME, **each, dropped=dropped) for each in (one, other)]
    torch.testing.assert_close(outs[0][0], outs[1][0])
    assert (outs[0][1] - outs[1][1]).abs().max() > 1e-3
    kept = model(latents, TIME, **one)
    torch.testing.assert_close(kept[1], outs[0][1])
    assert (kept[0] - outs[0][0]).abs().amax(dim=(1, 2, 3)).min() > 1e-4  # the images are dropped, too


@pytest.mark.parametrize("conditions", CONDITIONS[1:])
def test_training_drops_a_share_once_for_the_video_and_once_for_its_images(conditions):
    model, samples = tiny_latte_transformer(**conditions, cond_drop_prob=0.3), 200
    given = {
        name: value if name == "images" else value[:1].repeat(samples, *[1] * (value.ndim - 1))
        for name, value in given_for(conditions, 2).items()
    }
    latents, time = make_latents(t=6, b=1).repeat(samples, 1, 1, 1, 1), TIME[:1].repeat(samples)
    with torch.no_grad():
        model.eval()
        kept, null = (model(latents, time, **given, dropped=torch.full((samples,), each)) for each in (False, True))
        outs = model.train()(latents, time, **given)
    dropped, same = ((outs - each).abs().amax(dim=(2, 3, 4)) < 1e-5 for each in (null, kept))  # (samples, 6)
    assert (dropped ^ same).all()
    video, images = dropped[:, 0], dropped[:, 4]
    assert torch.equal(dropped, torch.stack([video] * 4 + [images] * 2, dim=1))
    assert 0.2 < video.float().mean() < 0.4 and 0.2 < images.float().mean() < 0.4
    assert 0.02 < (video & images).float().mean() < 0.2  # 0.09: the draws are independent


def test_only_training_drops_by_itself():
    model, latents = tiny_latte_transformer(**BOTH, cond_drop_prob=1.0).eval(), make_latents()
    given = given_for(BOTH)
    kept, null = (model(latents, TIME, **given, dropped=torch.full((2,), each)) for each in (False, True))
    torch.testing.assert_close(model(latents, TIME, **given), kept)
    torch.testing.assert_close(model.train()(latents, TIME, **given), null)
    assert (kept - null).abs().max() > 1e-3


def test_guidance_can_evaluate_both_in_one_batch():
    model, latents, given = tiny_latte_transformer(**BOTH).eval(), make_latents(), given_for(BOTH)
    twice = {name: torch.cat((value, value)) for name, value in given.items() if name != "images"}
    both = model(latents.repeat(2, 1, 1, 1, 1), TIME.repeat(2), **twice, dropped=torch.arange(4) >= 2)
    cond, null = (model(latents, TIME, **given, dropped=torch.full((2,), each)) for each in (False, True))
    torch.testing.assert_close(both, torch.cat((cond, null)), atol=1e-5, rtol=1e-5)
