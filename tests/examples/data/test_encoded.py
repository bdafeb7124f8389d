"""Encoded clips: a share is drawn as continuations, with the caption of the whole clip or of what comes after."""

from collections import Counter

import pytest
import torch

from conftest import tiny_cvivit
from data.conditions import Conditions
from data.encoded import Encoded, WithImages, encode_all
from data.moving_shapes import MovingShapes
from data.word_vectors import WordVectors
from training.maskgit_prior import collate

CAPTIONS = [["whole", "whole", "after 2", "after 2", "after 4"]] * 2


def clips(**options):
    return Encoded(torch.arange(2 * 5 * 4).view(2, 5, 2, 2), CAPTIONS, **options)


def test_continuations_have_the_caption_of_the_clip_or_begin_where_the_caption_of_the_rest_holds():
    drawn = [clips(prime_prob=0.5).draw(index, epoch) for index in range(2) for epoch in range(2000)]
    counts = Counter((item["prime_steps"], item["caption"]) for item in drawn)
    expected = {(0, "whole"): 2000, (1, "whole"): 500, (2, "whole"): 250, (3, "whole"): 250, (4, "whole"): 250}
    expected |= {(2, "after 2"): 500, (4, "after 4"): 250}
    assert counts.keys() == expected.keys()
    assert all(counts[key] == pytest.approx(expected[key], rel=0.15) for key in expected)
    assert all(torch.equal(item["latents"], clips()[number // 2000]["latents"]) for number, item in enumerate(drawn))


def test_draws_are_functions_of_seed_index_and_epoch():
    def drawn(seed):
        return [clips(prime_prob=0.5, seed=seed).draw(1, epoch)["prime_steps"] for epoch in range(50)]

    assert drawn(3) == drawn(3) != drawn(4)


def test_images_and_items_outside_training_are_no_continuations():
    image = Encoded(torch.zeros(1, 1, 2, 2), [["an image"]], prime_prob=1.0)
    assert [image.draw(0, epoch)["prime_steps"] for epoch in range(5)] == [0] * 5
    assert clips(prime_prob=1.0)[1]["prime_steps"] == 0 and clips(prime_prob=1.0)[1]["caption"] == "whole"


def test_a_split_keeps_the_clips_and_their_options():
    first, last = clips(prime_prob=1.0, seed=3).split(1)
    assert len(first) == len(last) == 1
    assert torch.equal(last[0]["latents"], clips()[1]["latents"])
    assert first.draw(0, 7)["prime_steps"] == clips(prime_prob=1.0, seed=3).draw(0, 7)["prime_steps"] > 0


def test_captions_of_what_comes_after_count_the_frames_of_the_time_steps():
    class Captioned(torch.utils.data.Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, index):
            after = {"captions_after": [f"after {n} frames" for n in range(1, 5)]} if index % 2 else {}
            return {"video": torch.zeros(3, 5, 16, 16), "caption": "whole", **after}

    encoded = encode_all(tiny_cvivit(), Captioned(), 100, seed=0, device=torch.device("cpu"))
    captions = Counter(map(tuple, encoded.captions))
    assert captions == {("whole", "after 1 frames", "after 3 frames"): 50, ("whole",) * 3: 50}


def test_a_batch_has_the_number_of_given_time_steps_of_each_clip():
    encoded = encode_all(
        tiny_cvivit(), MovingShapes("captioned_video", size=16), 50, seed=0, device=torch.device("cpu"), prime_prob=1.0
    )
    items = [encoded.draw(index, 0) for index in range(20)]
    batch = collate(Conditions(["text"], encoder=WordVectors()), items)
    assert batch["prime_steps"].tolist() == [item["prime_steps"] for item in items]
    assert batch["prime_steps"].min() >= 1 and batch["prime_steps"].max() < encoded.latents.shape[1]


def test_the_images_of_a_clip_are_drawn_anew_in_each_epoch_and_are_a_function_of_seed_index_and_epoch():
    images = Encoded(torch.rand(9, 1, 2, 2, 3).half(), [[f"image {number}"] for number in range(9)])
    joint = WithImages(clips(), images, 3)
    drawn = [[image["caption"] for image in joint.draw(1, epoch)["images"]] for epoch in range(4)]
    again = [[image["caption"] for image in joint.draw(1, epoch)["images"]] for epoch in range(4)]
    assert drawn == again and len({*map(tuple, drawn)}) > 1 and all(len(each) == 3 for each in drawn)
    assert joint.draw(1, 0)["images"][0]["latents"].dtype == torch.float32
    assert torch.equal(joint.draw(1, 0)["latents"], clips()[1]["latents"])
