import pytest

from benchmarks import connections


@pytest.mark.slow
def test_a_robot_is_served_whatever_else_connects_and_memory_stays():
    count = 4 * len(connections.KINDS)
    result = connections.run(count, at_once=count, rounds=3)
    assert sum(result.ends.values()) == 3 * count
    assert not [kind for kind in result.ends if kind.endswith("kept")], result.ends
    assert result.robot_calls > 10
    assert result.growth < 0.15, result.memory_mib  # so few vary more than a thousand
