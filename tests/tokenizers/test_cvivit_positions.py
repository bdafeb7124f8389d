"""C-ViViT with learned positions: absolute, trained, right in pieces, and refused where the tables end."""

import pytest
import torch

from conftest import tiny_cvivit
from phenaki_pytorch import CViViT


def learned_cvivit(**changes):
    return tiny_cvivit(**{"positions": "learned", "max_time_steps": 4, **changes})


@torch.no_grad()
def test_learned_positions_are_absolute_and_rotary_ones_relative():
    clip = torch.full((1, 3, 7, 16, 16), 0.3)

    def differences(model):
        """How much the features of a constant clip differ between positions, and between time steps after the first."""
        features = model.features(clip)
        return (features - features[:, :, :1, :1]).abs().max(), (features - features[:, 1:2])[:, 1:].abs().max()

    assert all(difference > 1e-3 for difference in differences(learned_cvivit()))
    assert differences(tiny_cvivit())[0] < 1e-5


def test_learned_positions_have_tables_over_space_and_time_in_each_half_and_all_are_trained():
    model = learned_cvivit()
    tables = {name: tuple(value.shape) for name, value in model.named_parameters() if name.endswith(".table")}
    shapes = {"spatial_table.table": (2, 2, 32), "temporal_table.table": (4, 32)}
    assert tables == {f"{half}.{name}": shape for half in ("encoder", "decoder") for name, shape in shapes.items()}
    model(torch.rand(2, 3, 7, 16, 16)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    others = {name for name, _ in tiny_cvivit().named_parameters()}
    assert {name for name, _ in model.named_parameters()} == others | set(tables)
    frames = learned_cvivit(temporal_depth=0, temporal_patch_size=1)  # without temporal layers, none over time
    assert sum(name.endswith(".table") for name, _ in frames.named_parameters()) == 2


@torch.no_grad()
def test_learned_positions_go_on_from_piece_to_piece_of_a_stream(monkeypatch):
    model = learned_cvivit()
    clip = torch.rand(2, 3, 7, 16, 16)
    features, ids = model.features(clip), model.encode(clip)
    decoded = model.decode(ids)
    stream = model.encoder_stream()
    pieces = torch.cat([stream.features(frames) for frames in clip.split(2, dim=2)], dim=1)
    torch.testing.assert_close(pieces, features, atol=1e-5, rtol=0)
    stream = model.decoder_stream()
    pieces = torch.cat([stream(steps) for steps in ids.split([1, 2, 1], dim=1)], dim=2)
    torch.testing.assert_close(pieces, decoded, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"learned positions, \(4,\), got \(5,\)"):
        stream(ids[:, :1])
    monkeypatch.setattr("phenaki_pytorch.tokenizers.cvivit.MAX_TOKENS", 8)  # a clip in pieces of one time step
    torch.testing.assert_close(model.decode(ids), decoded, atol=1e-5, rtol=0)


def test_grids_that_learned_positions_do_not_reach_are_refused():
    model = learned_cvivit()
    assert model.grid(7) == (4, 2, 2) and model.grid(1, 8, 16) == (1, 1, 2)
    for sizes, got in (((9,), (5, 2, 2)), ((1, 24, 16), (1, 3, 2)), ((1, 16, 24), (1, 2, 3))):
        message = rf"learned positions, \(4, 2, 2\), got \({got[0]}, {got[1]}, {got[2]}\)"
        with pytest.raises(ValueError, match=message):
            model.grid(*sizes)
        height, width = sizes[1:] or (16, 16)
        with pytest.raises(ValueError, match=message):
            model.encode(torch.rand(1, 3, sizes[0], height, width))
        with pytest.raises(ValueError, match="learned positions"):
            model.decode(torch.zeros(1, *got, dtype=torch.int64))


def test_a_loaded_model_has_its_learned_positions(tmp_path):
    model, clip = learned_cvivit(), torch.rand(1, 3, 5, 16, 16)
    model.save_pretrained(tmp_path)
    assert torch.equal(CViViT.from_pretrained(tmp_path).features(clip), model.features(clip))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"positions": "sine"}, "must be 'rotary' or 'learned', got 'sine'"),
        ({"positions": "learned"}, "goes with learned positions, got None with 'learned'"),
        ({"max_time_steps": 4}, "goes with learned positions, got 4 with 'rotary'"),
        ({"positions": "learned", "max_time_steps": 0}, "max_time_steps must be at least 1, got 0"),
        ({"positions": "learned", "max_time_steps": 4, "temporal_window": 2}, "no temporal_window, got 2"),
    ],
)
def test_positions_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_cvivit(**changes)
