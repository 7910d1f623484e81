import collections
import dataclasses

import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import adapters, base, registry, simpler_env, simpler_tables

VM, VA, TABLETOP = "simpler-fractal-vm", "simpler-fractal-va", "simpler-tabletop"
ADAPTER = adapters.read("octo_fractal")


def _episodes(name=VM, **changes):
    fields = {"tasks": (), "episodes": None, "seed": 0, "language": False} | changes
    return registry.get_benchmark(name).episodes(base.Plan(**fields))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        (VM, {"pick_coke_can": 300, "move_near": 240, "drawer": 216, "place_apple_in_drawer": 108}),
        (VA, {"pick_coke_can": 675, "move_near": 480, "drawer": 378, "place_apple_in_drawer": 189}),
        (TABLETOP, {"pick_coke_can": 75, "move_near": 12}),
    ],
)
def test_tables_expand_to_the_papers_numbers(name, counts):
    episodes = _episodes(name)
    verbs = ("open_", "close_")
    tasks = [e.task.split("_", 1)[1] if e.task.startswith(verbs) else e.task for e in episodes]
    assert collections.Counter(tasks) == counts
    assert len({e.id for e in episodes}) == sum(counts.values()) == len(episodes)


def test_ids_and_starts_stay_what_they_are():
    vm, va = simpler_tables.rows(VM), simpler_tables.rows(VA)
    can = vm["pick_coke_can-arm_cabinet_1-upright-13"]
    assert can.build == {
        "scene_name": "google_pick_coke_can_1_v4",
        "urdf_version": "recolor_cabinet_visual_matching_1",
        "upright": True,
    }
    assert can.start == {"init_xy": pytest.approx((-0.235, 0.31))}
    near = vm["move_near-arm_original-29"]
    assert near.instructions == ("move apple near redbull can",)
    assert near.models == ("baked_opened_coke_can", "baked_opened_redbull_can", "baked_apple")
    assert va["move_near-no_distractor-00"].models == ("blue_plastic_bottle", "opened_pepsi_can")
    drawer = vm["close_drawer-arm_original-middle-c1"]
    assert (drawer.env, drawer.overlay) == (
        "CloseMiddleDrawerCustomInScene-v0",
        "open_drawer_c1.png",
    )
    assert drawer.robot == (0.765, 0.222, -0.025) and drawer.max_steps == 113
    assert va["open_drawer-base-top-8"].robot == (0.85, 0.2, 0.0)
    apple = va["place_apple_in_drawer-cabinet_2-2-8"]
    assert apple.build["station_name"] == "mk_station3" and apple.robot == (0.65, 0.2, 0.0)
    assert apple.instructions[1] == "place apple into top drawer" and apple.max_steps == 200
    many = va["pick_coke_can-more_distractors-lr_switch-00"]
    assert many.env == "GraspSingleOpenedCokeCanDistractorInScene-v0" and len(many.models) == 7


def test_drawers_and_apples_alone_are_ray_traced():
    for name in (VM, VA):
        traced = {row.task for row in simpler_tables.rows(name).values() if row.ray_traced}
        assert traced == {"open_drawer", "close_drawer", "place_apple_in_drawer"}


def test_fewer_episodes_are_drawn_by_the_seed_and_kept_by_more():
    few, more = (_episodes(tasks=("move_near",), episodes=n) for n in (5, 50))
    assert {e.id for e in few} < {e.id for e in more} and len(few) == 5
    other = _episodes(tasks=("move_near",), episodes=5, seed=1)
    assert {e.id for e in few} != {e.id for e in other}
    everything = [e.id for e in _episodes(seed=1)]
    assert everything == [e.id for e in _episodes()]
    assert {e.seed for e in other} == {1}  # the policy's noise differs


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": ("pick_pepsi_can",)},
        {"tasks": ("move_near", "move_near")},
        {"episodes": 0},
        {"episodes": 241},
        {"language": True},
    ],
)
def test_impossible_plans_are_refused(changes):
    with pytest.raises(errors.UserError):
        _episodes(**changes)


def test_the_last_step_decides_and_every_step_is_played():
    assert registry.get_benchmark(VM).success_mode == base.LAST_STEP
    assert all(e.ends_on == () for e in _episodes(VA))


def test_protocols_differ_and_are_stable():
    described = [base.describe_protocol(registry.get_benchmark(n)) for n in (VM, VA, TABLETOP)]
    assert described == [
        base.describe_protocol(registry.get_benchmark(n)) for n in (VM, VA, TABLETOP)
    ]
    assert len({one["sha256"] for one in described}) == 3


def test_octos_adapter_fits_and_others_are_refused():
    benchmark = registry.get_benchmark(VM)
    benchmark.check(ADAPTER)
    wrist = {"wrist": adapters.View(source="observation/wrist_image")}
    for changes in (
        {"embodiment": "franka_panda"},
        {"action_dim": 4, "factors": (1.0,) * 4},
        {"observations": wrist},
    ):
        with pytest.raises(errors.UserError, match=VM):
            benchmark.check(dataclasses.replace(ADAPTER, **changes))


def test_files_of_a_row_are_those_of_its_scene():
    rows = simpler_tables.rows(VM)
    can = simpler_env.files(rows["pick_coke_can-arm_original-upright-00"])
    assert "data/hab2_bench_assets/stages/google_pick_coke_can_1_v4.glb" in can
    assert "data/custom/models/opened_coke_can/" in can
    drawer = simpler_env.files(rows["open_drawer-arm_original-top-a0"])
    assert "data/custom/mk_station_recolor.urdf" in drawer
    assert not any("stages" in path for path in drawer)
