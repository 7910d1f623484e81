"""Runs in the simulator's Python: plays a little and prints what it saw, as JSON on the last line.

Arguments: "quick", or "upstream" to play beside LIBERO's own environment.
"""

import json
import os
import sys
import types

import numpy as np
from defi_rollout import errors
from defi_rollout.benchmarks import libero_env, libero_tasks

OBJECT = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
# A fixture is placed at random here, and another one stands open.
DRAWER = "pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_plate"
ACTIONS = np.repeat(np.random.default_rng(0).uniform(-1, 1, (6, 7)), 5, axis=0)


def start(number, kind="fixed"):
    return types.SimpleNamespace(start=kind, seed=number)


def play(env, number, kind="fixed"):
    digests = [env.reset(start(number, kind))]
    for action in ACTIONS:
        env.step(action)
    return [*digests, env.state_digest()]


def refusal(call, *arguments):
    try:
        call(*arguments)
    except errors.UserError as error:
        return str(error)


def quick():
    env = libero_env.LiberoEnv(OBJECT, cameras=())
    found = {
        "played": [play(env, 2), play(env, 0), play(env, 2)],
        "drawn": [play(env, 5, "drawn"), play(env, 6, "drawn"), play(env, 5, "drawn")],
        "refused": [
            refusal(env.reset, start(50)),
            refusal(env.reset, start(0, "half_way")),
            refusal(env.step, np.zeros(4)),
            refusal(env.step, np.full(7, np.nan)),
        ],
    }
    controller = env.domain.robots[0].controller
    gaps = []
    for gripper in (1.0, -1.0):
        for _ in range(10):
            env.step(np.array([0, 0, 0, 0, 0, 0, gripper], np.float32))
        gaps.append(float(np.ptp(env.observe()["observation/state"][6:])))
    env.reset(start(1))
    state, steps, action = env.observe(), 0, np.zeros(7, np.float32)
    while not env.step(action)[OBJECT] and steps < libero_tasks.MAX_STEPS["libero_object"]:
        action, steps = env.expert_action(), steps + 1
    return {
        **found,
        "gaps": gaps,
        "action": [controller.name, controller.output_min.tolist(), controller.output_max.tolist()],
        "control_hz": env.domain.control_freq,
        "observed": {key: [str(value.dtype), list(value.shape)] for key, value in state.items()},
        "expert": [steps, str(action.dtype), env.step(action)[OBJECT]],
        "instruction": env.instruction,
        "renderer": env.renderer(),
    }


def upstream():
    env = libero_env.LiberoEnv(DRAWER)
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs import OffScreenRenderEnv

    suite = benchmark.get_benchmark("libero_spatial")()
    number = suite.get_task_names().index(DRAWER)
    task, states = suite.get_task(number), suite.get_task_init_states(number)
    path = os.path.join(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
    other = OffScreenRenderEnv(bddl_file_name=path, camera_heights=256, camera_widths=256)
    other.seed(7)
    compared = []
    for start_number in (0, 1):
        other.reset()
        obs = other.set_init_state(states[start_number])
        for _ in range(10):
            obs, *_ = other.step([0.0] * 6 + [-1.0])
        env.reset(start(start_number))
        for step, action in enumerate(ACTIONS):
            if step % 10 == 0:
                ours, key = env.observe(), "observation/image"
                theirs = {
                    key: obs["agentview_image"][::-1, ::-1],
                    "observation/wrist_image": obs["robot0_eye_in_hand_image"][::-1, ::-1],
                }
                compared += [bool((ours[key] == theirs[key]).all()) for key in theirs]
                place = obs["robot0_eef_pos"].astype(np.float32)
                compared.append(bool((ours["observation/state"][:3] == place).all()))
            obs, *_ = other.step(action)
            env.step(action)
        compared.append(bool((other.sim.data.qpos == env.domain.sim.data.qpos).all()))
        compared.append(bool((other.sim.model.body_pos == env.domain.sim.model.body_pos).all()))
    names = {
        name: [[task.name, task.language] for task in benchmark.get_benchmark(name)().tasks]
        for name in libero_tasks.MAX_STEPS
    }
    return {"equal": compared, "tasks": names, "spread": float(ours[key].std())}


if __name__ == "__main__":
    text = json.dumps({"quick": quick, "upstream": upstream}[sys.argv[1]]())
    print(text)
    sys.stdout.flush()
    os._exit(0)  # OpenGL's bindings fail while they end
