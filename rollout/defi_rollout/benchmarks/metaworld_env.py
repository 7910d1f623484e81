"""Meta-World v3 as one small environment: seeded starts, scripted experts, headless pictures.

Both the collection of demonstrations and the closed-loop benchmark use this module, so that a
policy meets the very pictures, starts and success rules it was trained on. Needs numpy, mujoco and
metaworld only.

Three kinds of start exist. `own` is the task's, `usual` adds a hand offset of a few centimetres.
`half_way` exists for the two pairs that share a scene (drawer, window): the joint stands about half
open, and everything that can be seen is drawn from one distribution of the pair, so that only the
instruction tells the tasks apart.

Control runs at 80 Hz. An action is float32 [4] in [-1, 1]: hand motion in x, y, z (1 cm for a full
step; x to the robot's right, y away from it, z up) and gripper effort (+1 closes).
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import sys
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from defi_rollout import errors
from defi_rollout.benchmarks import headless_gl, metaworld_tasks, wheels

CONTROL_HZ = 80.0  # frame_skip 5 x time step 2.5 ms of assets/scene/basic_scene.xml
ACTION_DIM = 4
STATE_DIM = 4
EMBODIMENT = "metaworld_sawyer"

# Training draws its starts from seeds below, evaluation from seeds at and above this number.
FIRST_EVALUATION_SEED = 1_000_000

choose_gl = headless_gl.choose  # callers need no other module

STARTS = ("usual", "half_way", "own")
CAMERA_KEYS = {"static": "observation/image", "gripper": "observation/wrist_image"}

# Offset of the hand's start from the task's own, metres. Never towards the robot: several tasks
# start at the edge of the hand's range.
_HAND_OFFSET_LOW = (-0.04, 0.0, -0.03)
_HAND_OFFSET_HIGH = (0.04, 0.04, 0.03)

# The static camera stands at the robot's right and looks ahead, left and down. A free camera is
# upright by construction, unlike the `corner*` cameras of the scene files.
_STATIC_LOOK_AT = (0.0, 0.64, 0.19)
_STATIC_DISTANCE = 0.88
_STATIC_AZIMUTH = 137.0
_STATIC_ELEVATION = -28.0
_STATIC_FOVY = 45.0

# metaworld 3.0.0 writes 11 numbers per weld; MuJoCo 3.17 and later keep 12.
_FIRST_UNSUPPORTED_MUJOCO = (3, 17)


def versions() -> dict[str, str]:
    """{"name", "version", "commit"} of Meta-World and MuJoCo; wheels carry no commit."""
    _import_mujoco()
    with needs_simulator():
        found = {name: importlib.metadata.version(name) for name in ("metaworld", "mujoco")}
    return {
        "name": "metaworld",
        "version": f"{found['metaworld']} (mujoco {found['mujoco']})",
        "commit": f"PyPI metaworld=={found['metaworld']}",
    }


def draw_one() -> str:
    """Draws one picture; returns the OpenGL that did, or raises UserError."""
    return choose_gl()


def check_files() -> str:
    """Compares the scenes and meshes of Meta-World with their digests."""
    return wheels.check_files("metaworld")


def needs_simulator() -> contextlib.AbstractContextManager[None]:
    """Says what to install where an import in the block fails."""
    fix = "pip install 'defi-rollout[metaworld]'"
    return errors.UserError.instead_of(
        ImportError, "the simulator is not installed", "metaworld", fix
    )


def _import_mujoco() -> Any:
    """Imports mujoco, refusing versions that metaworld 3.0.0 cannot run on."""
    with needs_simulator():
        import mujoco
    version = tuple(int(part) for part in mujoco.__version__.split(".")[:2])
    if version >= _FIRST_UNSUPPORTED_MUJOCO:
        raise errors.UserError(
            "this MuJoCo is too new for Meta-World 3.0.0",
            f"mujoco {mujoco.__version__}",
            "pip install 'mujoco>=3.3,<3.17'",
        )
    return mujoco


class MetaWorldEnv:
    """One task with seeded starts, its scripted expert, and pictures drawn only when asked for.

    Args:
        task: a task of `metaworld_tasks`.
        image_size: height and width of the pictures, pixels.
        cameras: cameras to draw, among "static" and "gripper"; empty needs no OpenGL.

    Attributes:
        task: the task's name.
        spec: its row there.

    Raises:
        errors.UserError: unknown task or camera, simulator or OpenGL library missing.
    """

    def __init__(
        self, task: str, *, image_size: int = 64, cameras: Sequence[str] = ("static", "gripper")
    ):
        self.task, self.spec = task, metaworld_tasks.get_task(task)
        self._pair = metaworld_tasks.pair_of(task)
        self._image_size, self._cameras = image_size, tuple(cameras)
        for camera in self._cameras:
            if camera not in CAMERA_KEYS:
                raise errors.UserError("unknown camera", camera, f"use {', '.join(CAMERA_KEYS)}")
        if self._cameras:
            choose_gl()
        self._mujoco = _import_mujoco()
        self._env, self._expert = _make_upstream(task)
        self._home = np.array(self._env.hand_init_pos, dtype=np.float64)
        self._renderer, self._static_camera, self._options = None, None, None
        self._scores: dict[str, bool] = {}
        self._start, self._joint_start, self._obs = "usual", 0.0, np.zeros(39)

    # -- Episode

    def reset(self, seed: int, start: str = "usual") -> None:
        """Places the scene and settles the hand; `seed` and `start` fully determine the result.

        Args:
            seed: non-negative; see FIRST_EVALUATION_SEED.
            start: one of STARTS. Equal seeds give both tasks of a pair one half-way start.

        Raises:
            errors.UserError: unknown start, or half_way for a task without an opposite.
        """
        if start not in STARTS:
            raise errors.UserError("unknown start", start, f"use {' or '.join(STARTS)}")
        if start == "half_way" and self._pair is None:
            raise errors.UserError("no half-way start for this task", self.task, "use start=usual")
        scene = self._pair.body if start == "half_way" else self.task
        rng = np.random.default_rng([seed, STARTS.index(start), zlib.crc32(scene.encode())])
        offset = 0.0 if start == "own" else rng.uniform(_HAND_OFFSET_LOW, _HAND_OFFSET_HIGH)
        self._env.hand_init_pos = self._home + offset
        if start == "half_way":
            self._env._last_rand_vec = rng.uniform(self._pair.low, self._pair.high)
        else:
            self._draw_scene(rng)
        self._place_scene()
        if start == "half_way":
            joint = self._env.data.joint(self._pair.joint)
            joint.qpos[0] = rng.uniform(self._pair.joint_low, self._pair.joint_high)
            joint.qvel[0] = 0.0
            self._joint_start = float(joint.qpos[0])
        # Upstream moves bodies after its last forward pass: pictures and expert would see the old
        # place.
        self._mujoco.mj_forward(self._env.model, self._env.data)
        self._obs = self._env._get_obs()
        self._start = start
        scored = self._pair.tasks if start == "half_way" else (self.task,)
        self._scores = dict.fromkeys(scored, False)

    def step(self, action: np.ndarray) -> bool:
        """Executes one action of 12.5 ms.

        Args:
            action: [4], clipped to [-1, 1].

        Returns:
            Whether the task has succeeded so far in this episode.

        Raises:
            errors.UserError: another shape, or a value that is not finite.
        """
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise errors.UserError(
                f"an action must be {ACTION_DIM} finite numbers", str(action), "check the policy"
            )
        action = np.clip(action, -1.0, 1.0)
        self._obs, _, _, _, info = self._env.step(action)
        if self._start == "half_way":
            joint = float(self._env.data.joint(self._pair.joint).qpos[0])
            for task in self._scores:
                self._scores[task] |= self._pair.succeeds(task, joint, self._joint_start)
        self._scores[self.task] |= bool(info["success"])
        return self._scores[self.task]

    @property
    def successes(self) -> dict[str, bool]:
        """Success so far of each task the episode can score: from half-way, both of the pair."""
        return dict(self._scores)

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action for the current state, float32 [4] in [-1, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # upstream warns at each saturated step
            action = self._expert.get_action(self._obs)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def state(self) -> np.ndarray:
        """The robot's own state, float32 [4]: hand x, y, z in metres, gripper opening in [0, 1]."""
        return self._obs[:STATE_DIM].astype(np.float32)

    def start_digest(self) -> str:
        """16 hex digits that identify the physical state (joints and body positions to 0.1 mm).

        Called after `reset`, it tells whether an evaluation start was seen in training.
        """
        state = np.concatenate([self._env.data.qpos, self._env.data.xpos.ravel()])
        rounded = np.round(state, 4).astype(np.float32) + np.float32(0.0)  # merges -0.0 into 0.0
        return hashlib.sha256(rounded.tobytes()).hexdigest()[:16]

    def state_digest(self) -> str:
        """16 hex digits of positions and velocities, to the last bit."""
        state = np.concatenate([self._env.data.qpos, self._env.data.qvel])
        return hashlib.sha256(state.tobytes()).hexdigest()[:16]

    def _draw_scene(self, rng: np.random.Generator) -> None:
        """Lets upstream draw an object and goal placement that its own rejection rules accept."""
        self._env.np_random = rng
        self._env.seeded_rand_vec, self._env._freeze_rand_vec = True, False
        self._env.reset()

    def _place_scene(self) -> None:
        """Resets with the placement held in `_last_rand_vec`.

        Upstream's reset places the scene, clears the physics and places it again, so that nothing
        of an earlier episode or placement is left.
        """
        self._env._freeze_rand_vec = True
        self._env.reset()

    # -- Pictures

    def observe(self) -> dict[str, np.ndarray]:
        """Draws the current state: observation key of each camera -> uint8 [H, W, 3]."""
        return {CAMERA_KEYS[camera]: self._draw(camera) for camera in self._cameras}

    def renderer(self) -> dict[str, Any]:
        """{"vendor", "name", "comparable"} of the OpenGL in use, see `headless_gl.describe`."""
        if not self._cameras:
            return headless_gl.describe("none", "none")
        self._draw(self._cameras[0])
        return headless_gl.describe_current()

    def _draw(self, camera: str) -> np.ndarray:
        if self._renderer is None:
            self._make_renderer()
        view = self._static_camera if camera == "static" else "gripperPOV"
        self._env.model.vis.global_.fovy = _STATIC_FOVY
        self._renderer.update_scene(self._env.data, camera=view, scene_option=self._options)
        return self._renderer.render()

    def _make_renderer(self) -> None:
        """Opens the OpenGL context, without the effects that cost ten times the picture."""
        mujoco, model = self._mujoco, self._env.model
        backend = importlib.import_module(f"mujoco.{choose_gl()}")
        # mujoco binds its context class on import, which may have been before the choice.
        sys.modules[mujoco.Renderer.__module__].gl_context.GLContext = backend.GLContext
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        self._renderer = mujoco.Renderer(model, self._image_size, self._image_size)
        for flag in ("SHADOW", "REFLECTION", "FOG", "HAZE"):
            self._renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # goal markers are sites: they would give the task away
        self._static_camera = mujoco.MjvCamera()
        self._static_camera.lookat[:] = _STATIC_LOOK_AT
        self._static_camera.distance = _STATIC_DISTANCE
        self._static_camera.azimuth = _STATIC_AZIMUTH
        self._static_camera.elevation = _STATIC_ELEVATION

    def close(self) -> None:
        """Frees the OpenGL context; the environment can still be used without pictures."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._env.close()


def _make_upstream(task: str) -> tuple[Any, Any]:
    """Builds the upstream environment, ready to be reset, and its scripted expert."""
    with needs_simulator():
        from metaworld import env_dict, policies
    env = env_dict.ENV_CLS_MAP[task]()
    # Upstream's set_task unpickles a task record. Its effects are set here: no pickle in our code.
    env._set_task_called = True
    # The experts of some tasks read the goal, which the partially observable mode blanks.
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)
    return env, policies.ENV_POLICY_MAP[task]()
