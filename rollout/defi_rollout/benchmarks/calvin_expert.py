"""Scripted experts of CALVIN's 34 tasks, for scene D; they read the simulator's state.

Each is a generator of actions on `calvin_arm`'s primitives, one attempt at the task; the oracle,
not the script, says when the task is done. Numbers are places on the table of scene D in metres.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from defi_rollout import errors
from defi_rollout.benchmarks import calvin_arm

_IN_CABINET = calvin_arm.DOWN - [0.0, 0.3, 0.0]  # the hand leans back, off the cabinet's rear wall
_AT_LEVER = calvin_arm.DOWN - [0.0, 0.7, 0.0]
_TABLE = (0.17, -0.10, 0.46)  # where blocks lie
_DRAWER = (0.0, 0.35)  # x over the open drawer
_DRAWER_OPEN = 0.20  # m, nearly all
_HAND = 0.11  # half of its width


def script(env: Any, task: str) -> calvin_arm.Actions:
    """One attempt at `task` from the current state of calvin_env's `env`.

    Raises:
        errors.UserError: no such task.
    """
    if task not in TASKS:
        raise errors.UserError("no expert for the task", task, f"use {', '.join(TASKS)}")
    arm = calvin_arm.Arm(env)
    if task in _HOLDING:
        return TASKS[task](arm)
    return _from_home(arm, TASKS[task])


def _from_home(
    arm: calvin_arm.Arm, play: Callable[[calvin_arm.Arm], calvin_arm.Actions]
) -> calvin_arm.Actions:
    yield from arm.go_home(calvin_arm.OPEN)
    yield from play(arm)


# -- Doors, lights


def _press_button(arm: calvin_arm.Arm) -> calvin_arm.Actions:
    x, y, _ = arm.link("button_link")
    yield from arm.move([x, y, 0.57], gripper=calvin_arm.CLOSE)
    yield from arm.move([x, y, 0.46], speed=0.4)
    yield from arm.move([x, y, 0.44], speed=0.3)


def _open_drawer(arm: calvin_arm.Arm) -> calvin_arm.Actions:
    x, y = arm.link("drawer_link")[0], -0.215 - arm.joint("base__drawer")  # behind the handle
    yield from arm.move([x, y, 0.54], gripper=calvin_arm.CLOSE)
    yield from arm.move([x, y, 0.355], speed=0.5)
    yield from arm.move([x, y - 0.20, 0.355], speed=0.5)


def _close_drawer(arm: calvin_arm.Arm) -> calvin_arm.Actions:
    x, y = arm.link("drawer_link")[0], -0.31 - arm.joint("base__drawer")  # before the handle
    yield from arm.move([x, y, 0.54], gripper=calvin_arm.CLOSE)
    yield from arm.move([x, y, 0.36], speed=0.5)
    yield from arm.move([x, -0.27, 0.36], speed=0.5)


def _move_slider(arm: calvin_arm.Arm, sign: int) -> calvin_arm.Actions:
    handle = arm.link("slide_link")[0] + 0.14
    x = handle - sign * 0.075
    yield from arm.move([x, -0.12, 0.62], gripper=calvin_arm.CLOSE)
    yield from arm.move([x, -0.02, 0.55], speed=0.5)
    yield from arm.move([handle + sign * 0.24, -0.02, 0.55], speed=0.5)


def _switch_off(arm: calvin_arm.Arm) -> calvin_arm.Actions:
    x, y, z = _lever(arm)
    yield from arm.move([x, -0.10, 0.68], _AT_LEVER, gripper=calvin_arm.CLOSE)
    yield from arm.move([x, y + 0.005, z + 0.06], _AT_LEVER, speed=0.5)
    yield from arm.move([x, y - 0.015, z - 0.04], _AT_LEVER, speed=0.4)
    yield from arm.move([x, 0.01, 0.50], _AT_LEVER, speed=0.4)


def _switch_on(arm: calvin_arm.Arm) -> calvin_arm.Actions:
    x = _lever(arm)[0]
    yield from arm.move([x, -0.12, 0.56], _AT_LEVER, gripper=calvin_arm.CLOSE)
    yield from arm.move([x, -0.06, 0.475], _AT_LEVER, speed=0.5)
    yield from arm.move([x, 0.02, 0.478], _AT_LEVER, speed=0.4)
    yield from arm.move([x, 0.02, 0.62], _AT_LEVER, speed=0.4)


def _lever(arm: calvin_arm.Arm) -> np.ndarray:
    """End of the switch's lever, [3]."""
    angle = arm.joint("base__switch")
    return np.array([arm.link("switch_link")[0], 0.012 + 0.45 * angle, 0.517 + 0.9 * angle])


