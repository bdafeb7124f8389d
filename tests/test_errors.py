"""Wrong arguments raise the right kind of error, whose message says what was got and what was expected."""

import pytest
import torch
from vector_quantize_pytorch import LFQ, VectorQuantize

from conftest import WordEncoder, tiny_cvivit, tiny_gpt, tiny_maskgit, tiny_phenaki, tiny_vqgan, tiny_vqvae
from phenaki_pytorch import Phenaki, T5TextEncoder


def refused(call, message, kind=ValueError):
    with pytest.raises(kind, match=message):
        call()


def video(b=2, c=3, f=11, h=16, w=16):
    return torch.rand(b, c, f, h, w)


def ids(b=2, t=6, h=2, w=2):
    return torch.zeros(b, t, h, w, dtype=torch.int64)


def text(b=2, m=3, d=12):
    return torch.randn(b, m, d)


def mask(*rows):
    return torch.tensor(rows, dtype=torch.bool)


# CViViT


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"heads": -1}, "heads must be at least 1, got -1"),
        ({"temporal_patch_size": 0}, "temporal_patch_size must be at least 1, got 0"),
        ({"spatial_depth": -1}, "spatial_depth must be at least 0, got -1"),
        ({"image_size": 20}, "multiples of the patch 8×8, got 20×20"),
        ({"image_size": (16, 20), "patch_size": (4, 8)}, "multiples of the patch 4×8, got 16×20"),
        ({"quantizer": "vqvae"}, "'vq', 'ema', 'lfq', 'fsq', 'simvq'.*got 'vqvae'"),
        ({"quantizer": "fsq"}, "make 8192 codes, codebook_size is 32"),
        ({"quantizer": "lfq", "codebook_size": 24}, "lfq must be a power of 2, got 24"),
        ({"quantizer": VectorQuantize(dim=16, codebook_size=32)}, "code_dim is 8, the quantizer given is 16 wide"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"patch_size": (8, -8)}, "patch_size must be at least 1, got -8"),
        ({"dim_head": 3}, "2 axes need an even dim_head of at least 4, got 3"),
    ],
)
def test_wrong_sizes_of_a_tokenizer(changes, message):
    refused(lambda: tiny_cvivit(**changes), message)


WRONG_VIDEOS = [
    (torch.rand(3, 16, 16), ValueError, r"\(b, c, f, h, w\).*got \(3, 16, 16\)"),
    (torch.rand(1, 2, 3, 4, 5, 6), ValueError, r"got \(1, 2, 3, 4, 5, 6\)"),
    (video(c=1), ValueError, "3 channels, got 1"),
    (torch.rand(2, 1, 16, 16), ValueError, "3 channels, got 1"),
    (video(h=20), ValueError, "multiples of the patch 8×8, got 20×16"),
    (video(f=10), ValueError, "1 \\+ k · 2 frames, k ≥ 0, got 10"),
    (video(b=0), ValueError, r"none empty, got \(0, 3, 11, 16, 16\)"),
    (video(f=0), ValueError, r"none empty, got \(2, 3, 0, 16, 16\)"),
    (video().mul(255).to(torch.uint8), TypeError, r"floating point in \[0, 1\], got torch.uint8"),
]


@pytest.mark.parametrize("clip, kind, message", WRONG_VIDEOS)
def test_wrong_videos(clip, kind, message):
    model = tiny_cvivit()
    for call in (model, model.losses, model.encode, model.features, model.reconstruct):
        refused(lambda call=call: call(clip), message, kind)
    refused(lambda: tiny_phenaki(dim_context=None)(clip), message, kind)


@pytest.mark.parametrize(
    "frames, message",
    [
        (torch.ones(2, 10, dtype=torch.bool), r"bool \(2, 11\), got torch.bool \(2, 10\)"),
        (torch.ones(3, 11, dtype=torch.bool), r"bool \(2, 11\), got torch.bool \(3, 11\)"),
        (torch.ones(2, 11), r"bool \(2, 11\), got torch.float32 \(2, 11\)"),
        (torch.zeros(2, 11, dtype=torch.bool), r"in one of the numbers \[1, 3, 5, 7, 9, 11\], got \[0, 0\]"),
        (torch.arange(11) < torch.tensor([[11], [4]]), r"in one of the numbers \[1, 3, 5, 7, 9, 11\], got \[11, 4\]"),
        (torch.arange(11) >= torch.tensor([[0], [2]]), r"and False after.*got \[11, 9\]"),
    ],
)
def test_wrong_frame_masks(frames, message):
    refused(lambda: tiny_cvivit()(video(), frames), message)
    refused(lambda: tiny_phenaki()(video(), text_embeds=text(), frame_mask=frames), message)


