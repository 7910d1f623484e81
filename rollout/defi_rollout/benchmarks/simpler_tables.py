"""The episodes of the SimplerEnv paper's Google Robot tables, as data; needs numpy only.

`simpler-fractal-vm` is the paper's Visual Matching table (864 episodes), `simpler-fractal-va` its
Variant Aggregation (1722). Camera variants, which the scripts run too, are left out, as they are
by the script that computes the paper's numbers. Each variant of a task has equally many episodes,
so the paper's mean of the variants' means is the mean of all episodes.

`simpler-tabletop` is no table of the paper: coke can and one triplet of move near on upstream's
plain box in place of the scanned room. It needs none of the large files, so it shows quickly
whether a machine and a policy work; its numbers compare with nothing else.

Source: scripts/rt1_*.sh and tools/calc_metrics_evaluation_videos.py of simpler-env/SimplerEnv
4ab7178, MIT.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

VISUAL_MATCHING = "simpler-fractal-vm"
VARIANT_AGGREGATION = "simpler-fractal-va"
TABLETOP = "simpler-tabletop"
TABLES = (VISUAL_MATCHING, VARIANT_AGGREGATION, TABLETOP)

_ROOM = "google_pick_coke_can_1_v4"  # stage of the table tasks
_FLAT = "frl_apartment_stage_simple"  # and of the cabinet tasks
_COKE_CAN = "GraspSingleOpenedCokeCanInScene-v0"
_ORIENTATIONS = ("lr_switch", "upright", "laid_vertically")
_ARMS = {  # colours of the robot's arm in Visual Matching
    "arm_original": "",
    "arm_tabletop_1": "recolor_tabletop_visual_matching_1",
    "arm_tabletop_2": "recolor_tabletop_visual_matching_2",
    "arm_cabinet_1": "recolor_cabinet_visual_matching_1",
}
# Robot base x, y (m) and yaw (rad) of the cabinet tasks in Visual Matching, by background picture.
_CABINET_POSES = {
    "a0": (0.644, -0.179, -0.03),
    "a1": (0.765, -0.182, -0.02),
    "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0),
    "b1": (0.752, 0.009, 0.0),
    "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0),
    "c1": (0.765, 0.222, -0.025),
    "c2": (0.865, 0.222, -0.025),
}
# Objects of move near; episode n takes triplet n // 12 and source and target of _PAIRS[n % 6].
_TRIPLETS = (
    ("blue_plastic_bottle", "opened_pepsi_can", "orange"),
    ("opened_7up_can", "apple", "sponge"),
    ("opened_coke_can", "opened_redbull_can", "apple"),
    ("sponge", "blue_plastic_bottle", "opened_7up_can"),
    ("orange", "opened_pepsi_can", "opened_redbull_can"),
)
_PAIRS = ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
_UNBAKED = ("blue_plastic_bottle", "orange")  # have no version with baked light
_DISTRACTORS = {
    "distractors": ("opened_pepsi_can", "apple", "sponge", "orange"),
    "more_distractors": (
        *("opened_7up_can", "opened_sprite_can", "sponge", "orange", "opened_fanta_can"),
        "bridge_spoon_generated_modified",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One episode.

    Attributes:
        id: stable and unique.
        task: row of the paper's table; open and close drawer stand apart.
        variant: what differs from the table's other passes over the same starts.
        env: name under which upstream registers the environment.
        build: further arguments of its constructor.
        instructions: texts in the order in which the policy is given them.
        robot: x, y (m) and yaw (rad) of its base.
        start: what upstream's reset takes as "obj_init_options".
        overlay: picture that replaces the background, below data/real_inpainting; "" for none.
        models: objects of the scene, folders below data/custom/models.
        ray_traced: whether upstream draws it with ray tracing.
        max_steps: control steps at 3 Hz.
    """

    id: str
    task: str
    variant: str
    env: str
    build: Mapping[str, Any]
    instructions: tuple[str, ...]
    robot: tuple[float, float, float]
    start: Mapping[str, Any]
    overlay: str
    models: tuple[str, ...]
    ray_traced: bool
    max_steps: int


