import numpy as np
from defi_rollout.benchmarks import simpler_env


def _relative(openings):
    gripper = simpler_env.StickyGripper()
    return [float(gripper.relative(np.float32(opening))) for opening in openings]


def test_a_change_of_the_gripper_is_carried_on():
    # The first step keeps; closing lasts 15 steps whatever comes; then the next change counts.
    found = _relative([1, 1, 0, *[1, 0] * 7, 1, 1, 0])
    assert found == [0, 0, *[1] * 15, -1, -1, -1]


def test_small_changes_are_passed_on_as_they_are():
    assert _relative([0.25, 0.5, 0.5, 0.25]) == [0, -0.25, 0, 0.25]


def test_a_new_instruction_forgets_the_gripper():
    gripper = simpler_env.StickyGripper()
    for opening in (1, 0):
        gripper.relative(np.float32(opening))
    gripper.reset()
    assert gripper.relative(np.float32(1)) == 0