@pytest.mark.parametrize(
    "codes, message",
    [
        (ids()[0], r"int64 \(b, t, h, w\).*got torch.int64 \(6, 2, 2\)"),
        (ids().int(), "int64 .* got torch.int32"),
        (ids(b=0), r"none empty, got torch.int64 \(0, 6, 2, 2\)"),
        (ids() + 32, r"\[0, 32\), got values from 32 to 32"),
        (ids() - 1, r"\[0, 32\), got values from -1 to -1"),
    ],
)
def test_wrong_ids(codes, message):
    for tokenizer in (tiny_cvivit(), tiny_vqvae(trained=False), tiny_vqgan(trained=False)):
        refused(lambda tokenizer=tokenizer: tokenizer.decode(codes), message)
    refused(lambda: tiny_maskgit()(codes, text(len(codes))), message)
    refused(lambda: tiny_gpt()(codes), message)
    refused(lambda: tiny_phenaki()(video_ids=codes, text_embeds=text()), message)


@pytest.mark.parametrize(
    "quantizer",
    [VectorQuantize(dim=8, codebook_size=32, heads=2), LFQ(dim=8, codebook_size=32, num_codebooks=2)],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_given_quantizers_with_several_ids_per_token(quantizer):
    model = tiny_cvivit(quantizer=quantizer)
    for call in (model, model.encode):
        refused(lambda call=call: call(video()), r"one id per token, \(\d+, \d+\), got \(\d+, \d+, 2\)")


def test_wrong_lengths_and_features():
    model = tiny_cvivit()
    refused(lambda: model.grid(0), "got 0")
    refused(lambda: model.grid(4), "1 \\+ k · 2 frames, k ≥ 0, got 4")
    refused(lambda: model.grid(3, 12, 16), "8×8, got 12×16")
    refused(lambda: model.num_frames(0), "at least 1 time step, got 0")
    refused(lambda: model.decode_features(torch.rand(1, 2, 2, 2, 7)), r"\(b, t, h, w, 8\).*got \(1, 2, 2, 2, 7\)")


# MaskGit


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_tokens": 0}, "num_tokens must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"dim_context": 0}, "dim_context must be at least 1, got 0"),
        ({"cond_drop_prob": 1.5}, r"cond_drop_prob must lie in \[0, 1\], got 1.5"),
        ({"prime_prob": -0.1}, r"prime_prob must lie in \[0, 1\], got -0.1"),
        ({"ff_dropout": -0.1}, r"ff_dropout must lie in \[0, 1\], got -0.1"),
        ({"grid": (6, 0, 2)}, r"each at least 1, got \(6, 0, 2\)"),
        ({"grid": [6, 2]}, r"\(t, h, w\), each at least 1, got \(6, 2\)"),
        ({"schedule": "sine"}, r"\('cosine', 'cubic', 'linear'\), got 'sine'"),
    ],
)
def test_wrong_sizes_of_a_maskgit(changes, message):
    refused(lambda: tiny_maskgit(**changes), message)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ids": ids(t=7)}, r"the grid \(6, 2, 2\), got \(7, 2, 2\)"),
        ({"ids": ids(h=3)}, r"the grid \(6, 2, 2\), got \(6, 3, 2\)"),
        ({"context": None}, r"needs a context \(b, m, 12\), got none"),
        ({"context": text(d=13)}, r"\(b, m, 12\), none empty, got \(2, 3, 13\)"),
        ({"context": text()[0]}, r"\(b, m, 12\), none empty, got \(3, 12\)"),
        ({"context": text(m=0)}, r"none empty, got \(2, 0, 12\)"),
        ({"context": text(b=3)}, "batch of 3, expected 2"),
        ({"context_mask": mask([1, 1, 1])}, r"bool \(2, 3\), got torch.bool \(1, 3\)"),
        ({"context_mask": torch.ones(2, 3)}, r"bool \(2, 3\), got torch.float32"),
        ({"context_mask": mask([1, 0, 0], [0, 0, 0])}, "context_mask must be True somewhere.*all False"),
        ({"token_mask": torch.ones(2, 6, 2, dtype=torch.bool)}, r"bool \(2, 6, 2, 2\), got torch.bool \(2, 6, 2\)"),
        ({"token_mask": ids()}, r"bool \(2, 6, 2, 2\), got torch.int64"),
        ({"token_mask": ids().bool()}, "token_mask must be True somewhere.*all False"),
    ],
)
def test_wrong_training_batches_of_maskgit(changes, message):
    refused(lambda: tiny_maskgit()(**{"ids": ids(), "context": text(), **changes}), message)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"grid": (7, 2, 2)}, r"between \(1, 1, 1\) and \(6, 2, 2\), got \(7, 2, 2\)"),
        ({"grid": (0, 2, 2)}, r"between \(1, 1, 1\) and \(6, 2, 2\), got \(0, 2, 2\)"),
        ({"batch_size": 3}, "batch_size is 3, the text has a batch of 2"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"context": None}, "needs a context"),
        ({"context_mask": mask([0, 0, 0], [1, 0, 0])}, "all False"),
        ({"prime_ids": ids(b=3, t=2)}, r"\(2, fewer than 6, 2, 2\), got \(3, 2, 2, 2\)"),
        ({"prime_ids": ids(t=6)}, r"\(2, fewer than 6, 2, 2\), got \(2, 6, 2, 2\)"),
        ({"prime_ids": ids(t=2, h=1)}, r"\(2, fewer than 6, 2, 2\), got \(2, 2, 1, 2\)"),
        ({"prime_ids": ids(t=2) + 32}, r"\[0, 32\), got values from 32 to 32"),
    ],
)
def test_wrong_arguments_of_maskgits_generate(changes, message):
    model = tiny_maskgit()
    model.transformer.forward = None  # refused before anything is sampled
    refused(lambda: model.generate(**{"context": text(), **changes}), message)


