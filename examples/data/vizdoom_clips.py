"""Clips of the game ViZDoom, with captions and actions: playing, cutting into clips, writing the tables.

The screen of 160×120 pixels is averaged over boxes to a square, so that nothing of its 90 degrees is lost; shapes
become 3/4 as wide. An action lasts 4 tics of 1/35 s. Episodes in which the player dies are replaced by others. The same
seed and scenario give the same episodes, however many there are.

f = frames
"""

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from data.actions import write_actions
from data.media import write_mp4
from data.outputs import written
from data.vizdoom_player import (
    AMMUNITION,
    ATTACK,
    BARREL,
    FORWARD,
    LEFT,
    MEDIKIT,
    MONSTER,
    POISON,
    RIGHT,
    Player,
    Step,
    Thing,
    caption_of,
)

STEPS = 100  # of an episode
SKIP = 4  # tics of an action
ATTEMPTS = 50  # at an episode in which the player lives
FPS = 35 / SKIP
SPLITS = ("train",) * 8 + ("valid", "test")  # of ten episodes
POISONED = 20  # points of health that only poison takes in one step
THINGS = {"CustomMedikit": MEDIKIT, "Poison": POISON, "Clip": AMMUNITION, "ExplosiveBarrel": BARREL}
SCENARIOS = {
    "health_gathering_supreme": (LEFT, RIGHT, FORWARD),
    "battle2": (LEFT, RIGHT, FORWARD, ATTACK),
}


class State(NamedTuple):
    """Numbers of the game that tell what happened."""

    health: float
    kills: float
    ammunition: float


class Episode(NamedTuple):
    """The frames of an episode, uint8 (f, 3, size, size), and the step that follows each."""

    frames: Tensor
    steps: list[Step]


@contextmanager
def opened_game(scenario: str, wad: Path | None) -> Iterator[Any]:
    """The game, running without a window. Raises ValueError where ViZDoom or the scenario's file is missing."""
    try:
        import vizdoom
    except ImportError as error:
        raise ValueError('recording needs the package vizdoom: pip install ".[doom]"') from error
    wad = Path(vizdoom.scenarios_path, f"{scenario}.wad") if wad is None else wad.resolve()
    if not wad.is_file():
        raise ValueError(f"the scenario {scenario} needs its .wad file, expected it at {wad} or given with --wad")
    game = vizdoom.DoomGame()
    game.set_doom_scenario_path(str(wad))
    game.set_doom_map("map01")
    game.set_window_visible(False)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_render_hud(False)
    game.set_render_screen_flashes(False)
    game.set_depth_buffer_enabled(True)
    game.set_labels_buffer_enabled(True)
    game.set_available_buttons([getattr(vizdoom.Button, name.upper()) for name in SCENARIOS[scenario]])
    game.set_available_game_variables(
        [getattr(vizdoom.GameVariable, name) for name in ("HEALTH", "KILLCOUNT", "AMMO2")]
    )
    game.set_episode_timeout(2 * STEPS * SKIP)
    with tempfile.TemporaryDirectory() as folder:  # the engine leaves files of its own in the current folder
        game.set_doom_config_path(str(Path(folder, "vizdoom.ini")))
        with chdir(folder):
            game.init()
        try:
            yield game
        finally:
            game.close()


def play(game: Any, scenario: str, seed: Sequence[int], size: int) -> Episode:
    """One episode of full length; the seed is that of the player and of the game.

    Raises ValueError where the player always dies.
    """
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([*seed, attempt])
        game.set_seed(int(rng.integers(2**31)))
        game.new_episode()
        episode = _attempt(game, Player(rng, SCENARIOS[scenario]), SCENARIOS[scenario], size)
        if len(episode.steps) == STEPS:
            return episode
    raise ValueError(f"the player died in {ATTEMPTS} episodes in a row, expected {STEPS} steps of {scenario}")


