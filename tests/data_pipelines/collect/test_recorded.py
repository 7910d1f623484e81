"""Both sources that another Python plays: the same requests, refusals and stores."""

from typing import Any

import numpy as np
import pytest
from defi_rollout.benchmarks import adapters, recorder, registry, simulators

from data_pipelines.collect import calvin_sim, libero_sim, recorded
from data_pipelines.store import reader
from defi_jax import embodiment, errors

# By benchmark: the source, a task, its instruction, and shapes of both pictures and the state.
_SOURCES: dict[str, Any] = {
    "calvin-abcd-360": (
        calvin_sim,
        "turn_on_led",
        "press the button to turn on the led light",
        ((200, 200, 3), (84, 84, 3), (15,)),
    ),
    "libero-object": (
        libero_sim,
        "pick_up_the_milk_and_place_it_in_the_basket",
        "pick up the milk and place it in the basket",
        ((256, 256, 3), (256, 256, 3), (8,)),
    ),
}
_MODULES = pytest.mark.parametrize("source", [calvin_sim, libero_sim])


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", _SOURCES)
def test_episodes_say_that_they_are_self_made_and_come_out_equal(benchmark, monkeypatch, tmp_path):
    source, task, instruction, (static, gripper, states) = _SOURCES[benchmark]
    settings = source.Settings()
    try:
        simulators.python_of(settings.SIMULATOR)
    except errors.UserError as error:
        pytest.skip(str(error).replace("BENCHMARK", benchmark))
    monkeypatch.setenv("DEFI_CALVIN_RENDERER", "tiny")  # draws without OpenGL
    for name in ("one", "two"):
        (counts,) = source.collect([task], tmp_path / name, 1, settings, workers=1)
        assert (counts.task, counts.episodes) == (task, 1)
    store, again = (reader.EpisodeStore(tmp_path / name) for name in ("one", "two"))
    assert store.fingerprint() == again.fingerprint()
    meta, actions, arm = store.meta(0), store.actions(0), store.states(0)
    assert actions is not None and arm is not None
    assert (meta.source, meta.embodiment) == (settings.NAME, settings.robot.name)
    assert meta.instructions == (instruction,)
    data_set = benchmark.split("-")[0].upper()
    assert meta.metadata["origin"] == f"self-made, scripted; not the {data_set} data set"
    assert actions.shape == (meta.length, 7) and np.abs(actions).max() <= 1.0
    assert arm.shape == (meta.length, *states)
    assert store.frames(0, "static", [0, meta.length - 1]).shape == (2, *static)
    assert store.frames(0, "gripper", [0]).shape == (1, *gripper)


def test_a_label_is_what_the_expert_wanted_and_success_ends_an_episode():
    class Line:
        """In place of a simulator, which needs another Python: sums up what is executed."""

        def __init__(self):
            self.executed = []

        def observe(self):
            return {"observation/state": np.float32([len(self.executed)])}

        def expert_action(self):
            return np.full(7, 0.25, np.float32)

        def step(self, action):
            self.executed.append(action)
            return {"reach": sum(action[0] for action in self.executed) >= 1.0}

    noise = np.zeros((9, 7), np.float32)
    noise[1, :3] = 0.25
    env = Line()
    played = recorder.play(env, "reach", noise)
    assert played is not None
    np.testing.assert_array_equal(played["actions"], np.full((3, 7), 0.25))
    np.testing.assert_array_equal(env.executed[1], [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25])
    np.testing.assert_array_equal(played["observation/state"], [[0], [1], [2]])
    assert recorder.play(Line(), "reach", noise[:2]) is None


@pytest.mark.parametrize("benchmark", _SOURCES)
def test_a_policy_of_such_data_fits_the_benchmark(benchmark):
    robot = _SOURCES[benchmark][0].Settings().robot
    played = registry.get_benchmark(benchmark)
    assert robot.control_hz == played.protocol()["control_hz"]
    cameras = (embodiment.CAMERA_KEYS[name] for name in ("static", "gripper"))
    adapter = adapters.from_metadata(
        {
            "embodiment": {"name": robot.name},
            "obs_spec": {key: {"shape": [64, 64, 3], "dtype": "uint8"} for key in cameras},
            "action_spec": {"dim": len(robot.action_names)},
            "action_horizon": 8,
            "execute_horizon": 4,
        },
        "here",
    )
    played.check(adapter)


@_MODULES
def test_noise_covers_all_steps_of_each_attempt_and_depends_on_the_seed(source, tmp_path):
    task, found = source.EXAMPLE, {}
    for seed in (0, 0, 1):
        settings = source.Settings(seed=seed)
        block = recorded.blocks.Block(
            task=task, indices=(3,), directory=str(tmp_path), settings=settings
        )
        starts = recorded._request(tmp_path, block, 3)
        noise = np.load(tmp_path / "3-noise.npy")
        steps = settings.max_steps(task)
        assert noise.shape == (len(starts), steps, 7) == (recorded.MAX_ATTEMPTS, steps, 7)
        assert not noise[..., 3:].any() and (noise != 0).any(axis=(1, 2)).all()
        assert seed == 1 or found.setdefault(seed, starts) == starts
    assert found[0] != starts


@_MODULES
def test_bad_requests_are_one_line_that_names_them(source, monkeypatch, tmp_path):
    with pytest.raises(errors.UserError, match=r"unknown .*task: fly"):
        source.collect(["fly"], tmp_path / "x", 1, source.Settings())
    with pytest.raises(errors.UserError, match="action noise outside"):
        source.Settings(action_noise=2.0)
    with pytest.raises(errors.UserError, match="negative seed"):
        source.Settings(seed=-1)
    monkeypatch.setenv("DEFI_SIMULATORS", str(tmp_path / "none"))
    with pytest.raises(errors.UserError, match="not installed"):
        source.collect([source.EXAMPLE], tmp_path / "x", 1, source.Settings())
    assert not (tmp_path / "x").exists()
