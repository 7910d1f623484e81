"""The benchmarks `calvin-abcd-360` and `-720`: CALVIN's 1000 chains of five tasks in scene D.

An evaluation plays the first chains of the official list, or with `--tasks` single tasks: each
from the places where it stands in a chain, its earlier tasks played by the scripted expert. The
official check of single tasks starts from states of the data set; this one needs none of it.

Source: calvin_agent/evaluation of mees/calvin, MIT. Official is 360 steps a task.
"""

import dataclasses
from typing import Any

from defi_rollout import errors
from defi_rollout.benchmarks import adapters, base, calvin_chains, simulators

VERSION = "1"
EMBODIMENT = "franka_panda"
ACTION_DIM = 7
TASK_STEPS = {"calvin-abcd-360": 360, "calvin-abcd-720": 720}
CHAIN, SINGLE = "chain", "single"  # starts; "chain" is also the task of the rows of whole chains
FILMED_CHAINS = 12
OBSERVATIONS = ("observation/image", "observation/wrist_image", "observation/state")

SIMULATOR = simulators.Simulator(
    name="calvin",
    module="defi_rollout.benchmarks.calvin_env",
    pythons=("3.11",),
    packages=(
        *("pybullet==3.2.7", "numpy==1.26.4", "scipy==1.17.1", "numpy-quaternion==2024.0.13"),
        *("gym==0.26.2", "hydra-core==1.3.8", "omegaconf==2.3.1", "gitpython==3.2.1"),
        "opencv-python-headless==4.11.0.86",
    ),
    sources=(
        simulators.Source(
            name="calvin_env",
            url="https://github.com/mees/calvin_env",
            commit="797142c588c21e76717268b7b430958dbd13bf48",
        ),
    ),
)

# The validation sentence of each task (new_playtable_validation.yaml), letter by letter.
_COLOURS = ("red", "blue", "pink")
INSTRUCTIONS = {
    **{
        f"rotate_{colour}_block_{side}": f"take the {colour} block and rotate it to the {side}"
        for colour in _COLOURS
        for side in ("right", "left")
    },
    **{
        f"push_{colour}_block_{side}": f"go push the {colour} block {side}"
        for colour in _COLOURS
        for side in ("right", "left")
    },
    "move_slider_left": "push the sliding door to the left side",
    "move_slider_right": "push the sliding door to the right side",
    "open_drawer": "pull the handle to open the drawer",
    "close_drawer": "push the handle to close the drawer",
    **{f"lift_{colour}_block_table": f"grasp and lift the {colour} block" for colour in _COLOURS},
    **{
        f"lift_{colour}_block_slider": f"lift the {colour} block from the sliding cabinet"
        for colour in _COLOURS
    },
    **{
        f"lift_{colour}_block_drawer": f"Take the {colour} block from the drawer"
        for colour in _COLOURS
    },
    "place_in_slider": "store the grasped block in the sliding cabinet",
    "place_in_drawer": "store the grasped block in the drawer",
    "push_into_drawer": "slide the block that it falls into the drawer",
    "stack_block": "stack the grasped block",
    "unstack_block": "remove the stacked block",
    "turn_on_lightbulb": "use the switch to turn on the light bulb",
    "turn_off_lightbulb": "use the switch to turn off the light bulb",
    "turn_on_led": "press the button to turn on the led light",
    "turn_off_led": "press the button to turn off the led light",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calvin:
    """See the module; implements `base.Benchmark`.

    Args:
        name: a key of `TASK_STEPS`.
    """

    name: str
    film_every: int = 4
    film_fps: float = 7.5
    success_mode: str = base.FIRST_SUCCESS
    simulator: simulators.Simulator = SIMULATOR
    embodiments: tuple[str, ...] = (EMBODIMENT,)
    action_dim: int = ACTION_DIM

    def protocol(self) -> dict[str, Any]:
        """Chains, sentences, steps, scene and success rules."""
        return {
            "name": self.name,
            "version": VERSION,
            "chains": calvin_chains.SHA256,
            "robot_obs": list(calvin_chains.ROBOT_OBS),
            "instructions": INSTRUCTIONS,
            "task_steps": TASK_STEPS[self.name],
            "scene": "calvin_scene_D",
            "simulator_commit": SIMULATOR.sources[0].commit,
            "control_hz": 30,
            "cameras": {"observation/image": [200, 200], "observation/wrist_image": [84, 84]},
            "actions": "rel_actions as given, gripper above 0 opens, else closes",
            "reset": "the simulation is loaded anew before each chain, never between its tasks",
            "episodes": "the first chains of the official list",
            "single_tasks": "from the places where chains have the task, the earliest in a chain "
            "first, then by the chain's number; the scripted expert plays what comes before",
            "success": "a task's oracle holds after a step; a chain ends with its first failure",
        }

    def episodes(self, plan: base.Plan) -> list[base.Episode]:
        """The first chains, or the starts of each single task of `plan.tasks`.

        Raises:
            errors.UserError: an unknown task, more episodes than there are, a seed, or the
                language test.
        """
        base.check_plan(plan, self.name, tuple(INSTRUCTIONS), has_seeds=False)
        if not plan.tasks:
            count = base.count_episodes(plan, len(calvin_chains.chains()), "chains")
            return [self._chain(i) for i in range(count)]
        return [
            self._single(task, chain)
            for task in plan.tasks
            for chain in starts(task)[
                : base.count_episodes(plan, len(starts(task)), f"starts of {task}")
            ]
        ]

    def check(self, adapter: adapters.Adapter) -> None:
        """Refuses another robot, another action, and what no camera offers; see `check_fits`."""
        base.check_fits(self, adapter, OBSERVATIONS)

    def make_environment(self, task: str, adapter: adapters.Adapter) -> base.Environment:
        """Loads the scene, which is the same for all tasks and policies."""
        del task, adapter
        from defi_rollout.benchmarks import calvin_env  # needs the simulator's Python

        return calvin_env.CalvinEnv(TASK_STEPS[self.name])

    def _chain(self, number: int) -> base.Episode:
        tasks = calvin_chains.chains()[number].tasks
        return base.Episode(
            id=f"chain-{number:04d}",
            task=CHAIN,
            condition=base.STANDARD,
            instruction=INSTRUCTIONS[tasks[0]],
            seed=number,
            start=CHAIN,
            max_steps=len(tasks) * TASK_STEPS[self.name],
            scored_task=tasks[-1],
            ends_on=(tasks[-1],),
            film=number < FILMED_CHAINS,
            stages=tasks,
        )

    def _single(self, task: str, chain: int) -> base.Episode:
        return base.Episode(
            id=f"{task}-{chain:04d}",
            task=task,
            condition=base.STANDARD,
            instruction=INSTRUCTIONS[task],
            seed=chain,
            start=SINGLE,
            max_steps=TASK_STEPS[self.name],
            scored_task=task,
            ends_on=(task,),
            film=chain == starts(task)[0],
        )


def starts(task: str) -> list[int]:
    """Numbers of the chains that have `task`, those that reach it earliest first."""
    if task not in INSTRUCTIONS:
        raise errors.UserError("unknown task", task, f"use {', '.join(INSTRUCTIONS)}")
    chains = calvin_chains.chains()
    having = [i for i, chain in enumerate(chains) if task in chain.tasks]
    return sorted(having, key=lambda i: (chains[i].tasks.index(task), i))
