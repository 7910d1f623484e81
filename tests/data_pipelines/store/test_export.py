import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import episodes
from data_pipelines.formats import image as image_lib
from data_pipelines.open_x import registry
from data_pipelines.sources import rlds, rlds_directory, rlds_record
from data_pipelines.store import export, reader
from data_pipelines.store import writer as store_writer
from data_pipelines.tfds_builders import rlds_writer
from defi_jax import errors
from tools.data import commands

TEXTS = ("öffne die Schublade", "open it")


def _episode(number: int, **changes) -> episodes.Episode:
    length = 3 + number
    image = np.random.default_rng(number).integers(0, 255, (16, 24, 3), np.uint8)
    values = {
        "episode_id": f"e/{number}",
        "source": "bridge_dataset",
        "embodiment": "widowx250",
        "instructions": TEXTS[: 1 + number % 2],
        "frames": {
            "static": [image_lib.encode_jpeg(np.roll(image, t, axis=1)) for t in range(length)],
            "gripper": [image_lib.encode_png(np.roll(image, t, axis=0)) for t in range(length)],
        },
        "actions": np.arange(7 * length, dtype=np.float32).reshape(-1, 7) + number,
        "states": np.arange(2 * length, dtype=np.float32).reshape(-1, 2) - number,
        "fps": 29.97,
        "metadata": {"kind": "ü", "numbers": [number, -1.5]},
    }
    return episodes.Episode(**values | changes)


def _store(directory, *found: episodes.Episode) -> reader.EpisodeStore:
    with store_writer.EpisodeWriter(directory, source="mine") as writer:
        for episode in found:
            writer.write(episode)
    return reader.EpisodeStore(directory)


def _export(store, output, **settings) -> dict:
    return export.export_tfds(store, output, name="mine", progress=False, **settings)


@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
@pytest.mark.parametrize("file_format", rlds_writer.FILE_FORMATS)
def test_an_export_is_read_back_as_it_was(tmp_path, shard_bytes, file_format):
    written = [_episode(number) for number in range(3)]
    settings = {"shard_bytes": shard_bytes, "file_format": file_format}
    done = _export(_store(tmp_path / "s", *written), tmp_path / "o", **settings)
    shards = 3 if shard_bytes == 1 else 1
    assert (done["episodes"], done["frames"], done["shards"]) == (3, 12, shards)
    for one, other in zip(written, rlds.RldsSource(done["directory"]).read(), strict=True):
        assert isinstance(other, episodes.Episode)
        for name in ("source", "embodiment", "instructions", "frames", "fps"):
            assert getattr(other, name) == getattr(one, name), name
        np.testing.assert_array_equal(other.actions, one.actions)
        np.testing.assert_array_equal(other.states, one.states)
        assert other.metadata == {**one.metadata, "exported_id": one.episode_id}
    again = _store(tmp_path / "again", other)
    assert registry.convention_of(again.meta(0)) == registry.convention_of(
        reader.EpisodeStore(tmp_path / "s").meta(0)
    )


def test_video_without_actions_and_with_frames_of_several_sizes(tmp_path):
    small = [image_lib.encode_png(np.zeros((8, 8, 3), np.uint8))] * 4
    bare = {"actions": None, "states": None, "embodiment": "human"}
    written = [_episode(0, **bare), _episode(1, **bare, frames={"static": small, "gripper": small})]
    done = _export(_store(tmp_path / "s", *written), tmp_path / "o")
    read = list(rlds.RldsSource(done["directory"]).read())
    assert [e.actions for e in read] == [e.states for e in read] == [None, None]
    assert [e.frames for e in read] == [e.frames for e in written]


def test_steps_carry_what_rlds_asks_for(tmp_path):
    done = _export(_store(tmp_path / "s", _episode(0)), tmp_path / "o")
    info = rlds_directory.load_info(done["directory"])
    (record,) = rlds.read_shard(info.shards[0])
    features = rlds.tfrecord.parse_example(record, where="")
    steps = rlds_record.RawSteps(features, info, "")
    assert steps["is_first"].tolist() == [True, False, False]
    assert steps["is_last"].tolist() == steps["is_terminal"].tolist() == [False, False, True]
    assert steps["reward"].tolist() == [0, 0, 1] and steps["discount"].tolist() == [1, 1, 1]
    assert steps["language_instruction"] == [TEXTS[0].encode()] * 3


