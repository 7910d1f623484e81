import dataclasses
import json

import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image, tfrecord
from data_pipelines.open_x import registry
from data_pipelines.sources import base, rlds
from defi_jax import errors


@pytest.fixture
def episode(rlds_tools):
    return rlds_tools["episode"]


def test_episodes_of_all_shards_in_order(write_rlds, episode):
    raw = [episode(0), episode(1, steps=9), episode(2)]
    source = rlds.RldsSource(write_rlds([raw[:2], raw[2:]]))
    found = list(source.read())
    assert source.total == 3 and source.name == "bridge_dataset"
    assert [e.length for e in found] == [4, 7, 4]
    assert len({e.episode_id for e in found}) == 3
    assert found[0].instructions == ("öffne die Schublade",)
    assert found[0].fps == 5.0 and found[0].embodiment == "widowx250"
    assert found[2].metadata["episode_metadata/file_path"] == "raw/2"
    assert found[2].metadata["episode_metadata/episode_id"] == -3


def test_frames_actions_and_states_belong_to_the_same_step(write_rlds, episode):
    raw = episode(0)
    found = next(rlds.RldsSource(write_rlds([[raw]])).read())
    for camera, field in (("static", "image_0"), ("secondary", "image_1")):  # JPEG and PNG
        assert found.frames[camera] == raw[f"steps/observation/{field}"][1:5]  # the same bytes
    state = raw["steps/observation/state"]
    np.testing.assert_array_equal(found.states[:, :6], state[1:5, :6])
    np.testing.assert_array_equal(found.actions[:, :6], state[2:6, :6] - state[1:5, :6])


def test_skipped_episodes_are_not_unpacked(write_rlds, episode):
    spoilt = episode(0) | {"steps/action": np.zeros(3, np.float32)}
    source = rlds.RldsSource(write_rlds([[spoilt, episode(1)]]))
    ids = ["bridge_dataset/train/00000/00000"]
    assert [e.episode_id for e in source.read(skip=ids)] == ["bridge_dataset/train/00000/00001"]


def test_wrong_record_count_is_refused(write_rlds, episode, rlds_tools):
    directory = write_rlds([[episode(0), episode(1)]])
    rlds_tools["records"](write_rlds.shard(0, 1), [rlds_tools["example"](episode(0))])
    with pytest.raises(errors.DataError, match=r"holds 1 records, dataset_info\.json says 2"):
        list(rlds.RldsSource(directory).read())


def test_records_beyond_the_count_are_refused(write_rlds, episode, rlds_tools):
    directory = write_rlds([[episode(0)]])
    both = [rlds_tools["example"](episode(seed)) for seed in range(2)]
    rlds_tools["records"](write_rlds.shard(0, 1), both)
    with pytest.raises(errors.DataError, match=r"holds 2 records, .* says 1"):
        list(rlds.RldsSource(directory).read())


def test_empty_shard_is_refused(write_rlds, episode):
    directory = write_rlds([[episode(0)]])
    write_rlds.shard(0, 1).write_bytes(b"")
    with pytest.raises(errors.DataError, match="holds 0 records"):
        list(rlds.RldsSource(directory).read())


def test_all_missing_shards_are_named_at_once(write_rlds, episode):
    directory = write_rlds([[episode(0)], [episode(1)], [episode(2)]])
    write_rlds.shard(0, 3).unlink()
    write_rlds.shard(2, 3).unlink()
    with pytest.raises(errors.DataError, match=r"2 of 3 shards of split train .* shards 0, 2 of 3"):
        rlds.RldsSource(directory)


def test_damaged_record_names_file_and_record(write_rlds, episode):
    directory = write_rlds([[episode(0), episode(1)]])
    path = write_rlds.shard(0, 1)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    results = rlds.RldsSource(directory).read()
    next(results)
    with pytest.raises(errors.DataError, match=r"00000-of-00001 record 1"):
        next(results)


def test_schema_check_names_the_surprising_field(write_rlds, episode):
    directory = write_rlds([[episode(0)]], state_dim=8)
    with pytest.raises(errors.DataError, match=r"'observation/state' is float32\[8\], expected"):
        rlds.RldsSource(directory)


def test_missing_field_is_named(write_rlds, episode):
    directory = write_rlds([[episode(0)]])
    path = directory / "features.json"
    path.write_text(path.read_text().replace("image_0", "image_7"))
    with pytest.raises(errors.DataError, match="'observation/image_0' is missing"):
        rlds.RldsSource(directory)


