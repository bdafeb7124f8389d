"""The player heads for medikits, around walls and poison, and captions say what it did. No game is needed."""

import numpy as np
import pytest

from data.vizdoom_player import (
    ATTACK,
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

BUTTONS = (LEFT, RIGHT, FORWARD)


def player(seed=0, actions=BUTTONS):
    return Player(np.random.default_rng(seed), actions)


def depth(far=100, left=None, right=None):
    values = np.full((120, 160), far, dtype=np.uint8)
    if left is not None:
        values[:, :80] = left
    if right is not None:
        values[:, 80:] = right
    return values


def steps(*runs, target=None, seen=()):
    return [Step(action, target, frozenset(seen)) for action, count in runs for _ in range(count)]


@pytest.mark.parametrize(("centre", "action"), [(-0.6, LEFT), (0.0, FORWARD), (0.1, FORWARD), (0.6, RIGHT)])
def test_it_heads_for_a_medikit(centre, action):
    assert player().act(depth(), [Thing(MEDIKIT, centre, 8)]) == (action, MEDIKIT)


def test_it_heads_for_the_nearest_of_several():
    things = [Thing(MEDIKIT, -0.8, 4), Thing(MEDIKIT, 0.8, 12), Thing(MEDIKIT, -0.5, 6)]
    assert player().act(depth(), things) == (RIGHT, MEDIKIT)


@pytest.mark.parametrize(("left", "right", "action"), [(3, 60, RIGHT), (60, 3, LEFT)])
def test_it_turns_from_a_wall_to_the_freer_side(left, right, action):
    assert player().act(depth(left=left, right=right), [Thing(MEDIKIT, 0.0, 8)]) == (action, None)


def test_in_a_corner_it_turns_on_to_one_side():
    walker, taken = player(), []
    for left in (2, 4, 2, 4, 2, 4):  # the freer side changes
        taken.append(walker.act(depth(left=left, right=3), [])[0])
    assert set(taken) == {RIGHT} or set(taken) == {LEFT}


def test_between_two_medikits_it_does_not_turn_to_and_fro():
    walker = player()
    taken = [walker.act(depth(), [Thing(MEDIKIT, side, 8)])[0] for side in (-0.3, 0.3, -0.3, 0.3)]
    assert taken == [LEFT, FORWARD, LEFT, FORWARD]


@pytest.mark.parametrize(("centre", "action"), [(-0.1, RIGHT), (0.1, LEFT)])
def test_it_turns_from_poison(centre, action):
    assert player().act(depth(), [Thing(POISON, centre, 8), Thing(MEDIKIT, 0.0, 8)]) == (action, None)


@pytest.mark.parametrize(("centre", "action"), [(-0.6, LEFT), (0.0, ATTACK), (0.6, RIGHT)])
def test_it_shoots_at_monsters_where_it_can(centre, action):
    assert player(actions=(*BUTTONS, ATTACK)).act(depth(), [Thing(MONSTER, centre, 8)]) == (action, MONSTER)
    assert player().act(depth(), [Thing(MONSTER, centre, 8)])[0] != ATTACK


def test_with_nothing_in_view_it_walks_and_sometimes_turns_as_its_generator_says():
    def taken(seed):
        walker = player(seed)
        return [walker.act(depth(), [])[0] for _ in range(200)]

    assert taken(0) == taken(0) != taken(1)
    assert {LEFT, RIGHT, FORWARD} == set(taken(0))
    assert taken(0).count(FORWARD) > 100


@pytest.mark.parametrize(
    ("taken", "caption"),
    [
        (steps((FORWARD, 20)), "the player walks forward"),
        (steps((RIGHT, 4), (FORWARD, 8)), "the player turns right and walks forward"),
        (steps((LEFT, 4), (FORWARD, 8), (RIGHT, 3)), "the player turns left, walks forward and turns right"),
        (steps((FORWARD, 6), (LEFT, 1), (FORWARD, 6)), "the player walks forward"),
        (steps((LEFT, 1)), "the player turns left"),
        (
            steps((FORWARD, 9), (LEFT, 5), (RIGHT, 2), (FORWARD, 4)),
            "the player walks forward, turns left and walks forward",
        ),
        (steps((FORWARD, 9), (LEFT, 2), (FORWARD, 8), (RIGHT, 5)), "the player walks forward and turns right"),
        (steps((FORWARD, 9), target=MEDIKIT), "the player walks forward towards a medikit"),
        (steps((RIGHT, 9), target=MEDIKIT), "the player turns right"),
        (
            steps((ATTACK, 1), (FORWARD, 5), target=MONSTER),
            "the player shoots at a monster and walks forward towards a monster",
        ),
    ],
)
def test_captions_name_the_longest_movements_in_order(taken, caption):
    assert caption_of(taken) == caption


def test_captions_name_what_happened_where_the_clip_shows_it():
    taken = steps((RIGHT, 4)) + steps((FORWARD, 8), target=MEDIKIT)
    taken[9] = taken[9]._replace(events=("picks up a medikit",))
    assert caption_of(taken) == "the player turns right and walks forward towards a medikit, picks up a medikit"
    taken[9], taken[11] = taken[9]._replace(events=()), taken[11]._replace(events=("picks up a medikit",))
    assert caption_of(taken) == "the player turns right and walks forward towards a medikit"


def test_captions_name_what_came_into_view():
    def taken(first, last, target=None):
        return steps((FORWARD, 5), seen=first, target=target) + steps((FORWARD, 5), seen=last, target=target)

    assert caption_of(taken((), {POISON})) == "the player walks forward, poison comes into view"
    assert caption_of(taken({POISON}, {POISON})) == "the player walks forward"
    assert caption_of(taken((), {MEDIKIT}, MEDIKIT)) == "the player walks forward towards a medikit"


def test_events_that_happen_twice_are_named_once():
    taken = [step._replace(events=("picks up a medikit",)) for step in steps((FORWARD, 5))]
    assert caption_of(taken) == "the player walks forward, picks up a medikit"