def test_contexts_for_an_unconditional_maskgit():
    model = tiny_maskgit(dim_context=None)
    refused(lambda: model(ids(), text()), "unconditional.*expected no context, got one")
    refused(lambda: model.generate(context=text()), "unconditional.*expected no context, got one")
    refused(lambda: model(ids(), context_mask=mask([1], [1])), "unconditional")


def test_other_modules_as_critics():
    model = tiny_maskgit(dim_context=None)
    refused(lambda: model.generate(steps=1, critic=torch.nn.Linear(2, 2)), "a SelfCritic, got a Linear", TypeError)


def test_masks_of_another_shape():
    message = r"masked must be bool \(2, 6, 2, 2\), got torch.bool \(2, 6, 2, 1\)"
    refused(lambda: tiny_maskgit().logits(ids(), ids(w=1).bool(), text()), message)


# Phenaki: parts


def test_parts_that_do_not_fit_each_other():
    refused(lambda: tiny_phenaki(num_tokens=64), "the tokenizer has codes, 32, got 64")
    refused(lambda: tiny_phenaki(grid=(6, 2, 4)), r"of the cvivit, \(6, 2, 2\), got \(6, 2, 4\)")
    refused(lambda: tiny_phenaki(text_encoder=WordEncoder(13)), "encoder is 13 wide, the model's dim_context is 12")
    refused(lambda: tiny_phenaki(text_encoder="t5-small"), "encoder is 512 wide, the model's dim_context is 12")
    refused(
        lambda: Phenaki(cvivit=tiny_cvivit(), maskgit=tiny_maskgit(), text_encoder=T5TextEncoder("t5-large")),
        "1024 wide, the model's dim_context is 12",
    )


@pytest.mark.parametrize(
    "embeds, text_mask, message",
    [
        (torch.tensor(1.0), None, r"text_embeds must be \(b, m, 12\), none empty, got \(\)"),
        (text(d=13), None, r"text_embeds must be \(b, m, 12\), none empty, got \(2, 3, 13\)"),
        (text(), torch.ones(2, 4, dtype=torch.bool), r"text_mask must be bool \(2, 3\), got torch.bool \(2, 4\)"),
        (text(), torch.zeros(2, 3, dtype=torch.bool), "text_mask must be True somewhere"),
    ],
)
def test_embeddings_are_refused_by_the_names_that_systems_have_for_them(embeds, text_mask, message):
    refused(lambda: tiny_phenaki()(video(), text_embeds=embeds, text_mask=text_mask), message)
    refused(lambda: tiny_phenaki().generate(text_embeds=embeds, text_mask=text_mask, num_frames=3), message)


def test_an_encoder_of_unknown_width_is_checked_at_its_first_use():
    model = tiny_phenaki(text_encoder=lambda texts: (text(len(texts), d=13), None))
    for call in (lambda: model(video(), texts=["a", "b"]), lambda: model.generate(["a", "b"], num_frames=3)):
        refused(call, r"\(b, m, 12\), none empty, got \(2, 3, 13\)")


