"""Recorded clips of ViZDoom: full episodes, the same for the same seed, readable as any folder of videos.

A game of the tests' own stands for the engine; the last tests play the real one, where it is installed.
"""

import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from einops import rearrange

import vizdoom_clips
from data.actions import read_actions
from data.captions import read_captions
from data.video_folder import VideoFolder
from data.video_reader import read_video
from data.vizdoom_clips import STEPS, State, events_between, opened_game, play, shrunk
from data.vizdoom_player import AMMUNITION, FORWARD, MEDIKIT, MONSTER, POISON

HGS = "health_gathering_supreme"


class ToyGame:
    """A corridor of stripes that moves as the player turns; the first `deadly` episodes end after 10 steps."""

    def __init__(self, deadly=0):
        self.deadly, self.seeds = deadly, []

    def set_seed(self, seed):
        self.seeds.append(seed)

    def new_episode(self):
        self.steps, self.angle, self.health = 0, self.seeds[-1] % 160, 100.0
        self.deadly -= 1

    def is_player_dead(self):
        return self.deadly >= 0 and self.steps >= 10

    def is_episode_finished(self):
        return self.is_player_dead()

    def make_action(self, buttons, skip):
        assert skip == 4 and sum(buttons) == 1 and len(buttons) == 3
        self.steps += 1
        self.angle += 22 * (buttons[1] - buttons[0])
        self.health += 10 if self.steps % 30 == 15 else -1

    def get_state(self):
        screen = np.zeros((120, 160, 3), dtype=np.uint8)
        screen[:] = (127 + 100 * np.sin((np.arange(160) + self.angle) / 12))[:, None]
        label = SimpleNamespace(object_name="CustomMedikit", object_category="Health", x=60, width=40)
        wall = SimpleNamespace(object_name="DoomPlayer", object_category="Self", x=60, width=40)
        depth = np.full((120, 160), 100, dtype=np.uint8)
        variables = (self.health, 0.0, 0.0)
        return SimpleNamespace(screen_buffer=screen, depth_buffer=depth, labels=[label, wall], game_variables=variables)

    def get_available_game_variables(self):
        return ("HEALTH", "KILLCOUNT", "AMMO2")

    def get_game_variable(self, name):
        return {"HEALTH": self.health}.get(name, 0.0)


@pytest.fixture
def toy(monkeypatch):
    @contextmanager
    def opened(scenario, wad):
        yield ToyGame()

    monkeypatch.setattr(vizdoom_clips, "opened_game", opened)


def record(folder, *arguments):
    vizdoom_clips.main(["--out", str(folder), *map(str, arguments)])
    return folder


def test_an_episode_has_its_full_length_and_an_action_for_every_frame():
    episode = play(ToyGame(), HGS, (0, 0), 64)
    assert len(episode.steps) == STEPS and episode.frames.shape == (STEPS, 3, 64, 64)
    assert episode.frames.dtype == torch.uint8
    assert {step.action for step in episode.steps} == {FORWARD} and episode.steps[0].target == MEDIKIT


