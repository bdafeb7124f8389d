"""Streams: pieces of any lengths give what the whole clip gives, in memory that does not grow."""

import pytest
import torch

from conftest import QUANTIZERS, seed, tiny_cvivit, train
from phenaki_pytorch import cvivit as cvivit_file

WINDOW = 3


def model(**changes):
    return tiny_cvivit(**{"temporal_window": WINDOW, "temporal_depth": 2, **changes})


def clip(frames=41, batch=2):
    return torch.rand(batch, 3, frames, 16, 16, generator=seed())


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("changes", [{}, {"temporal_patch_size": 4}, {"temporal_depth": 0}, {"temporal_window": 1}])
def test_pieces_give_what_the_whole_gives(changes, pieces):
    tokenizer, video = model(**changes), clip()
    with torch.no_grad():
        whole = tokenizer.features(video)
        stream, again = tokenizer.encoder_stream(), tokenizer.encoder_stream()
        parts = [stream.features(piece) for piece in video.split(pieces, dim=2)]
        ids = torch.cat([again(piece) for piece in video.split(pieces, dim=2)], dim=1)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)
        assert stream.pending == again.pending == 0
        expected = tokenizer.encode(video)
        assert ids.shape == expected.shape and (ids == expected).float().mean() > 0.99
        decoded = tokenizer.decode_features(tokenizer.code_features(expected))
        decoder = tokenizer.decoder_stream()
        frames = [decoder(piece) for piece in expected.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(frames, dim=2), decoded, atol=1e-5, rtol=0)


