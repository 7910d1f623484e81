"""The benchmark `metaworld`: Meta-World v3 tasks from unseen starts, told apart by language.

Half of the episodes of the paired tasks (drawer, window) start half-way, where only the
instruction says what to do. The language test plays these starts again with the opposite
instruction and with none.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from defi_rollout import errors
from defi_rollout.benchmarks import (
    adapters,
    base,
    metaworld_env,
    metaworld_tasks,
    simulators,
    videos,
)

VERSION = "1"
SEEDS_PER_RUN = 10_000  # starts of run seed n: FIRST_EVALUATION_SEED + n * this + index
EPISODES = 20  # per task, unless the plan says
FILMED_EPISODES = 3  # of each task and condition

SIMULATOR = simulators.Simulator(
    name="metaworld",
    module="defi_rollout.benchmarks.metaworld_env",
    pythons=("3.11", "3.12", "3.10"),
    packages=("metaworld==3.0.0", "mujoco>=3.3,<3.17"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaWorld:
    """See the module; implements `base.Benchmark`."""

    name: str = "metaworld"
    simulator: simulators.Simulator = SIMULATOR
    embodiments: tuple[str, ...] = (metaworld_env.EMBODIMENT,)
    action_dim: int = metaworld_env.ACTION_DIM
    success_mode: str = base.FIRST_SUCCESS
    film_every: int = 4
    film_fps: float = 20.0

    def protocol(self) -> dict[str, Any]:
        """Tasks, instructions, horizons, starts and success rules."""
        return {
            "name": self.name,
            "version": VERSION,
            "tasks": {n: dataclasses.asdict(t) for n, t in metaworld_tasks.TASKS.items()},
            "pairs": [dataclasses.asdict(pair) for pair in metaworld_tasks.PAIRS],
            "half_way_displacement": metaworld_tasks.HALF_WAY_DISPLACEMENT,
            "first_seed": metaworld_env.FIRST_EVALUATION_SEED,
            "seeds_per_run": SEEDS_PER_RUN,
            "starts": "even episodes of paired tasks half_way, all others usual",
            "instruction": "paraphrase number (index // 2) modulo their count",
            "success": "the episode ends with the first step at which the task has succeeded",
        }

    def episodes(self, plan: base.Plan) -> list[base.Episode]:
        """Standard episodes by task; then, if asked for, those of the language test."""
        base.check_plan(plan, self.name, tuple(metaworld_tasks.TASKS), has_language=True)
        count = base.count_episodes(plan, SEEDS_PER_RUN, "starts of a task", EPISODES)
        tasks = plan.tasks or metaworld_tasks.DEMO_TASKS
        standard = [_episode(task, i, plan.seed) for task in tasks for i in range(count)]
        if not plan.language:
            return standard
        half_way = [episode for episode in standard if episode.start == "half_way"]
        if not half_way:
            raise errors.UserError(
                "no task with a half-way start", "--language", "name a drawer or window task"
            )
        return standard + [
            _vary(episode, condition)
            for condition in (base.OPPOSITE, base.EMPTY)
            for episode in half_way
        ]

    def check(self, adapter: adapters.Adapter) -> None:
        """Refuses other robots and unknown cameras."""
        base.check_fits(self, adapter, [*metaworld_env.CAMERA_KEYS.values()])
        for key, view in adapter.observations.items():
            if view.size is None or view.size != (_size(adapter), _size(adapter)):
                raise errors.UserError(
                    f"{key!r} of {view.size}",
                    f"--benchmark={self.name}",
                    "it draws square images, of one size for all cameras",
                )

    def make_environment(self, task: str, adapter: adapters.Adapter) -> base.Environment:
        """Loads `task` with the policy's cameras."""
        names = {key: name for name, key in metaworld_env.CAMERA_KEYS.items()}
        cameras = [names[view.source] for view in adapter.observations.values()] or ["static"]
        env = metaworld_env.MetaWorldEnv(task, image_size=_size(adapter), cameras=cameras)
        return _Environment(env)


def _size(adapter: adapters.Adapter) -> int:
    """Height and width that the policy wants; where it looks at nothing, those of films."""
    sizes = [view.size for view in adapter.observations.values() if view.size is not None]
    return sizes[0][0] if sizes else videos.MIN_SIDE


class _Environment:
    """`base.Environment` over `MetaWorldEnv`."""

    is_over = False  # the table of episodes says when

    def __init__(self, env: metaworld_env.MetaWorldEnv):
        self._env, self.instruction = env, ""

    def reset(self, episode: base.Episode) -> str:
        self.instruction = episode.instruction
        self._env.reset(episode.seed, episode.start)
        return self._env.start_digest()

    def observe(self) -> dict[str, np.ndarray]:
        return self._env.observe()

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        self._env.step(action)
        return self._env.successes

    def expert_action(self) -> np.ndarray:
        return self._env.expert_action()

    def state_digest(self) -> str:
        return self._env.state_digest()

    def renderer(self) -> dict[str, Any]:
        return self._env.renderer()

    def close(self) -> None:
        self._env.close()


def _episode(name: str, index: int, run_seed: int) -> base.Episode:
    task = metaworld_tasks.get_task(name)
    is_half_way = index % 2 == 0 and metaworld_tasks.opposite(name) is not None
    return base.Episode(
        id=f"{name}-{index:04d}",
        task=name,
        condition=base.STANDARD,
        instruction=task.instructions[_paraphrase(index, name)],
        seed=metaworld_env.FIRST_EVALUATION_SEED + run_seed * SEEDS_PER_RUN + index,
        start="half_way" if is_half_way else "usual",
        max_steps=task.horizon,
        scored_task=name,
        ends_on=(name,),
        film=index < FILMED_EPISODES,
    )


def _vary(episode: base.Episode, condition: str) -> base.Episode:
    """The same start with the opposite instruction, or with none."""
    other = metaworld_tasks.opposite(episode.task)
    assert other is not None  # only half-way starts are varied, and those belong to a pair
    index = episode.seed % SEEDS_PER_RUN
    changed = dataclasses.replace(
        episode, id=f"{episode.id}-{condition}", condition=condition, film=index < FILMED_EPISODES
    )
    if condition == base.EMPTY:
        return dataclasses.replace(changed, instruction="", ends_on=(episode.task, other))
    instructions = metaworld_tasks.get_task(other).instructions
    return dataclasses.replace(
        changed,
        instruction=instructions[_paraphrase(index, other)],
        scored_task=other,
        ends_on=(other,),
    )


def _paraphrase(index: int, task: str) -> int:
    # Two neighbours share one, so that both kinds of start meet every paraphrase.
    return index // 2 % len(metaworld_tasks.get_task(task).instructions)
