"""Scripted pick-and-place in LIBERO by privileged state: the suites object and spatial.

The hand points down. It takes an object across its short side, or a wide one by its rim, carries it
above its destination, lowers it and lets go. What failed is tried again, at the next side of a rim.

Positions in metres, in the world's frame: x away from the robot, y to its left, z up.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from defi_rollout import errors

OPEN, CLOSE = -1.0, 1.0

_METRES, _RADIANS = 0.05, 0.5  # of a full step
_HOVER = 0.08  # above the grasp
_GRIP = 0.025  # from an object's top down to the grasp
_RIM_GRIP, _RIM_INSET = 0.033, 0.006  # the same of a rim, and from its outermost point inwards
_FINGERTIPS = 0.008  # below the point that is steered
_WIDEST = 0.075  # that fits between the fingers
_CLEARANCE = 0.03  # under a carried object
_LEAST_LIFT = 0.08
_CLOSING_STEPS, _OPENING_STEPS = 8, 10

# Height of a released object's foot above that of its destination, by what the goal says.
_DROPS = {"in": 0.05, "on": 0.015}
# Sides of a rim in the order in which they are tried: direction from the centre, turn of the hand.
_SIDES = (((0, 1), 0.0), ((0, -1), 0.0), ((-1, 0), np.pi / 2), ((1, 0), np.pi / 2))


class Expert:
    """Plays one episode; made anew for each.

    Args:
        domain: LIBERO's environment of the task, at rest.

    Raises:
        errors.UserError: the task is not to bring one object to another.
    """

    def __init__(self, domain: Any):
        goal = domain.parsed_problem["goal_state"]
        relation, *names = goal[0] if len(goal) == 1 else ("and",)
        names = [name.removesuffix("_contain_region") for name in names]
        if relation not in _DROPS or not set(names) <= set(domain.objects_dict):
            text = " and ".join(" ".join(part) for part in goal)
            fix = "use libero-object or libero-spatial"
            raise errors.UserError("no scripted expert for this goal", text, fix)
        self._domain = domain
        self._model, self._data = domain.sim.model._model, domain.sim.data._data
        self._drop = _DROPS[relation]
        self._object, self._destination = (self._solid_geoms(name) for name in names)
        self._both = self._destination, self._object
        self._site = domain.robots[0].eef_site_id
        self._rotation = self._data.site_xmat[self._site].reshape(3, 3).copy()
        self._turn = 0.0  # of the hand about z, rad
        self._plan = self._play()

    def action(self) -> np.ndarray:
        """The action for the current state, float32 [7] in [-1, 1]."""
        return next(self._plan)

    # -- Plan: each part yields the action for the state of the moment

    def _play(self) -> Iterator[np.ndarray]:
        attempt = 0
        while True:
            offset, self._turn = self._choose_grasp(attempt)
            yield from self._reach(lambda at=offset: self._grasp(at, _HOVER), OPEN, 0.02)
            yield from self._reach(lambda at=offset: self._grasp(at, 0.0), OPEN, 0.006)
            yield from self._hold(CLOSE, _CLOSING_STEPS)
            yield from self._carry()
            yield from self._hold(OPEN, _OPENING_STEPS)
            above = self._hand() + np.array([0.0, 0.0, _HOVER])
            yield from self._reach(lambda to=above: to, OPEN, 0.03)
            attempt += 1

    def _carry(self) -> Iterator[np.ndarray]:
        """Lifts, moves and lowers what is held; ends early when it has slipped."""
        (foot, top), start = (corner[2] for corner in self._box(self._object)), self._hand()
        over = self._box(self._destination)[1][2] + _CLEARANCE - foot
        above = start + np.array([0.0, 0.0, max(over, _LEAST_LIFT)])
        yield from self._reach(lambda: above, CLOSE, 0.02)
        # What hangs by its rim tilts: its foot stays behind.
        if self._box(self._object)[1][2] - top < (self._hand() - start)[2] / 2:
            return
        yield from self._reach(lambda: np.array([*self._over(), above[2]]), CLOSE, 0.01)
        yield from self._reach(lambda: np.array([*self._over(), self._lowered()]), CLOSE, 0.01)

    def _reach(
        self, target: Callable[[], np.ndarray], gripper: float, near: float, most: int = 60
    ) -> Iterator[np.ndarray]:
        """Goes straight to `target` until it is `near`, or for at most so many steps."""
        for _ in range(most):
            way = target() - self._hand()
            if np.linalg.norm(way) < near:
                return
            yield self._act(way, gripper)

    def _hold(self, gripper: float, steps: int) -> Iterator[np.ndarray]:
        for _ in range(steps):
            yield self._act(np.zeros(3), gripper)

    def _act(self, way: np.ndarray, gripper: float) -> np.ndarray:
        """Moves by `way` and turns the hand back to where it shall point."""
        cos, sin = np.cos(self._turn), np.sin(self._turn)
        wanted = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]) @ self._rotation
        now = self._data.site_xmat[self._site].reshape(3, 3)
        # Half the sum of cross products of the axes: the rotation vector for small turns.
        turn = np.cross(now, wanted, axis=0).sum(axis=1) / 2
        action = np.concatenate([way / _METRES, turn / _RADIANS, [gripper]])
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    # -- Where things are

    def _choose_grasp(self, attempt: int) -> tuple[np.ndarray, float]:
        """Offset from the middle of the object's top, and turn of the hand."""
        low, high = self._box(self._object)
        size = (high - low)[:2]
        if size.min() > _WIDEST:
            direction, turn = _SIDES[attempt % len(_SIDES)]
            radius = size / 2 - _RIM_INSET
            return np.array([*(np.array(direction) * radius), -_RIM_GRIP]), turn
        across = size[1] <= size[0] or size[1] < _WIDEST
        return np.array([0.0, 0.0, -_GRIP]), 0.0 if across else np.pi / 2

    def _grasp(self, offset: np.ndarray, up: float) -> np.ndarray:
        low, high = self._box(self._object)
        place = np.array([*(low + high)[:2] / 2, high[2]]) + offset
        return np.array([*place[:2], max(place[2], low[2] + _FINGERTIPS) + up])

    def _over(self) -> np.ndarray:
        """Where the hand is in x and y when the object's centre is above its destination's."""
        there, here = (np.mean(self._box(geoms), axis=0) for geoms in self._both)
        return (self._hand() + there - here)[:2]

    def _lowered(self) -> float:
        """Height of the hand when the object's foot is where it is released."""
        there, here = (self._box(geoms)[0][2] for geoms in self._both)
        return self._hand()[2] + there + self._drop - here

    def _hand(self) -> np.ndarray:
        return self._data.site_xpos[self._site].copy()

    def _solid_geoms(self, name: str) -> np.ndarray:
        """Ids of the colliding geoms of an object."""
        root = self._model.body_rootid[self._domain.obj_body_id[name]]
        of_object = self._model.body_rootid[self._model.geom_bodyid] == root
        return np.flatnonzero(of_object & (self._model.geom_contype != 0))

    def _box(self, geoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner of the box around some geoms."""
        rotations = self._data.geom_xmat[geoms].reshape(-1, 3, 3)
        middles, halves = np.split(self._model.geom_aabb[geoms].reshape(-1, 6), 2, axis=1)
        centres = self._data.geom_xpos[geoms] + np.einsum("gij,gj->gi", rotations, middles)
        extents = np.einsum("gij,gj->gi", np.abs(rotations), halves)
        return (centres - extents).min(axis=0), (centres + extents).max(axis=0)
