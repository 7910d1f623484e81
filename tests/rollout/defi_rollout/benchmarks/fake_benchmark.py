"""A benchmark without a simulator, whose tasks succeed, fail, crash or raise on demand.

A stand-in, because no real task crashes its process at a chosen moment.
"""

import dataclasses
import hashlib
import os
import pathlib
import time

import numpy as np
from defi_rollout import errors
from defi_rollout.benchmarks import base

STEPS_TO_SUCCESS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeBenchmark:
    """Tasks: "win", "lose", "slow", "raise", "die" and "die_once" (needs `marker`)."""

    name: str = "fake"
    film_every: int = 2
    film_fps: float = 10.0
    marker: str = ""
    starts_seen: bool = False

    def protocol(self):
        return {"name": self.name, "version": "1"}

    def episodes(self, plan: base.Plan) -> list[base.Episode]:
        return [
            base.Episode(
                id=f"{task}-{i}",
                task=task,
                condition=base.STANDARD,
                instruction=f"{task} now",
                seed=plan.seed * 100 + i,
                start="usual",
                max_steps=8,
                scored_task=task,
                ends_on=(task,),
                film=i == 0,
            )
            for task in plan.tasks
            for i in range(plan.episodes)
        ]

    def check(self, bundle_spec):
        if bundle_spec.embodiment["name"] != "metaworld_sawyer":
            raise errors.UserError("another robot", "bundle", "give that of the small bundle")

    def check_renderer(self):
        return "numpy"

    def make_environment(self, task, bundle_spec):
        return FakeEnvironment(self)

    def simulator(self):
        return {"name": "fake", "version": "1", "commit": "none"}


class FakeEnvironment:
    """The image tells the step; "win" succeeds at step 5."""

    def __init__(self, benchmark: FakeBenchmark):
        self._benchmark = benchmark
        self.looks = 0

    def reset(self, episode: base.Episode) -> str:
        self._episode, self._step = episode, 0
        if self._benchmark.starts_seen:
            return "seen"
        return hashlib.sha256(episode.id.encode()).hexdigest()[:16]

    def observe(self):
        self.looks += 1
        value = (self._episode.seed * 16 + self._step) % 256
        return {"observation/image": np.full((16, 16, 3), value, np.uint8)}

    def step(self, action: np.ndarray):
        assert action.shape == (4,)
        self._step += 1
        task = self._episode.task
        if task == "slow":
            time.sleep(0.1)
        if task == "raise":
            raise ValueError("the simulator is confused")
        if task == "die":
            os._exit(1)
        if task == "die_once" and not pathlib.Path(self._benchmark.marker).exists():
            pathlib.Path(self._benchmark.marker).touch()
            os._exit(1)
        wins = task in ("win", "slow", "die_once")
        return {task: wins and self._step >= STEPS_TO_SUCCESS}

    def renderer(self):
        return {"vendor": "none", "name": "numpy", "comparable": True}

    def close(self):
        pass
