"""Meta-World v3 as one small environment: seeded starts, scripted experts, headless pictures.

Both the collection of demonstrations and the closed-loop benchmark use this module, so that a
policy meets the very pictures, starts and success rules it was trained on. Needs numpy, mujoco and
metaworld only.

Two kinds of start exist. `usual` is the task's own, plus a hand offset of a few centimetres.
`half_way` exists for the two pairs that share a scene (drawer, window): the joint stands about half
open, and everything that can be seen is drawn from one distribution of the pair, so that only the
instruction tells the tasks apart.

Control runs at 80 Hz. An action is float32 [4] in [-1, 1]: hand motion in x, y, z (1 cm for a full
step; x to the robot's right, y away from it, z up) and gripper effort (+1 closes).
"""

import dataclasses
import difflib
import hashlib
import importlib
import sys
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from defi_rollout import errors
from defi_rollout.benchmarks import headless_gl

CONTROL_HZ = 80.0  # frame_skip 5 x time step 2.5 ms of assets/scene/basic_scene.xml
ACTION_DIM = 4
STATE_DIM = 4
EMBODIMENT = "metaworld_sawyer"

# Training draws its starts from seeds below, evaluation from seeds at and above this number.
FIRST_EVALUATION_SEED = 1_000_000

choose_gl = headless_gl.choose  # callers need no other module

STARTS = ("usual", "half_way")
CAMERA_KEYS = {"static": "observation/image", "gripper": "observation/wrist_image"}

# Success from a half-way start: this displacement of the joint (metres) in the instructed direction
# suffices.
HALF_WAY_DISPLACEMENT = 0.06

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


# ---- tasks ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a task is called, said and given.

    Attributes:
        instructions: paraphrases, the canonical one first.
        horizon: control steps an evaluation episode may take; experts need at most half of them.
    """

    instructions: tuple[str, ...]
    horizon: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two opposite tasks of one scene, and the half-way start they share.

    Joint values in metres. `done_open` and `done_closed` are where the tasks' own success begins.

    Attributes:
        low, high: range of the object's position.
        joint_low, joint_high: range of the joint at a half-way start.
    """

    opens: str
    closes: str
    body: str
    joint: str
    done_open: float
    done_closed: float
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    joint_low: float
    joint_high: float

    @property
    def tasks(self) -> tuple[str, str]:
        """The opening task, then the closing one."""
        return self.opens, self.closes

    def succeeds(self, task: str, joint: float, start: float) -> bool:
        """Whether `joint` (m) fulfils `task` from the half-way start `start` (m)."""
        opening = np.sign(self.done_open - self.done_closed)
        direction = opening if task == self.opens else -opening
        goal = self.done_open if task == self.opens else self.done_closed
        return bool(
            direction * (joint - goal) >= 0.0
            or direction * (joint - start) >= HALF_WAY_DISPLACEMENT
        )


def _task(horizon: int, instructions: str) -> Task:
    """Builds a row from instructions separated by semicolons."""
    return Task(instructions=tuple(instructions.split("; ")), horizon=horizon)


TASKS: dict[str, Task] = {
    "drawer-open-v3": _task(
        250,
        "open the drawer; pull the drawer open; slide the drawer out; pull the green drawer "
        "out towards you; get the drawer open",
    ),
    "drawer-close-v3": _task(
        250,
        "close the drawer; push the drawer shut; slide the drawer in; push the green drawer "
        "back in; get the drawer closed",
    ),
    "button-press-topdown-v3": _task(
        250,
        "press the button; push the red button down; press the button from above; hit the red"
        " button; push down on the button",
    ),
    "window-open-v3": _task(
        250,
        "open the window; slide the window open; push the window to the right; move the "
        "window handle right to open it; get the window open",
    ),
    "window-close-v3": _task(
        250,
        "close the window; slide the window shut; push the window to the left; move the "
        "window handle left to close it; get the window closed",
    ),
    "button-press-v3": _task(
        250,
        "press the front button; push the button in from the front; press the button forward; "
        "push the red button away from you",
    ),
    "coffee-button-v3": _task(
        250,
        "press the button of the coffee machine; start the coffee machine; push the coffee "
        "button; turn the coffee machine on",
    ),
    "door-open-v3": _task(
        300,
        "open the door; pull the door open; swing the door open; pull the safe open",
    ),
    "door-close-v3": _task(
        300,
        "close the door; push the door shut; swing the door closed; push the safe shut",
    ),
    "faucet-open-v3": _task(
        300,
        "open the faucet; turn the faucet on; rotate the tap open; let the water run",
    ),
    "faucet-close-v3": _task(
        300,
        "close the faucet; turn the faucet off; rotate the tap shut; stop the water",
    ),
    "handle-press-v3": _task(
        250,
        "press the handle down; push the handle downwards; lower the handle; force it down",
    ),
    "handle-pull-v3": _task(
        250,
        "pull the handle up; raise the handle; lift the handle upwards; lever the handle up",
    ),
    "lever-pull-v3": _task(
        300,
        "pull the lever up; raise the lever; lift the lever from below; turn the lever upwards",
    ),
    "pick-place-v3": _task(
        300,
        "pick the red puck up and bring it to the goal; lift the puck to the goal; grasp the "
        "red puck and hold it at the target; carry the puck to the target",
    ),
    "plate-slide-v3": _task(
        250,
        "slide the plate into the goal; push the plate forward into the net; slide the plate "
        "away from you; push the puck plate into the cabinet",
    ),
    "push-v3": _task(
        250,
        "push the red puck to the goal; slide the puck over the table; move the puck forward "
        "on the table; push the puck to the target",
    ),
    "reach-v3": _task(
        200,
        "reach the goal; reach for the target; move the hand to the goal; touch the target",
    ),
    "sweep-into-v3": _task(
        250,
        "sweep the block into the hole; push the block into the hole; drop the block into "
        "the hole by sweeping it; make the block fall into the hole",
    ),
}