@pytest.mark.parametrize(
    ("second", "named"),
    [
        ({"actions": None}, "without actions"),
        ({"frames": {"static": [b"x"] * 4}}, "'e/1' has cameras static,"),
        ({"actions": np.zeros((4, 3), np.float32)}, r"it has action\[3\].* ones action\[7\]"),
    ],
)
def test_episodes_of_other_fields_are_refused_and_nothing_is_left(tmp_path, second, named):
    store = _store(tmp_path / "s", _episode(0), _episode(1, **second))
    with pytest.raises(errors.UserError, match=named):
        _export(store, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_failure_leaves_nothing_and_a_killed_run_is_written_over(tmp_path, monkeypatch):
    store = _store(tmp_path / "s", _episode(0), _episode(1))
    leftover = tmp_path / "o" / "mine" / f".writing-{export.VERSION}" / "9.tfrecord"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(store, "episode", lambda i: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            _export(store, tmp_path / "o")
        assert not (tmp_path / "o").exists()
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"x")
    done = _export(store, tmp_path / "o")
    assert len(list((tmp_path / "o" / "mine").iterdir())) == 1
    with pytest.raises(errors.UserError, match="exists already"):
        _export(store, tmp_path / "o")
    assert len(list(rlds.RldsSource(done["directory"]).read())) == 2


@pytest.mark.parametrize("place", ["file", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path, place):
    store = _store(tmp_path / "store", _episode(0))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.UserError, match=r"cannot be made.*choose another --output"):
        _export(store, tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_command_takes_the_stores_name_and_says_which_tfds_allows(tmp_path):
    _store(tmp_path / "My-Store", _episode(0))
    store, output = str(tmp_path / "My-Store"), str(tmp_path / "o")
    with pytest.raises(errors.UserError, match=r"'My-Store': --name; give lower-case"):
        commands.run_export(store, output, "", "tfrecord")
    result, text = commands.run_export(store, output, "mine", "tfrecord")
    assert result["episodes"] == 1 and "tfds.load('mine'" in text
    _, text = commands.run_export(store, output, "other", "array_record")
    assert f"tfds.data_source('other', data_dir={output!r})" in text


def test_damaged_description_of_an_episode_is_a_data_error(tmp_path, monkeypatch):
    monkeypatch.setattr(rlds_writer.exported, "describe", lambda episode: "{}")
    done = _export(_store(tmp_path / "s", _episode(0)), tmp_path / "o")
    with pytest.raises(errors.DataError, match="export the store again"):
        list(rlds.RldsSource(done["directory"]).read())


def test_array_record_is_what_tfds_reads_without_tensorflow(tmp_path):
    written = [_episode(number) for number in range(3)]
    done = _export(
        _store(tmp_path / "s", *written), tmp_path / "o", file_format="array_record", shard_bytes=1
    )
    assert done["shards"] == 3
    builder = tfds.builder_from_directory(done["directory"])
    assert builder.info.features["steps"]["observation"]["image_1"].shape == (16, 24, 3)
    assert builder.info.features["steps"]["observation"]["image_1"].encoding_format == "png"
    assert builder.info.splits["train"].shard_lengths == [1, 1, 1]
    source = tfds.data_source("mine", data_dir=str(tmp_path / "o"), split="train")
    for one, other in zip(written, source, strict=True):
        steps = list(other["steps"])
        assert [step["is_last"] for step in steps] == [False] * (one.length - 1) + [True]
        np.testing.assert_array_equal([step["action"] for step in steps], one.actions)
        np.testing.assert_array_equal([s["observation"]["state"] for s in steps], one.states)
        assert steps[0]["language_instruction"].decode() == one.instructions[0]
        for step, encoded in zip(steps, one.frames["gripper"], strict=True):  # PNG: lossless
            np.testing.assert_array_equal(
                step["observation"]["image_1"], image_lib.decode_image(encoded)
            )


def test_tfds_reads_it(tmp_path):
    pytest.importorskip("tensorflow")
    written = [_episode(number) for number in range(3)]
    done = _export(_store(tmp_path / "s", *written), tmp_path / "o")
    dataset = tfds.builder_from_directory(done["directory"]).as_dataset(split="train")
    for one, other in zip(written, dataset, strict=True):
        steps = list(other["steps"])
        assert len(steps) == one.length and steps[-1]["is_last"].numpy()
        np.testing.assert_array_equal([s["action"].numpy() for s in steps], one.actions)
        np.testing.assert_array_equal(
            [s["observation"]["state"].numpy() for s in steps], one.states
        )
        assert steps[0]["language_instruction"].numpy().decode() == one.instructions[0]
        for step, encoded in zip(steps, one.frames["gripper"], strict=True):  # PNG: lossless
            np.testing.assert_array_equal(
                step["observation"]["image_1"].numpy(), image_lib.decode_image(encoded)
            )
    assert len(list(tfds.load("mine", data_dir=str(tmp_path / "o"), split="train"))) == 3
