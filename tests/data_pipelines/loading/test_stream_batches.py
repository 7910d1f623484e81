import collections
import dataclasses
import json

import jax
import ml_collections
import numpy as np
import pytest

from configs import common
from data_pipelines import normalization as normalization_lib
from data_pipelines.loading import config as config_lib
from data_pipelines.loading import (
    loader,
    mixtures,
    named_mixtures,
    sample_kinds,
    splits,
    store_batches,
    stream_batches,
)
from data_pipelines.sources import base, rlds
from data_pipelines.store import convert
from data_pipelines.store import reader as store_reader
from data_pipelines.streaming import pool as pool_lib
from data_pipelines.streaming import scan
from defi_jax import batch as batch_lib
from defi_jax import errors
from defi_jax.models.frozen import tokenizers

LENGTH = 8
RAW_STEPS = (6, 9, 4, 6, 7, 5)  # two fewer after standardisation


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(write_rlds, rlds_tools, tmp_path):
    """Directory with <root>/bridge_dataset/1.0.0 of three shards."""
    raw = [rlds_tools["episode"](seed, steps=steps) for seed, steps in enumerate(RAW_STEPS)]
    write_rlds([raw[:2], raw[2:4], raw[4:]])
    return tmp_path


def _config(root, **changes):
    values = {
        "root": str(root),
        "mixture": "bridge_dataset",
        "image_size": 8,
        "cameras": ("static",),
        "num_frames": 3,
        "frame_stride": 1,
        "pair_offset": (2, 3),
        "action_horizon": 3,
        "window_stride": 1,
        "action_dim": 7,
        "normalization": "bounds_q99",
        "unnormalized_dims": (6,),
        "holdout_percent": 0,
        "augment": True,
        "workers": 0,
        "max_bad_fraction": 0.1,
        "stream_mib": 64,
    }
    return ml_collections.ConfigDict(common.data().to_dict() | values | changes)


def _make(root, name="joint", *, split="train", process=0, count=1, global_batch=4, **changes):
    config = _config(root, **changes)
    text = batch_lib.tokens_spec(1, LENGTH)

    def leaf(dtype, *shape):
        return jax.ShapeDtypeStruct((1, *shape), dtype)

    size = (config.image_size, config.image_size, 3)
    roles = {"gidm": ("gidm",), "joint": ("gfdm", "gidm", "goal")}[name]
    specs = {
        "gidm": batch_lib.GIDMBatch(
            frames=leaf(np.uint8, 2, *size),
            text=text,
            action=leaf(np.float32, 7),
            action_mask=leaf(np.bool_),
        ),
        "joint": batch_lib.JointBatch(
            images=leaf(np.uint8, len(config.cameras), *size),
            text=dict.fromkeys(("gfdm", "gidm", "goal"), text),
            actions=leaf(np.float32, config.action_horizon, 7),
            action_mask=leaf(np.bool_, config.action_horizon),
        ),
    }
    tokenizer = tokenizers.utf8(LENGTH, lower_case=True, strip_punctuation=False)
    return loader.make_loader(
        config,
        specs[name],
        tokenizers=dict.fromkeys(roles, tokenizer),
        split=split,
        seed=3,
        global_batch=global_batch,
        process_index=process,
        process_count=count,
    )


def _take(one, count: int) -> list:
    batches = [next(one) for _ in range(count)]
    one.close()
    return batches


def _rows(batches) -> collections.Counter:
    """Counts samples by their pixels and actions."""
    return collections.Counter(
        batch.images[row].tobytes() + batch.actions[row].tobytes()
        for batch in batches
        for row in range(len(batch.actions))
    )


def _pairs(batches) -> collections.Counter:
    return collections.Counter(frames.tobytes() for batch in batches for frames in batch.frames)


def _store(root):
    source = rlds.RldsSource(root / "bridge_dataset")
    convert.convert(source, root / "stores" / "bridge_dataset", origin={}, progress=False)
    return root / "stores"


