"""Answers that tests want of SimplerEnv, in the simulator's own Python; see `simulators.ask`."""

import hashlib
import importlib
import sys
import types

import numpy as np
from defi_rollout.benchmarks import base, registry, simpler_env, simpler_tables, simulators

TABLE = simpler_tables.TABLETOP
UPSTREAMS_POLICY = "simpler_env.policies.octo.octo_model"


def pick():
    """The expert picks the can, in the data set's convention; what is seen and said of it."""
    return _play("pick_coke_can-plain-lr_switch-09", "google_robot", expert=True)


def move():
    """An episode of move near without a policy, to its end."""
    return _play("move_near-plain-12", "simpler_google_robot", expert=False)


def _episode(name):
    plan = base.Plan(tasks=(), episodes=None, seed=0, language=False)
    return next(e for e in registry.get_benchmark(TABLE).episodes(plan) if e.id == name)


def _play(name, embodiment, expert):
    env, episode = simpler_env.SimplerEnvironment(TABLE, embodiment), _episode(name)
    digests, holds = [env.reset(episode)], {}
    first = env.observe()
    for _ in range(episode.max_steps):
        action = env.expert_action() if expert else np.array([0.01, 0, 0.01, 0, 0, 0.05, 0.0])
        holds = env.step(action.astype(np.float32))
        digests.append(env.state_digest())
    last = env.observe()[simpler_env.CAMERA]
    return {
        "holds": dict(holds),
        "digests": digests,
        "shape": last.shape,
        "dtype": str(last.dtype),
        "moved": float(np.mean(last != first[simpler_env.CAMERA])),
        "state": first[simpler_env.STATE].tolist(),
        "image": hashlib.sha256(last.tobytes()).hexdigest(),
        "renderer": env.renderer(),
        "instruction": env.instruction,
    }


def same_as_upstream():
    """Whether states and pictures are those of upstream's own evaluation loop, to the last bit."""
    name = "pick_coke_can-plain-upright-03"
    row = simpler_tables.rows(TABLE)[name]
    action = np.array([0.02, 0.01, -0.02, 0.1, 0.0, -0.1, 1.0], np.float32)
    env = simpler_env.SimplerEnvironment(TABLE, "simpler_google_robot")
    env.reset(_episode(name))
    ours = [env.observe()[simpler_env.CAMERA]]
    for _ in range(3):
        env.step(action)
    ours.append(env.observe()[simpler_env.CAMERA])
    state = env.state_digest()

    gymnasium = importlib.import_module("gymnasium")
    overlay = simpler_env.source() / "data/real_inpainting" / row.overlay
    upstream = gymnasium.make(
        row.env,
        obs_mode="rgbd",
        scene_name="dummy_tabletop",
        upright=True,
        camera_cfgs={"add_segmentation": True},
        rgb_overlay_path=str(overlay),
        rgb_overlay_cameras=["overhead_camera"],
        max_episode_steps=80,
        **simpler_env.CONTROL,
    )
    robot = {"init_xy": np.array([0.35, 0.2]), "init_rot_quat": [0, 0, 0, 1]}
    can = {"init_xy": np.array(row.start["init_xy"])}
    obs, _ = upstream.reset(options={"robot_init_options": robot, "obj_init_options": can})
    theirs = [obs["image"]["overhead_camera"]["rgb"]]
    for _ in range(3):
        obs, *_ = upstream.step(action.astype(np.float64))
    theirs.append(obs["image"]["overhead_camera"]["rgb"])
    found = hashlib.sha256(upstream.unwrapped.get_state().tobytes()).hexdigest()[:16]
    pictures = [bool(np.array_equal(a, b)) for a, b in zip(ours, theirs, strict=True)]
    return {"state": found == state, "pictures": pictures}


def conversion():
    """Largest difference from the actions that upstream's Octo policy makes of the same numbers.

    Its module wants jax, tensorflow and a model, of which these lines of it use nothing.
    """
    checkout = simulators.directory("simpler") / "SimplerEnv"
    if not checkout.is_dir():
        return "absent"
    sys.path[:0] = [str(checkout), str(simpler_env.source())]
    for name in ("jax", "matplotlib", "matplotlib.pyplot", "octo", "octo.model", "tensorflow"):
        sys.modules[name] = types.ModuleType(name)
    for name, attribute in (
        ("octo.model.octo_model", "OctoModel"),
        ("transformers", "AutoTokenizer"),
    ):
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], attribute, object)
    sys.modules["jax"].__dict__["random"] = types.SimpleNamespace(
        PRNGKey=int, split=lambda key: (key, key)
    )

    rng = np.random.default_rng(0)
    actions = rng.normal(0.0, 0.5, (200, 7)).astype(np.float32)
    actions[:, 6] = np.repeat(rng.uniform(size=40), 5)
    chunk = iter(actions)
    model = types.SimpleNamespace(
        dataset_statistics={
            "fractal20220817_data": {
                "action": {"mean": np.zeros(7, np.float32), "std": np.ones(7, np.float32)}
            }
        },
        create_tasks=lambda texts: None,
        sample_actions=lambda *_, rng: np.tile(next(chunk), (1, 4, 1)),
    )
    octo = importlib.import_module(UPSTREAMS_POLICY)
    theirs = octo.OctoInference(model=model, policy_setup="google_robot")
    theirs.action_ensemble, theirs.action_ensembler = False, None
    theirs._resize_image = lambda image: image
    theirs._obtain_image_history_and_mask = lambda: (np.zeros(1), np.zeros(1))
    theirs.reset("pick coke can")
    env = simpler_env.SimplerEnvironment(TABLE, "google_robot")
    worst = 0.0
    for action in actions:
        _, wanted = theirs.step(np.zeros((1, 1, 3), np.uint8))
        parts = (wanted["world_vector"], wanted["rot_axangle"], wanted["gripper"])
        worst = max(worst, float(np.abs(np.concatenate(parts) - env._own_action(action)).max()))
    return worst
