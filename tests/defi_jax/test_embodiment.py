import dataclasses

import pytest

from data_pipelines.open_x import registry
from defi_jax import embodiment, errors


@pytest.mark.parametrize(
    ("robot", "dataset"),
    [("google_robot", "fractal20220817_data"), ("widowx250", "bridge_dataset")],
)
def test_open_x_robots_are_as_their_data_set_stores_them(robot, dataset):
    known, standard = embodiment.get(robot, 7), registry.find(dataset)
    facts = [field.name for field in dataclasses.fields(embodiment.Convention)]
    for fact in facts:
        assert getattr(known, fact) == getattr(standard.convention, fact)
    assert (known.name, known.control_hz) == (standard.robot, standard.control_hz)
    assert known.action_low == (None,) * 6 + (0.0,)
    assert known.action_high == (None,) * 6 + (1.0,)


@pytest.mark.parametrize("name", embodiment.EMBODIMENTS)
def test_every_dimension_has_a_limit_or_none(name):
    robot = embodiment.EMBODIMENTS[name]
    assert len(robot.action_low) == len(robot.action_high) == len(robot.action_names)


def test_unknown_robots_name_the_known_ones():
    with pytest.raises(errors.UserError, match="google_robot, widowx250"):
        embodiment.get("google", 7)


def test_actions_of_another_width_name_the_robots_that_fit():
    with pytest.raises(
        errors.UserError, match=r"4 dimensions, franka_panda has 7.*metaworld_sawyer"
    ):
        embodiment.get("franka_panda", 4)
