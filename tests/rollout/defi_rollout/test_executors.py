import numpy as np
import pytest
from defi_rollout import errors, executors


class CountingActor:
    """Chunk n holds the numbers 10 n, 10 n + 1, ...; a stand-in whose actions can be counted."""

    def __init__(self):
        self.calls, self.resets = 0, 0

    def infer(self, obs):
        self.calls += 1
        return {"actions": 10.0 * self.calls + np.arange(5.0)[:, None]}

    def reset(self):
        self.resets += 1


def test_open_loop_executes_k_actions_of_each_chunk():
    executor = executors.OpenLoopExecutor(CountingActor(), 2)
    actions = [executor.next_action(dict)[0] for _ in range(5)]
    assert actions == [10, 11, 20, 21, 30]


def test_observation_is_taken_only_for_a_new_chunk():
    executor, looks = executors.OpenLoopExecutor(CountingActor(), 3), []
    for step in range(7):
        executor.next_action(lambda step=step: looks.append(step))
    assert looks == [0, 3, 6]


def test_reset_drops_the_chunk_and_resets_the_actor():
    actor = CountingActor()
    executor = executors.OpenLoopExecutor(actor, 3)
    executor.next_action(dict)
    executor.reset()
    assert executor.next_action(dict)[0] == 20 and actor.resets == 1


def test_horizon_longer_than_the_chunk_is_refused():
    with pytest.raises(errors.UserError, match="5 actions predicted, 6"):
        executors.OpenLoopExecutor(CountingActor(), 6).next_action(dict)