def test_the_seed_determines_the_episode():
    def seeds(*seed):
        game = ToyGame()
        play(game, HGS, seed, 16)
        return game.seeds

    assert seeds(0, 1) == seeds(0, 1)
    assert len({tuple(seeds(*seed)) for seed in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_an_episode_in_which_the_player_dies_is_replaced():
    game = ToyGame(deadly=2)
    assert len(play(game, HGS, (0, 0), 16).steps) == STEPS
    assert len(set(game.seeds)) == 3
    with pytest.raises(ValueError, match="died in 50 episodes in a row, expected 100 steps"):
        play(ToyGame(deadly=1000), HGS, (0, 0), 16)


def test_frames_are_means_over_boxes_of_the_whole_screen():
    screen = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    means = rearrange(torch.from_numpy(screen).float(), "(y h) (x w) c -> c y x h w", h=3, w=4).mean(dim=(3, 4))
    torch.testing.assert_close(shrunk(screen, 40).float(), means, rtol=0, atol=1.01)


@pytest.mark.parametrize(
    ("before", "after", "seen", "events"),
    [
        ((50, 0, 0), (75, 0, 0), (), (f"picks up {MEDIKIT}",)),
        ((50, 0, 0), (42, 0, 0), (POISON,), ()),
        ((50, 0, 0), (12, 0, 0), (POISON,), (f"picks up {POISON}",)),
        ((50, 0, 0), (12, 0, 0), (), ()),
        ((50, 0, 3), (50, 0, 2), (), ()),
        ((50, 0, 3), (50, 1, 13), (), (f"picks up {AMMUNITION}", f"kills {MONSTER}")),
    ],
)
def test_events_follow_from_the_numbers_of_the_game(before, after, seen, events):
    assert events_between(State(*before), State(*after), set(seen)) == events


def test_a_data_set_is_split_by_episode_and_reads_as_a_folder_of_videos(toy, tmp_path, capsys):
    folder = record(tmp_path / "doom", "--episodes", 10, "--frames", 30, "--size", 16)
    for split, episodes in (("train", range(8)), ("valid", [8]), ("test", [9])):
        wanted = {folder / split / f"{episode:05d}_{start:02d}.mp4" for episode in episodes for start in (0, 30, 60)}
        assert set((folder / split).glob("*.mp4")) == wanted
        captions, (names, rows) = read_captions(folder / split), read_actions(folder / split)
        assert {folder / split / row.file for row in captions.values()} == wanted and captions.keys() == rows.keys()
        assert {row.caption for row in captions.values()} == {
            "the player walks forward towards a medikit, picks up a medikit"
        }
        assert names == ("turn_left", "turn_right", "move_forward")
        assert all(clip.shape == (30, 3) and (clip.sum(axis=1) == 1).all() for _, clip in rows.values())
    data = VideoFolder(folder / "train", size=16, num_frames=17)
    assert len(data) == 24 and data[0]["video"].shape == (3, 17, 16, 16)
    assert data.action_names == names and data[0]["actions"].shape == (17, 3)
    assert "train: 24 clips, 1 captions; move_forward 100%" in capsys.readouterr().out


def test_what_the_data_set_is_stands_beside_it_with_the_variance_of_its_pixels(toy, tmp_path):
    folder = record(tmp_path / "doom", "--episodes", 2, "--frames", 50, "--size", 16, "--seed", 3)
    about = json.loads((folder / "about.json").read_text())
    pixels = torch.stack([read_video(path)[0] for path in sorted((folder / "train").glob("*.mp4"))])
    assert about["variance"] == pytest.approx(pixels.var().item(), rel=0.05)
    assert (about["scenario"], about["episodes"], about["seed"], about["fps"]) == (HGS, 2, 3, 8.75)


def test_nothing_is_written_into_a_folder_that_holds_something(toy, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"new or empty folder.*holds notes\.txt"):
        record(tmp_path, "--episodes", 1)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["notes.txt"]


def test_wrong_arguments_end_with_one_line(toy, tmp_path, capsys):
    with pytest.raises(SystemExit, match="size must be even for mp4, got 15"):
        record(tmp_path / "doom", "--size", 15)
    for arguments in (("--frames", 101), ("--episodes", 0), ("--scenario", "battle3")):
        with pytest.raises(SystemExit):
            record(tmp_path / "doom", *arguments)
    assert "at most 100, got 101" in capsys.readouterr().err


def test_without_the_package_the_program_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(SystemExit, match=r'pip install "\.\[doom\]"'):
        record(tmp_path / "doom")


# the real game


@pytest.fixture(scope="module")
def episode():
    pytest.importorskip("vizdoom", reason="ViZDoom is not installed")
    with opened_game(HGS, None) as game:
        return play(game, HGS, (0, 0), 64)


def test_the_same_seed_gives_the_same_frames_and_actions_of_the_real_game(episode):
    with opened_game(HGS, None) as game:
        play(game, HGS, (5, 0), 64)  # what was played before does not matter
        again, other = play(game, HGS, (0, 0), 64), play(game, HGS, (0, 1), 64)
    assert torch.equal(episode.frames, again.frames) and episode.steps == again.steps
    assert not torch.equal(episode.frames, other.frames)


def test_the_player_of_the_real_game_walks_on(episode):
    changes = (episode.frames[1:].float() - episode.frames[:-1]).abs().mean(dim=(1, 2, 3))
    assert (changes > 1).float().mean() > 0.9
    assert any("picks up a medikit" in step.events for step in episode.steps)


def test_files_hold_the_pixels_of_the_real_game_frame_by_frame(episode, tmp_path, monkeypatch):
    @contextmanager
    def opened(scenario, wad):
        yield None

    monkeypatch.setattr(vizdoom_clips, "opened_game", opened)
    monkeypatch.setattr(vizdoom_clips, "play", lambda *arguments: episode)
    folder = record(tmp_path / "doom", "--episodes", 1, "--frames", STEPS)
    video, fps = read_video(folder / "train" / "00000_00.mp4")
    original = rearrange(episode.frames / 255, "f c h w -> c f h w")
    error = (video - original).square().mean(dim=(0, 2, 3))
    assert fps == 8.75 and (-10 * error.log10()).min() > 33 and -10 * error.mean().log10() > 37
    for distance in (-2, -1, 1, 2):  # no frame is stored in the place of a neighbour
        neighbour = (video - original.roll(distance, dims=1)).square().mean(dim=(0, 2, 3))
        assert (error <= neighbour).all()


def test_a_scenario_without_its_file_is_refused_with_its_path(tmp_path):
    pytest.importorskip("vizdoom", reason="ViZDoom is not installed")
    with pytest.raises(SystemExit, match=r"battle2 needs its \.wad file, expected it at .*battle2\.wad"):
        record(tmp_path / "doom", "--scenario", "battle2")


def test_the_engine_leaves_no_file_in_the_current_folder(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom", reason="ViZDoom is not installed")
    monkeypatch.chdir(tmp_path)
    with opened_game(HGS, None):
        pass
    assert list(tmp_path.iterdir()) == []
