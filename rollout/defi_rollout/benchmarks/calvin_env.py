"""CALVIN's scene D as one environment, in the simulator's own Python: chains, oracle and pictures.

A chain starts from its official scene in a simulation loaded anew, so that nothing of an earlier
one is left. Its tasks follow each other without a reset; each is judged after every step by
calvin_env's own oracle, which compares the scene now with that at the task's start.

Control runs at 30 Hz. An action is float32 [7]: motion of the commanded tool position in x, y, z
(2 cm for 1) and of its Euler angles (0.05 rad for 1) in the world's frame, and the gripper (above 0
opens, else it closes). Actions are not clipped.
"""

import contextlib
import ctypes
import hashlib
import importlib
import importlib.metadata
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from defi_rollout import errors
from defi_rollout.benchmarks import (
    base,
    calvin,
    calvin_chains,
    calvin_expert,
    headless_gl,
    simulators,
)

RENDERER_VARIABLE = "DEFI_CALVIN_RENDERER"  # "egl" if it is not set
RENDERERS = ("egl", "tiny")  # OpenGL without a screen; pybullet's renderer on the CPU

_PHYSICS_HZ = 240.0
_CAMERAS = {"static": "observation/image", "gripper": "observation/wrist_image"}


class CalvinEnv:
    """Scene D with the official oracle; implements `base.Environment`.

    Args:
        task_steps: environment steps after which a task counts as failed, which ends the chain.

    Raises:
        errors.UserError: no simulator, another commit of it, or no renderer.
    """

    def __init__(self, task_steps: int):
        self._task_steps = task_steps
        self._env, self._oracle, self._pybullet, self._driver = _make_upstream(_chosen_renderer())
        # Upstream draws at each step every camera that it knows of.
        self._cameras = {camera.name: camera for camera in self._env.cameras}
        self._env.cameras = []
        with _stdout_to_file():  # the OpenGL plugin prints when it first draws
            # Its first two pictures have other shadows than all later ones.
            for name in (*self._cameras, *self._cameras):
                self._draw(name)
        self._tasks: tuple[str, ...] = ()
        self._reached, self._steps = 0, 0  # tasks of the chain; steps of the task under way
        self._start_info: Mapping[str, Any] = {}
        self._script: Iterator[np.ndarray] = iter(())

    # -- Episode

    def reset(self, episode: base.Episode) -> str:
        """Places the scene of the chain `episode.seed`, and brings its single task about.

        Returns:
            See `start`.
        """
        chain = calvin_chains.chains()[episode.seed]
        single = episode.task if episode.start == calvin.SINGLE else None
        return self.start(chain.tasks, chain.scene_obs(), single)

    def start(self, tasks: Sequence[str], scene: np.ndarray, single: str | None = None) -> str:
        """Begins a chain of tasks, or one of its tasks, for which the expert plays those before.

        Args:
            tasks: of the chain, in order.
            scene: float64 [24], see `calvin_chains.scene_obs`.
            single: the only task to play from here; None plays the chain.

        Returns:
            A digest of the robot and the scene, to 0.1 mm and 0.1 mrad.

        Raises:
            RuntimeError: the expert fails to bring the start about.
        """
        self._restart(scene)
        if single is None:
            self._begin(tuple(tasks))
        else:
            self._begin(tuple(tasks[: tasks.index(single)]))
            while not self.is_over:
                self.step(self.expert_action())
            if self._reached < len(self._tasks):
                task = self._tasks[self._reached]
                raise RuntimeError(f"the scripted expert failed at {task}, before {single}")
            self._begin((single,))
        obs = self._env.get_state_obs()
        rounded = np.round(np.concatenate([obs["robot_obs"], obs["scene_obs"]]), 4) + 0.0
        return hashlib.sha256(rounded.astype(np.float32).tobytes()).hexdigest()[:16]

    def _restart(self, scene: np.ndarray) -> None:
        """Loads the simulation anew; a mere reset leaves up to 2 mm of what was before."""
        env = self._env
        env.seed(0)
        env.scene.np_random = env.np_random  # upstream draws places that `reset` then replaces
        env.load()
        env.p.setTimeStep(1.0 / _PHYSICS_HZ, physicsClientId=env.cid)
        env.p.setPhysicsEngineParameter(deterministicOverlappingPairs=1, physicsClientId=env.cid)
        env.robot.gripper_action = 1
        env.reset(robot_obs=np.array(calvin_chains.ROBOT_OBS), scene_obs=scene)

    def _begin(self, tasks: tuple[str, ...]) -> None:
        self._tasks, self._reached = tasks, 0
        self._begin_task()

    def _begin_task(self) -> None:
        self._steps, self._script = 0, iter(())
        self._start_info = self._env.get_info()

    @property
    def instruction(self) -> str:
        """The official sentence of the task under way, of the last one after the end."""
        return calvin.INSTRUCTIONS[self._tasks[min(self._reached, len(self._tasks) - 1)]]

    @property
    def is_over(self) -> bool:
        """Whether all tasks are reached, or the one under way took all its steps."""
        return self._reached == len(self._tasks) or self._steps >= self._task_steps

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        """Executes one action, float32 [7]; returns by task of the chain whether it was reached.

        Raises:
            errors.UserError: another shape, or a value that is not finite.
        """
        # A copy: upstream scales some arrays in place.
        command = np.array(action, dtype=np.float32)
        if command.shape != (calvin.ACTION_DIM,) or not np.isfinite(command).all():
            raise errors.UserError(
                f"an action must be {calvin.ACTION_DIM} finite numbers",
                str(action),
                "check the policy",
            )
        command[-1] = 1.0 if command[-1] > 0 else -1.0
        info = self._env.step(command)[-1]
        self._steps += 1
        task = self._tasks[self._reached]
        if self._oracle.get_task_info_for_set(self._start_info, info, {task}):
            self._reached += 1
            if self._reached < len(self._tasks):
                self._begin_task()
        return {task: i < self._reached for i, task in enumerate(self._tasks)}

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action for the current state, float32 [7] in [-1, 1]."""
        action = next(self._script, None)
        if action is None:  # a new task, or another attempt
            self._script = calvin_expert.script(self._env, self._tasks[self._reached])
            action = next(self._script)
        return action

    def state_digest(self) -> str:
        """16 hex digits of the exact state: all bodies, joints, lights and the commanded pose."""
        env, p = self._env, self._pybullet
        found = [*env.robot.target_pos, *env.robot.target_orn, env.robot.gripper_action]
        found += [light.get_state() for light in env.scene.lights]
        for i in range(p.getNumBodies(physicsClientId=env.cid)):
            body = p.getBodyUniqueId(i, physicsClientId=env.cid)
            for part in p.getBasePositionAndOrientation(body, physicsClientId=env.cid):
                found += part
            for part in p.getBaseVelocity(body, physicsClientId=env.cid):
                found += part
            joints = range(p.getNumJoints(body, physicsClientId=env.cid))
            for state in p.getJointStates(body, list(joints), physicsClientId=env.cid) or ():
                found += state[:2]
        return hashlib.sha256(np.array(found, np.float64).tobytes()).hexdigest()[:16]

    # -- Pictures

    def observe(self) -> dict[str, np.ndarray]:
        """Draws now: static uint8 [200, 200, 3], gripper uint8 [84, 84, 3], state float32 [15]."""
        views = {_CAMERAS[name]: self._draw(name) for name in self._cameras}
        state = self._env.get_state_obs()["robot_obs"]
        return views | {"observation/state": state.astype(np.float32)}

    def renderer(self) -> dict[str, Any]:
        """See `headless_gl.describe`."""
        return headless_gl.describe(**self._driver)

    def close(self) -> None:
        """Ends the simulation."""
        with _stdout_to_file():  # the OpenGL plugin says goodbye there
            self._pybullet.disconnect(physicsClientId=self._env.cid)

    def _draw(self, name: str) -> np.ndarray:
        """Draws as upstream does, without the segmentation mask that nobody reads."""
        p, camera = self._pybullet, self._cameras[name]
        if name == "static":
            view = camera.viewMatrix
        else:
            state = p.getLinkState(
                camera.robot_uid, camera.gripper_cam_link, physicsClientId=camera.cid
            )
            rotation = np.reshape(p.getMatrixFromQuaternion(state[1]), (3, 3))
            view = p.computeViewMatrix(state[0], state[0] + rotation[:, 1], -rotation[:, 2])
        lens = (camera.fov, camera.aspect, camera.nearval, camera.farval)
        tiny = self._driver["name"] == "TinyRenderer"
        pixels = p.getCameraImage(
            camera.width,
            camera.height,
            view,
            p.computeProjectionMatrixFOV(*lens),
            renderer=p.ER_TINY_RENDERER if tiny else p.ER_BULLET_HARDWARE_OPENGL,
            flags=p.ER_NO_SEGMENTATION_MASK,
            physicsClientId=camera.cid,
        )[2]
        image = np.reshape(np.asarray(pixels, np.uint8), (camera.height, camera.width, 4))
        return np.ascontiguousarray(image[:, :, :3])


# -- What the setup of a simulator asks for


def versions() -> dict[str, str]:
    """{"name", "version", "commit"} of the simulator; the commit is that of `check_files`."""
    return {
        "name": "calvin_env",
        "version": f"pybullet {importlib.metadata.version('pybullet')}",
        "commit": calvin.SIMULATOR.sources[0].commit,
    }


def check_files() -> str:
    """Compares each file of the checkout with its commit; UserError names those that differ."""
    (source,) = calvin.SIMULATOR.sources
    return f"{simulators.check_source(calvin.SIMULATOR.name, source)} files"


def draw_one() -> str:
    """Draws the first chain's start with both cameras; returns the renderer's name.

    Raises:
        errors.UserError: no renderer, or an empty picture.
    """
    env = CalvinEnv(calvin.TASK_STEPS["calvin-abcd-360"])
    env._restart(calvin_chains.chains()[0].scene_obs())
    for key, picture in env.observe().items():
        if picture.std() < 1.0 and picture.dtype == np.uint8:
            raise errors.UserError("an empty picture", key, f"set {RENDERER_VARIABLE}=tiny")
    name = env.renderer()
    env.close()
    return f"{name['name']} ({name['vendor']})"


def _checkout() -> pathlib.Path:
    return simulators.directory(calvin.SIMULATOR.name) / calvin.SIMULATOR.sources[0].name


def _chosen_renderer() -> str:
    name = os.environ.get(RENDERER_VARIABLE, RENDERERS[0])
    if name not in RENDERERS:
        raise errors.UserError(
            "unknown renderer", f"{RENDERER_VARIABLE}={name}", f"use {' or '.join(RENDERERS)}"
        )
    return name


def _make_upstream(renderer: str) -> tuple[Any, Any, Any, dict[str, str]]:
    """Builds calvin_env's environment and oracle; also pybullet and the renderer's names."""
    # Drawing tiny pictures in software gains nothing from threads; workers would fight over cores.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    if str(_checkout()) not in sys.path:
        sys.path.insert(0, str(_checkout()))
    fix = "python -m defi_rollout setup calvin-abcd-360"
    with (
        errors.UserError.instead_of(ImportError, "the simulator is not installed", "calvin", fix),
        _stdout_to_file(),
    ):
        hydra_utils = importlib.import_module("hydra.utils")
        pybullet = importlib.import_module("pybullet")
        importlib.import_module("calvin_env.envs.play_table_env")
    config = _config(egl=renderer == "egl")
    no_egl = errors.UserError(
        "the OpenGL plugin does not load",
        "EGL",
        f"install libegl1, or set {RENDERER_VARIABLE}=tiny",
    )
    with _stdout_to_file() as said:
        try:
            env = hydra_utils.instantiate(config.env)
        except SystemExit:  # upstream's answer to a plugin that does not load
            raise no_egl from None
    env.close = lambda: None  # upstream's prints to stdout, also when it is collected
    driver = {"vendor": "pybullet", "name": "TinyRenderer"}
    if renderer == "egl":
        found = re.findall(r"^GL_(?:VENDOR|RENDERER)=(.*)$", said(), re.MULTILINE)
        if len(found) != 2:
            raise no_egl
        driver = {"vendor": found[0], "name": found[1]}
    return env, hydra_utils.instantiate(config.tasks), pybullet, driver


def _config(*, egl: bool) -> Any:
    """What upstream's launcher would compose of `conf/` for scene D and both cameras."""
    omegaconf = importlib.import_module("omegaconf").OmegaConf

    def load(name: str) -> Any:
        return omegaconf.load(_checkout() / "conf" / f"{name}.yaml")

    robot = omegaconf.merge(load("robot/panda"), load("robot/panda_longer_finger"))
    del robot["defaults"]
    config = omegaconf.create(
        {
            "use_vr": False,
            "data_path": "data",
            "robot": robot,
            "cameras": {name: load(f"cameras/cameras/{name}") for name in _CAMERAS},
            "scene": load("scene/calvin_scene_D"),
            "env": load("env/play_table_env"),
            "tasks": load("tasks/new_playtable_tasks"),
        }
    )
    config.env.use_egl, config.env.use_scene_info = egl, True
    return config


@contextlib.contextmanager
def _stdout_to_file() -> Iterator[Any]:
    """Keeps what C and Python code of the block print; yields a function that returns the text."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    kept = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        text = ""
        try:
            yield lambda: text
        finally:
            sys.stdout.flush()
            flush(None)
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            text = file.read().decode(errors="replace")
