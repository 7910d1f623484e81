import numpy as np
from defi_rollout.benchmarks import calvin, calvin_chains

from data_pipelines.collect import calvin_sim

_TASK = "turn_on_led"


def test_starts_are_those_of_a_chain_with_its_blocks_elsewhere():
    def draw(seed):
        start = calvin_sim.Settings().draw_start(_TASK, 3, np.random.default_rng(seed))
        return start["tasks"], np.array(start["scene"])

    chain = calvin_chains.chains()[calvin.starts(_TASK)[3]]
    official = chain.scene_obs()
    scenes = []
    for seed in range(4):
        tasks, scene = draw(seed)
        assert tasks == chain.tasks
        scenes.append(scene)
    np.testing.assert_array_equal(np.stack(scenes)[:, :6], np.tile(official[:6], (4, 1)))
    moved = np.abs(scenes - official)[:, 6:].reshape(-1, 3, 6)
    on_table = official[6:].reshape(3, 6)[:, 1] < 0
    assert (moved[:, on_table, :2] > 0).all() and moved[:, on_table, :2].max() <= 0.02
    assert not moved[:, ~on_table, :3].any() and (moved[:, :, 5] > 0).all()
    assert (draw(0)[1] == scenes[0]).all() and (scenes[1] != scenes[0]).any()
