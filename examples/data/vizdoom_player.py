"""A player for ViZDoom that walks freely, and captions of what it did.

It reads the depth and the names of the things in view, which the engine gives beside the picture. A player with random
actions soon stands in front of a wall, which makes clips of one plain surface.

Screens have 160×120 pixels. Depth: uint8 (120, 160), 0 at the player, in units of about 8 map units.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

HORIZON = slice(50, 70)  # rows of the screen that floor and ceiling do not reach nearby
AHEAD = slice(50, 110)  # columns that the player's body needs free
NEAR = 7  # of depth: a wall within the next two steps
AIM = 0.17  # of half a screen: half a turn of one step, so that a correction does not overshoot
MEDIKIT, POISON, MONSTER, AMMUNITION, BARREL = "a medikit", "poison", "a monster", "ammunition", "a barrel"
LEFT, RIGHT, FORWARD, ATTACK = "turn_left", "turn_right", "move_forward", "attack"


class Thing(NamedTuple):
    """Something in view."""

    name: str
    centre: float  # −1 at the left end of the screen, 1 at the right end
    width: int  # in pixels


class Step(NamedTuple):
    """What the player saw, did and caused between two frames."""

    action: str
    target: str | None  # the thing that the action aims at
    seen: frozenset[str]  # the things in view before the action
    events: tuple[str, ...] = ()  # such as "picks up a medikit"


class Player:
    """Chooses an action from what is in view. Its choices depend on the generator and its past only.

    rng      draws turns
    actions  names of the buttons that the scenario has
    """

    def __init__(self, rng: np.random.Generator, actions: Sequence[str]):
        self.rng, self.armed = rng, ATTACK in actions
        self.turn, self.turns_left = LEFT, 0
        self.avoiding = 0  # steps in which it heads for nothing, because a wall was in the way
        self.last = FORWARD

    def act(self, depth: np.ndarray, things: Sequence[Thing]) -> tuple[str, str | None]:
        """The next action, and the name of the thing that it aims at."""
        self.last, target = self._choose(depth, things)
        return self.last, target

    def _choose(self, depth: np.ndarray, things: Sequence[Thing]) -> tuple[str, str | None]:
        self.avoiding = max(0, self.avoiding - 1)
        monster = _nearest(things, MONSTER)
        if self.armed and monster is not None:
            return self._aim(monster, ATTACK), MONSTER
        if self.turns_left:
            self.turns_left -= 1
            return self.turn, None
        if depth[HORIZON, AHEAD].min() < NEAR:
            return self._turn_from_wall(depth), None
        return self._walk(depth, things)

    def _turn_from_wall(self, depth: np.ndarray) -> str:
        if not self.avoiding:  # else it goes on to the same side, or it would swing to and fro in a corner
            self.turn = _freer_side(depth)
        self.avoiding, self.turns_left = 6, int(self.rng.integers(1, 4))
        return self.turn

    def _walk(self, depth: np.ndarray, things: Sequence[Thing]) -> tuple[str, str | None]:
        poison = _nearest(things, POISON)
        if poison is not None and abs(poison.centre) < 2 * AIM and poison.width > 5:
            return self._not_back(LEFT if poison.centre > 0 else RIGHT), None
        for name in (MEDIKIT, AMMUNITION):
            thing = None if self.avoiding else _nearest(things, name)
            if thing is not None:
                return self._aim(thing, FORWARD), name
        if not self.avoiding and self.rng.random() < 0.1:
            self.turn, self.turns_left = str(self.rng.choice((LEFT, RIGHT, _freer_side(depth)))), 2
            return self.turn, None
        return FORWARD, None

    def _aim(self, thing: Thing, action: str) -> str:
        """The action where the thing is straight ahead, else a turn towards it."""
        return action if abs(thing.centre) < AIM else self._not_back(LEFT if thing.centre < 0 else RIGHT)

    def _not_back(self, turn: str) -> str:
        """A turn, or a step forward where the turn would undo the last: between two things that never ends."""
        return FORWARD if {turn, self.last} == {LEFT, RIGHT} else turn


def _nearest(things: Sequence[Thing], name: str) -> Thing | None:
    """The widest of the things of a name, which is the nearest."""
    return max((thing for thing in things if thing.name == name), key=lambda thing: thing.width, default=None)


def _freer_side(depth: np.ndarray) -> str:
    middle = depth.shape[1] // 2
    return LEFT if depth[HORIZON, :middle].mean() > depth[HORIZON, middle:].mean() else RIGHT


VERBS = {LEFT: "turns left", RIGHT: "turns right", FORWARD: "walks forward", ATTACK: "shoots"}
MOST = 3  # parts of a caption about movements
SHORTEST = 2  # steps of a movement that the caption names; a turn of one step only corrects the direction


def caption_of(steps: Sequence[Step]) -> str:
    """What the player did in a clip, and what happened or came into view.

    For example "the player turns right and walks forward towards a medikit, picks up a medikit".
    """
    words = _joined([_words(run) for run in _movements(steps)])
    events = dict.fromkeys(event for step in steps[:-1] for event in step.events)  # after the last frame: not shown
    if events:
        return ", ".join([f"the player {words}", *events])
    targets = {step.target for step in steps}
    new = [name for name in sorted(steps[-1].seen - steps[0].seen) if name not in targets]
    return ", ".join([f"the player {words}", *(f"{name} comes into view" for name in new[:1])])


def _movements(steps: Sequence[Step]) -> list[list[Step]]:
    """Runs of equal actions: the longest ones of two steps and more, in order, joined where they follow each other."""
    runs = [list(run) for _, run in groupby(steps, key=lambda step: step.action)]
    long = [run for run in runs if len(run) >= SHORTEST or run[0].action == ATTACK] or [max(runs, key=len)]
    joined = [[step for run in same for step in run] for _, same in groupby(long, key=lambda run: run[0].action)]
    kept = sorted(sorted(range(len(joined)), key=lambda index: -len(joined[index]))[:MOST])
    together = groupby((joined[index] for index in kept), key=lambda run: run[0].action)
    return [[step for run in same for step in run] for _, same in together]


def _words(run: Sequence[Step]) -> str:
    """What the player does in a run; what it walks towards is the thing that most of the run aims at."""
    verb, targets = VERBS[run[0].action], [step.target for step in run]
    target = max(dict.fromkeys(targets), key=targets.count)
    preposition = {FORWARD: "towards", ATTACK: "at"}.get(run[0].action)
    return f"{verb} {preposition} {target}" if preposition and target else verb


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
