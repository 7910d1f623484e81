"""SimplerEnv's Google Robot tasks as one environment; runs in the simulator's own Python.

Every episode is played in a scene of its own, as upstream's evaluation does: built, reset once by
its constructor and once with the episode's start. Nothing of an earlier episode is left. Pictures
are drawn when they are asked for; that changes no state (upstream draws every step).

Control runs at 3 Hz, physics at 513 Hz. An action is float32 [7]: motion of the gripper in x, y, z
(m, axes of the robot's base), its rotation and the gripper. Two conventions are taken:

`google_robot`, of the fractal data set: Euler angles (rad, roll, pitch, yaw about fixed axes) and
an absolute gripper, 1 open, 0 closed.

`simpler_google_robot`, the simulator's own: a rotation vector (rad) and a relative gripper, 1
closing, 0 keeping, -1 opening.

Source: simpler_env/{evaluation/maniskill2_evaluator,policies/octo/octo_model}.py of
simpler-env/SimplerEnv 4ab7178, MIT.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from defi_rollout import errors
from defi_rollout.benchmarks import base, simpler_expert, simpler_tables, simulators, vulkan_devices

ACTION_DIM = 7
EMBODIMENTS = ("simpler_google_robot", "google_robot")
CAMERA = "observation/image"
STATE = "observation/state"
STICKY_STEPS = 15  # for which a change of an absolute gripper is carried on
NAME = "simpler"  # of the simulator
SOURCE = simulators.Source(
    name="ManiSkill2_real2sim",
    url="https://github.com/simpler-env/ManiSkill2_real2sim",
    commit="ef7a4d4fdf4b69f2c2154db5b15b9ac8dfe10682",
)
CONTROL = {  # arguments of every environment's constructor
    "robot": "google_robot_static",
    "sim_freq": 513,
    "control_freq": 3,
    "control_mode": "arm_pd_ee_delta_pose_align_interpolate_by_planner_"
    "gripper_pd_joint_target_delta_pos_interpolate_by_planner",
}

_DRIVER = "the driver may be too old: that of Mesa 25 is known to draw on a CPU"
_COMMON_FILES = (
    *(f"mani_skill2_real2sim/{folder}/" for folder in ("agents", "envs", "sensors", "utils")),
    "mani_skill2_real2sim/assets/descriptions/googlerobot_description/",
    *(
        f"data/custom/info_pick_custom{which}.json"
        for which in ("_v0", "_baked_tex_v0", "_baked_tex_v1")
    ),
)


def source() -> pathlib.Path:
    """Where the checkout of the simulator lies."""
    return simulators.directory(NAME) / SOURCE.name


class SimplerEnvironment:
    """`base.Environment` over one table of `simpler_tables`.

    Args:
        table: its name.
        embodiment: convention of the actions, one of EMBODIMENTS.

    Raises:
        UserError: the simulator is not installed, or cannot draw.
    """

    def __init__(self, table: str, embodiment: str):
        self._rows = simpler_tables.rows(table)
        self._simulator = _import_simulator()
        self._device = vulkan_devices.first()
        with _drawing():
            self._renderer = self._simulator.sapien.SapienRenderer()
        self._gripper = StickyGripper() if embodiment == "google_robot" else None
        self._verified: set[str] = set()
        self._raw: Any = None
        self._row: simpler_tables.Row | None = None
        self._expert: simpler_expert.CokeCanExpert | None = None

    # -- The protocol

    def reset(self, episode: base.Episode) -> str:
        """Builds the scene of an episode; returns the digest of its start.

        Raises:
            CheckFailed: a file of the scene is missing or changed.
        """
        row = self._row = self._rows[episode.id]
        self._verify(files(row))
        self._raw = None  # two scenes at a time would only cost memory
        self._raw = self._build(row)
        self._raw.reset(options=self._start(row))
        if self.instruction != row.instructions[0]:
            raise errors.UserError(
                f"the simulator says {self.instruction!r}", row.id, f"for {row.instructions[0]!r}"
            )
        if self._gripper:
            self._gripper.reset()
        self._expert = None
        return self.state_digest()

    @property
    def instruction(self) -> str:
        """Text of the task, or of the part of it, that is due now."""
        return self._raw.get_language_instruction()

    @property
    def is_over(self) -> bool:
        """Never: an episode lasts all its steps, and its last one decides."""
        return False

    def observe(self) -> dict[str, np.ndarray]:
        """Draws the overhead camera, and tells the arm's state.

        Returns:
            CAMERA: uint8 [512, 640, 3]. STATE: float32 [8], pose of the gripper in the base's
            frame, x, y, z (m) and quaternion (w, x, y, z), and its closedness (mean finger joint,
            rad). Upstream offers no such state; the data set's own frame was not compared.
        """
        raw = self._raw
        raw._obs_mode = "image"
        try:
            colour = raw.get_obs()["image"]["overhead_camera"]["Color"][..., :3]
        finally:
            raw._obs_mode = "none"
        pose = raw.agent.robot.pose.inv() * raw.tcp.pose
        fingers = raw.agent.robot.get_qpos()[simpler_expert.finger_joints(raw)]
        return {
            CAMERA: np.clip(colour * 255, 0, 255).astype(np.uint8),
            STATE: np.concatenate([pose.p, pose.q, [fingers.mean()]]).astype(np.float32),
        }

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        """Executes an action, float32 [7]; returns whether the task holds now."""
        before = self.instruction
        _, _, done, _, _ = self._raw.step(self._own_action(action))
        if self._gripper and self.instruction != before:
            self._gripper.reset()  # upstream's policies start anew with each instruction
        assert self._row is not None
        return {self._row.task: bool(done)}

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action in the policy's convention, float32 [7].

        Raises:
            UserError: the task has none.
        """
        assert self._row is not None
        if self._row.task != "pick_coke_can":
            raise errors.UserError("no scripted expert", self._row.task, "pick_coke_can has one")
        if self._expert is None:
            self._expert = simpler_expert.CokeCanExpert(self._raw)
        return self._expert.action(absolute=self._gripper is not None)

    def state_digest(self) -> str:
        """16 hex digits of poses, joints and velocities of all that moves, to the last bit."""
        return hashlib.sha256(self._raw.get_state().tobytes()).hexdigest()[:16]

    def renderer(self) -> dict[str, Any]:
        """{"vendor", "name", "comparable"} and, where not comparable, "reason"."""
        found = {"vendor": self._device.vendor, "name": self._device.name, "comparable": True}
        if not self._device.is_cpu:
            return found
        reason = "drawn on the CPU, whose pixels may differ from a GPU's"
        if self._row is not None and self._row.ray_traced:
            reason = "rasterised on the CPU, where the protocol traces rays"
        return found | {"comparable": False, "reason": reason}

    def close(self) -> None:
        """Frees the scene."""
        self._raw = None

    # -- The scene

    def _build(self, row: simpler_tables.Row) -> Any:
        build = dict(row.build)
        if row.overlay:
            build["rgb_overlay_path"] = str(source() / "data/real_inpainting" / row.overlay)
            build["rgb_overlay_cameras"] = ["overhead_camera"]
        if row.ray_traced and not self._device.is_cpu:
            build["shader_dir"] = "rt"
        with self._one_renderer():
            return self._simulator.environments[row.env].make(
                obs_mode="none", camera_cfgs={"add_segmentation": True}, **CONTROL, **build
            )

    @contextlib.contextmanager
    def _one_renderer(self) -> Iterator[None]:
        # Upstream makes a renderer for each environment, which compiles its shaders anew: 10 s.
        sapien = self._simulator.sapien
        made = sapien.SapienRenderer
        sapien.SapienRenderer = lambda: self._renderer
        try:
            yield
        finally:
            sapien.SapienRenderer = made

    def _start(self, row: simpler_tables.Row) -> dict[str, Any]:
        x, y, yaw = row.robot
        pose = self._simulator.sapien.Pose
        turned = pose(q=self._simulator.euler.euler2quat(0, 0, yaw)) * pose(q=[0, 0, 0, 1])
        start = {k: np.array(v) if k == "init_xy" else v for k, v in row.start.items()}
        robot = {"init_xy": np.array([x, y]), "init_rot_quat": turned.q}
        return {"robot_init_options": robot, "obj_init_options": start}

    def _verify(self, wanted: Iterable[str]) -> None:
        """A missing mesh would be no error upstream, but an object that nobody sees."""
        new = [path for path in wanted if path not in self._verified]
        if new:
            simulators.check_source(NAME, SOURCE, new)
        self._verified.update(new)

    def _own_action(self, action: np.ndarray) -> np.ndarray:
        """An action in the simulator's convention, float64 [7]."""
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise errors.UserError(
                f"an action {action.shape} or not finite", "policy", f"give {ACTION_DIM} numbers"
            )
        if self._gripper is None:
            return action.astype(np.float64)
        roll, pitch, yaw = action[3:6].astype(np.float64)
        axis, angle = self._simulator.euler.euler2axangle(roll, pitch, yaw)
        return np.concatenate([action[:3], axis * angle, [self._gripper.relative(action[6])]])


