"""Plays in the simulator's own Python, where it is set up; what it plays: libero_checks.py."""

import functools
import json
import os
import pathlib
import subprocess

import defi_rollout
import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import libero, libero_env, libero_tasks, simulators

pytestmark = pytest.mark.slow  # the simulator takes ten seconds to start


@functools.cache
def _checks(name):
    try:
        python = simulators.python_of(libero.SIMULATOR)
    except errors.UserError as error:
        pytest.skip(f"{error} (libero-object)")
    folder = pathlib.Path(defi_rollout.__file__).parents[1]
    done = subprocess.run(
        [python, str(pathlib.Path(__file__).with_name("libero_checks.py")), name],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["played", "drawn"])
def test_a_start_is_the_same_to_the_last_bit_whatever_was_played_before(kind):
    first, other, again = _checks("quick")[kind]
    assert first == again and not set(first) & set(other)


def test_plus_one_closes_the_gripper_and_minus_one_opens_it():
    closed, opened = _checks("quick")["gaps"]
    assert closed < 0.005 and opened > 0.07


def test_a_full_step_is_5_cm_or_half_a_radian_at_20_hz():
    found = _checks("quick")
    assert found["action"] == ["OSC_POSE", [-0.05] * 3 + [-0.5] * 3, [0.05] * 3 + [0.5] * 3]
    assert found["control_hz"] == libero_env.CONTROL_HZ


def test_without_cameras_only_the_state_is_offered():
    found = _checks("quick")
    assert found["observed"] == {libero_env.STATE_KEY: ["float32", [libero_env.STATE_DIM]]}
    assert found["renderer"]["name"] == "none"


def test_the_expert_brings_the_soup_to_the_basket_and_success_stays():
    steps, dtype, still = _checks("quick")["expert"]
    assert steps < libero_tasks.MAX_STEPS["libero_object"] and dtype == "float32" and still


def test_bad_input_is_named():
    state, kind, shape, finite = _checks("quick")["refused"]
    assert "no such initial state: 50" in state and "unknown start: half_way" in kind
    assert "7 finite numbers" in shape and "7 finite numbers" in finite


def test_pictures_states_and_fixtures_are_those_of_liberos_own_environment():
    found = _checks("upstream")
    assert len(found["equal"]) == 22 and all(found["equal"])
    assert found["spread"] > 20.0  # of 255: the pictures show something


def test_tasks_and_instructions_are_those_of_libero():
    assert _checks("upstream")["tasks"] == {
        suite: [[task, libero_tasks.instruction(task)] for task in tasks]
        for suite, tasks in libero_tasks.suites().items()
    }