# Phenaki: loss


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"video_ids": ids()}, "either videos or video_ids, got both"),
        ({"videos": None}, "either videos or video_ids, got none"),
        ({"texts": None}, "either texts or text_embeds, got none"),
        ({"text_embeds": text()}, "either texts or text_embeds, got both"),
        ({"text_mask": mask([1, 1], [1, 0])}, "text_mask is only allowed with text_embeds"),
        ({"texts": []}, "texts must not be empty"),
        ({"texts": ["a"]}, "batch of 1, expected 2"),
        ({"texts": ["a", "b", "c"]}, "batch of 3, expected 2"),
        ({"videos": video(f=13)}, r"the grid \(6, 2, 2\), got \(7, 2, 2\)"),
        ({"videos": video(w=24)}, r"the grid \(6, 2, 2\), got \(6, 2, 3\)"),
    ],
)
def test_wrong_training_batches_of_phenaki(changes, message):
    refused(lambda: tiny_phenaki()(**{"videos": video(), "texts": ["a", "b"], **changes}), message)


def test_texts_for_an_unconditional_phenaki():
    model = tiny_phenaki(dim_context=None)
    message = "reads no text: expected no texts, text_embeds and text_mask, got some"
    refused(lambda: model(video(), texts=["a", "b"]), message)
    refused(lambda: model(video(), text_embeds=text()), message)
    refused(lambda: model.generate("a", num_frames=3), message)
    refused(lambda: model.generate_images(text_embeds=text()), message)


def test_encoders_that_give_too_few_embeddings():
    model = tiny_phenaki(text_encoder=lambda texts: (text(1), None))
    refused(lambda: model(video(), texts=["a", "b"]), "1 embeddings for 2 texts")


# Phenaki: generation


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"texts": None}, "either texts or text_embeds, got none"),
        ({"batch_size": 3}, "batch_size is 3, the text has a batch of 2"),
        ({"prime_frames": video(b=3)}, "batch of 3, expected 2"),
        ({"prime_frames": video(h=24)}, r"grid \(2, 2\), got \(24, 16\) pixels, of the grid \(3, 2\)"),
        ({"prime_frames": video(h=20)}, "8×8, got 20×16"),
        ({"prime_frames": video(c=1)}, "3 channels, got 1"),
        ({"prime_frames": video(f=0)}, r"none empty, got torch.float32 \(2, 3, 0, 16, 16\)"),
        ({"prime_frames": torch.rand(3, 16, 16)}, r"got torch.float32 \(3, 16, 16\)"),
        ({"prime_frames": video().long()}, "floating point .* got torch.int64"),
        ({"overlap": 4}, r"window of 11 frames can share \[1, 3, 5, 7, 9\].*got an overlap of 4"),
        ({"overlap": 0}, "got an overlap of 0"),
        ({"overlap": -3}, "got an overlap of -3"),
        ({"overlap": 11}, "got an overlap of 11"),
        ({"overlap": 4, "num_frames": 1, "prime_frames": video(f=11)}, "got an overlap of 4"),
        *[({"overlap": wrong, "num_frames": 1}, f"got an overlap of {wrong}") for wrong in (-1, 0, 4, 11)],
    ],
)
def test_wrong_arguments_of_generate(changes, message):
    model = tiny_phenaki()
    model.maskgit.transformer.forward = None  # refused before anything is sampled
    refused(lambda: model.generate(**{"texts": ["a", "b"], "num_frames": 12, **changes}), message)


@pytest.mark.parametrize(
    "scenes, changes, message",
    [
        ([], {}, "at least 1 scene, got 0"),
        ([[]], {}, r"at least 1, got \[0\]"),
        ([["a", "b"], ["c"]], {}, r"equally many scenes, at least 1, got \[1, 2\]"),
        (["a", "b"], {"num_frames": [3]}, "for each of 2 scenes, got 1"),
        (["a", "b"], {"overlap": 6}, "got an overlap of 6"),
        (["a", "b"], {"num_frames": [3, 0]}, "num_frames must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_of_generate_story(scenes, changes, message):
    model = tiny_phenaki()
    model.maskgit.transformer.forward = None  # refused before anything is sampled
    refused(lambda: model.generate_story(scenes, **{"num_frames": 6, "steps": 1, **changes}), message)


# kinds


@pytest.mark.parametrize(
    "call",
    [
        lambda: tiny_cvivit(dim="32"),
        lambda: tiny_cvivit(quantizer=3),
        lambda: tiny_cvivit()([[0.5]]),
        lambda: tiny_cvivit().decode([[0]]),
        lambda: tiny_maskgit(grid=6),
        lambda: tiny_maskgit()(ids(), "a text"),
        lambda: Phenaki(cvivit="a path", maskgit=tiny_maskgit()),
        lambda: Phenaki(cvivit=tiny_cvivit(), maskgit=tiny_cvivit()),
        lambda: tiny_phenaki(text_encoder=7),
        lambda: tiny_phenaki()(video(), texts=3),
        lambda: tiny_phenaki().generate("a", num_frames=3.0),
    ],
)
def test_wrong_kinds_are_type_errors(call):
    refused(call, "violates type hint|must be a MaskGit", TypeError)