class StickyGripper:
    """Turns an absolute gripper into a relative one, as SimplerEnv's Octo baseline does.

    A change of more than a half from one step to the next is carried on for STICKY_STEPS steps;
    until then further changes are not heard. The first step of an episode or instruction keeps.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forgets the gripper's last opening and a change under way."""
        self._last: np.floating | None = None
        self._carried, self._left = np.float32(0.0), 0

    def relative(self, opening: np.floating) -> np.floating:
        """Takes an opening, 1 open and 0 closed; returns 1 for closing to -1 for opening."""
        change = opening - opening if self._last is None else self._last - opening
        self._last = opening
        if not self._left and abs(change) > 0.5:
            self._carried, self._left = change, STICKY_STEPS
        if not self._left:
            return change
        self._left -= 1
        return self._carried


# -- Files


def files(row: simpler_tables.Row) -> list[str]:
    """Files and folders (with a slash) of the checkout that an episode's scene is made of."""
    found = [*_COMMON_FILES, *(f"data/custom/models/{name}/" for name in row.models)]
    stage = row.build["scene_name"]
    if not stage.startswith("dummy"):
        found.append(f"data/hab2_bench_assets/stages/{stage}.glb")
    if row.ray_traced:  # of all the tasks, those with a cabinet
        station = row.build.get("station_name", "mk_station")
        found += [f"data/custom/{station}.urdf", "data/custom/models/stone_tabletop.glb"]
    if row.overlay:
        found.append(f"data/real_inpainting/{row.overlay}")
    return found