def test_thousands_of_frames_on_the_pieces_still_give_what_the_whole_gives():
    tokenizer = model(image_size=8)
    video = torch.rand(1, 3, 8001, 8, 8, generator=seed())
    with torch.no_grad():
        whole, stream = tokenizer.features(video), tokenizer.encoder_stream()
        parts = [stream.features(piece) for piece in video.split(1000, dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_pieces_that_complete_nothing_are_of_the_precision_of_the_others(autocast):
    tokenizer = model() if autocast else model().bfloat16()
    stream = tokenizer.encoder_stream()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert {stream.features(piece).dtype for piece in clip(4).split(1, dim=2)} == {torch.bfloat16}


def test_ids_come_as_soon_as_their_frames_are_there():
    tokenizer = model()
    stream = tokenizer.encoder_stream()
    shapes = [(tuple(stream(piece).shape), stream.pending) for piece in clip(6).split(1, dim=2)]
    none, one = (2, 0, 2, 2), (2, 1, 2, 2)
    assert shapes == [(one, 0), (none, 1), (one, 0), (none, 1), (one, 0), (none, 1)]
    images = tokenizer.encoder_stream()
    assert images(clip()[:, :, 0]).shape == one  # a frame may come as an image


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_pieces_that_complete_nothing_suit_every_quantizer(monkeypatch, quantizer):
    tokenizer, video = model(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer]), clip(7)
    stream, ids = tokenizer.encoder_stream(), tokenizer.encode(video)
    pieces = [stream(piece) for piece in video.split(1, dim=2)]
    assert [piece.shape[1] for piece in pieces] == [1, 0, 1, 0, 1, 0, 1]
    assert torch.equal(torch.cat(pieces, dim=1), ids) and pieces[1].dtype == torch.int64
    monkeypatch.setattr(cvivit_file, "TOKENS_AT_ONCE", 1)  # one frame at a time
    assert torch.equal(tokenizer.encode(video), ids)


def test_frames_come_with_every_step_of_ids():
    tokenizer = model()
    decoder = tokenizer.decoder_stream()
    ids = tokenizer.encode(clip(7))
    assert [decoder(piece).shape[2] for piece in ids.split(1, dim=1)] == [1, 2, 2, 2]


@pytest.mark.parametrize("frames", [9, 41])
def test_long_clips_go_through_in_pieces(monkeypatch, frames):
    tokenizer, video = model(), clip(frames)
    ids, decoded = tokenizer.encode(video), tokenizer.decode(tokenizer.encode(video))
    frames_seen, steps_seen = [], []
    tokenizer.encoder.register_forward_pre_hook(lambda _, inputs: frames_seen.append(inputs[0].shape[2]))
    tokenizer.decoder.register_forward_pre_hook(lambda _, inputs: steps_seen.append(inputs[0].shape[1]))
    monkeypatch.setattr(cvivit_file, "TOKENS_AT_ONCE", 2 * 2 * 2 * 3)  # three time steps of a batch of two
    assert torch.equal(tokenizer.encode(video), ids)
    torch.testing.assert_close(tokenizer.decode(ids), decoded, atol=1e-5, rtol=0)
    assert sum(frames_seen) == frames and max(frames_seen) <= 6
    assert sum(steps_seen) == (frames + 1) // 2 and max(steps_seen) == 3


def test_attention_looks_back_no_further_than_its_window():
    tokenizer, video = model(temporal_depth=1), clip(21)
    other = video.clone()
    other[:, :, 5:7] = torch.rand(2, 3, 2, 16, 16)  # time step 3
    with torch.no_grad():
        changed = (tokenizer.features(video) - tokenizer.features(other)).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [3, 4, 5]


def test_the_window_is_the_longest_clip_trained_on():
    tokenizer = tiny_cvivit()
    assert tokenizer.window is None
    tokenizer.eval()
    tokenizer(clip(9))
    assert tokenizer.window is None  # nothing was trained
    tokenizer.train()
    train(tokenizer, lambda: tokenizer(clip(5)), 1)
    assert tokenizer.window == 3
    tokenizer(clip(3))
    assert tokenizer.window == 3
    full = tiny_cvivit(temporal_window=10)
    full.load_state_dict(tokenizer.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.features(clip(5)), full.features(clip(5)))
        assert not torch.allclose(tokenizer.features(clip(9))[:, 4], full.features(clip(9))[:, 4], atol=1e-5)
    assert tiny_cvivit(temporal_window=2).window == 2


def test_padding_does_not_make_the_window_longer():
    tokenizer = tiny_cvivit()
    tokenizer(clip(11), torch.arange(11) < torch.tensor([[3], [5]]))
    assert tokenizer.window == 3
    tokenizer(clip(11), torch.arange(11) < torch.tensor([[3], [11]]))
    assert tokenizer.window == 6


def test_the_window_is_saved(tmp_path):
    tokenizer = tiny_cvivit()
    tokenizer(clip(5))
    tokenizer.save_pretrained(tmp_path / "trained")
    assert type(tokenizer).from_pretrained(tmp_path / "trained").window == 3
    tiny_cvivit(temporal_window=7).save_pretrained(tmp_path / "given")
    assert type(tokenizer).from_pretrained(tmp_path / "given").window == 7


def test_what_a_stream_keeps_does_not_grow():
    tokenizer = model()
    encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()

    def kept(stream):
        return [tensor.untyped_storage().nbytes() for cache in stream._caches for tensor in cache.kept]

    sizes = []
    for piece in clip(61).split(10, dim=2):
        decoder(encoder(piece))
        sizes.append((kept(encoder), kept(decoder)))
    assert sizes[1:] == [sizes[1]] * 6
    assert all(len(cache) == WINDOW - 1 for cache in encoder._caches)
    # A graph would hold on to all pieces before.
    assert not any(tensor.requires_grad for cache in encoder._caches + decoder._caches for tensor in cache.kept)


def test_neither_way_asks_for_a_gradient():
    tokenizer = model()
    ids = tokenizer.encoder_stream()(clip(5).requires_grad_())
    assert not ids.requires_grad
    assert not tokenizer.encoder_stream().features(clip(5)).requires_grad
    assert not tokenizer.decoder_stream()(ids).requires_grad and not tokenizer.decode(ids).requires_grad
    # the positive control: what decoding is made of can be learnt through
    assert tokenizer.decode_features(tokenizer.code_features(ids)).requires_grad


@pytest.mark.parametrize(
    "piece, kind, message",
    [
        (torch.rand(1, 3, 2, 16, 16), ValueError, r"agree in batch.*got \(1, 3, 2, 16, 16\) after \(2, 3, 1, 16, 16\)"),
        (torch.rand(2, 3, 2, 16, 24), ValueError, r"got \(2, 3, 2, 16, 24\) after \(2, 3, 1, 16, 16\)"),
        (torch.rand(2, 3, 2, 16, 20), ValueError, "multiples of the patch 8×8, got 16×20"),
        (torch.rand(2, 1, 2, 16, 16), ValueError, "3 channels, got 1"),
        (torch.rand(2, 3, 0, 16, 16), ValueError, "none empty"),
        (torch.zeros(2, 3, 2, 16, 16).long(), TypeError, "floating point"),
    ],
)
def test_pieces_that_do_not_fit(piece, kind, message):
    stream = model().encoder_stream()
    stream(clip(2))
    with pytest.raises(kind, match=message):
        stream(piece)
    assert stream.pending == 1  # as it was


def test_ids_that_do_not_fit():
    decoder = model().decoder_stream()
    decoder(torch.zeros(2, 1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"agree in batch.*\(2, 3, 2\) after \(2, 2, 2\)"):
        decoder(torch.zeros(2, 1, 3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[0, 32\), got values from 32"):
        decoder(torch.full((2, 1, 2, 2), 32))
    with pytest.raises(ValueError, match="temporal_window must be at least 1, got 0"):
        tiny_cvivit(temporal_window=0)