def test_an_epoch_has_the_samples_of_the_converted_store(root):
    total = sum(RAW_STEPS) - 2 * len(RAW_STEPS)
    assert total % 5 == 0
    numbers = {"augment": False, "global_batch": 5}
    streamed = _make(root, **numbers)
    stored = _make(_store(root), **numbers)
    assert isinstance(streamed.batches, stream_batches.StreamBatches)
    assert isinstance(stored.batches, store_batches.StoreBatches)
    assert streamed.normalizer.to_json() == stored.normalizer.to_json()
    one, other = _take(streamed, 2 * total // 5), _take(stored, 2 * total // 5)
    assert _rows(one) == _rows(other)
    assert _rows(one[: total // 5]) == _rows(other[: total // 5])
    assert set(_rows(one).values()) == {2}


def test_augmented_pairs_are_those_of_the_store_for_the_same_draws(root):
    store = store_reader.EpisodeStore(_store(root) / "bridge_dataset")
    normalizer = normalization_lib.Normalizer(kind="none", statistics=None, mask=(True,) * 7)
    config = config_lib.DataConfig.of(_config(root))
    pairs = sample_kinds.Pairs(config=config, normalizer=normalizer, train=True)
    for i, episode in enumerate(rlds.RldsSource(root / "bridge_dataset").read()):
        view = pool_lib.EpisodeView(episode)
        assert view.meta(0) == store.meta(i)
        for sample in range(int(pairs.num_samples(view.lengths)[0])):
            one, other = (
                pairs.begin(
                    sample_kinds.Place(component="", source=source, episode=number, sample=sample),
                    "",
                    np.random.default_rng(sample),
                )()
                for source, number in ((view, 0), (store, i))
            )
            for name, array in one.items():
                np.testing.assert_array_equal(array, other[name])


def test_statistics_are_the_stores_to_the_last_bit(root):
    source = rlds.RldsSource(root / "bridge_dataset")
    found = scan.scan(source)
    store = store_reader.EpisodeStore(_store(root) / "bridge_dataset")
    wanted = normalization_lib.of_source(store)
    assert {k: v.to_json() for k, v in found.statistics.items()} == {
        k: v.to_json() for k, v in wanted.items()
    }
    assert found.steps == store.lengths.sum() == scan.known_steps(source)


def test_scan_in_processes_is_the_same(root, monkeypatch, caplog):
    monkeypatch.setattr(rlds, "_CHUNK_BYTES", 1)  # a record a chunk
    source = rlds.RldsSource(root / "bridge_dataset")
    here = scan._compute(source, base.Workers(count=0))
    monkeypatch.setattr(scan, "_MOST_PROCESSES", 1)
    monkeypatch.setattr(rlds.RldsSource, "try_episode", None)  # must not be called here
    found = scan.scan(source)
    assert found.steps == here.steps > 0
    for name, column in here.statistics.items():
        assert column.to_json() == found.statistics[name].to_json()
    assert "all 6 records once" in caplog.text and "1 processes" in caplog.text


def test_scan_is_kept_until_the_files_change(root, monkeypatch):
    source = rlds.RldsSource(root / "bridge_dataset")
    first = scan.scan(source)
    monkeypatch.setattr(source, "map", None)  # must not be read again
    assert scan.scan(source).steps == first.steps
    path = root / "bridge_dataset" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"][0] = "3"
    path.write_text(json.dumps(info))
    assert scan.known_steps(rlds.RldsSource(root / "bridge_dataset")) == 0


def test_scan_is_made_anew_for_other_content_or_rules(root, write_rlds, monkeypatch):
    source = rlds.RldsSource(root / "bridge_dataset")
    scan.scan(source)
    shard = write_rlds.shard(0, len(source.info.shards))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")  # as many records and bytes
    assert scan.known_steps(rlds.RldsSource(root / "bridge_dataset")) == 0
    same, other = (rlds.RldsSource(root / "bridge_dataset") for _ in range(2))
    changed = dataclasses.replace(source.standard, version=source.standard.version + 1)
    monkeypatch.setattr(other, "standard", changed)
    assert scan.digest(other) != scan.digest(same)


def test_small_pools_still_give_every_sample_once_an_epoch(root):
    total = sum(RAW_STEPS) - 2 * len(RAW_STEPS)
    batches = _take(_make(root, stream_mib=0, augment=False, global_batch=5), total // 5)
    assert set(_rows(batches).values()) == {1} and len(_rows(batches)) == total


def test_same_seed_gives_the_same_batches(root):
    for one, other in zip(_take(_make(root), 8), _take(_make(root), 8), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_first_batches_leave_the_stream_alone(root):
    one = _make(root)
    shown = list(one.first(2))
    for wanted, found in zip(shown, _take(one, 2), strict=True):
        jax.tree.map(np.testing.assert_array_equal, wanted, found)


def test_restored_stream_goes_on_at_its_record_position(root, caplog):
    one = _make(root, stream_mib=0, augment=False)  # one episode at a time in the pool
    _take(one, 3)
    state = json.loads(json.dumps(one.state()))
    assert state["next_batch"] == 3
    ((epoch, record),) = state["positions"].values()
    assert epoch == 0 and 0 < record < len(RAW_STEPS)
    fresh = _make(root, stream_mib=0, augment=False)
    fresh.restore(state)
    assert "not exact" in caplog.text
    assert fresh.state() == state
    total = sum(RAW_STEPS) - 2 * len(RAW_STEPS)
    following = _rows(_take(fresh, (total - 3 * 4) // 4 - 2))
    assert not following & _rows(_take(_make(root, stream_mib=0, augment=False), 2))


def test_state_of_another_stream_is_refused(root):
    state = _make(root).state()
    with pytest.raises(errors.UserError, match="transforms changed"):
        _make(root, image_size=16).restore(state)


@pytest.mark.parametrize("count", [2, 4])  # fewer and more processes than shards
def test_processes_share_the_records(root, count):
    source = rlds.RldsSource(root / "bridge_dataset")
    places = collections.Counter()
    for process in range(count):
        records = _records(source, process_index=process, process_count=count)
        for _, record in records.epoch(pool_lib.Position(2, 0)):
            places[record.shard.index, record.index] += 1
    assert len(places) == len(RAW_STEPS) and set(places.values()) == {1}


def _records(source, *, accept=lambda name: True, seed=0, process_index=0, process_count=1):
    return pool_lib.Records(
        source, accept=accept, seed=seed, process_index=process_index, process_count=process_count
    )


@pytest.mark.parametrize("wanted", [{0}, {1, 3}, {1, 4, 5}, {0, 1, 2, 3, 4, 5}])
def test_every_process_finds_records_of_a_sparse_split(root, wanted):
    source = rlds.RldsSource(root / "bridge_dataset")
    shards = source.info.shards
    ids = [source.episode_id(shard, n) for shard in shards for n in range(shard.num_records)]
    chosen = {ids[number] for number in wanted}
    for epoch in range(4):
        found = collections.Counter()
        for process in range(2):
            own = _records(
                source, accept=chosen.__contains__, process_index=process, process_count=2
            )
            records = list(own.epoch(pool_lib.Position(epoch, 0)))
            assert records, (epoch, process)
            for start in range(len(ids)):
                rest = list(own.epoch(pool_lib.Position(epoch, start)))
                assert rest == [one for one in records if one[0].record > start]
            found.update(source.episode_id(one.shard, one.index) for _, one in records)
        assert set(found) == chosen and (len(chosen) < 2 or set(found.values()) == {1})


def test_records_begin_anywhere(root):
    source = rlds.RldsSource(root / "bridge_dataset")
    records = _records(source)
    everything = list(records.epoch(pool_lib.Position(1, 0)))
    for start in range(len(everything) + 1):
        rest = list(records.epoch(pool_lib.Position(1, start)))
        assert rest == everything[start:]
    assert [position.record for position, _ in everything] == list(range(1, len(RAW_STEPS) + 1))


def test_splits_share_no_episode(root):
    numbers = {"holdout_percent": 50, "augment": False}
    held_out = _rows(_take(_make(root, split="eval", **numbers), 10))
    trained = _rows(_take(_make(root, **numbers), 10))
    assert held_out and trained and not held_out & trained
    with pytest.raises(errors.UserError, match=r"no episode of bridge_dataset is in split eval"):
        _make(root, split="eval")


def test_dataset_without_held_out_episodes_is_only_trained_on(
    root, rlds_tools, tmp_path, monkeypatch
):
    directory = tmp_path / "one" / "again" / "1.0.0"
    directory.mkdir(parents=True)
    for path in (root / "bridge_dataset" / "1.0.0").iterdir():
        if path.suffix == ".json":
            directory.joinpath(path.name).write_bytes(path.read_bytes())
    info = json.loads((directory / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["1"]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    record = rlds_tools["example"](rlds_tools["episode"](0))
    rlds_tools["records"](directory / "bridge_dataset-train.tfrecord-00000-of-00001", [record])
    (tmp_path / "one" / "bridge_dataset").symlink_to(root / "bridge_dataset")
    numbers = {"mixture": "bridge_dataset,again", "normalization": "none"}
    only = "bridge_dataset/train/00000/00000"  # the one episode of "again"
    monkeypatch.setattr(splits, "is_held_out", lambda name, percent: name != only)
    held_out = _make(tmp_path / "one", split="eval", **numbers)
    assert [part["name"] for part in held_out.describe()] == ["bridge_dataset"]
    assert len(_make(tmp_path / "one", **numbers).describe()) == 2
    monkeypatch.setattr(splits, "is_held_out", lambda name, percent: name == only)
    with pytest.raises(errors.UserError, match="no episode of again is in split train"):
        _make(tmp_path / "one", **numbers)


def test_damaged_image_is_replaced_and_counted(write_rlds, rlds_tools, tmp_path):
    raw = [rlds_tools["episode"](seed, steps=8) for seed in range(2)]
    image = raw[1]["steps/observation/image_0"]
    image[3] = image[3][:-100]  # its header is whole
    write_rlds([raw])
    one = _make(tmp_path, global_batch=2)
    _take(one, 6)
    assert one.bad_samples == {"bridge_dataset": 1}


def _flip(path, offset: int):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("normalization", ["none", "bounds_q99"])  # with and without a scan
def test_damaged_records_are_passed_over_and_counted(root, write_rlds, normalization):
    _flip(write_rlds.shard(1, 3), -100)
    numbers = {"normalization": normalization, "augment": False, "global_batch": 5}
    one, other = (_take(_make(root, **numbers), 5) for _ in range(2))
    for wanted, found in zip(one, other, strict=True):
        jax.tree.map(np.testing.assert_array_equal, wanted, found)
    left = sum(RAW_STEPS) - 2 * len(RAW_STEPS) - (RAW_STEPS[3] - 2)
    once = _make(root, **numbers)
    batches = _take(once, left // 5)
    assert set(_rows(batches).values()) == {1}
    assert once.bad_samples == {"bridge_dataset": 1}


def test_damaged_length_loses_the_rest_of_its_file(root, write_rlds, caplog):
    _flip(write_rlds.shard(2, 3), 0)
    one = _make(root, normalization="none", augment=False)
    _take(one, 4)
    assert one.bad_samples == {"bridge_dataset": 2}
    assert "the rest of the file is lost" in caplog.text


def test_too_many_damaged_records_stop_with_their_places(root, write_rlds):
    _flip(write_rlds.shard(1, 3), -100)
    one = _make(root, normalization="none", max_bad_fraction=0)
    for _ in range(2):  # and again where someone goes on
        with pytest.raises(errors.DataError, match="00001-of-00003 record 1"):
            _take_all(one)
    for number in range(3):
        _flip(write_rlds.shard(number, 3), 0)
    with pytest.raises(errors.DataError, match="no episode can be used"):
        _make(root, normalization="none")


def _take_all(one):
    for _ in range(20):
        next(one)


def test_a_stream_follows_the_same_rules(root, tmp_path):
    mixed = {"normalization": "none", "augment": False, "pair_offset": ("dataset",)}
    plain = _make(root, "gidm", **mixed)
    assert [part["rules"]["pair_offset"] for part in plain.describe()] == [(9, 9)]
    table = {"bridge_dataset": {"pair_offset": (1, 1)}}
    short = _make(root, "gidm", per_dataset=table, **mixed)
    assert [part["rules"]["pair_offset"] for part in short.describe()] == [(1, 1)]
    stored = _make(_store(root), "gidm", per_dataset=table, **mixed)
    assert stored.num_samples == 19  # of six episodes of 25 steps
    streamed_pairs, stored_pairs = (_pairs(_take(one, 19)) for one in (short, stored))
    assert streamed_pairs == stored_pairs and set(stored_pairs.values()) == {4}
    assert _pairs(_take(plain, 19)) != stored_pairs
    with pytest.raises(errors.UserError, match="rules changed"):
        plain.restore(short.state())


def test_a_stream_replaces_still_pairs(write_rlds, rlds_tools, tmp_path):
    raw = [rlds_tools["episode"](seed, steps=10) for seed in range(2)]
    image = raw[1]["steps/observation/image_0"]
    image[:] = [image[0]] * len(image)
    write_rlds([raw])
    one = _make(
        tmp_path, "gidm", pair_offset=(1, 1), drop_still=0.5, normalization="none", augment=False
    )
    for batch in _take(one, 8):
        assert (batch.frames[:, 0] != batch.frames[:, 1]).any(axis=(1, 2, 3)).all()
    assert one.still_pairs.keys() == {"bridge_dataset"} and one.bad_samples == {}


def test_weights_of_a_named_mixture_count_steps(root, monkeypatch, tmp_path):
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "1.0.0").symlink_to(root / "bridge_dataset" / "1.0.0")
    mixture = named_mixtures.Mixture(weights={"bridge_dataset": 1.0, "again": 0.5})
    monkeypatch.setitem(named_mixtures.NAMED, "soup", mixture)
    steps = sum(RAW_STEPS) - 2 * len(RAW_STEPS)
    described = _make(root, mixture="soup").describe()
    assert [(d["name"], d["weight"], d["frames"]) for d in described] == [
        ("bridge_dataset", steps, steps),
        ("again", steps / 2, steps),
    ]


def test_root_may_be_the_dataset_itself(root):
    inside, names = str(root / "bridge_dataset"), ["bridge_dataset", "other"]
    assert mixtures.find_records(inside, names).keys() == {"bridge_dataset"}
    assert mixtures.find_records(str(root), names).keys() == {"bridge_dataset"}
    assert isinstance(_make(inside).batches, stream_batches.StreamBatches)


def test_what_needs_a_store_says_so(root):
    one = _make(root)
    with pytest.raises(errors.UserError, match=r"cache_features=False, or convert"):
        assert one.num_samples
    with pytest.raises(errors.DataError, match="no episode has the cameras gripper"):
        _make(root, cameras=("gripper",))


def test_each_epoch_has_its_own_order_of_shards(root):
    total = sum(RAW_STEPS) - 2 * len(RAW_STEPS)
    one = _make(root, stream_mib=0, augment=False, global_batch=5)
    _take(one, total // 5)
    assert one.state()["positions"] == {"bridge_dataset": [0, len(RAW_STEPS)]}
    next(one)
    one.close()
    assert one.state()["positions"]["bridge_dataset"][0] == 1
    source = rlds.RldsSource(root / "bridge_dataset")
    records = _records(source, seed=3)
    orders = {
        tuple(record.shard.index for _, record in records.epoch(pool_lib.Position(epoch, 0)))
        for epoch in range(8)
    }
    assert len(orders) > 1


def test_pool_without_a_sample_says_so(root):
    source = rlds.RldsSource(root / "bridge_dataset")
    pool = pool_lib.Pool(
        source,
        _records(source),
        start=pool_lib.Position(0, 3),
        count_samples=lambda view: 0,
        max_bytes=1,
        cameras=("static",),
        report=lambda reject: None,
    )
    with pytest.raises(errors.DataError, match=r"no episode has .* bridge_dataset"):
        pool.draw(np.random.default_rng(0))


def test_a_checkpoint_knows_how_large_the_frames_were(root):
    (described,) = _make(root).describe()
    assert described["frame_sizes"] == {"static": (16, 24)}  # batches have 8x8
