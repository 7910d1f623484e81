import base64
import json
import pathlib
import zlib

import numpy as np
import pytest
import tree as dm_tree

from data_pipelines.formats import image
from data_pipelines.sources import dlimp as dlimp_lib
from data_pipelines.sources import dlimp_dataset, rlds, rlds_directory

FIXTURE = pathlib.Path(__file__).parents[2] / "fixtures" / "dlimp"
SHARED = pathlib.Path(__file__).parents[3] / "shared"


@pytest.fixture
def directory(write_rlds, rlds_tools):
    episode = rlds_tools["episode"]
    return write_rlds([[episode(0), episode(1, steps=4)], [episode(2)]])


def _leaves(tree):
    return [("/".join(path), leaf) for path, leaf in dm_tree.flatten_with_path(tree)]


def _open(directory) -> dlimp_dataset.Trajectories:
    return dlimp_dataset.Trajectories.from_rlds(directory)


def test_trajectories_have_steps_metadata_and_places(directory, rlds_tools):
    found = list(_open(directory))
    raw = rlds_tools["episode"](1, steps=4)
    assert [len(t["action"]) for t in found] == [6, 4, 6]
    second = found[1]
    np.testing.assert_array_equal(
        second["observation"]["state"], raw["steps/observation/state"].astype(np.float32)
    )
    assert list(second["observation"]["image_0"]) == raw["steps/observation/image_0"]
    metadata = second["traj_metadata"]["episode_metadata"]
    assert metadata["episode_id"].tolist() == [-2] * 4
    assert metadata["file_path"].tolist() == [b"raw/1"] * 4
    assert second["_len"].tolist() == [4] * 4
    assert second["_traj_index"].tolist() == [1] * 4
    assert second["_frame_index"].tolist() == [0, 1, 2, 3]


def test_maps_of_trajectories_and_frames(directory):
    def last_two(trajectory):
        return {"x": trajectory["action"][-2:], "image": trajectory["observation"]["image_0"][-2:]}

    def decode(frame):
        assert frame["x"].shape == (7,)
        return {"sum": frame["x"].sum(), "pixels": image.decode_image(frame["image"])}

    cut = _open(directory).traj_map(last_two)
    mapped = list(cut.frame_map(decode))
    assert [t["pixels"].shape for t in mapped] == [(2, 16, 24, 3)] * 3
    frames = list(cut.flatten().frame_map(decode))
    assert len(frames) == 6
    np.testing.assert_array_equal(frames[3]["pixels"], mapped[1]["pixels"][1])
    assert frames[3]["sum"] == mapped[1]["sum"][1]


def test_frame_map_keeps_nests_and_byte_strings(directory):
    (one, *_), (same, *_) = _open(directory), _open(directory).frame_map(lambda frame: frame)
    for (name, wanted), (_, found) in zip(_leaves(one), _leaves(same), strict=True):
        assert wanted.dtype == found.dtype, name
        np.testing.assert_array_equal(wanted, found)


def test_filter_and_iterating_twice(directory):
    long = _open(directory).filter(lambda t: len(t["action"]) > 4)
    assert len(list(long)) == len(list(long)) == 2
    assert len(list(long.flatten().filter(lambda f: f["_frame_index"] == 0))) == 2


def test_frames_are_no_trajectories(directory):
    frames = _open(directory).flatten()
    with pytest.raises(ValueError, match="traj_map after flatten"):
        frames.traj_map(lambda t: t)
    with pytest.raises(ValueError, match="flatten twice"):
        frames.flatten()


# ---- as recorded from dlimp ----


def _recorded() -> dict:
    """See `fixtures/make_dlimp.py`."""
    return json.loads((FIXTURE / "golden.json").read_text())


def _value(leaf: dict) -> np.ndarray:
    if "bytes" not in leaf:
        return np.array(leaf["values"], leaf["dtype"])
    found = np.empty(len(leaf["bytes"]), object)
    found[:] = [base64.b64decode(text) for text in leaf["bytes"]]
    return found.reshape(leaf["shape"])