def _attempt(game: Any, player: Player, buttons: Sequence[str], size: int) -> Episode:
    """The steps up to the full length or the player's death."""
    frames, steps = [], []
    while len(steps) < STEPS and not game.is_episode_finished():
        state = game.get_state()
        things = [thing for label in state.labels if (thing := _thing(label, state.screen_buffer.shape[1])) is not None]
        action, target = player.act(state.depth_buffer, things)
        frames.append(shrunk(state.screen_buffer, size))
        before = State(*state.game_variables)
        game.make_action([name == action for name in buttons], SKIP)
        if game.is_player_dead():
            break
        after = State(*(game.get_game_variable(name) for name in game.get_available_game_variables()))
        seen = frozenset(thing.name for thing in things)
        steps.append(Step(action, target, seen, events_between(before, after, seen)))
    return Episode(torch.stack(frames), steps)


def _thing(label: Any, screen_width: int) -> Thing | None:
    """What the engine's label stands for; None for what is of no interest."""
    name = MONSTER if label.object_category == "Monster" else THINGS.get(label.object_name)
    centre = (2 * label.x + label.width) / screen_width - 1
    return None if name is None else Thing(name, centre, label.width)


def events_between(before: State, after: State, seen: Set[str]) -> tuple[str, ...]:
    """What the player caused in a step, in words; `seen`: the things in view before it."""
    happened = {
        f"picks up {MEDIKIT}": after.health > before.health,
        f"picks up {POISON}": POISON in seen and after.health <= before.health - POISONED,
        f"picks up {AMMUNITION}": after.ammunition > before.ammunition,
        f"kills {MONSTER}": after.kills > before.kills,
    }
    return tuple(words for words, did in happened.items() if did)


def shrunk(screen: np.ndarray, size: int) -> Tensor:
    """uint8 (height, width, 3) -> uint8 (3, size, size): means over boxes."""
    image = Image.fromarray(screen).resize((size, size), Image.Resampling.BOX)
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w")


class Recorder:
    """Writes the clips of episodes into the folders of a data set, and at the end their tables.

    folder  of the data set
    frames  of a clip; the frames of an episode that do not fill one are left out
    """

    def __init__(self, folder: Path, frames: int):
        self.folder, self.frames = folder, frames
        self.captions: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
        self.actions: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
        self.sums, self.values = torch.zeros(2, dtype=torch.float64), 0

    def add(self, number: int, episode: Episode) -> None:
        """Write the clips of the episode of a number, from 0 on."""
        split = SPLITS[number % len(SPLITS)]
        for start in range(0, STEPS - self.frames + 1, self.frames):
            part = slice(start, start + self.frames)
            name, steps = f"{number:05d}_{start:02d}.mp4", episode.steps[part]
            clip = rearrange(episode.frames[part] / 255, "f c h w -> c f h w")
            write_mp4(self.folder / split / name, clip, FPS)
            self.captions[split][name] = caption_of(steps)
            self.actions[split][name] = [step.action for step in steps]
            if split == "train":
                self.sums += torch.stack((clip.double().sum(), clip.double().square().sum()))
                self.values += clip.numel()

    def finish(self, about: dict[str, Any]) -> None:
        """Write the tables of each folder, and what the data set is."""
        for split, captions in self.captions.items():
            if not captions:
                continue
            write_actions(self.folder / split, SCENARIOS[about["scenario"]], self.actions[split])
            table = self.folder / split / "captions.csv"
            with written(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("file", "caption"), *captions.items()])
        with written(self.folder / "about.json") as temporary:
            temporary.write_text(json.dumps({**about, "fps": FPS, "variance": self.variance()}, indent=2) + "\n")

    def variance(self) -> float:
        """The variance of the pixels of the training clips, in [0, 1]: what a VQ-VAE divides its loss by."""
        mean, square = (self.sums / self.values).tolist()
        return square - mean**2


def summary(recorder: Recorder) -> str:
    """How many clips, captions and actions there are."""
    lines = []
    for split, captions in recorder.captions.items():
        taken = Counter(action for actions in recorder.actions[split].values() for action in actions)
        shares = ", ".join(f"{action} {number / taken.total():.0%}" for action, number in taken.most_common())
        lines.append(
            f"{split}: {len(captions)} clips, {len(set(captions.values()))} captions; {shares or 'no actions'}"
        )
    return "\n".join(lines)
