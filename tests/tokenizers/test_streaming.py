"""Streams: pieces of any lengths give what the whole clip gives, with a window in bounded memory."""

import pytest
import torch

from conftest import QUANTIZERS, seed, tiny_cvivit, train
from phenaki_pytorch.tokenizers import cvivit

WINDOW = 3


def model(**changes):
    return tiny_cvivit(**{"temporal_window": WINDOW, "temporal_depth": 2, **changes})


def clip(frames=41, batch=2):
    return torch.rand(batch, 3, frames, 16, 16, generator=seed())


CHANGES = {
    "window 3": {},
    "window 1": {"temporal_window": 1},
    "no window": {"temporal_window": None},
    "tubelets of 4": {"temporal_patch_size": 4},
    "no temporal layers": {"temporal_depth": 0},
}


@pytest.mark.parametrize("pieces", [1, 3, 40])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_pieces_give_what_the_whole_clip_gives(changes, pieces):
    tokenizer, video = model(**changes), clip(21 if pieces == 1 else 41)
    with torch.no_grad():
        whole = tokenizer.features(video)
        feature_stream, id_stream = tokenizer.encoder_stream(), tokenizer.encoder_stream()
        features = [feature_stream.features(piece) for piece in video.split(pieces, dim=2)]
        ids = torch.cat([id_stream(piece) for piece in video.split(pieces, dim=2)], dim=1)
        torch.testing.assert_close(torch.cat(features, dim=1), whole, atol=1e-5, rtol=0)
        assert feature_stream.pending == id_stream.pending == 0
        expected = tokenizer.encode(video)
        assert ids.shape == expected.shape and (ids == expected).float().mean() > 0.99
        decoded = tokenizer.decode_features(tokenizer.code_features(expected))
        decoder = tokenizer.decoder_stream()
        frames = [decoder(piece) for piece in expected.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(frames, dim=2), decoded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [WINDOW, None])
def test_a_stream_is_exact_after_thousands_of_frames(window):
    tokenizer = model(image_size=8, temporal_window=window)
    frames = 4001 if window else 1001
    video = torch.rand(1, 3, frames, 8, 8, generator=seed())
    with torch.no_grad():
        whole, stream = tokenizer.features(video), tokenizer.encoder_stream()
        features = [stream.features(piece) for piece in video.split(500, dim=2)]
    torch.testing.assert_close(torch.cat(features, dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_empty_features_have_the_dtype_of_the_others(autocast):
    tokenizer = model() if autocast else model().bfloat16()
    stream = tokenizer.encoder_stream()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert {stream.features(piece).dtype for piece in clip(4).split(1, dim=2)} == {torch.bfloat16}


def test_each_piece_gives_the_ids_that_it_completes():
    tokenizer = model()
    stream = tokenizer.encoder_stream()
    shapes = [(tuple(stream(piece).shape), stream.pending) for piece in clip(6).split(1, dim=2)]
    none, one = (2, 0, 2, 2), (2, 1, 2, 2)
    assert shapes == [(one, 0), (none, 1), (one, 0), (none, 1), (one, 0), (none, 1)]
    images = tokenizer.encoder_stream()
    assert images(clip()[:, :, 0]).shape == one  # a piece may be an image


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_pieces_that_complete_no_ids_work_with_every_quantizer(monkeypatch, quantizer):
    tokenizer, video = model(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer]), clip(7)
    stream, ids = tokenizer.encoder_stream(), tokenizer.encode(video)
    pieces = [stream(piece) for piece in video.split(1, dim=2)]
    assert [piece.shape[1] for piece in pieces] == [1, 0, 1, 0, 1, 0, 1]
    assert torch.equal(torch.cat(pieces, dim=1), ids) and pieces[1].dtype == torch.int64
    monkeypatch.setattr(cvivit, "MAX_TOKENS", 1)  # one frame at a time
    assert torch.equal(tokenizer.encode(video), ids)


def test_each_time_step_of_ids_gives_its_frames():
    tokenizer = model()
    decoder = tokenizer.decoder_stream()
    ids = tokenizer.encode(clip(7))
    assert [decoder(piece).shape[2] for piece in ids.split(1, dim=1)] == [1, 2, 2, 2]


@pytest.mark.parametrize("window", [WINDOW, None])
def test_long_clips_are_encoded_and_decoded_in_pieces(monkeypatch, window):
    tokenizer, video = model(temporal_window=window), clip(21)
    ids, decoded = tokenizer.encode(video), tokenizer.decode(tokenizer.encode(video))
    frames, steps = [], []
    tokenizer.encoder.register_forward_pre_hook(lambda _, inputs: frames.append(inputs[0].shape[2]))
    tokenizer.decoder.register_forward_pre_hook(lambda _, inputs: steps.append(inputs[0].shape[1]))
    monkeypatch.setattr(cvivit, "MAX_TOKENS", 2 * 2 * 2 * 3)  # three time steps of a batch of two
    assert torch.equal(tokenizer.encode(video), ids)
    torch.testing.assert_close(tokenizer.decode(ids), decoded, atol=1e-5, rtol=0)
    assert sum(frames) == 21 and max(frames) <= 6
    assert sum(steps) == 11 and max(steps) == 3


def test_temporal_attention_sees_its_window_only():
    tokenizer, video = model(temporal_depth=1), clip(21)
    other = video.clone()
    other[:, :, 5:7] = torch.rand(2, 3, 2, 16, 16)  # time step 3
    with torch.no_grad():
        changed = (tokenizer.features(video) - tokenizer.features(other)).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [3, 4, 5]


def test_without_a_window_all_earlier_time_steps_are_seen():
    tokenizer, video = model(temporal_window=None, temporal_depth=1), clip(21)
    other = video.clone()
    other[:, :, 5:7] = torch.rand(2, 3, 2, 16, 16)  # time step 3
    with torch.no_grad():
        changed = (tokenizer.features(video) - tokenizer.features(other)).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(3, 11))