# -- What setup and doctor ask for


def versions() -> dict[str, str]:
    """{"name", "version", "commit"} of the simulator; the commit is that of `check_files`."""
    _import_simulator()
    version = f"sapien {importlib.metadata.version('sapien')}"
    return {"name": NAME, "version": version, "commit": f"{SOURCE.name} {SOURCE.commit}"}


def check_files() -> str:
    """Compares the files of `simpler-tabletop`; returns how many.

    Those of another scene are compared before it is played; `doctor` compares the whole checkout.
    """
    rows = simpler_tables.rows(simpler_tables.TABLETOP).values()
    wanted = sorted({path for row in rows for path in files(row)})
    return f"{simulators.check_source(NAME, SOURCE, wanted)} files"


def draw_one() -> str:
    """Draws a box and checks that it can be seen; returns the name of the renderer.

    Raises:
        CheckFailed: the picture is empty.
        UserError: there is none.
    """
    sapien, device = _import_simulator().sapien, vulkan_devices.first()
    with _drawing():
        engine, renderer = sapien.Engine(), sapien.SapienRenderer()
        engine.set_renderer(renderer)
        scene = engine.create_scene()
        scene.set_ambient_light([1.0, 1.0, 1.0])
        builder = scene.create_actor_builder()
        builder.add_box_visual(half_size=[0.1, 0.1, 0.1], color=[1.0, 0.0, 0.0])
        builder.build_static(name="box").set_pose(sapien.Pose([1.0, 0.0, 0.0]))
        camera = scene.add_camera("camera", 64, 64, 1.0, 0.1, 10.0)
        scene.step()
        scene.update_render()
        camera.take_picture()
        red = camera.get_float_texture("Color")[..., 0]
    if not red[32, 32] > red[0, 0]:
        raise errors.CheckFailed("the picture is empty", device.name, _DRIVER)
    return device.name


def _drawing() -> contextlib.AbstractContextManager[None]:
    return errors.UserError.instead_of(RuntimeError, "no picture can be drawn", "SAPIEN", _DRIVER)


class _Simulator:
    """The simulator's modules."""

    def __init__(self, sapien: Any, euler: Any, environments: Mapping[str, Any]):
        self.sapien, self.euler, self.environments = sapien, euler, environments


def _import_simulator() -> _Simulator:
    if str(source()) not in sys.path:
        sys.path.insert(0, str(source()))
    fix = "python -m defi_rollout setup BENCHMARK"
    with errors.UserError.instead_of(ImportError, "the simulator is not installed", "simpler", fix):
        importlib.import_module("mani_skill2_real2sim.envs")  # registers them
        registration = importlib.import_module("mani_skill2_real2sim.utils.registration")
        sapien = importlib.import_module("sapien.core")
        euler = importlib.import_module("transforms3d.euler")
    return _Simulator(sapien, euler, registration.REGISTERED_ENVS)
