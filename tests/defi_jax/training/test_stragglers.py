"""Two real processes, one of which reads slowly, are in test_peers.py."""

import pytest

from defi_jax.training import ledger, stragglers


def spent(**seconds):
    return dict.fromkeys(ledger.KINDS, 0.0) | seconds


@pytest.mark.parametrize(
    ("of_third", "found"),
    [
        ({"data_wait": 9.0, "evaluation": 4.0}, (2, "data_wait", 8.0)),
        ({"data_wait": 2.0, "checkpoint": 3.0}, (2, "checkpoint", 3.0)),
        (
            {"data_wait": 2.0, "device": 90.0},
            None,
        ),  # it waits for the others, or its device is slow
        ({"data_wait": 1.5}, None),
    ],
)
def test_the_slowest_is_compared_with_the_others_median(of_third, found):
    grown = {0: spent(data_wait=0.5), 1: spent(data_wait=1.0), 2: spent(**of_third)}
    grown[3] = spent(data_wait=1.5)
    assert stragglers.slowest(grown, least=2.0) == found


def test_two_processes_are_compared_with_each_other():
    grown = {0: spent(dispatch=5.0), 1: spent(dispatch=1.0)}
    assert stragglers.slowest(grown, least=2.0) == (0, "dispatch", 4.0)
