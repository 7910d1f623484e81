"""Demonstrations in CALVIN's scene D by our scripted experts; not the CALVIN data set.

An episode is one task of one of the official chains, the tasks before it played unseen by the
expert. Its start is no evaluation start: the blocks lie up to 2 cm elsewhere and are turned
otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from defi_rollout.benchmarks import calvin, calvin_chains

from data_pipelines.collect import recorded

EXAMPLE = "open_drawer"  # a task

_DISPLACEMENT, _TURN = 0.02, np.pi / 8  # of a block on the table, m and rad
_ON_TABLE_Y = 0.0  # blocks on the table lie in front of this, those in the cabinet behind

collect = recorded.collect


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(recorded.Settings):
    """See `recorded.Settings`; the unit of a disturbance is 2 cm."""

    NAME = "calvin_sim"
    DATA_SET = "CALVIN"
    SIMULATOR = calvin.SIMULATOR
    EMBODIMENT = calvin.EMBODIMENT
    START = calvin.SINGLE
    FIX = "try fewer workers or DEFI_CALVIN_RENDERER=tiny"

    def check_task(self, task: str) -> None:
        """See `recorded.Settings`."""
        calvin.starts(task)

    def instruction(self, task: str) -> str:
        """See `recorded.Settings`."""
        return calvin.INSTRUCTIONS[task]

    def max_steps(self, task: str) -> int:
        """See `recorded.Settings`."""
        del task
        return calvin.TASK_STEPS["calvin-abcd-360"]

    def draw_start(self, task: str, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """See `recorded.Settings`."""
        chain = calvin_chains.chains()[_chain(task, index)]
        scene = chain.scene_obs()
        for block in scene[6:].reshape(3, 6):  # position and Euler angles of each, see `scene_obs`
            if block[1] < _ON_TABLE_Y:
                block[:2] += rng.uniform(-_DISPLACEMENT, _DISPLACEMENT, 2)
            block[5] = np.pi / 2 + rng.uniform(-_TURN, _TURN)
        return {"tasks": chain.tasks, "scene": scene.tolist()}

    def facts(self, task: str, index: int, start: Mapping[str, Any]) -> dict[str, Any]:
        """See `recorded.Settings`."""
        del start
        return {"scene": "D", "chain": _chain(task, index)}


def _chain(task: str, index: int) -> int:
    """Number of the chain whose `task` is episode `index`."""
    starts = calvin.starts(task)
    return starts[index % len(starts)]
