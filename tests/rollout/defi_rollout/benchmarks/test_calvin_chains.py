import json
import pathlib

import numpy as np
import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import calvin_chains

GOLDEN = pathlib.Path(__file__).parents[5] / "shared/golden/calvin_sequences_1000.json"

# Made by the reference implementation with pyhash 0.9.3 for the first chain.
HASH = 2138410836
SCENE = [
    *(0.28, 0.22, 0.0, 0.088, 1.0, 1.0),
    *(-0.240851662, 0.0924044687, 0.460990009, 0.0, 0.0, 1.8859410064),
    *(0.229995412, -0.11999514, 0.45999001, 0.0, 0.0, 1.4881434377),
    *(0.070341633, 0.0924044687, 0.460990009, 0.0, 0.0, 1.4683986863),
]


def test_first_chain_and_its_scene():
    first = calvin_chains.chains()[0]
    assert len(calvin_chains.chains()) == 1000
    assert first.tasks == (
        *("rotate_blue_block_right", "move_slider_right", "lift_red_block_slider"),
        *("place_in_slider", "turn_off_lightbulb"),
    )
    assert calvin_chains.state_hash(first.state) == HASH
    np.testing.assert_allclose(first.scene_obs(), SCENE, atol=1e-9)


def test_scenes_do_not_touch_numpys_own_generator():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    calvin_chains.chains()[5].scene_obs()
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.skipif(not GOLDEN.exists(), reason="reference data are not on this machine")
def test_all_scenes_equal_the_references():
    golden = json.loads(GOLDEN.read_text())
    for chain, want in zip(calvin_chains.chains(), golden, strict=True):
        assert list(chain.tasks) == want["tasks"]
        assert list(chain.state.items()) == list(want["initial_state"].items())
        assert calvin_chains.state_hash(chain.state) == want["hash"]
        np.testing.assert_allclose(chain.scene_obs(), want["scene_obs"], atol=1e-9)


def test_a_changed_list_is_refused(monkeypatch):
    monkeypatch.setattr(calvin_chains, "SHA256", "0" * 64)
    calvin_chains.chains.cache_clear()
    with pytest.raises(errors.BundleError, match="official"):
        calvin_chains.chains()