def test_other_sort_of_number_is_named(write_rlds, episode):
    directory = write_rlds([[episode(0)]])
    path = directory / "features.json"
    description = json.loads(path.read_text())
    features = description["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    action = features["featuresDict"]["features"]["action"]["tensor"]
    action["dtype"] = "float64"  # precision does not matter
    path.write_text(json.dumps(description))
    assert rlds.RldsSource(directory).total == 1
    action["dtype"] = "int64"
    path.write_text(json.dumps(description))
    with pytest.raises(errors.DataError, match=r"'action' is int64\[7\], expected float32\[7\]"):
        rlds.RldsSource(directory)


def test_values_in_another_range_are_named_before_anything_is_read(write_rlds, episode):
    raw = episode(0)
    raw["steps/action"][:, -1] *= 255
    directory = write_rlds([[raw, episode(1)]])
    with pytest.raises(
        errors.DataError, match=r"field 'action' holds .* documents 0 to 1.*record 0"
    ):
        rlds.RldsSource(directory)


def test_later_episode_in_another_range_is_rejected(write_rlds, episode):
    raw = episode(1)
    raw["steps/action"][2, -1] = -3
    good, rejected = rlds.RldsSource(write_rlds([[episode(0), raw]])).read()
    assert good.length == 4 and "field 'action' holds values from -3" in rejected.reason


def test_failures_are_left_out_where_the_dataset_says_so(write_rlds, episode, monkeypatch):
    standard = dataclasses.replace(
        registry.find("bridge_dataset"), success_flag="episode_metadata/episode_id"
    )
    monkeypatch.setattr(registry, "standards", lambda own_file: {"bridge_dataset": standard})
    failed = episode(0) | {"episode_metadata/episode_id": np.array([0])}
    rejected, good = rlds.RldsSource(write_rlds([[failed, episode(1)]])).read()
    assert "'episode_metadata/episode_id' flag is false" in rejected.reason and good.length == 4


def test_record_that_contradicts_the_description_is_refused(write_rlds, episode):
    spoilt = episode(0) | {"steps/action": np.zeros((5, 7), np.float32)}
    with pytest.raises(errors.DataError, match=r"number of steps.*'action': 5"):
        list(rlds.RldsSource(write_rlds([[spoilt]])).read())


def _nan_gripper() -> np.ndarray:
    action = np.zeros((6, 7), np.float32)
    action[3, 6] = np.nan
    return action


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps/language_instruction": [b"\xff\xfe"] * 6}, "utf-8"),
        ({"steps/observation/state": np.full((6, 7), np.nan, np.float32)}, "not finite"),
        ({"steps/action": _nan_gripper()}, "field 'action' is not finite at step 3"),
        ({"steps/observation/image_0": [b"GIF89a"] * 6}, "camera static, step 1"),
    ],
)
def test_unusable_episode_is_rejected_with_its_place(write_rlds, episode, change, reason):
    source = rlds.RldsSource(write_rlds([[episode(0) | change, episode(1)]]))
    rejected, good = source.read()
    assert isinstance(rejected, episodes.Reject) and reason in rejected.reason
    assert rejected.item.endswith("record 0") and good.length == 4


@pytest.mark.parametrize("steps", [1, 2])
def test_too_short_episode_is_rejected(write_rlds, episode, steps):
    (rejected,) = rlds.RldsSource(write_rlds([[episode(0, steps=steps)]])).read()
    assert "fewer than three steps" in rejected.reason


def test_episode_without_text_keeps_an_empty_instruction(write_rlds, episode):
    found = next(rlds.RldsSource(write_rlds([[episode(0, text=" ")]])).read())
    assert found.instructions == ("",)


def test_unknown_dataset_is_a_usage_error(write_rlds, episode):
    directory = write_rlds([[episode(0)]])
    with pytest.raises(errors.UserError, match="did you mean bridge_dataset"):
        rlds.RldsSource(directory, name="bridge_datasett")


