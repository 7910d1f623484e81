"""A scripted expert that picks the coke can, so that success can be seen.

It reads the simulator's state: before the can, to it, close, up. Every length is in metres, every
vector in the frame of the robot's base.
"""

import importlib
from typing import Any

import numpy as np

_HOVER = 0.10  # before the place of the grasp
_LIFT = 0.15
_STEP, _TURN = 0.06, 0.3  # the most that one action moves (m) and turns (rad)
_NEAR, _STRAIGHT = 0.01, 0.08  # how close (m, rad) counts as there
_CLOSING_STEPS = 6
_STANDING_DEPTH = 0.03  # of the grasp, below the rim of a can that stands
_HALF_LENGTH = 0.0615  # of the can, whose axis is y of its own frame


def finger_joints(raw: Any) -> list[int]:
    """Indices of the two finger joints in the robot's joint positions."""
    names = [joint.name for joint in raw.agent.robot.get_active_joints()]
    return [names.index("joint_finger_right"), names.index("joint_finger_left")]


class CokeCanExpert:
    """One episode of picking the can.

    Args:
        raw: upstream's environment, just reset.
    """

    def __init__(self, raw: Any):
        self._raw = raw
        self._rotation = importlib.import_module("scipy.spatial.transform").Rotation
        can, gripper = self._pose(raw.obj), self._pose(raw.tcp)
        axis = self._turned(can).as_matrix()[:, 1]
        _, closing, approach = self._turned(gripper).as_matrix().T
        # The gripper keeps the tilt that it starts with: straight down is beyond the wrist.
        across = np.cross(axis, approach)
        closing = across * np.sign(across @ closing) / _length(across)
        turned = np.stack([np.cross(closing, approach), closing, approach], axis=1)
        self._target = self._rotation.from_matrix(turned)
        stands = abs(axis[2]) > 0.5
        up = np.array([0.0, 0.0, 1.0])
        grasp = can.p + up * stands * (_HALF_LENGTH - _STANDING_DEPTH)
        self._places = [grasp - _HOVER * approach, grasp, grasp, grasp + _LIFT * up]
        self._phase, self._closed = 0, 0

    def action(self, absolute: bool) -> np.ndarray:
        """The next action, float32 [7].

        Args:
            absolute: whether as of the data set (Euler angles, 1 open) or as of the simulator
                (rotation vector, 1 closing).
        """
        pose = self._pose(self._raw.tcp)
        move = self._places[self._phase] - pose.p
        turn = (self._target * self._turned(pose).inv()).as_rotvec()
        if self._phase == 2:
            self._closed += 1
            self._phase += self._closed == _CLOSING_STEPS
        elif self._phase < 2 and _length(move) < _NEAR and _length(turn) < _STRAIGHT:
            self._phase += 1
        closes = self._phase >= 2
        move *= min(1.0, _STEP / max(_length(move), 1e-9))
        turn *= min(1.0, _TURN / max(_length(turn), 1e-9))
        if absolute:
            turn = self._rotation.from_rotvec(turn).as_euler("xyz")
        gripper = float(not closes) if absolute else float(closes)
        return np.array([*move, *turn, gripper], np.float32)

    def _pose(self, thing: Any) -> Any:
        return self._raw.agent.robot.pose.inv() * thing.pose

    def _turned(self, pose: Any) -> Any:
        return self._rotation.from_quat(pose.q[[1, 2, 3, 0]])  # w goes last in scipy


def _length(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))
