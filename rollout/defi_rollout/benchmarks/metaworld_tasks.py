"""Tasks of Meta-World: how they are said, how long they may take, which of them are opposites."""

import dataclasses
import difflib

import numpy as np

from defi_rollout import errors

# Success from a half-way start: this displacement of the joint (metres) in the instructed direction
# suffices.
HALF_WAY_DISPLACEMENT = 0.06


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a task is called, said and given.

    Attributes:
        instructions: paraphrases, the canonical one first.
        horizon: control steps an evaluation episode may take; experts need at most half of them.
    """

    instructions: tuple[str, ...]
    horizon: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two opposite tasks of one scene, and the half-way start they share.

    Joint values in metres. `done_open` and `done_closed` are where the tasks' own success begins.

    Attributes:
        low, high: range of the object's position.
        joint_low, joint_high: range of the joint at a half-way start.
    """

    opens: str
    closes: str
    body: str
    joint: str
    done_open: float
    done_closed: float
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    joint_low: float
    joint_high: float

    @property
    def tasks(self) -> tuple[str, str]:
        """The opening task, then the closing one."""
        return self.opens, self.closes

    def succeeds(self, task: str, joint: float, start: float) -> bool:
        """Whether `joint` (m) fulfils `task` from the half-way start `start` (m)."""
        opening = np.sign(self.done_open - self.done_closed)
        direction = opening if task == self.opens else -opening
        goal = self.done_open if task == self.opens else self.done_closed
        return bool(
            direction * (joint - goal) >= 0.0
            or direction * (joint - start) >= HALF_WAY_DISPLACEMENT
        )


def _task(horizon: int, instructions: str) -> Task:
    """Builds a row from instructions separated by semicolons."""
    return Task(instructions=tuple(instructions.split("; ")), horizon=horizon)


TASKS: dict[str, Task] = {
    "drawer-open-v3": _task(
        250,
        "open the drawer; pull the drawer open; slide the drawer out; pull the green drawer "
        "out towards you; get the drawer open",
    ),
    "drawer-close-v3": _task(
        250,
        "close the drawer; push the drawer shut; slide the drawer in; push the green drawer "
        "back in; get the drawer closed",
    ),
    "button-press-topdown-v3": _task(
        250,
        "press the button; push the red button down; press the button from above; hit the red"
        " button; push down on the button",
    ),
    "window-open-v3": _task(
        250,
        "open the window; slide the window open; push the window to the right; move the "
        "window handle right to open it; get the window open",
    ),
    "window-close-v3": _task(
        250,
        "close the window; slide the window shut; push the window to the left; move the "
        "window handle left to close it; get the window closed",
    ),
    "button-press-v3": _task(
        250,
        "press the front button; push the button in from the front; press the button forward; "
        "push the red button away from you",
    ),
    "coffee-button-v3": _task(
        250,
        "press the button of the coffee machine; start the coffee machine; push the coffee "
        "button; turn the coffee machine on",
    ),
    "door-open-v3": _task(
        300, "open the door; pull the door open; swing the door open; pull the safe open"
    ),
    "door-close-v3": _task(
        300, "close the door; push the door shut; swing the door closed; push the safe shut"
    ),
    "faucet-open-v3": _task(
        300, "open the faucet; turn the faucet on; rotate the tap open; let the water run"
    ),
    "faucet-close-v3": _task(
        300, "close the faucet; turn the faucet off; rotate the tap shut; stop the water"
    ),
    "handle-press-v3": _task(
        250, "press the handle down; push the handle downwards; lower the handle; force it down"
    ),
    "handle-pull-v3": _task(
        250, "pull the handle up; raise the handle; lift the handle upwards; lever the handle up"
    ),
    "lever-pull-v3": _task(
        300, "pull the lever up; raise the lever; lift the lever from below; turn the lever upwards"
    ),
    "pick-place-v3": _task(
        300,
        "pick the red puck up and bring it to the goal; lift the puck to the goal; grasp the "
        "red puck and hold it at the target; carry the puck to the target",
    ),
    "plate-slide-v3": _task(
        250,
        "slide the plate into the goal; push the plate forward into the net; slide the plate "
        "away from you; push the puck plate into the cabinet",
    ),
    "push-v3": _task(
        250,
        "push the red puck to the goal; slide the puck over the table; move the puck forward "
        "on the table; push the puck to the target",
    ),
    "reach-v3": _task(
        200, "reach the goal; reach for the target; move the hand to the goal; touch the target"
    ),
    "sweep-into-v3": _task(
        250,
        "sweep the block into the hole; push the block into the hole; drop the block into "
        "the hole by sweeping it; make the block fall into the hole",
    ),
}

