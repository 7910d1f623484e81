"""Streams of directories as TFDS writes them: the same episodes as a conversion of them."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.formats import image
from data_pipelines.loading import loader
from data_pipelines.open_x import registry
from data_pipelines.sources import rlds
from defi_jax import errors
from defi_jax.models.frozen import tokenizers
from tests.data_pipelines import loaders, tfds_directory

STEPS = 6
CAMERA = "observation/image"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_own_files", {})


def _frame(number: int, step: int) -> bytes:
    return image.encode_png(np.full((16, 16, 3), 20 * number + step, np.uint8))


def _episode(number: int):
    def make():
        step = {"language_instruction": f"task {number}", "action": np.full(4, number, np.float32)}
        frames = [tfds_directory.encoded(_frame(number, t)) for t in range(STEPS)]
        return {"steps": [step | {"observation": {"image": frame}} for frame in frames]}

    return make


@pytest.fixture(params=["array_record", "tfrecord"])
def write(tmp_path, request):
    """Writes <tmp_path>/my_dataset/<version> with ten episodes to train on and two others."""
    f = tfds.features
    step = {
        "observation": {"image": f.Image(shape=(16, 16, 3))},
        "language_instruction": f.Text(),
        "action": f.Tensor(shape=(4,), dtype=np.float32),
    }
    features = f.FeaturesDict({"steps": f.Dataset(step)})

    def make(version="1.0.0", numbers=range(10)):
        return tfds_directory.write(
            tmp_path / "my_dataset" / version,
            features,
            {"train": [_episode(n) for n in numbers], "val": [_episode(n) for n in (10, 11)]},
            name="my_dataset",
            file_format=request.param,
        )

    return make


def _stream(tmp_path, **changes):
    values = {"root": str(tmp_path), "mixture": "my_dataset", "num_frames": 3, "frame_stride": 0}
    values |= {"camera_fields": (f"static={CAMERA}",), "text_field": "language_instruction"}
    values |= {"fps": 5.0, "holdout_percent": 0, "augment": False, "normalization": "none"}
    config = loaders.config(**values | changes)
    tokenizer = tokenizers.utf8(loaders.LENGTH, lower_case=True, strip_punctuation=False)
    return loader.make_loader(
        config,
        loaders.spec("gfdm", config),
        tokenizers={"gfdm": tokenizer},
        split="train",
        seed=0,
        global_batch=2,
        process_index=0,
        process_count=1,
    )


def _numbers(batches) -> list[int]:
    """Which episode each clip is of, by its pixels."""
    return [int(clip.min()) // 20 for batch in batches for clip in batch.video]


def _take(stream, count: int):
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return batches


def test_unknown_dataset_streams_as_video_train_split_alone(write, tmp_path, caplog):
    write()
    found = _numbers(_take(_stream(tmp_path), 5))
    assert sorted(found) == list(range(10))
    assert "my_dataset: left out split val: 2 episodes" in caplog.text


def test_splits_are_chosen_by_a_key_for_all_or_for_one_dataset(write, tmp_path):
    write()
    assert set(_numbers(_take(_stream(tmp_path, splits=("val",)), 1))) == {10, 11}
    own = {"my_dataset": {"splits": ["all"]}}
    assert sorted(_numbers(_take(_stream(tmp_path, per_dataset=own), 6))) == list(range(12))
    with pytest.raises(errors.UserError, match=r"no split test.*it has: train, val"):
        _stream(tmp_path, splits=("test",))


def test_newest_version_is_streamed_unless_one_is_named(write, tmp_path):
    write("1.9.0", numbers=[0, 1])
    write("1.10.0", numbers=[2, 3])
    assert set(_numbers(_take(_stream(tmp_path), 1))) == {2, 3}
    assert set(_numbers(_take(_stream(tmp_path, dataset_version="1.9.0"), 1))) == {0, 1}
    with pytest.raises(errors.UserError, match=r"no version 2\.0\.0.*there is 1\.10\.0, 1\.9\.0"):
        _stream(tmp_path, dataset_version="2.0.0")


def test_a_stopped_stream_goes_on_at_its_record(write, tmp_path):
    write()
    small = {"stream_mib": 0}  # one episode in the pool
    stream = _stream(tmp_path, **small)
    before = _numbers(_take(stream, 2))
    state = json.loads(json.dumps(stream.state()))
    assert state["positions"]["my_dataset"][0] == 0 and state["positions"]["my_dataset"][1] > 0
    fresh = _stream(tmp_path, **small)
    fresh.restore(state)
    after = _numbers(_take(fresh, 2))
    assert not set(before) & set(after)


def test_missing_shards_are_left_out_where_that_is_allowed(write, tmp_path, caplog):
    directory = write()
    shards = sorted(path for path in directory.iterdir() if "-train." in path.name)
    for path in (shards[1], shards[2]):
        path.unlink()
    with pytest.raises(errors.DataError, match=r"2 of 5 shards.*shards 1-2 of 5"):
        _stream(tmp_path)
    found = _numbers(_take(_stream(tmp_path, allow_missing_shards=True), 3))
    assert sorted(found) == [0, 1, 6, 7, 8, 9]
    assert "split train: 2 missing shards (1-2 of 5), 4 episodes" in caplog.text


def test_a_pool_smaller_than_a_batch_says_so(write, tmp_path, caplog):
    write()
    _take(_stream(tmp_path), 1)
    assert "the pool holds" not in caplog.text
    _take(_stream(tmp_path, stream_mib=0), 1)
    assert "the pool holds 1 episodes" in caplog.text and "raise data.stream_mib" in caplog.text
    caplog.clear()
    _take(_stream(tmp_path, splits=("val",)), 1)
    assert "the pool holds" not in caplog.text  # two episodes for two samples


def test_a_file_of_ones_own_says_what_the_actions_are(write, tmp_path):
    write()
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    stream = _stream(tmp_path, standardization=str(path), camera_fields=(), text_field="", fps=0.0)
    assert sorted(_numbers(_take(stream, 5))) == list(range(10))
    with pytest.raises(errors.UserError, match=r"no such standardisation file.*absent\.py"):
        _stream(tmp_path, standardization="absent.py", camera_fields=())


OWN = """
import dataclasses

from data_pipelines.open_x import base, columns
from defi_jax import embodiment


def _doubled(values):
    return values * 2


STANDARDS = {
    "my_dataset": base.Standard(
        robot="franka",
        control_hz=5.0,
        cameras=base.views(primary="image"),
        actions=(columns.tensor("action", 4).then(_doubled),),
        states=None,
        convention=embodiment.end_effector(),
    )
}
"""


def test_workers_find_functions_of_ones_own_file(write, tmp_path, monkeypatch):
    directory = write()
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    monkeypatch.setattr(rlds, "_CHUNK_BYTES", 1)  # a record each, so that workers are worth while
    options = rlds.rlds_directory.RldsOptions(standardization=str(path))
    source = rlds.RldsSource(directory, options, workers=rlds.base.Workers(count=1))
    found = list(source.read())
    assert [int(episode.actions[0, 0]) for episode in found] == [2 * n for n in range(10)]
    assert found[0].source == "my_dataset" and found[0].embodiment == "franka"