@functools.cache
def rows(table: str) -> dict[str, Row]:
    """Returns the episodes of a table by id, in the order of the paper's scripts."""
    made = {VISUAL_MATCHING: _matching, VARIANT_AGGREGATION: _variants, TABLETOP: _tabletop}[table]
    found = list(made())
    by_id = {row.id: row for row in found}
    assert len(by_id) == len(found)
    return by_id


def _matching() -> Iterator[Row]:
    for arm, urdf in _ARMS.items():
        build = {"scene_name": _ROOM, "urdf_version": urdf}
        yield from _coke_cans(arm, build, overlay="google_coke_can_real_eval_1.png")
    for arm, urdf in _ARMS.items():
        build = {"scene_name": _ROOM, "urdf_version": urdf}
        overlay = "google_move_near_real_eval_1.png"
        yield from _move_near(arm, build, baked=True, overlay=overlay)
    cabinet = {"scene_name": "dummy_drawer", "station_name": "mk_station_recolor"}
    cabinet |= {"light_mode": "simple", "disable_bad_material": True}
    for made, apple in ((_drawers, {}), (_apples, {"model_ids": "baked_apple_v2"})):
        for arm, urdf in _ARMS.items():
            yield from made(arm, cabinet | {"urdf_version": urdf} | apple, None)


def _variants() -> Iterator[Row]:
    rooms = [
        ("base", {}),
        ("background_1", {"scene_name": f"{_ROOM}_alt_background"}),
        ("background_2", {"scene_name": f"{_ROOM}_alt_background_2"}),
        ("darker", {"slightly_darker_lighting": True}),
        ("brighter", {"slightly_brighter_lighting": True}),
        ("table_1", {"scene_name": "Baked_sc1_staging_objaverse_cabinet1_h870"}),
        ("table_2", {"scene_name": "Baked_sc1_staging_objaverse_cabinet2_h870"}),
    ]
    more = {"distractor_config": "more"}
    for variant, build in [*rooms, ("distractors", {}), ("more_distractors", more)]:
        yield from _coke_cans(variant, {"scene_name": _ROOM} | build)
    for variant, build in [*rooms, ("no_distractor", {"no_distractor": True})]:
        yield from _move_near(variant, {"scene_name": _ROOM} | build)
    flats = [
        ("base", {}),
        ("background_1", {"scene_name": "modern_bedroom_no_roof"}),
        ("background_2", {"scene_name": "modern_office_no_roof"}),
        ("brighter", {"light_mode": "brighter"}),
        ("darker", {"light_mode": "darker"}),
        ("cabinet_1", {"station_name": "mk_station2"}),
        ("cabinet_2", {"station_name": "mk_station3"}),
    ]
    for variant, build in flats:
        yield from _drawers(variant, {"scene_name": _FLAT} | build, (0.65, 0.85, 3))
    for variant, build in flats:
        build = {"scene_name": _FLAT} | build | {"model_ids": "apple"}
        yield from _apples(variant, build, (0.65, 0.65, 1))


