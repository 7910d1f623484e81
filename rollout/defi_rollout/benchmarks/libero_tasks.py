"""The 130 tasks of LIBERO by suite; needs no simulator.

Source: libero/libero/benchmark/libero_suite_task_map.py of Lifelong-Robot-Learning/LIBERO, MIT;
step limits of examples/libero/main.py of Physical-Intelligence/openpi.
"""

import difflib
import functools
import importlib.resources
import json
import re

from defi_rollout import errors

MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
STATES_PER_TASK = 50


@functools.cache
def suites() -> dict[str, tuple[str, ...]]:
    """Returns the tasks of each suite in LIBERO's order; no two tasks of LIBERO share a name."""
    folder = importlib.resources.files("defi_rollout.benchmarks")
    table = json.loads(folder.joinpath("libero_tasks.json").read_text())
    return {suite: tuple(table[suite]) for suite in MAX_STEPS}


def suite_of(task: str) -> str:
    """Returns the suite of a task.

    Raises:
        errors.UserError: LIBERO has no such task; names the nearest ones.
    """
    for suite, tasks in suites().items():
        if task in tasks:
            return suite
    known = [name for tasks in suites().values() for name in tasks]
    near = difflib.get_close_matches(task, known, n=3, cutoff=0.3)
    fix = f"did you mean {', '.join(near)}" if near else "name a task of the suite"
    raise errors.UserError("unknown LIBERO task", task, fix)


def instruction(task: str) -> str:
    """What the policy is told: the task's name in words, without its scene."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", task).replace("_", " ")
