import pathlib

import numpy as np
import pytest

from data_pipelines.open_x import columns, documentation, registry
from defi_jax import errors
from tests.data_pipelines.open_x import expected
from tests.fixtures import make_versions

STEPS = make_versions.STEPS
ROOT = pathlib.Path(__file__).parents[3]
NATURAL = "observation/natural_language_instruction"


def test_all_datasets_are_registered():
    assert set(registry.standards("")) == set(expected.ROWS) | set(expected.ALIASES)
    assert len(expected.ROWS) == 81


@pytest.mark.parametrize("name", expected.ROWS)
def test_every_dataset_becomes_what_the_table_says(name):
    row, standard = expected.ROWS[name], registry.find(name)
    views = [standard.cameras.get(view) for view in ("static", "secondary", "gripper")]
    wanted = [None if view == "-" else f"observation/{view}" for view in row.views.split()]
    assert views == wanted

    steps = make_versions.raw_steps(standard)
    trajectory = standard.standardize(steps)
    assert len(trajectory.kept) == STEPS - row.dropped
    kept = slice(trajectory.kept.start, trajectory.kept.stop)
    for found, notation, width in (
        (trajectory.actions, row.action, row.action_dim),
        (trajectory.states, row.state, row.state_dim),
    ):
        if width is None:
            assert found is None
            continue
        assert found.shape == (STEPS - row.dropped, width) and found.dtype == np.float32
        np.testing.assert_allclose(
            found, expected.evaluate(notation, steps)[kept], rtol=0, atol=1e-6
        )
    if standard.convention is not None:
        assert len(standard.convention.action_names) == row.action_dim


def test_instructions_come_from_the_published_fields():
    natural = {name for name, s in registry.standards("").items() if s.language == NATURAL}
    assert natural == {
        "fractal20220817_data",
        "kuka",
        "bridge_oxe",
        "bridge",
        "taco_play",
        "jaco_play",
        "berkeley_cable_routing",
        "roboturk",
        "nyu_door_opening_surprising_effectiveness",
        "viola",
        "berkeley_autolab_ur5",
        "toto",
        "columbia_cairlab_pusht_real",
        "bc_z",
    }
    others = {s.language for s in registry.standards("").values()} - {NATURAL}
    assert others == {"language_instruction", "observation/instruction"}


def test_pair_offsets_follow_the_official_windows():
    found = {}
    for name, standard in registry.standards("").items():
        found.setdefault(standard.pair_offset, set()).add(name)
    assert {len(name) > 0 for name in found.pop((9, 9))} == {True}
    assert found == {
        (1, 1): {f"ego4d_split_{number}" for number in (1, 2, 3, 4)},
        (2, 4): {
            "fractal20220817_data",
            "berkeley_autolab_ur5",
            "dobbe",
            "nyu_franka_play_dataset_converted_externally_to_rlds",
            "ucsd_kitchen_dataset_converted_externally_to_rlds",
            "dlr_edan_shared_control_converted_externally_to_rlds",
        },
        (14, 19): {
            "utaustin_mutex",
            "iamlab_cmu_pickup_insert_converted_externally_to_rlds",
            "austin_sailor_dataset_converted_externally_to_rlds",
            "viola",
            "toto",
            "droid",
        },
    }


def test_language_table_texts_end_at_the_first_zero():
    standard = registry.find("language_table")
    steps = make_versions.raw_steps(standard)
    points = np.zeros((STEPS, 512), np.int32)
    text = "schieb den grünen Würfel"
    points[:, : len(text)] = [ord(letter) for letter in text]
    points[:, len(text) + 1] = ord("x")  # what follows the zero is left over from longer texts
    assert standard.standardize(steps | {"observation/instruction": points}).instructions == (text,)
    points[0, 0] = -1
    with pytest.raises(ValueError):
        standard.standardize(steps | {"observation/instruction": points})


def test_values_outside_of_the_documented_range_name_the_field():
    standard = registry.find("viola")
    steps = make_versions.raw_steps(standard)
    steps["action/gripper_closedness_action"] = steps["action/gripper_closedness_action"] * 255
    with pytest.raises(columns.SurpriseError, match=r"closedness_action' .*documents -1 to 1"):
        standard.standardize(steps)


def test_unknown_dataset_names_the_nearest():
    with pytest.raises(errors.UserError, match="did you mean taco_play"):
        registry.find("taco_plai")


def test_the_documented_table_is_that_of_the_standards():
    documented = (ROOT / "docs" / "open_x.md").read_text(encoding="utf-8")
    again = "write it anew: python -m data_pipelines.open_x.documentation"
    assert documentation.markdown() in documented, again
