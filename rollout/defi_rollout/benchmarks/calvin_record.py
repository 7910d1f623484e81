"""Records CALVIN's scripted experts, in the simulator's own Python; `main` says what is read.

request/plan.json    [{"id": ..., "task": ..., "tasks": [...]}, ...]
request/ID.npz       "scenes" float64 [n, 24], "noise" float32 [n, T, 7]: n attempts
request/ID-played.npz  of the first attempt that succeeds, what `play` returns, and "attempt";
                     without any, there is none
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from defi_rollout.benchmarks import calvin, calvin_env


def main(arguments: Sequence[str]) -> int:
    """Plays all that is asked for.

    Args:
        arguments: directory of the request.
    """
    os.dup2(2, 1)  # what the simulator prints belongs to the log
    request = pathlib.Path(arguments[0])
    env = calvin_env.CalvinEnv(calvin.TASK_STEPS["calvin-abcd-360"])
    for row in json.loads((request / "plan.json").read_text()):
        given = np.load(request / f"{row['id']}.npz")
        for attempt, (scene, noise) in enumerate(zip(given["scenes"], given["noise"], strict=True)):
            played = play(env, row["tasks"], row["task"], scene, noise)
            if played is not None:
                np.savez(request / f"{row['id']}-played.npz", attempt=attempt, **played)
                break
    env.close()
    return 0


def play(
    env: calvin_env.CalvinEnv, tasks: Sequence[str], task: str, scene: np.ndarray, noise: np.ndarray
) -> dict[str, Any] | None:
    """Plays one task of a chain by the expert, whose actions are disturbed as they are executed.

    Args:
        tasks: of the chain; the expert brings about those before `task`, undisturbed.
        scene: float64 [24].
        noise: float32 [T, 7], added to the actions.

    Returns:
        "static" uint8 [n, 200, 200, 3], "gripper" uint8 [n, 84, 84, 3], "states" float32 [n, 15],
        "actions" float32 [n, 7] as the expert wanted them, and "start_digest"; None unless the
        task succeeds within T steps.
    """
    try:
        digest = env.start(tasks, scene, single=task)
    except RuntimeError:  # the expert failed before
        return None
    views, actions, reached = [], [], False
    while not env.is_over and len(actions) < len(noise):
        views.append(env.observe())
        actions.append(env.expert_action())
        reached = env.step(actions[-1] + noise[len(actions) - 1])[task]
    if not reached:
        return None
    return {
        "static": np.stack([view["observation/image"] for view in views]),
        "gripper": np.stack([view["observation/wrist_image"] for view in views]),
        "states": np.stack([view["observation/state"] for view in views]),
        "actions": np.stack(actions),
        "start_digest": digest,
    }
