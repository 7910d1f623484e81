"""Demonstrations of LIBERO's suites object and spatial by our scripted expert; not its data set.

LIBERO itself draws each start from a seed; the evaluation's 50 initial states of a task are not
among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from defi_rollout.benchmarks import libero, libero_env, libero_tasks

from data_pipelines.collect import recorded
from defi_jax import errors

EXAMPLE = "pick_up_the_milk_and_place_it_in_the_basket"  # a task
SUITES = ("libero_object", "libero_spatial")  # whose tasks have an expert

collect = recorded.collect


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(recorded.Settings):
    """See `recorded.Settings`; the unit of a disturbance is 5 cm."""

    NAME = "libero_sim"
    DATA_SET = "LIBERO"
    SIMULATOR = libero.SIMULATOR
    EMBODIMENT = libero_env.EMBODIMENT
    START = "drawn"
    FIX = "try fewer workers or MUJOCO_GL=osmesa"

    def check_task(self, task: str) -> None:
        """See `recorded.Settings`."""
        if libero_tasks.suite_of(task) not in SUITES:
            fix = f"use tasks of {' or '.join(SUITES)}"
            raise errors.UserError("no scripted expert for this task", task, fix)

    def instruction(self, task: str) -> str:
        """See `recorded.Settings`."""
        return libero_tasks.instruction(task)

    def max_steps(self, task: str) -> int:
        """See `recorded.Settings`."""
        return libero_tasks.MAX_STEPS[libero_tasks.suite_of(task)]

    def draw_start(self, task: str, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """See `recorded.Settings`."""
        del task, index
        return {"start": self.START, "seed": int(rng.integers(1 << 32))}

    def facts(self, task: str, index: int, start: Mapping[str, Any]) -> dict[str, Any]:
        """See `recorded.Settings`."""
        del index
        return {"suite": libero_tasks.suite_of(task), "start_seed": start["seed"]}