def test_stored_images_decode(write_rlds, episode):
    found = next(rlds.RldsSource(write_rlds([[episode(0)]])).read())
    assert image.decode_image(found.frames["static"][0]).shape == (16, 24, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_chunks_and_workers_change_nothing(write_rlds, episode, monkeypatch, workers):
    raw = [episode(seed, steps=4 + seed) for seed in range(7)]
    source = rlds.RldsSource(write_rlds([raw[:5], raw[5:]]), workers=base.Workers(count=workers))
    whole = list(source.read())
    monkeypatch.setattr(rlds, "_CHUNK_BYTES", 1)  # one record each
    cut = list(source.read())
    assert [e.episode_id for e in cut] == [e.episode_id for e in whole]
    for one, other in zip(whole, cut, strict=True):
        assert one.frames == other.frames
        np.testing.assert_array_equal(one.actions, other.actions)
    ids = {e.episode_id for e in whole[1:6]}
    assert [e.episode_id for e in source.read(skip=ids)] == [
        "bridge_dataset/train/00000/00000",
        "bridge_dataset/train/00001/00001",
    ]


def test_what_is_there_already_is_not_read_again(write_rlds, episode, monkeypatch):
    directory = write_rlds([[episode(0)], [episode(1)]])
    source = rlds.RldsSource(directory)
    write_rlds.shard(0, 2).write_bytes(b"damaged, but converted before")
    rest = source.read(skip={"bridge_dataset/train/00000/00000"})
    assert [e.episode_id for e in rest] == ["bridge_dataset/train/00001/00000"]


def test_shard_that_ends_early_is_refused_in_chunks_too(
    write_rlds, episode, rlds_tools, monkeypatch
):
    raw = [episode(seed) for seed in range(4)]
    directory = write_rlds([raw])
    monkeypatch.setattr(rlds, "_CHUNK_BYTES", 1)
    source = rlds.RldsSource(directory)
    rlds_tools["records"](write_rlds.shard(0, 1), [rlds_tools["example"](e) for e in raw[:2]])
    with pytest.raises(errors.DataError, match=r"holds (at most )?\d records, .* says 4"):
        list(source.read())


def test_damage_in_a_worker_is_the_same_error(write_rlds, episode, monkeypatch):
    directory = write_rlds([[episode(seed) for seed in range(8)]])
    path = write_rlds.shard(0, 1)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    monkeypatch.setattr(rlds, "_CHUNK_BYTES", 1)
    results = rlds.RldsSource(directory, workers=base.Workers(count=1)).read()
    assert [next(results).episode_id[-1] for _ in range(7)] == list("0123456")
    with pytest.raises(errors.DataError, match="record 7"):
        next(results)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_records_are_rejected_up_to_a_number(write_rlds, episode, monkeypatch, workers):
    monkeypatch.setattr(rlds, "_CHUNK_BYTES", 1 << 16)  # a few records
    directory = write_rlds([[episode(seed) for seed in range(9)], [episode(9)]])
    path = write_rlds.shard(0, 2)
    data = bytearray(path.read_bytes())
    size = len(data) // 9  # of about all
    data[size * 2] ^= 1
    path.write_bytes(data)
    source = rlds.RldsSource(directory, max_damaged=1, workers=base.Workers(count=workers))
    results = list(source.read())
    (rejected,) = (one for one in results if isinstance(one, episodes.Reject))
    assert len(results) == 10 and "checksum" in rejected.reason
    assert rejected.item == f"{path} record {results.index(rejected)}"
    with pytest.raises(errors.DataError, match="checksum"):
        list(rlds.RldsSource(directory).read())


def test_records_behind_a_damaged_length_are_each_lost(write_rlds, episode):
    directory = write_rlds([[episode(seed) for seed in range(3)], [episode(3)]])
    path = write_rlds.shard(0, 2)
    (first, *_) = tfrecord.salvage_records(path)
    data = bytearray(path.read_bytes())
    data[12 + len(first) + 4] ^= 1
    path.write_bytes(data)
    good, lost, behind, other = rlds.RldsSource(directory, max_damaged=None).read()
    assert good.episode_id.endswith("00000/00000") and other.episode_id.endswith("00001/00000")
    assert lost.item == f"{path} record 1" and behind.item == f"{path} record 2"
    assert "the rest of the file is lost" in behind.reason and "record 1" in behind.reason
    with pytest.raises(errors.DataError, match="record 1"):
        list(rlds.RldsSource(directory, max_damaged=1).read())


@pytest.mark.parametrize(
    "value", [np.array([], np.int64), [], [b"seven"], np.array([np.nan], np.float32)]
)
def test_a_field_of_the_episode_that_does_not_fit_rejects_it(write_rlds, episode, value):
    spoilt = episode(0) | {"episode_metadata/episode_id": value}
    directory = write_rlds([[spoilt, episode(1)]])
    description = (directory / "features.json").read_text()
    (directory / "features.json").write_text(description.replace('"int32"', '"float32"'))
    rejected, good = rlds.RldsSource(directory).read()
    assert isinstance(rejected, episodes.Reject) and good.length == 4
    assert "metadata cannot be written" in rejected.reason or "does not fit" in rejected.reason


def test_an_unknown_sort_of_number_is_no_tensor(write_rlds, episode):
    directory = write_rlds([[episode(0)]])
    description = json.loads((directory / "features.json").read_text())
    fields = description["featuresDict"]["features"]
    fields["episode_metadata"]["featuresDict"]["features"]["episode_id"]["tensor"]["dtype"] = "i99"
    (directory / "features.json").write_text(json.dumps(description))
    (found,) = rlds.RldsSource(directory).read()
    assert "episode_metadata/episode_id" not in found.metadata