# -- Blocks


def _grasp(arm: calvin_arm.Arm, colour: str) -> calvin_arm.Actions:
    if not arm.grasp(colour)[1]:
        yield from _move_aside(arm, colour)
    (x, y, z), (rotation, _) = arm.block(colour), arm.grasp(colour)
    yield from arm.move([x, y, z + 0.12], rotation, gripper=calvin_arm.OPEN)
    yield from arm.move([x, y, z], rotation, speed=0.5)
    yield from arm.hold(calvin_arm.CLOSE, 10)


def _move_aside(arm: calvin_arm.Arm, colour: str) -> calvin_arm.Actions:
    """Pushes a block 6 cm off, to where the fingers fit beside it; fingers would press neighbours
    through the table."""
    place, others = arm.block(colour), [arm.block(c) for c in arm.colours if c != colour]
    reach = float(np.linalg.norm(arm.half_size(colour)[:2])) + 0.03
    ways = [np.array(way) for way in ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (1.0, 0.0, 0.0))]

    def room(way: np.ndarray) -> tuple[bool, float]:
        after = place + 0.06 * way
        nearest = min(float(np.linalg.norm(after - other)) for other in others)
        return arm.is_free(place - reach * way, 0.02) and -0.1 < after[0] < 0.38, nearest

    way = max(ways, key=room)
    start, end = place - reach * way, place + (0.06 - reach + 0.03) * way
    yield from arm.move([*start[:2], place[2] + 0.12], gripper=calvin_arm.CLOSE)
    yield from arm.move(start, speed=0.5)
    yield from arm.move(end, speed=0.3)
    yield from arm.move([*end[:2], place[2] + 0.12])


def _lift(arm: calvin_arm.Arm, colour: str) -> calvin_arm.Actions:
    yield from _grasp(arm, colour)
    x, y, z = arm.position()
    yield from arm.move([x, y, z + 0.17], arm.rotation(), speed=0.5)


def _lift_from_cabinet(arm: calvin_arm.Arm, colour: str) -> calvin_arm.Actions:
    x, y, z = arm.block(colour)
    door = arm.link("slide_link")[0]
    if door - _HAND < x < door + 0.28 + _HAND:  # a door that counts as moved may be in the way
        yield from _move_slider(arm, -1 if x > door + 0.14 else 1)
        yield from arm.go_home(calvin_arm.OPEN)
    yield from arm.move([x, -0.14, 0.60], _IN_CABINET, gripper=calvin_arm.OPEN)
    yield from arm.move([x, y - 0.07, 0.52], _IN_CABINET, speed=0.5)
    yield from arm.move([x, y, z + 0.005], _IN_CABINET, speed=0.4)
    yield from arm.hold(calvin_arm.CLOSE, 10)
    yield from arm.move([x, y - 0.02, z + 0.06], _IN_CABINET, speed=0.4)
    yield from arm.move([x, -0.12, 0.58], _IN_CABINET, speed=0.5)


def _rotate(arm: calvin_arm.Arm, colour: str, sign: int) -> calvin_arm.Actions:
    yield from _grasp(arm, colour)
    x, y, z = arm.position()
    rotation = calvin_arm.turned(arm.rotation(), -sign * 1.35)
    yield from arm.move([x, y, z + 0.01], rotation, speed=0.5, limit=60)
    yield from arm.hold(calvin_arm.OPEN, 15)


