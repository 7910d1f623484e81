"""With the simulator itself, where it is set up: python -m defi_rollout setup simpler-tabletop."""

import dataclasses
import pathlib

import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import registry, simulators

pytestmark = pytest.mark.slow
SIMULATOR = registry.get_benchmark("simpler-tabletop").simulator


@pytest.fixture(scope="module")
def ask():
    """Asks one function of simpler_checks.py in a new process."""
    try:
        simulators.ask(SIMULATOR, "versions")
    except errors.UserError as error:
        pytest.skip(f"needs SimplerEnv (python -m defi_rollout setup simpler-tabletop): {error}")
    checks = dataclasses.replace(SIMULATOR, module="simpler_checks", variables=_variables)
    return lambda question: simulators.ask(checks, question)[question]


def _variables():
    return {**SIMULATOR.variables(), "PYTHONPATH": str(pathlib.Path(__file__).parent)}


def test_a_box_can_be_seen(ask):
    assert simulators.ask(SIMULATOR, "draw_one")["draw_one"]


def test_the_expert_succeeds_and_is_repeated_to_the_last_bit(ask):
    first, second = ask("pick"), ask("pick")
    assert first["holds"] == {"pick_coke_can": True}
    assert first["instruction"] == "pick coke can"
    assert (first["shape"], first["dtype"]) == ([512, 640, 3], "uint8") and first["moved"] > 0.01
    assert len(first["state"]) == 8
    assert first == second


def test_move_near_lasts_to_its_end(ask):
    found = ask("move")
    assert found["holds"] == {"move_near": False} and len(found["digests"]) == 81
    assert found["instruction"] == "move 7up can near apple"


def test_drawing_on_demand_changes_neither_states_nor_pictures(ask):
    assert ask("same_as_upstream") == {"state": True, "pictures": [True, True]}


def test_actions_of_the_data_set_become_those_of_upstreams_octo(ask):
    worst = ask("conversion")
    if worst == "absent":
        pytest.skip("needs a checkout of SimplerEnv beside ManiSkill2_real2sim")
    assert worst == 0.0
