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
from defi_rollout.benchmarks import base, simulators

STEPS_TO_SUCCESS = 5
NAME = "fake_benchmark:FakeBenchmark"  # as users type it
MARKER = "DEFI_FAKE_MARKER"  # environment variables of the worker processes
STARTS_SEEN = "DEFI_FAKE_STARTS_SEEN"


def versions():
    return {"name": "fake", "version": "1", "commit": "none"}


def check_files():
    return "0 files"


def draw_one():
    print("a simulator's chatter")
    return "numpy"


SIMULATOR = simulators.Simulator(
    name="fake", module="fake_benchmark", pythons=("3.11",), packages=()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeBenchmark:
    """Tasks: "win", "lose", "slow", "raise", "hang", "lacks", "unscripted", "die", "die_once"."""

    name: str = "fake"
    simulator: simulators.Simulator = SIMULATOR
    embodiments: tuple[str, ...] = ("metaworld_sawyer",)
    action_dim: int = 4
    success_mode: str = base.FIRST_SUCCESS
    film_every: int = 2
    film_fps: float = 10.0

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

    def check(self, adapter):
        base.check_fits(self, adapter, ["observation/image"])

    def make_environment(self, task, adapter):
        return FakeEnvironment()


class FakeEnvironment:
    """The image tells the step; "win" succeeds at step 5."""

    is_over = False

    def __init__(self):
        self.looks, self.instruction = 0, ""

    def reset(self, episode: base.Episode) -> str:
        self._episode, self._step, self._moved = episode, 0, hashlib.sha256()
        self.instruction = episode.instruction
        if os.environ.get(STARTS_SEEN):
            return "seen"
        return hashlib.sha256(episode.id.encode()).hexdigest()[:16]

    def observe(self):
        self.looks += 1
        value = (self._episode.seed * 16 + self._step) % 256
        return {"observation/image": np.full((16, 16, 3), value, np.uint8)}

    def step(self, action: np.ndarray):
        assert action.shape == (4,)
        self._moved.update(action.tobytes())
        self._step += 1
        task = self._episode.task
        if task == "slow":
            time.sleep(0.1)
        if task == "raise":
            raise ValueError("the simulator is confused")
        if task == "die":
            os._exit(1)
        if task == "hang":
            time.sleep(1000)
        if task == "lacks":
            raise errors.UserError("a mesh is missing", "cup.obj", "install it again")
        if task == "die_once" and not pathlib.Path(os.environ[MARKER]).exists():
            pathlib.Path(os.environ[MARKER]).touch()
            os._exit(1)
        wins = task in ("win", "slow", "die_once")
        return {task: wins and self._step >= STEPS_TO_SUCCESS}

    def expert_action(self):
        if self._episode.task == "unscripted":
            raise errors.UserError("no scripted expert", "unscripted", "give a policy")
        return np.zeros(4, np.float32)

    def state_digest(self):
        return self._moved.hexdigest()[:16]

    def renderer(self):
        return {"vendor": "none", "name": "numpy", "comparable": True}

    def close(self):
        pass
