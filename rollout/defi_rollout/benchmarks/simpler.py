"""The benchmarks `simpler-fractal-vm` and `-va`: the SimplerEnv paper's Google Robot tables.

An episode lasts all its steps, and counts where its task holds after the last one, as in
upstream's evaluation. `simpler-tabletop` is a quick check of machine and policy, and no table of
the paper; see `simpler_tables`.
"""

import dataclasses
import hashlib
from typing import Any

from defi_rollout.benchmarks import (
    adapters,
    base,
    simpler_env,
    simpler_tables,
    simulators,
    software_vulkan,
)

VERSION = "1"
FILMED_EPISODES = 3  # of each task


def variables() -> dict[str, str]:
    """Environment variables of the simulator's process: on a machine without a GPU, Mesa's.

    Raises:
        UserError: there is no GPU, and what draws without one is missing.
    """
    if software_vulkan.has_nvidia_gpu():
        return {"DISPLAY": ""}
    return software_vulkan.environment(simulators.directory(simpler_env.NAME))


# pkg_resources, which SAPIEN imports, left setuptools; pinocchio's kinematics break with numpy 2.
SIMULATOR = simulators.Simulator(
    name=simpler_env.NAME,
    module="defi_rollout.benchmarks.simpler_env",
    pythons=("3.10",),
    packages=(
        *("numpy==1.24.4", "sapien==2.2.2", "gymnasium==0.29.1", "setuptools<70"),
        *("scipy==1.15.3", "transforms3d==0.4.2", "ruckig==0.19.4", "opencv-python==4.11.0.86"),
        *("trimesh==5.2.0", "imageio==2.38.0", "h5py==3.16.0", "tqdm==4.70.1"),
    ),
    sources=(simpler_env.SOURCE,),
    variables=variables,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simpler:
    """One table of `simpler_tables`; implements `base.Benchmark`."""

    name: str
    embodiments: tuple[str, ...] = simpler_env.EMBODIMENTS
    action_dim: int = simpler_env.ACTION_DIM
    success_mode: str = base.LAST_STEP
    film_every: int = 1
    film_fps: float = 5.0
    simulator: simulators.Simulator = SIMULATOR

    def protocol(self) -> dict[str, Any]:
        """Every episode, the control mode, and how actions are understood."""
        rows = simpler_tables.rows(self.name).values()
        return {
            "name": self.name,
            "version": VERSION,
            "episodes": [dataclasses.asdict(row) for row in rows],
            "simulator": dataclasses.asdict(simpler_env.SOURCE),
            "control": simpler_env.CONTROL,
            "instruction": "the simulator's; that of a second part comes after 100 steps",
            "google_robot": "Euler angles to a rotation vector; changes of the gripper of more "
            f"than 0.5 carried on for {simpler_env.STICKY_STEPS} steps, anew by instruction",
            "success": "the task holds after the last step",
        }

    def episodes(self, plan: base.Plan) -> list[base.Episode]:
        """The table's episodes, in its order; of fewer than all, those that the seed draws.

        Another seed gives the policy other noise. A larger number keeps the smaller one's episodes.
        """
        table = simpler_tables.rows(self.name).values()
        known = list(dict.fromkeys(row.task for row in table))
        base.check_plan(plan, self.name, known)
        found = []
        for task in plan.tasks or known:
            rows = [row for row in table if row.task == task]
            count = base.count_episodes(plan, len(rows), f"starts of {task}")
            drawn = sorted((_lot(row.id, plan.seed), row.id) for row in rows)[:count]
            chosen = {name for _, name in drawn}
            kept = [row for row in rows if row.id in chosen]
            found += [_episode(row, plan.seed, i < FILMED_EPISODES) for i, row in enumerate(kept)]
        return found

    def check(self, adapter: adapters.Adapter) -> None:
        """Refuses other robots and cameras: the robot has one, and none at its wrist."""
        base.check_fits(self, adapter, (simpler_env.CAMERA, simpler_env.STATE))

    def make_environment(self, task: str, adapter: adapters.Adapter) -> base.Environment:
        """Opens the renderer; each episode builds a scene of its own."""
        return simpler_env.SimplerEnvironment(self.name, adapter.embodiment)


def _lot(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()


def _episode(row: simpler_tables.Row, seed: int, film: bool) -> base.Episode:
    return base.Episode(
        id=row.id,
        task=row.task,
        condition=base.STANDARD,
        instruction=row.instructions[0],
        seed=seed,
        start=row.variant,
        max_steps=row.max_steps,
        scored_task=row.task,
        ends_on=(),
        film=film,
    )
