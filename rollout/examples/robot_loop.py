"""A policy on your robot: replace `FakeRobot` by your own and keep the loop.

    python rollout/examples/robot_loop.py --url=ws://127.0.0.1:8000 --prompt="open the drawer"

Needs only `pip install defi-rollout`; runs on Python 3.8.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import numpy as np
from defi_rollout import Client, errors, executors


class FakeRobot:
    """Cameras of noise, and an arm that only remembers what it was told."""

    def __init__(self, obs_spec: dict, low: np.ndarray, high: np.ndarray):
        self._images = {
            key: one["shape"] for key, one in obs_spec.items() if len(one["shape"]) == 3
        }
        self._low, self._high = low, high
        self._rng = np.random.default_rng(0)
        self.position = np.zeros_like(low)

    def look(self) -> dict[str, np.ndarray]:
        """Camera key -> uint8 [H, W, 3]."""
        return {
            key: self._rng.integers(0, 255, shape, np.uint8) for key, shape in self._images.items()
        }

    def move(self, action: np.ndarray) -> None:
        """Never trust a network: limits are the robot's own."""
        self.position += np.clip(action, self._low, self._high)

    def hold(self) -> None:
        """Stands still: what to do when no action is known."""


def main() -> None:
    """Drives the robot for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="ws://127.0.0.1:8000")
    parser.add_argument("--token_file", help="of the server, where it wants one")
    parser.add_argument("--prompt", default="open the drawer")
    parser.add_argument("--steps", type=int, default=100)
    flags = parser.parse_args()

    token = pathlib.Path(flags.token_file).read_text().strip() if flags.token_file else None
    policy = Client(flags.url, token=token)
    limits = [np.array(policy.metadata["action_spec"][key], np.float32) for key in ("low", "high")]
    robot = FakeRobot(policy.metadata["obs_spec"], *limits)
    executor = executors.ChunkExecutor(policy, policy.metadata["execute_horizon"])
    executor.reset()
    period = 1 / policy.metadata["control_hz"]
    for _ in range(flags.steps):
        started = time.monotonic()
        try:
            action = executor.next_action(lambda: {**robot.look(), "prompt": flags.prompt})
        except errors.UserError as error:
            robot.hold()
            print(f"held: {error}")
        else:
            robot.move(action)
        time.sleep(max(0.0, period - (time.monotonic() - started)))
    print(f"done: {flags.steps} steps, the arm is at {np.round(robot.position, 3).tolist()}")


if __name__ == "__main__":
    main()
