"""Records scripted experts, in the simulator's own Python; `main` says what is read.

request/plan.json      {"simulator": ..., "task": ..., "starts": {ID: [start of each attempt]}}
request/ID-noise.npy   float32 [n, T, 7], by attempt
request/ID-played.npz  of the first attempt that succeeds, what `play` returns, and "attempt";
                       without any, there is none
"""

import json
import os
import pathlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from defi_rollout.benchmarks import base

# Places the scene of one attempt and returns its digest; None where that fails.
Start = Callable[[dict[str, Any]], str | None]


def main(arguments: Sequence[str]) -> int:
    """Plays all that is asked for.

    Args:
        arguments: directory of the request.
    """
    os.dup2(2, 1)  # what the simulator prints belongs to the log
    request = pathlib.Path(arguments[0])
    plan = json.loads((request / "plan.json").read_text())
    env, start = _SIMULATORS[plan["simulator"]](plan["task"])
    for name, starts in plan["starts"].items():
        noise = np.load(request / f"{name}-noise.npy")
        for attempt, given in enumerate(starts):
            digest = start(given)
            played = None if digest is None else play(env, plan["task"], noise[attempt])
            if played is not None:
                found = {"attempt": attempt, "start_digest": digest, **played}
                np.savez(request / f"{name}-played.npz", **found)
                break
    env.close()
    return 0


def play(env: base.Environment, task: str, noise: np.ndarray) -> dict[str, np.ndarray] | None:
    """Plays a task by the expert, whose actions are disturbed as they are executed.

    Args:
        noise: float32 [T, 7], added to the actions.

    Returns:
        What `env.observe` offers, by key [n, ...], and "actions" float32 [n, 7] as the expert
        wanted them; None unless the task succeeds within T steps.
    """
    views, actions = [], []
    for disturbance in noise:
        views.append(env.observe())
        actions.append(env.expert_action())
        if env.step(actions[-1] + disturbance)[task]:
            columns = {key: np.stack([view[key] for view in views]) for key in views[0]}
            return columns | {"actions": np.stack(actions)}
    return None


# ---- simulators: each imports what only its own Python has ----


def _calvin(task: str) -> tuple[base.Environment, Start]:
    """A start has "tasks", a chain whose earlier tasks the expert plays, and "scene" [24]."""
    from defi_rollout.benchmarks import calvin, calvin_env

    env = calvin_env.CalvinEnv(calvin.TASK_STEPS["calvin-abcd-360"])

    def start(given: dict[str, Any]) -> str | None:
        try:
            return env.start(given["tasks"], np.array(given["scene"]), single=task)
        except RuntimeError:  # the expert failed before
            return None

    return env, start


def _libero(task: str) -> tuple[base.Environment, Start]:
    """A start has "start" and "seed", as an episode of `LiberoEnv.reset`."""
    from defi_rollout.benchmarks import libero_env

    env = libero_env.LiberoEnv(task)
    return env, lambda given: env.reset(types.SimpleNamespace(**given))


_SIMULATORS = {"calvin": _calvin, "libero": _libero}