@pytest.mark.parametrize("window", [2, None])
def test_training_on_longer_clips_does_not_change_the_window(tmp_path, window):
    tokenizer = tiny_cvivit(temporal_window=window)
    train(tokenizer, lambda: tokenizer(clip(9)), 1)
    assert tokenizer.temporal_window == window
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path).temporal_window == window
    # The same weights give the same ids in a tokenizer that has seen no training.
    untrained = tiny_cvivit(temporal_window=window)
    untrained.load_state_dict(tokenizer.state_dict())
    assert torch.equal(untrained.encode(clip(21)), tokenizer.encode(clip(21)))


def kept(stream):
    """The bytes of the tensors that a stream keeps."""
    return sum(tensor.untyped_storage().nbytes() for cache in stream._caches for tensor in cache.kept)


@pytest.mark.parametrize("window", [WINDOW, None])
def test_a_stream_keeps_its_window_or_without_one_all_time_steps(window):
    tokenizer = model(temporal_window=window)
    encoder, decoder = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    sizes, steps = [], 0
    for piece in clip(61).split(10, dim=2):
        ids = encoder(piece)
        decoder(ids)
        sizes.append((kept(encoder), kept(decoder)))
        steps += ids.shape[1]
        assert all(len(cache) == min(steps, WINDOW - 1 if window else steps) for cache in encoder._caches)
    if window:
        assert sizes[1:] == [sizes[1]] * 6
    # A graph would hold on to all earlier pieces.
    assert not any(tensor.requires_grad for cache in encoder._caches + decoder._caches for tensor in cache.kept)


def test_streams_record_no_gradient():
    tokenizer = model()
    ids = tokenizer.encoder_stream()(clip(5).requires_grad_())
    assert not ids.requires_grad
    assert not tokenizer.encoder_stream().features(clip(5)).requires_grad
    assert not tokenizer.decoder_stream()(ids).requires_grad and not tokenizer.decode(ids).requires_grad
    # the parts of decoding do record it
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
def test_pieces_that_do_not_fit_are_refused(piece, kind, message):
    stream = model().encoder_stream()
    stream(clip(2))
    with pytest.raises(kind, match=message):
        stream(piece)
    assert stream.pending == 1  # unchanged


def test_ids_that_do_not_fit_are_refused():
    decoder = model().decoder_stream()
    decoder(torch.zeros(2, 1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"agree in batch.*\(2, 3, 2\) after \(2, 2, 2\)"):
        decoder(torch.zeros(2, 1, 3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[0, 32\), got values from 32"):
        decoder(torch.full((2, 1, 2, 2), 32))


def test_a_window_of_0_is_refused():
    with pytest.raises(ValueError, match="temporal_window must be at least 1, got 0"):
        tiny_cvivit(temporal_window=0)