DEMO_TASKS = (
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "window-open-v3",
    "window-close-v3",
)
# Tasks of MT50 beyond those: one instruction each. `TASKS` is part of a frozen protocol.
MORE_TASKS: dict[str, Task] = {
    name: _task(500, instruction)
    for name, instruction in {
        "assembly-v3": "put the ring onto the peg",
        "basketball-v3": "put the basketball into the hoop",
        "bin-picking-v3": "move the puck from one bin to the other",
        "box-close-v3": "put the lid on the box",
        "button-press-topdown-wall-v3": "reach over the wall and press the button from above",
        "button-press-wall-v3": "reach over the wall and press the front button",
        "coffee-pull-v3": "pull the mug away from the coffee machine",
        "coffee-push-v3": "push the mug under the coffee machine",
        "dial-turn-v3": "turn the dial",
        "disassemble-v3": "take the ring off the peg",
        "door-lock-v3": "lock the door",
        "door-unlock-v3": "unlock the door",
        "hammer-v3": "hammer the nail into the wall",
        "hand-insert-v3": "put the hand into the hole",
        "handle-press-side-v3": "press the handle down from the side",
        "handle-pull-side-v3": "pull the handle up from the side",
        "peg-insert-side-v3": "insert the peg into the hole in the side of the box",
        "peg-unplug-side-v3": "pull the peg out of the hole sideways",
        "pick-out-of-hole-v3": "pick the puck out of the hole",
        "pick-place-wall-v3": "pick the puck up and bring it over the wall to the goal",
        "plate-slide-back-side-v3": "slide the plate sideways out of the goal",
        "plate-slide-back-v3": "slide the plate back out of the goal",
        "plate-slide-side-v3": "slide the plate sideways into the goal",
        "push-back-v3": "pull the puck back to the goal",
        "push-wall-v3": "push the puck around the wall to the goal",
        "reach-wall-v3": "reach over the wall to the goal",
        "shelf-place-v3": "put the puck on the shelf",
        "soccer-v3": "kick the ball into the goal",
        "stick-pull-v3": "pull the container with the stick",
        "stick-push-v3": "push the container with the stick",
        "sweep-v3": "sweep the puck off the table",
    }.items()
}

# The lists of Meta-World v3 (metaworld/env_dict.py, MIT): of ten tasks, and of all fifty.
MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
MT50 = tuple(sorted({**TASKS, **MORE_TASKS}))

OTHER_TASKS = tuple(name for name in TASKS if name not in DEMO_TASKS)

PAIRS = (
    Pair(
        opens="drawer-open-v3",
        closes="drawer-close-v3",
        body="drawer",
        joint="goal_slidey",
        done_open=-0.16,
        done_closed=-0.0314,
        low=(-0.1, 0.9, 0.0),
        high=(0.1, 0.9, 0.0),
        joint_low=-0.095,
        joint_high=-0.07,
    ),
    Pair(
        opens="window-open-v3",
        closes="window-close-v3",
        body="window",
        joint="window_slide",
        done_open=0.1901,
        done_closed=0.0399,
        low=(-0.1, 0.75, 0.16),
        high=(0.1, 0.9, 0.2),
        joint_low=0.085,
        joint_high=0.115,
    ),
)


def pair_of(task: str) -> Pair | None:
    """The pair that `task` belongs to, None when it has no half-way start."""
    return next((pair for pair in PAIRS if task in pair.tasks), None)


def opposite(task: str) -> str | None:
    """The opposite task in the same scene, None when there is none."""
    pair = pair_of(task)
    if pair is None:
        return None
    return pair.closes if task == pair.opens else pair.opens


def get_task(name: str) -> Task:
    """Looks `name` up.

    Raises:
        errors.UserError: the task is not in the table; names the nearest ones.
    """
    known = {**TASKS, **MORE_TASKS}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or sorted(known)
        raise errors.UserError("unknown Meta-World task", name, f"did you mean {', '.join(near)}")
    return known[name]
