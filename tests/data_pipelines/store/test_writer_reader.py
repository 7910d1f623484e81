import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from data_pipelines import episodes, files
from data_pipelines.formats import image
from data_pipelines.store import reader, shards
from data_pipelines.store import writer as store_writer
from defi_jax import errors


def _image(value, size=8):
    return np.full((size, size, 3), value, np.uint8)


def _png(value):
    return image.encode_png(_image(value))


def _episode(episode_id, length=20, cameras=("static", "gripper"), **changes):
    frames = {
        camera: [_png(10 * number + t) for t in range(length)]
        for number, camera in enumerate(cameras)
    }
    values = {
        "episode_id": episode_id,
        "source": "unit",
        "embodiment": "robot",
        "instructions": (f"do {episode_id}", "other\u2028words"),
        "frames": frames,
        "actions": np.arange(length * 2, dtype=np.float32).reshape(length, 2),
        "states": None,
        "fps": 10.0,
        "metadata": {"seed": 3},
    }
    return episodes.Episode(**(values | changes))


def _write(directory, ids, **kwargs):
    with store_writer.EpisodeWriter(directory, source="unit", **kwargs) as writer:
        for episode_id in ids:
            writer.write(_episode(episode_id))


def _digests(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_store_returns_what_was_written(tmp_path):
    _write(tmp_path, ["b", "a"])
    store = reader.EpisodeStore(tmp_path)
    assert store.episode_ids == ("a", "b")
    meta = store.meta(0)
    assert (meta.length, meta.cameras, meta.has_actions) == (20, ("static", "gripper"), True)
    assert meta.instructions == ("do a", "other\u2028words")
    assert meta.metadata == {"seed": 3}
    frames = store.frames(0, "gripper", [19, 0, 7, 8, 8])
    np.testing.assert_array_equal(frames[:, 0, 0, 0], [29, 10, 17, 18, 18])
    np.testing.assert_array_equal(store.actions(1)[3], [6, 7])
    assert store.states(0) is None
    assert store.episode(1).frames["static"][5] == _png(5)
    for i in range(len(store)):
        store.verify(i)


@pytest.mark.parametrize(("frames_per_record", "records"), [(1, [20, 37]), (4, [5, 9])])
def test_store_reads_only_the_records_it_needs(tmp_path, monkeypatch, frames_per_record, records):
    monkeypatch.setattr(shards, "FRAMES_PER_RECORD", frames_per_record)
    _write(tmp_path, ["a"])
    monkeypatch.undo()
    store = reader.EpisodeStore(tmp_path)
    numbers = []
    read = shards.Readers.read
    monkeypatch.setattr(
        shards.Readers,
        "read",
        lambda self, shard, wanted: numbers.append(list(wanted)) or read(self, shard, wanted),
    )
    frames = store.frames(0, "gripper", [0, 17])
    np.testing.assert_array_equal(frames[:, 0, 0, 0], [10, 27])
    assert numbers == [records]  # those before are the static camera's


def test_order_and_fingerprint_do_not_depend_on_shards(tmp_path):
    _write(tmp_path / "one", ["a", "b", "c"])
    _write(tmp_path / "two", ["c"], shard="x")
    _write(tmp_path / "two", ["b", "a"], shard="y", episodes_per_shard=1)
    one, two = (reader.EpisodeStore(tmp_path / name) for name in ("one", "two"))
    assert one.episode_ids == two.episode_ids
    assert one.fingerprint() == two.fingerprint()
    np.testing.assert_array_equal(one.frames(2, "static", [4]), two.frames(2, "static", [4]))


def test_shard_ends_when_it_holds_enough_bytes(tmp_path):
    size = sum(len(record) for record in shards.episode_records(_episode("a")))
    _write(tmp_path, "abcde", shard_bytes=2 * size)
    found = [shards.read_index(path)[0] for path in sorted(tmp_path.glob("*.jsonl"))]
    assert [header["episodes"] for header in found] == [2, 2, 1]


def test_fingerprint_changes_with_content(tmp_path):
    _write(tmp_path / "one", ["a"])
    with store_writer.EpisodeWriter(tmp_path / "two", source="unit") as writer:
        writer.write(_episode("a", actions=np.zeros((20, 2), np.float32)))
    one, two = (reader.EpisodeStore(tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint() != two.fingerprint()


def test_store_survives_pickling_and_many_threads(tmp_path):
    _write(tmp_path, ["a", "b"])
    store = reader.EpisodeStore(tmp_path)
    store.frames(0, "static", [0])
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.frames(1, "static", [3]), store.frames(1, "static", [3]))


_KILLED = """
    import os, signal, sys
    sys.path[:0] = {path!r}
    import test_writer_reader as helpers
    from data_pipelines.store import writer as store_writer
    writer = store_writer.EpisodeWriter({directory!r}, source="unit", episodes_per_shard=2)
    for episode_id in "abc":
        writer.write(helpers._episode(episode_id))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_writer_resumes_to_the_same_bytes(tmp_path):
    _write(tmp_path / "straight", "abcde", episodes_per_shard=2)
    directory = tmp_path / "killed"
    here = os.path.dirname(__file__)
    path = [here, os.path.join(here, "..", "..", "..")]
    script = textwrap.dedent(_KILLED).format(path=path, directory=str(directory))
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert reader.EpisodeStore(directory).episode_ids == ("a", "b")
    with store_writer.EpisodeWriter(directory, source="unit", episodes_per_shard=2) as writer:
        assert writer.done_ids() == {"a", "b"}
        for episode_id in sorted(set("abcde") - writer.done_ids()):
            writer.write(_episode(episode_id))
    assert _digests(directory) == _digests(tmp_path / "straight")


def test_records_without_index_are_never_read(tmp_path):
    _write(tmp_path, ["a"])
    _write(tmp_path, ["b"])
    (tmp_path / "episodes-0-00001.index.jsonl").unlink()
    assert reader.EpisodeStore(tmp_path).episode_ids == ("a",)
    _write(tmp_path, ["b"])
    assert reader.EpisodeStore(tmp_path).episode_ids == ("a", "b")


def test_writer_drops_unpublished_episodes_on_error(tmp_path):
    with pytest.raises(KeyError), store_writer.EpisodeWriter(tmp_path, source="unit") as writer:
        writer.write(_episode("a"))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_an_id_twice(tmp_path):
    _write(tmp_path, ["a"])
    with pytest.raises(errors.DataError, match="'a'"):
        _write(tmp_path, ["a"], shard="other")


def test_missing_and_empty_directories_are_named(tmp_path):
    with pytest.raises(errors.UserError, match=r"no such data directory: .*nowhere"):
        reader.EpisodeStore(tmp_path / "nowhere")
    with pytest.raises(errors.UserError, match="holds no episodes"):
        reader.EpisodeStore(tmp_path)


def test_bit_flip_names_shard_and_episode(tmp_path):
    _write(tmp_path, ["a", "b"])
    path = tmp_path / "episodes-0-00000.array_record"
    content = bytearray(path.read_bytes())
    content[content.rindex(b"IDAT") + 8] ^= 1  # in the last frame of b
    path.write_bytes(content)
    store = reader.EpisodeStore(tmp_path)
    store.frames(0, "gripper", [19])
    with pytest.raises(errors.DataError, match=r"'b' in .*episodes-0-00000.array_record"):
        store.frames(1, "gripper", [19])


def test_truncated_and_missing_shards_are_found_on_opening(tmp_path):
    _write(tmp_path, ["a"])
    path = tmp_path / "episodes-0-00000.array_record"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(errors.DataError, match=r"truncated.*episodes-0-00000\.array_record"):
        reader.EpisodeStore(tmp_path)
    path.unlink()
    with pytest.raises(errors.DataError, match="missing"):
        reader.EpisodeStore(tmp_path)


def test_shard_truncated_after_opening_names_the_episode(tmp_path):
    _write(tmp_path, ["a"])
    store = reader.EpisodeStore(tmp_path)
    path = tmp_path / "episodes-0-00000.array_record"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(errors.DataError, match=r"damaged record .*'a'"):
        store.frames(0, "static", [0])


def test_shard_truncated_while_it_is_read_names_the_episode(tmp_path):
    """Then there is no error below ours: records come back empty."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    with store_writer.EpisodeWriter(tmp_path, source="unit") as writer:
        for name in "abc":
            frames = {"static": [image.encode_png(one) for one in noise]}
            writer.write(_episode(name, length=40, frames=frames, actions=None))
    store = reader.EpisodeStore(tmp_path)
    store.frames(0, "static", [0])
    path = tmp_path / "episodes-0-00000.array_record"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(errors.DataError, match=r"damaged record .*'c'"):
        store.frames(2, "static", [39])


def test_damaged_index_is_found(tmp_path):
    _write(tmp_path, ["a"])
    path = tmp_path / "episodes-0-00000.index.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"length": 20', '"length": 21'))
    with pytest.raises(errors.DataError, match="index is damaged"):
        reader.EpisodeStore(tmp_path)
    path.write_text(text.replace('"frames_per_record": 1', '"frames_per_record": 2'))
    with pytest.raises(errors.DataError, match="index is damaged"):
        reader.EpisodeStore(tmp_path)
    header = json.loads(text.splitlines()[0]) | {"schema": 99}
    path.write_text(json.dumps(header) + "\n")
    with pytest.raises(errors.DataError, match="schema 99"):
        reader.EpisodeStore(tmp_path)


def test_duplicate_ids_of_two_shards_are_found(tmp_path):
    _write(tmp_path, ["a"])
    for suffix in (shards.RECORDS_SUFFIX, shards.INDEX_SUFFIX):
        content = (tmp_path / f"episodes-0-00000{suffix}").read_bytes()
        (tmp_path / f"episodes-1-00000{suffix}").write_bytes(content)
    with pytest.raises(errors.DataError, match="'a' is there twice"):
        reader.EpisodeStore(tmp_path)


def test_unknown_camera_lists_the_available(tmp_path):
    _write(tmp_path, ["a"])
    with pytest.raises(errors.DataError, match=r"'wrist'.*use one of static, gripper"):
        reader.EpisodeStore(tmp_path).frames(0, "wrist", [0])


def test_damaged_image_names_the_episode(tmp_path):
    frames = {"static": [_png(0), _png(1)[:45]]}
    with store_writer.EpisodeWriter(tmp_path, source="unit") as writer:
        writer.write(_episode("a", frames=frames, actions=None))
    store = reader.EpisodeStore(tmp_path)
    store.frames(0, "static", [0])
    with pytest.raises(errors.DataError, match="episode 'a', camera 'static'"):
        store.frames(0, "static", [1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": {}}, "no camera"),
        ({"frames": {"static": []}, "actions": None}, "no frames"),
        ({"frames": {"static": [b"x"], "gripper": []}, "actions": None}, "differ in length"),
        ({"actions": np.zeros((19, 2), np.float32)}, r"actions are float32\[19, 2\]"),
        ({"actions": np.zeros((20, 2))}, "actions are float64"),
        ({"actions": np.full((20, 2), np.nan, np.float32)}, "actions are not finite at step 0"),
        ({"instructions": ()}, "no instruction"),
        ({"fps": 0.0}, "fps"),
        ({"fps": float("inf")}, "fps"),
        ({"instructions": ("ok", "\ud800 hi")}, r"instructions '\\ud800 hi' is not UTF-8"),
        ({"source": "x\udcff"}, "source .* is not UTF-8"),
        ({"frames": {"\udcff": [b"x"]}, "actions": None}, "cameras .* is not UTF-8"),
        ({"metadata": {"file": "x\udcff"}}, "metadata are not UTF-8"),
        ({"metadata": {"value": float("nan")}}, "metadata cannot be written"),
        ({"metadata": {"value": b"bytes"}}, "metadata cannot be written"),
    ],
)
def test_episode_refuses_what_contradicts_the_schema(changes, message):
    with pytest.raises(errors.DataError, match=message):
        _episode("a", **changes)


def test_a_file_in_the_place_of_a_store_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.UserError, match=r"File exists.*choose another --output"):
        store_writer.EpisodeWriter(tmp_path / "file", source="s")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("per_record", [2, 7])
def test_records_are_those_that_the_index_promises(tmp_path, per_record):
    _write(tmp_path, ["a", "b"])
    path = tmp_path / "episodes-0-00000.index.jsonl"
    first, *lines = path.read_text().split("\n")[:-1]
    header = json.loads(first) | {"frames_per_record": per_record}
    path.write_text(shards.index_text(header, lines))
    store = reader.EpisodeStore(tmp_path)
    with pytest.raises(errors.DataError, match=r"records (hold other|lack) frames"):
        store.frames(0, "static", [3])
    with pytest.raises(errors.DataError, match="frames where actions should be"):
        store.actions(0)


def test_a_store_of_the_first_schema_is_readable(tmp_path):
    _write(tmp_path, ["a"])
    path = tmp_path / "episodes-0-00000.index.jsonl"
    first, body = path.read_bytes().split(b"\n", 1)
    header = json.loads(first) | {"schema": 1, "sha256": hashlib.sha256(body).hexdigest()}
    path.write_bytes(json.dumps(header).encode() + b"\n" + body)
    assert len(reader.EpisodeStore(tmp_path)) == 1


def test_writer_that_cannot_publish_leaves_nothing(tmp_path, monkeypatch):
    def fail(path):
        raise OSError("disk full")

    monkeypatch.setattr(files, "sync", fail)
    with pytest.raises(OSError, match="disk full"):
        _write(tmp_path, ["a"])
    assert not list(tmp_path.iterdir())
