import json

import numpy as np
import pytest
from defi_rollout import bundle, errors
from defi_rollout.benchmarks import adapters

DOCUMENT = {
    "embodiment": "libero_panda",
    "observations": {
        "image": {
            "source": "observation/image",
            "size": [8, 8],
            "resize": "pad",
            "leading_axes": 2,
        },
        "state": {"source": "observation/state"},
    },
    "prompt": "task",
    "action_dim": 3,
    "execute_horizon": 2,
    "factors": [1, 2, -1],
}


def test_observation_is_renamed_resized_and_shaped():
    offered = {
        "observation/image": np.full((4, 16, 3), 100, np.uint8),
        "observation/wrist_image": np.zeros((4, 4, 3), np.uint8),
        "observation/state": np.arange(5, dtype=np.float32),
    }
    obs = adapters.from_json(DOCUMENT).observe(offered, "open it")
    assert set(obs) == {"task", "image", "state"} and obs["task"] == "open it"
    assert obs["image"].shape == (1, 1, 8, 8, 3) and obs["image"].dtype == np.uint8
    # 4 x 16 becomes 2 x 8 in the middle of black.
    np.testing.assert_array_equal(obs["image"][0, 0, :, 4, 0], [0, 0, 0, 100, 100, 0, 0, 0])
    np.testing.assert_array_equal(obs["state"], offered["observation/state"])
    stretched = {**DOCUMENT["observations"]["image"], "resize": "stretch"}
    other = adapters.from_json({**DOCUMENT, "observations": {"image": stretched}})
    assert (other.observe(offered, "")["image"] == 100).all()


def test_actions_are_multiplied_and_checked():
    adapter = adapters.from_json(DOCUMENT)
    actions = np.ones((1, 1, 4, 3), np.float64)
    moved = adapter.act(actions)
    assert moved.dtype == np.float32 and moved.shape == (4, 3)
    np.testing.assert_array_equal(moved[0], [1, 2, -1])
    assert (actions == 1).all()
    for shape in ((4, 7), (2, 4, 3)):
        with pytest.raises(errors.UserError, match="3 numbers an action"):
            adapter.act(np.ones(shape, np.float32))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"factors": [1, 1]}, "2 factors for 3 dimensions"),
        ({"execute_horizon": 0}, "execute_horizon 0"),
        ({"observations": {"a": {"source": "b", "resize": "crop"}}}, "'crop'"),
        ({"observations": {"a": {"sauce": "b"}}}, "sauce"),
        ({"hobby": 1}, "hobby"),
        ({"observations": 3}, "items"),
    ],
)
def test_a_malformed_adapter_is_named(tmp_path, changes, text):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**DOCUMENT, **changes}))
    with pytest.raises(errors.UserError, match=f"malformed adapter.*{text}.*mine.json"):
        adapters.read(str(path))


def test_an_absent_adapter_names_those_that_come_along(tmp_path):
    with pytest.raises(errors.UserError, match=r"--adapter=mine; give octo_fractal\|openpi_libero"):
        adapters.read("mine")


@pytest.mark.parametrize("name", [path.stem for path in adapters.DIRECTORY.glob("*.json")])
def test_adapters_that_come_along_are_whole(name):
    adapter = adapters.read(name)
    assert adapter.action_dim == 7 and adapter.observations


def test_our_servers_describe_themselves(tiny_bundle):
    source = bundle.read_bundle(tiny_bundle)
    adapter = adapters.from_metadata(source.spec.metadata(source.digest), "bundle")
    assert adapter.embodiment == "metaworld_sawyer" and adapter.action_horizon == 5
    assert adapter.observations["observation/image"].size == (16, 16)
    with pytest.raises(errors.UserError, match="ws://robot; say it in a file: --adapter"):
        adapters.from_metadata({}, "ws://robot")