def _push(arm: calvin_arm.Arm, colour: str, sign: int) -> calvin_arm.Actions:
    x, y, z = arm.block(colour)
    start = x - sign * (np.linalg.norm(arm.half_size(colour)[:2]) + 0.03)
    if arm.is_free(np.array([start, y, z]), 0.02):
        yield from arm.move([start, y, z + 0.12], gripper=calvin_arm.CLOSE)
        yield from arm.move([start, y, z + 0.005], speed=0.5)
    else:  # another block stands there: drags this one
        yield from _grasp(arm, colour)
        start = x
    end, rotation = [start + sign * 0.18, y, z + 0.005], arm.rotation()
    # Lets the block slide the last part on its own: it may not be pushed into the drawer next if
    # the robot touches it at that task's start.
    for pushed in (0.07, 0.09):
        for action in arm.move(end, rotation, speed=0.8):
            yield action
            if abs(arm.block(colour)[0] - x) > pushed:
                break
        yield from arm.hold(calvin_arm.CLOSE, 8)
    yield from arm.move(end, rotation, speed=0.35)


def _push_into_drawer(arm: calvin_arm.Arm) -> calvin_arm.Actions:
    colour = _on_table(arm, arm.colours)
    x, y, z = arm.block(colour)
    start = y + np.linalg.norm(arm.half_size(colour)[:2]) + 0.02
    if not _DRAWER[0] < x < _DRAWER[1]:  # pushed straight it would miss the drawer
        yield from _grasp(arm, colour)
        yield from _place_in_drawer(arm)
        return
    yield from arm.move([x, start, z + 0.12], gripper=calvin_arm.CLOSE)
    yield from arm.move([x, start, z], speed=0.4)
    yield from arm.move([x, -0.215, z], speed=0.35)
    yield from arm.move([x, -0.16, 0.56])


def _place_in_drawer(arm: calvin_arm.Arm) -> calvin_arm.Actions:
    x, y = arm.link("drawer_link")[0], -0.10 - arm.joint("base__drawer")
    yield from _carry(arm, [x, y, 0.55], calvin_arm.DOWN)
    yield from arm.move([x, y, 0.43], speed=0.5)
    yield from arm.hold(calvin_arm.OPEN, 12)
    yield from arm.move([x, y, 0.55])


def _place_in_cabinet(arm: calvin_arm.Arm) -> calvin_arm.Actions:
    x = _free_place(arm)
    yield from _carry(arm, [x, -0.14, 0.62], _IN_CABINET)
    yield from arm.move([x, 0.03, 0.545], _IN_CABINET, speed=0.5)
    yield from arm.move([x, 0.075, 0.485], _IN_CABINET, speed=0.4)
    yield from arm.hold(calvin_arm.OPEN, 12)
    yield from arm.move([x, -0.12, 0.58], _IN_CABINET, speed=0.5)


def _free_place(arm: calvin_arm.Arm) -> float:
    """x in the cabinet that the door leaves open, farthest from the blocks there."""
    middle, door = arm.link("plank_link")[0], arm.link("slide_link")[0]
    left, right = middle - 0.26, middle + 0.26
    opening = (left, door) if door - left > right - (door + 0.28) else (door + 0.28, right)
    places = np.linspace(opening[0] + 0.04, opening[1] - 0.04, 15)
    held = arm.held()
    taken = [arm.block(c)[0] for c in arm.colours if c != held and _in_cabinet(arm.block(c))]
    centre = places.mean()

    def room(x: float) -> float:
        return min([0.10, *(abs(x - other) for other in taken)]) - 0.1 * abs(x - centre)

    return float(max(places, key=room))


def _stack(arm: calvin_arm.Arm) -> calvin_arm.Actions:
    held = arm.held()
    base = _on_table(arm, [c for c in arm.colours if c != held])
    x, y, z = arm.block(base)
    z += arm.half_size(base)[2] + 0.03
    rotation = arm.rotation()
    yield from _carry(arm, [x, y, z + 0.10], rotation)
    yield from arm.move([x, y, z], rotation, speed=0.3)
    yield from arm.hold(calvin_arm.OPEN, 15)
    yield from arm.move([x, y, z + 0.12], rotation, speed=0.4)
    yield from arm.hold(calvin_arm.OPEN, 10)