def _tabletop() -> Iterator[Row]:
    build = {"scene_name": "dummy_tabletop"}
    yield from _coke_cans("plain", build, overlay="google_coke_can_real_eval_1.png")
    near = _move_near("plain", build, baked=True, overlay="google_move_near_real_eval_1.png")
    yield from (row for row in near if row.start["episode_id"] // 12 == 1)


def _coke_cans(variant: str, build: Mapping[str, Any], overlay: str = "") -> Iterator[Row]:
    distractors = _DISTRACTORS.get(variant, ())
    for orientation in _ORIENTATIONS:
        for index, xy in enumerate(_grid((-0.35, -0.12, 5), (-0.02, 0.42, 5))):
            yield Row(
                id=f"pick_coke_can-{variant}-{orientation}-{index:02d}",
                task="pick_coke_can",
                variant=variant,
                env=_COKE_CAN.replace("Can", "CanDistractor") if distractors else _COKE_CAN,
                build={**build, orientation: True},
                instructions=("pick coke can",),
                robot=(0.35, 0.2, 0.0),
                start={"init_xy": xy},
                overlay=overlay,
                models=("opened_coke_can", *distractors),
                ray_traced=False,
                max_steps=80,
            )


def _move_near(
    variant: str, build: Mapping[str, Any], baked: bool = False, overlay: str = ""
) -> Iterator[Row]:
    for index in range(60):
        triplet, pair = _TRIPLETS[index // 12], _PAIRS[index % 6]
        source, target = (triplet[i].replace("opened_", "").replace("_", " ") for i in pair)
        kept = pair if build.get("no_distractor") else range(3)
        prefix = ["baked_" if baked and name not in _UNBAKED else "" for name in triplet]
        yield Row(
            id=f"move_near-{variant}-{index:02d}",
            task="move_near",
            variant=variant,
            env="MoveNearGoogleBakedTexInScene-v0" if baked else "MoveNearGoogleInScene-v0",
            build=build,
            instructions=(f"move {source} near {target}",),
            robot=(0.35, 0.21, -0.09),
            start={"episode_id": index},
            overlay=overlay,
            models=tuple(prefix[i] + triplet[i] for i in kept),
            ray_traced=False,
            max_steps=80,
        )


def _drawers(
    variant: str, build: Mapping[str, Any], robot_xs: tuple[float, float, int] | None
) -> Iterator[Row]:
    for verb in ("open", "close"):
        for drawer in ("top", "middle", "bottom"):
            for place, robot, overlay in _cabinet_poses(robot_xs, "abc012"):
                yield Row(
                    id=f"{verb}_drawer-{variant}-{drawer}-{place}",
                    task=f"{verb}_drawer",
                    variant=variant,
                    env=f"{verb.title()}{drawer.title()}DrawerCustomInScene-v0",
                    build=build,
                    instructions=(f"{verb} {drawer} drawer",),
                    robot=robot,
                    start={"init_xy": (0.0, 0.0)},
                    overlay=overlay,
                    models=(),
                    ray_traced=True,
                    max_steps=113,
                )


def _apples(
    variant: str, build: Mapping[str, Any], robot_xs: tuple[float, float, int] | None
) -> Iterator[Row]:
    for place, robot, overlay in _cabinet_poses(robot_xs, "abc0"):
        for index, xy in enumerate(_grid((-0.08, -0.02, 3), (-0.02, 0.08, 3))):
            yield Row(
                id=f"place_apple_in_drawer-{variant}-{place}-{index}",
                task="place_apple_in_drawer",
                variant=variant,
                env="PlaceIntoClosedTopDrawerCustomInScene-v0",
                build=build,
                instructions=("open top drawer", "place apple into top drawer"),
                robot=robot,
                start={"init_xy": xy},
                overlay=overlay,
                models=(build["model_ids"],),
                ray_traced=True,
                max_steps=200,
            )


def _cabinet_poses(
    robot_xs: tuple[float, float, int] | None, letters: str
) -> Iterator[tuple[str, tuple[float, float, float], str]]:
    """Name, robot base and background picture: a grid, or else the measured poses of `letters`."""
    if robot_xs is None:
        for name, pose in _CABINET_POSES.items():
            if set(name) <= set(letters):
                yield name, pose, f"open_drawer_{name}.png"
        return
    for index, (x, y) in enumerate(_grid(robot_xs, (-0.2, 0.2, 3))):
        yield str(index), (x, y, 0.0), ""


def _grid(x: tuple[float, float, int], y: tuple[float, float, int]) -> list[tuple[float, float]]:
    return [(a, b) for a in np.linspace(*x).tolist() for b in np.linspace(*y).tolist()]
