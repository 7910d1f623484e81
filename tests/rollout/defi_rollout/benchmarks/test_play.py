import dataclasses
import pathlib

import av
import numpy as np
import pytest
from defi_rollout import noise
from defi_rollout.benchmarks import adapters, base, play

ADAPTER = adapters.Adapter(
    embodiment="metaworld_sawyer",
    observations={"observation/image": adapters.View(source="observation/image")},
    prompt="prompt",
    action_dim=4,
    action_horizon=5,
    execute_horizon=3,
    factors=(1.0,) * 4,
)


class RecordingActor:
    def __init__(self):
        self.observations = []

    def infer(self, obs):
        self.observations.append(obs)
        return {"actions": np.zeros((5, 4), np.float32)}

    def reset(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    import fake_benchmark

    return fake_benchmark


def _play(fake, tmp_path, actor, **changes):
    benchmark = fake.FakeBenchmark()
    plan = base.Plan(tasks=("lose",), episodes=1, seed=0, language=False)
    episode = dataclasses.replace(benchmark.episodes(plan)[0], **changes)
    environment = fake.FakeEnvironment()
    row = play.play(
        episode,
        actor=actor,
        adapter=ADAPTER,
        environment=environment,
        benchmark=benchmark,
        output=tmp_path,
    )
    return row, environment


def test_policy_is_asked_only_when_its_chunk_is_used_up(fake, tmp_path):
    actor = RecordingActor()
    row, environment = _play(fake, tmp_path, actor, film=False)
    values = [int(obs["observation/image"][0, 0, 0]) for obs in actor.observations]
    assert values == [0, 3, 6] and row["steps"] == 8
    assert environment.looks == 3


def test_a_failure_without_a_film_shows_what_the_policy_saw(fake, tmp_path):
    row, _ = _play(fake, tmp_path, RecordingActor(), film=False)
    with av.open(str(tmp_path / row["video"])) as film:
        assert film.streams.video[0].frames == 3
    won, _ = _play(fake, tmp_path, RecordingActor(), film=False, task="win", scored_task="win")
    assert won["success"] and won["video"] is None


def test_film_draws_each_step_at_most_once(fake, tmp_path):
    _, environment = _play(fake, tmp_path, RecordingActor(), film=True)
    assert environment.looks == len({0, 2, 4, 6} | {0, 3, 6} | {8})


def test_noise_depends_on_episode_and_step_alone(fake, tmp_path):
    first, second, other = RecordingActor(), RecordingActor(), RecordingActor()
    _play(fake, tmp_path, first, film=False)
    _play(fake, tmp_path, second, film=False)
    _play(fake, tmp_path, other, film=False, id="another")
    seeds = [[obs[noise.SEED] for obs in actor.observations] for actor in (first, second, other)]
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 3
    assert not set(seeds[0]) & set(seeds[2])
