import dataclasses

import numpy as np
import pytest
from defi_rollout.benchmarks import calvin, calvin_chains, simulators

from data_pipelines.collect import calvin_sim
from data_pipelines.store import reader
from defi_jax import errors

_TASK = "turn_on_led"  # the shortest


@pytest.fixture
def simulator(monkeypatch):
    try:
        simulators.python_of(calvin.SIMULATOR)
    except errors.UserError as error:
        pytest.skip(str(error).replace("BENCHMARK", "calvin-abcd-360"))
    monkeypatch.setenv("DEFI_CALVIN_RENDERER", "tiny")  # draws without OpenGL


def test_starts_are_those_of_a_chain_with_its_blocks_elsewhere():
    chain = calvin_chains.chains()[0]
    scenes, noise = calvin_sim._draw(chain, 3, calvin_sim.Settings())
    assert scenes.shape == (calvin_sim.MAX_ATTEMPTS, 24)
    assert noise.shape == (calvin_sim.MAX_ATTEMPTS, 360, 7)
    official = chain.scene_obs()
    np.testing.assert_array_equal(scenes[:, :6], np.tile(official[:6], (len(scenes), 1)))
    moved = np.abs(scenes - official)[:, 6:].reshape(-1, 3, 6)
    on_table = official[6:].reshape(3, 6)[:, 1] < 0
    assert (moved[:, on_table, :2] > 0).all() and moved[:, on_table, :2].max() <= 0.02
    assert not moved[:, ~on_table, :3].any() and (moved[:, :, 5] > 0).all()
    other = calvin_sim._draw(chain, 3, calvin_sim.Settings(seed=1))[0]
    assert (other != scenes).any()


@pytest.mark.slow
def test_collected_episodes_say_that_they_are_self_made_and_come_out_equal(simulator, tmp_path):
    for name in ("one", "two"):
        (counts,) = calvin_sim.collect([_TASK], tmp_path / name, 1, workers=1)
        assert (counts.task, counts.episodes) == (_TASK, 1)
    store, again = (reader.EpisodeStore(tmp_path / name) for name in ("one", "two"))
    assert store.fingerprint() == again.fingerprint()
    meta, actions = store.meta(0), store.actions(0)
    assert (meta.source, meta.embodiment, meta.fps) == ("calvin_sim", "franka_panda", 30.0)
    assert meta.instructions == ("press the button to turn on the led light",)
    assert meta.metadata["origin"] == "self-made, scripted; not the CALVIN data set"
    assert actions.shape == (meta.length, 7) and np.abs(actions).max() <= 1.0
    assert store.states(0).shape == (meta.length, 15)
    assert store.frames(0, "static", [0, meta.length - 1]).shape == (2, 200, 200, 3)
    assert store.frames(0, "gripper", [0]).shape == (1, 84, 84, 3)


def test_bad_requests_are_one_line_that_names_them(monkeypatch, tmp_path):
    with pytest.raises(errors.UserError, match="unknown task: fly"):
        calvin_sim.collect(["fly"], tmp_path / "x", 1)
    with pytest.raises(errors.UserError, match="action noise outside"):
        dataclasses.replace(calvin_sim.Settings(), action_noise=2.0)
    with pytest.raises(errors.UserError, match="negative seed"):
        calvin_sim.Settings(seed=-1)
    monkeypatch.setenv("DEFI_SIMULATORS", str(tmp_path / "none"))
    with pytest.raises(errors.UserError, match="not installed"):
        calvin_sim.collect([_TASK], tmp_path / "x", 1)
    assert not (tmp_path / "x").exists()