def _as_ours(name: str, leaf: dict) -> np.ndarray:
    """A recorded leaf with the two documented differences taken away."""
    value = _value(leaf)
    if name == "observation/packed":
        inflated = [np.frombuffer(zlib.decompress(one), np.float32) for one in value.ravel()]
        return np.stack(inflated).reshape(*value.shape, -1)
    if name.endswith("extrinsics"):  # number after number, each repeated at every step
        return value.reshape(4, -1).T.reshape(-1, 2, 2)
    return value


def _assert_recorded(kind: str, found) -> None:
    for recorded, tree in zip(_recorded()[kind], found, strict=True):
        leaves = dict(_leaves(tree))
        assert leaves.keys() == recorded.keys()
        for name, leaf in recorded.items():
            wanted, ours = _as_ours(name, leaf), np.asarray(leaves[name])
            if isinstance(leaves[name], bytes):
                ours = np.array(leaves[name], object)
            assert wanted.dtype == ours.dtype and wanted.shape == ours.shape, name
            np.testing.assert_array_equal(wanted, ours, err_msg=name)


def test_trajectories_are_those_recorded_from_dlimp():
    assert len(_recorded()["dlimp"]) == 40  # the commit
    _assert_recorded("trajectories", _open(FIXTURE / "tiny"))


def test_frames_are_those_recorded_from_dlimp():
    def without_arrays(trajectory):
        del trajectory["traj_metadata"]["episode_metadata"]["extrinsics"]
        return trajectory

    def add_sum(frame):
        return {"sum": frame["action"]["world_vector"].sum(), "place": frame["_frame_index"]}

    whole = _open(FIXTURE / "tiny").traj_map(without_arrays)
    _assert_recorded("sums", whole.frame_map(add_sum))
    _assert_recorded("frames", whole.flatten())


# ---- beside dlimp ----


def _assert_same_trajectories(directory, split: str) -> int:
    why = "dlimp is not on the package index: make test-tensorflow DLIMP=CHECKOUT"
    dlimp = pytest.importorskip("dlimp", reason=why)
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder_from_directory(str(directory))
    tf = pytest.importorskip("tensorflow")
    options = rlds_directory.RldsOptions(splits=(split,))
    theirs = dlimp.DLataset.from_rlds(builder, split=split, shuffle=False, num_parallel_reads=1)
    _assert_same_episodes(theirs, rlds.RldsSource(directory, options))
    tf_options = tf.data.Options()
    tf_options.deterministic = True  # dlimp's default order changes from run to run
    theirs = theirs.with_options(tf_options)
    ours = dlimp_dataset.Trajectories.from_rlds(directory, splits=[split])
    count = 0
    for one, other in zip(theirs.as_numpy_iterator(), ours, strict=True):
        wanted, found = dict(_leaves(one)), dict(_leaves(other))
        assert wanted.keys() == found.keys()
        for name, values in wanted.items():
            assert values.dtype == found[name].dtype, name
            np.testing.assert_array_equal(values, found[name])
        count += 1
    return count


def _assert_same_episodes(dataset, source) -> None:
    """A DLataset as a source gives the episodes of the files."""
    accepted = dlimp_lib.TrajectorySource(dataset, dataset="bridge_dataset")
    for one, other in zip(accepted.read(), source.read(), strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.states, other.states)
        assert one.frames == other.frames and one.instructions == other.instructions
        assert one.metadata == other.metadata


def test_same_trajectories_as_dlimp(directory):
    assert _assert_same_trajectories(directory, "train") == 3


@pytest.mark.parametrize("split", ["train", "val"])
def test_same_trajectories_as_dlimp_on_real_data(split):
    directory = SHARED / "data" / "rlds" / "bridge_dataset" / "1.0.0"
    if not directory.exists():
        pytest.skip("reference data are not on this machine")
    assert _assert_same_trajectories(directory, split) == 25