DEMO_TASKS = (
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "window-open-v3",
    "window-close-v3",
)
OTHER_TASKS = tuple(name for name in TASKS if name not in DEMO_TASKS)

PAIRS = (
    Pair(
        opens="drawer-open-v3",
        closes="drawer-close-v3",
        body="drawer",
        joint="goal_slidey",
        done_open=-0.16,
        done_closed=-0.0314,
        low=(-0.1, 0.9, 0.0),
        high=(0.1, 0.9, 0.0),
        joint_low=-0.095,
        joint_high=-0.07,
    ),
    Pair(
        opens="window-open-v3",
        closes="window-close-v3",
        body="window",
        joint="window_slide",
        done_open=0.1901,
        done_closed=0.0399,
        low=(-0.1, 0.75, 0.16),
        high=(0.1, 0.9, 0.2),
        joint_low=0.085,
        joint_high=0.115,
    ),
)


def pair_of(task: str) -> Pair | None:
    """The pair that `task` belongs to, None when it has no half-way start."""
    return next((pair for pair in PAIRS if task in pair.tasks), None)


def opposite(task: str) -> str | None:
    """The opposite task in the same scene, None when there is none."""
    pair = pair_of(task)
    if pair is None:
        return None
    return pair.closes if task == pair.opens else pair.opens


def get_task(name: str) -> Task:
    """Looks `name` up.

    Raises:
        errors.UsageError: the task is not in the table; names the nearest ones.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.3) or sorted(TASKS)
        raise errors.UsageError("unknown Meta-World task", name, f"did you mean {', '.join(near)}")
    return TASKS[name]


# ---- environment ----


def _import_mujoco() -> Any:
    """Imports mujoco, refusing versions that metaworld 3.0.0 cannot run on."""
    try:
        import mujoco
    except ImportError as error:
        raise errors.UsageError(
            "the simulator is not installed", "mujoco", "pip install 'defi-rollout[metaworld]'"
        ) from error
    version = tuple(int(part) for part in mujoco.__version__.split(".")[:2])
    if version >= _FIRST_UNSUPPORTED_MUJOCO:
        raise errors.UsageError(
            "this MuJoCo is too new for Meta-World 3.0.0",
            f"mujoco {mujoco.__version__}",
            "pip install 'mujoco>=3.3,<3.17'",
        )
    return mujoco


class MetaWorldEnv:
    """One task with seeded starts, its scripted expert, and pictures drawn only when asked for.

    Args:
        task: a key of `TASKS`.
        image_size: height and width of the pictures, pixels.
        cameras: cameras to draw, among "static" and "gripper"; empty needs no OpenGL.

    Attributes:
        task: the task's name.
        spec: its row of `TASKS`.

    Raises:
        errors.UsageError: unknown task or camera, simulator or OpenGL library missing.
    """

    def __init__(
        self, task: str, *, image_size: int = 64, cameras: Sequence[str] = ("static", "gripper")
    ):
        self.task, self.spec, self._pair = task, get_task(task), pair_of(task)
        self._image_size, self._cameras = image_size, tuple(cameras)
        for camera in self._cameras:
            if camera not in CAMERA_KEYS:
                raise errors.UsageError("unknown camera", camera, f"use {', '.join(CAMERA_KEYS)}")
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
            start: "usual" or "half_way". Equal seeds give both tasks of a pair one half-way start.

        Raises:
            errors.UsageError: unknown start, or half_way for a task without an opposite.
        """
        if start not in STARTS:
            raise errors.UsageError("unknown start", start, f"use {' or '.join(STARTS)}")
        if start == "half_way" and self._pair is None:
            raise errors.UsageError("no half-way start for this task", self.task, "use start=usual")
        scene = self._pair.body if start == "half_way" else self.task
        rng = np.random.default_rng([seed, STARTS.index(start), zlib.crc32(scene.encode())])
        self._env.hand_init_pos = self._home + rng.uniform(_HAND_OFFSET_LOW, _HAND_OFFSET_HIGH)
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
            errors.UsageError: another shape, or a value that is not finite.
        """
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise errors.UsageError(
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

    def renderer_name(self) -> dict[str, str]:
        """Vendor and name of the OpenGL in use; pixels of different ones need not be equal."""
        if not self._cameras:
            return {"vendor": "none", "name": "none"}
        self._draw(self._cameras[0])
        from OpenGL import GL

        return {
            "vendor": GL.glGetString(GL.GL_VENDOR).decode(),  # pyright: ignore[reportAttributeAccessIssue]
            "name": GL.glGetString(GL.GL_RENDERER).decode(),  # pyright: ignore[reportAttributeAccessIssue]
        }

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
    try:
        from metaworld import env_dict, policies
    except ImportError as error:
        raise errors.UsageError(
            "the simulator is not installed", "metaworld", "pip install 'defi-rollout[metaworld]'"
        ) from error
    env = env_dict.ENV_CLS_MAP[task]()
    # Upstream's set_task unpickles a task record. Its effects are set here: no pickle in our code.
    env._set_task_called = True
    # The experts of some tasks read the goal, which the partially observable mode blanks.
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)
    return env, policies.ENV_POLICY_MAP[task]()
