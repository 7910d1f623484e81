import pathlib
import re
import types

import numpy as np
import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import (
    adapters,
    base,
    libero_env,
    libero_expert,
    libero_tasks,
    registry,
)

NAMES = ("libero-spatial", "libero-object", "libero-goal", "libero-10", "libero-90")
TASK = "pick_up_the_milk_and_place_it_in_the_basket"


def _episodes(name="libero-object", **changes):
    fields = {"tasks": (), "episodes": None, "seed": 0, "language": False} | changes
    return registry.get_benchmark(name).episodes(base.Plan(**fields))


@pytest.mark.parametrize(
    "name, tasks, max_steps",
    zip(NAMES, (10, 10, 10, 10, 90), (220, 280, 300, 520, 400), strict=True),
)
def test_every_task_has_its_fifty_starts_and_the_limit_of_its_suite(name, tasks, max_steps):
    episodes = _episodes(name)
    assert len({e.id for e in episodes}) == len(episodes) == 50 * tasks
    assert {e.max_steps for e in episodes} == {max_steps}
    assert [e.seed for e in episodes[:50]] == list(range(50))
    assert all(re.fullmatch(r"[a-z0-9 ]+", e.instruction) for e in episodes)
    assert registry.get_benchmark(name).name == name


def test_instructions_leave_the_scene_out():
    kitchen = "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet"
    assert kitchen in libero_tasks.suites()["libero_90"]
    assert libero_tasks.instruction(kitchen) == "close the top drawer of the cabinet"
    assert libero_tasks.instruction(TASK) == "pick up the milk and place it in the basket"


def test_fewer_episodes_are_the_first_starts():
    assert set(_episodes(episodes=2, tasks=(TASK,))) <= set(_episodes())


def test_protocols_differ():
    found = [base.describe_protocol(registry.get_benchmark(name)) for name in NAMES]
    assert len({entry["sha256"] for entry in found}) == len(NAMES)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tasks": (TASK.replace("milk", "mulk"),)}, "did you mean.*milk"),
        ({"tasks": ("xyz",)}, "unknown LIBERO task: xyz"),
        ({"tasks": ("turn_on_the_stove",)}, "--benchmark=libero-goal"),
        ({"tasks": (TASK, TASK)}, "named twice"),
        ({"episodes": 51}, "give 1 to 50"),
        ({"seed": 1}, "starts are fixed"),
        ({"language": True}, "--language"),
    ],
)
def test_bad_plans_are_named(changes, words):
    with pytest.raises(errors.UserError, match=words):
        _episodes(**changes)


def test_the_adapter_of_openpi_fits_and_executes_what_is_recommended():
    benchmark, adapter = registry.get_benchmark("libero-10"), adapters.read("openpi_libero")
    benchmark.check(adapter)
    assert adapter.execute_horizon == benchmark.protocol()["recommended_execute_horizon"]
    with pytest.raises(errors.UserError, match="libero_panda"):
        benchmark.check(adapters.read("octo_fractal"))


def test_rotation_vectors():
    half_turn = libero_env.rotation_vector(np.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(half_turn, [np.pi, 0.0, 0.0])
    angle = 0.3
    quaternion = np.array([0.0, np.sin(angle / 2), 0.0, np.cos(angle / 2)])
    np.testing.assert_allclose(libero_env.rotation_vector(quaternion), [0.0, angle, 0.0])
    assert not libero_env.rotation_vector(np.array([0.0, 0.0, 0.0, 1.0 + 1e-9])).any()


@pytest.mark.parametrize(
    "goal",
    [
        [["turnon", "flat_stove_1"]],
        [["on", "bowl_1", "wooden_cabinet_1_top_side"]],
        [["in", "bowl_1", "plate_1"], ["close", "cabinet_1"]],
    ],
)
def test_goals_that_are_no_pick_and_place_have_no_expert(goal):
    # In place of LIBERO's environment: the goal is refused before anything else of it is read.
    domain = types.SimpleNamespace(
        parsed_problem={"goal_state": goal}, objects_dict={"bowl_1": None, "plate_1": None}
    )
    with pytest.raises(errors.UserError, match=f"no scripted expert.*{goal[0][1]}"):
        libero_expert.Expert(domain)


def test_modules_of_the_simulators_python_import_no_more_than_numpy():
    folder = pathlib.Path(libero_env.__file__).parent
    for name in ("libero_env", "libero_expert", "libero_tasks"):
        lines = re.findall(r"^(?:import|from) (\w+)", (folder / f"{name}.py").read_text(), re.M)
        assert not {"jax", "yaml", "scipy", "PIL"} & set(lines)
