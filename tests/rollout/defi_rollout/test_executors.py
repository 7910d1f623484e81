import threading

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
    executor = executors.ChunkExecutor(CountingActor(), 2)
    actions = [executor.next_action(dict)[0] for _ in range(5)]
    assert actions == [10, 11, 20, 21, 30]


def test_observation_is_taken_only_for_a_new_chunk():
    executor, looks = executors.ChunkExecutor(CountingActor(), 3), []
    for step in range(7):
        executor.next_action(lambda step=step: looks.append(step))
    assert looks == [0, 3, 6]


def test_reset_drops_the_chunk_and_resets_the_actor():
    actor = CountingActor()
    executor = executors.ChunkExecutor(actor, 3)
    executor.next_action(dict)
    executor.reset()
    assert executor.next_action(dict)[0] == 20 and actor.resets == 1


def test_horizon_longer_than_the_chunk_is_refused():
    with pytest.raises(errors.UserError, match="5 actions predicted, 6"):
        executors.ChunkExecutor(CountingActor(), 6).next_action(dict)


def test_prefetched_chunks_follow_without_a_gap_and_see_the_step_they_are_asked_at():
    executor, looks = executors.PrefetchExecutor(CountingActor(), 3, lead=2), []
    actions = []
    for step in range(9):
        actions.append(executor.next_action(lambda step=step: looks.append(step))[0])
    # Chunk 2 is asked for at step 1: its first two numbers belong to steps 1 and 2.
    assert actions == [10, 11, 12, 22, 23, 24, 32, 33, 34]
    assert looks == [0, 1, 4, 7]


def test_prefetching_asks_while_the_last_chunk_runs():
    asked, go = threading.Event(), threading.Event()

    class Waiting(CountingActor):
        def infer(self, obs):
            if self.calls:
                asked.set()
                assert go.wait(5)
            return super().infer(obs)

    actor = Waiting()
    executor = executors.PrefetchExecutor(actor, 2, lead=1)
    assert [executor.next_action(dict)[0] for _ in range(2)] == [10, 11]
    assert asked.wait(5)  # and yet both actions were there
    go.set()
    assert executor.next_action(dict)[0] == 21
    executor.reset()
    assert actor.resets == 1
    assert executor.next_action(dict)[0] % 10 == 0


def test_prefetching_refuses_what_does_not_fit():
    for horizon, lead in ((2, 0), (1, 2)):
        with pytest.raises(errors.UserError, match="give at least"):
            executors.PrefetchExecutor(CountingActor(), horizon, lead)
    executor = executors.PrefetchExecutor(CountingActor(), 4, lead=2)
    for _ in range(4):
        executor.next_action(dict)
    with pytest.raises(errors.UserError, match="5 actions predicted, 6"):
        executor.next_action(dict)


def test_ensemble_averages_what_all_chunks_say_of_a_step():
    executor = executors.EnsembleExecutor(CountingActor(), decay=0.5)
    weights = np.exp(-0.5 * np.arange(5))
    found = [executor.next_action(dict)[0] for _ in range(7)]
    # At step t chunk n (from 1) says 10 n + (t + 1 - n); it speaks of 5 steps.
    for step, action in enumerate(found):
        chunks = np.arange(max(1, step - 3), step + 2)
        said = 10 * chunks + (step + 1 - chunks)
        np.testing.assert_allclose(
            action, np.average(said, weights=weights[: len(said)]), rtol=1e-6
        )
    executor.reset()
    assert executor.next_action(dict)[0] == 80
