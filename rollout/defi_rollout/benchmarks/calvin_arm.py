"""Motion primitives over calvin_env: where things are, and relative actions that go there.

A primitive is a generator of actions, float32 [7] in [-1, 1]; the caller executes each action
before it asks for the next one. Lengths are metres in the world's frame (x to the right along the
table, y away from the robot, z up), angles radians.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

Actions = Iterator[np.ndarray]

DOWN = np.array([3.09, -0.03, 1.50])  # Euler angles of the tool pointing down, closing along y
OPEN, CLOSE = 1.0, -1.0
SAFE_HEIGHT = 0.60
_HOME = (0.026, -0.231, 0.57)
_SETTLE_STEPS = 14  # that the measured position gets to follow the commanded one
_NEAR = 0.006
_FINGER = 0.045  # from the tool's centre to an open finger
_TABLE_EDGE = -0.18  # y
_WIDEST = 0.03  # half of what the gripper takes


def turned(rotation: np.ndarray, angle: float) -> np.ndarray:
    """Euler angles of a tool turned by `angle` about the vertical, to the left seen from above."""
    return rotation + np.array([0.0, 0.0, angle])


class Arm:
    """The robot in its scene.

    Args:
        env: calvin_env's PlayTableSimEnv.

    Attributes:
        gripper: OPEN or CLOSE, kept by motions that don't say.
    """

    def __init__(self, env: Any):
        self._env, self._robot = env, env.robot
        self._table = env.scene.fixed_objects[0]
        self._blocks = {
            block.name.removeprefix("block_"): block for block in env.scene.movable_objects
        }
        self.gripper = float(env.robot.gripper_action)

    # -- Where things are

    @property
    def colours(self) -> tuple[str, ...]:
        """Names of the blocks."""
        return tuple(self._blocks)

    def position(self) -> np.ndarray:
        """Measured tool position, [3]."""
        return np.array(self._env.get_state_obs()["robot_obs"][:3])

    def rotation(self) -> np.ndarray:
        """Commanded Euler angles of the tool, [3]."""
        return np.array(self._robot.target_orn)

    def block(self, colour: str) -> np.ndarray:
        """Centre of a block, [3]."""
        return self._blocks[colour].get_state()[:3]

    def half_size(self, colour: str) -> np.ndarray:
        """Half of a block's edges, [3]."""
        shapes = self._env.p.getCollisionShapeData(
            self._blocks[colour].uid, -1, physicsClientId=self._env.cid
        )
        return np.array(shapes[0][3]) / 2

    def grasp(self, colour: str) -> tuple[np.ndarray, bool]:
        """How the tool, pointing down, closes across a block.

        Returns:
            Euler angles [3], the shorter way across if neighbours let it; and whether the open
            fingers meet no neighbour on their way down.
        """
        centre, yaw = self.block(colour), self._yaw(colour)
        along, across, _ = self.half_size(colour)
        ways = sorted([(along, yaw), (across, yaw + np.pi / 2)])
        if centre[1] < _TABLE_EDGE:  # in the drawer, where the table leaves no room for a hand in y
            ways.sort(key=lambda way: abs(np.sin(way[1])))
        free, angle = False, ways[0][1]
        for half, way in ways:
            finger = _FINGER * np.array([np.cos(way), np.sin(way), 0.0])
            if half < _WIDEST and self.is_free(centre + finger) and self.is_free(centre - finger):
                free, angle = True, way
                break
        turn = (angle + np.pi / 2 - DOWN[2] + np.pi / 2) % np.pi - np.pi / 2
        return turned(DOWN, turn), free

    def _yaw(self, colour: str) -> float:
        return self._blocks[colour].get_state()[5]

    def is_free(self, place: np.ndarray, room: float = 0.009) -> bool:
        """Whether a finger, of half the width `room`, that comes down there meets no block."""
        for colour in self.colours:
            (x, y, z), yaw = place - self.block(colour), self._yaw(colour)
            local = (x * np.cos(yaw) + y * np.sin(yaw), y * np.cos(yaw) - x * np.sin(yaw))
            if abs(z) < 0.05 and (np.abs(local) < self.half_size(colour)[:2] + room).all():
                return False
        return True

    def held(self) -> str | None:
        """The block between the closed fingers."""
        width = self._env.get_state_obs()["robot_obs"][6]
        if self.gripper == OPEN or width < 0.02:
            return None
        nearest = min(self.colours, key=self._distance)
        return nearest if self._distance(nearest) < 0.04 else None

    def _distance(self, colour: str) -> float:
        return float(np.linalg.norm(self.block(colour) - self.position()))

    def link(self, name: str) -> np.ndarray:
        """Frame of a part of the table, such as "drawer_link", [3]."""
        index = self._table.info_dict["links"][name]
        state = self._env.p.getLinkState(self._table.uid, index, physicsClientId=self._env.cid)
        return np.array(state[4])

    def joint(self, name: str) -> float:
        """Position of a door or the switch, such as "base__drawer"."""
        scene = self._env.scene
        return next(j.get_state() for j in (*scene.doors, *scene.switches) if j.name == name)

    # -- Motions

    def move(
        self,
        position: Any,
        rotation: np.ndarray = DOWN,
        *,
        speed: float = 0.6,
        gripper: float | None = None,
        limit: int = 90,
    ) -> Actions:
        """Moves the commanded pose to a waypoint, then lets the measured position follow.

        Args:
            position, rotation: [3] each.
            speed: largest position action; 1 is 2 cm a step.
            gripper: OPEN or CLOSE, None keeps it.
            limit: steps at most.
        """
        self.gripper = self.gripper if gripper is None else gripper
        position, waited = np.asarray(position, float), 0
        for _ in range(limit):
            yield self._towards(position, rotation, speed)
            arrived = (
                np.abs(self._robot.target_pos - position).max() < 1e-3
                and np.abs(self._robot.target_orn - rotation).max() < 1e-2
            )
            if arrived:
                near = np.linalg.norm(position - self.position()) < _NEAR
                if near or waited == _SETTLE_STEPS:
                    return
                waited += 1

    def hold(self, gripper: float, steps: int) -> Actions:
        """Opens or closes the gripper at the commanded pose."""
        self.gripper = gripper
        for _ in range(steps):
            yield self._towards(self._robot.target_pos, self._robot.target_orn, 1.0)

    def go_home(self, gripper: float) -> Actions:
        """Leaves whatever the tool stands in, straight up or out of the cabinet, and goes home."""
        x, y, z = self.position()
        if y > -0.02 and z > 0.4:  # under the cabinet's roof or beside its handles
            yield from self.move([x, -0.13, z + 0.03], self.rotation(), gripper=gripper, limit=30)
        x, y, z = self.position()
        if z < SAFE_HEIGHT:
            yield from self.move([x, y, SAFE_HEIGHT], self.rotation(), gripper=gripper, limit=25)
        yield from self.move(_HOME, gripper=gripper, limit=60)

    def _towards(self, position: np.ndarray, rotation: np.ndarray, speed: float) -> np.ndarray:
        robot = self._robot
        motion = np.concatenate(
            [
                (position - robot.target_pos) / robot.max_rel_pos,
                (rotation - robot.target_orn) / robot.max_rel_orn,
            ]
        )
        largest = max(np.abs(motion[:3]).max() / speed, np.abs(motion[3:]).max(), 1.0)
        return np.array([*motion / largest, self.gripper], np.float32)
