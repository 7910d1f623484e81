"""The benchmarks `metaworld-mt10` and `metaworld-mt50`: Meta-World's own lists of tasks and starts.

Unlike `metaworld`, the hand starts where the task has it, and an episode may take 500 steps.
"""

import dataclasses
from typing import Any

from defi_rollout.benchmarks import base, metaworld, metaworld_env, metaworld_tasks

VERSION = "1"
EPISODES = 50  # per task, as Meta-World has goals
MAX_STEPS = 500
FILMED_EPISODES = 3  # of each task
TASK_LISTS = {"metaworld-mt10": metaworld_tasks.MT10, "metaworld-mt50": metaworld_tasks.MT50}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTask(metaworld.MetaWorld):
    """See the module; implements `base.Benchmark`.

    Attributes:
        name: a key of TASK_LISTS.
    """

    name: str = "metaworld-mt10"

    def protocol(self) -> dict[str, Any]:
        """Tasks, instructions, starts and success rule."""
        return {
            "name": self.name,
            "version": VERSION,
            "tasks": {name: _instruction(name) for name in self._tasks()},
            "max_steps": MAX_STEPS,
            "episodes_per_task": EPISODES,
            "first_seed": metaworld_env.FIRST_EVALUATION_SEED,
            "seeds_per_run": metaworld.SEEDS_PER_RUN,
            "starts": "the task's own hand position; objects and goal drawn by the task",
            "success": "the episode ends with the first step at which the task has succeeded",
        }

    def episodes(self, plan: base.Plan) -> list[base.Episode]:
        """The same number of episodes of each task."""
        base.check_plan(plan, self.name, self._tasks())
        count = base.count_episodes(plan, metaworld.SEEDS_PER_RUN, "starts of a task", EPISODES)
        tasks = plan.tasks or self._tasks()
        first = metaworld_env.FIRST_EVALUATION_SEED + plan.seed * metaworld.SEEDS_PER_RUN
        return [_episode(task, i, first) for task in tasks for i in range(count)]

    def _tasks(self) -> tuple[str, ...]:
        return TASK_LISTS[self.name]


def _instruction(task: str) -> str:
    return metaworld_tasks.get_task(task).instructions[0]


def _episode(task: str, index: int, first_seed: int) -> base.Episode:
    return base.Episode(
        id=f"{task}-{index:04d}",
        task=task,
        condition=base.STANDARD,
        instruction=_instruction(task),
        seed=first_seed + index,
        start="own",
        max_steps=MAX_STEPS,
        scored_task=task,
        ends_on=(task,),
        film=index < FILMED_EPISODES,
    )