def _lift_from_drawer(arm: calvin_arm.Arm, colour: str) -> calvin_arm.Actions:
    if arm.joint("base__drawer") < _DRAWER_OPEN:  # counts as open, but leaves no room for the hand
        yield from _open_drawer(arm)
        yield from arm.go_home(calvin_arm.OPEN)
    yield from _lift(arm, colour)


def _unstack(arm: calvin_arm.Arm) -> calvin_arm.Actions:
    """Tips the upper block off slowly, so that it lies on the table when the two part.

    The oracle lets a block be pushed or lifted next only if it lies somewhere at that task's start.
    """
    top = max(arm.colours, key=lambda c: arm.block(c)[2])
    x, y, z = arm.block(top)
    sign = 1 if x < _TABLE[0] else -1  # towards the middle
    start = x - sign * (np.linalg.norm(arm.half_size(top)[:2]) + 0.02)
    yield from arm.move([start, y, z + 0.12], gripper=calvin_arm.CLOSE)
    yield from arm.move([start, y, z + 0.012], speed=0.5)
    yield from arm.move([x + sign * 0.12, y, z + 0.012], speed=0.10, limit=180)


def _carry(arm: calvin_arm.Arm, position: list[float], rotation: np.ndarray) -> calvin_arm.Actions:
    """Brings the block in hand over everything else to above a place."""
    x, y, z = arm.position()
    yield from arm.move(
        [x, min(y, -0.12), max(z, calvin_arm.SAFE_HEIGHT)], arm.rotation(), gripper=calvin_arm.CLOSE
    )
    yield from arm.move([position[0], position[1], calvin_arm.SAFE_HEIGHT], rotation)
    yield from arm.move(position, rotation)


def _in_cabinet(position: np.ndarray) -> bool:
    return bool(position[1] > 0.03)


def _on_table(arm: calvin_arm.Arm, colours: Sequence[str]) -> str:
    """The block outside of the cabinet that is nearest to where blocks lie on the table."""

    def distance(colour: str) -> tuple[bool, float]:
        place = arm.block(colour)
        return _in_cabinet(place), float(np.linalg.norm(place - _TABLE))

    return min(colours, key=distance)


_COLOURS = ("red", "blue", "pink")
_SIDES = {"left": -1, "right": 1}

TASKS: dict[str, Callable[[calvin_arm.Arm], calvin_arm.Actions]] = {
    "open_drawer": _open_drawer,
    "close_drawer": _close_drawer,
    **{f"move_slider_{s}": functools.partial(_move_slider, sign=n) for s, n in _SIDES.items()},
    "turn_on_led": _press_button,
    "turn_off_led": _press_button,
    "turn_on_lightbulb": _switch_on,
    "turn_off_lightbulb": _switch_off,
    **{f"lift_{c}_block_table": functools.partial(_lift, colour=c) for c in _COLOURS},
    **{f"lift_{c}_block_drawer": functools.partial(_lift_from_drawer, colour=c) for c in _COLOURS},
    **{f"lift_{c}_block_slider": functools.partial(_lift_from_cabinet, colour=c) for c in _COLOURS},
    **{
        f"{verb}_{c}_block_{s}": functools.partial(play, colour=c, sign=n)
        for verb, play in (("push", _push), ("rotate", _rotate))
        for c in _COLOURS
        for s, n in _SIDES.items()
    },
    "push_into_drawer": _push_into_drawer,
    "place_in_drawer": _place_in_drawer,
    "place_in_slider": _place_in_cabinet,
    "stack_block": _stack,
    "unstack_block": _unstack,
}
_HOLDING = ("place_in_drawer", "place_in_slider", "stack_block")  # tasks begun with a block in hand
