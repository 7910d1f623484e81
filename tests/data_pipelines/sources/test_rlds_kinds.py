"""Directories as TFDS writes them: every class of feature, file format, name, split and loss."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.sources import rlds, rlds_directory
from data_pipelines.store import convert
from defi_jax import errors
from tests.data_pipelines import tfds_directory

f = tfds.features
Options = rlds_directory.RldsOptions
PNG = image.encode_png(np.full((8, 8, 3), 7, np.uint8))
STEPS = 3
VIDEO = Options(camera_fields=("static=image",), text_field="text", fps=5.0)

FREE = f.Tensor(shape=(None, None), dtype=np.uint8, encoding="zlib")
STEP = {
    "image": (f.Image(shape=(8, 8, 3)), lambda: tfds_directory.encoded(PNG)),
    "text": (f.Tensor(shape=(), dtype=np.object_), lambda: "pick"),
    "three_texts": (f.Tensor(shape=(3,), dtype=np.object_), lambda: ["a", "b", "c"]),
    "real_text": (f.Text(), lambda: "real"),
    "label": (f.ClassLabel(names=["x", "y"]), lambda: "y"),
    "box": (f.BBoxFeature(), lambda: tfds.features.BBox(0.1, 0.2, 0.3, 0.4)),
    "depth": (f.Image(shape=(8, 8, 1), dtype=np.uint16), lambda: tfds_directory.encoded(PNG)),
    "double": (f.Tensor(shape=(2,), dtype=np.float64), lambda: np.array([0.5, 1.5])),
    "zipped": (f.Tensor(shape=(2,), dtype=np.float64, encoding="zlib"), lambda: np.arange(2.0)),
    "flag": (f.Scalar(np.bool_), lambda: True),
    "large": (f.Scalar(np.uint64), lambda: np.uint64(2**63 + 5)),
    "maybe": (f.Tensor(shape=(2,), dtype=np.float32, optional=True), lambda: np.ones(2, "f4")),
    "free": (FREE, lambda: np.eye(2, dtype=np.uint8)),
    "languages": (f.Translation(languages=["en", "fr"]), lambda: {"en": "a", "fr": "b"}),
}
EPISODE = {
    "absent": (f.Text(optional=True), lambda: None),
    "rating": (f.ClassLabel(num_classes=3), lambda: 2),
    "file": (f.Text(), lambda: "a/b"),
    "half": (f.Scalar(np.float16), lambda: np.float16(1.5)),
    "fps": (f.Scalar(np.float32), lambda: 4.0),
}
NESTED = {"points": f.Sequence({"xy": f.Tensor(shape=(2,), dtype=np.float32), "n": np.int64})}


def _write(directory, name="my_dataset", splits=None, *, file_format="array_record", step=STEP):
    def features(more=()):
        steps = f.Dataset({key: feature for key, (feature, _) in step.items()} | dict(more))
        return f.FeaturesDict({"steps": steps, "meta": {k: v[0] for k, v in EPISODE.items()}})

    def episode():
        steps = [{key: make() for key, (_, make) in step.items()} for _ in range(STEPS)]
        return {"steps": steps, "meta": {key: make() for key, (_, make) in EPISODE.items()}}

    return tfds_directory.write(
        directory,
        features(),
        {split: [episode] * count for split, count in (splits or {"train": 1}).items()},
        name=name,
        file_format=file_format,
        described=features(NESTED),
    )


def _features(directory) -> tuple[dict, dict]:
    """The steps' part of features.json, and the whole of it, to be changed and written."""
    whole = json.loads((directory / "features.json").read_text())
    steps = whole["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    return steps["featuresDict"]["features"], whole


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_every_class_of_feature_is_read_or_passed_over(tmp_path, file_format):
    directory = _write(tmp_path / "d" / "1.0.0", file_format=file_format)
    (found,) = rlds.RldsSource(directory, VIDEO).read()
    assert found.instructions == ("pick",) and found.frames["static"] == [PNG] * STEPS
    assert found.metadata == {
        "meta/rating": 2,
        "meta/file": "a/b",
        "meta/half": 1.5,
        "meta/fps": 4.0,
        "raw_steps": STEPS,
    }
    info = rlds_directory.load_info(directory)
    (record,) = rlds.read_shard(info.shards[0])
    steps = rlds.rlds_record.RawSteps(rlds.tfrecord.parse_example(record, where=""), info, "")
    assert steps["three_texts"].tolist() == [[b"a", b"b", b"c"]] * STEPS
    assert steps["real_text"] == [b"real"] * STEPS and steps["label"].tolist() == [1] * STEPS
    assert steps["flag"].tolist() == [True] * STEPS and steps["box"].shape == (STEPS, 4)
    assert steps["double"].dtype == np.float64 and steps["double"][0].tolist() == [0.5, 1.5]
    assert steps["zipped"][1].tolist() == [0, 1] and steps["large"][0] == 2**63 + 5
    assert steps["maybe"].tolist() == [[1, 1]] * STEPS and steps["depth"] == [PNG] * STEPS
    passed = {name for name, field in info.step_fields.items() if field.kind == "other"}
    assert passed == {"free", "languages", "points/xy", "points/n"}


@pytest.mark.parametrize(
    "node",
    [
        {"pythonClassName": "a.package.of_theirs.Lidar", "jsonFeature": {"json": "{}"}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
            "audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "encoding": "none"},
        },
        {
            "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
            "video": {"shape": {"dimensions": ["-1", "8", "8", "3"]}, "dtype": "uint8"},
        },
    ],
)
def test_a_feature_that_cannot_be_made_here_is_passed_over(tmp_path, node):
    directory = _write(tmp_path / "d" / "1.0.0")
    steps, whole = _features(directory)
    steps["strange"] = node
    (directory / "features.json").write_text(json.dumps(whole))
    source = rlds.RldsSource(directory, VIDEO)
    assert source.info.step_fields["strange"].kind == "other"
    assert len(list(source.read())) == 1


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_records_are_read_from_any_number_on(tmp_path, file_format):
    splits = {"train": 2, "val": 1}
    directory = _write(tmp_path / "d" / "1.0.0", splits=splits, file_format=file_format)
    shard = rlds_directory.load_info(directory).shards[0]
    path = str(shard.path)
    every = list(rlds.read_shard(shard))
    assert len(every) == 2 and path.endswith(("00000", "00000-of-00001"))
    for start in range(3):
        assert list(rlds.read_shard(shard, start=start)) == every[start:]


def test_text_and_rate_of_the_episode_stand_for_its_steps(tmp_path):
    directory = _write(tmp_path / "d" / "1.0.0")
    options = Options(camera_fields=("static=image",), text_field="meta/file")
    (found,) = rlds.RldsSource(directory, options).read()
    assert found.instructions == ("a/b",) and found.fps == 4.0
    (many,) = rlds.RldsSource(
        directory, Options(**vars(options) | {"text_field": "three_texts"})
    ).read()
    assert many.instructions == ("a", "b", "c")
    lacking = Options(**vars(options) | {"text_field": "meta/absent"})
    (unlabelled,) = rlds.RldsSource(directory, lacking).read()
    assert unlabelled.instructions == ("",)
    (silent,) = rlds.RldsSource(directory, Options(camera_fields=("static=image",))).read()
    assert silent.instructions == ("",) and silent.actions is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(camera_fields=("static=depth",)), "'depth' is a uint16 image, expected a uint8"),
        (Options(camera_fields=("static=none",)), "'none' is missing"),
        (Options(camera_fields=("image",)), "cannot read image as camera=field"),
        (Options(camera_fields=("static=image",), text_field="label"), r"int64\[\], expected text"),
        (Options(fps=3.0), "give camera_fields, too"),
        (Options(), "--camera_fields=static=image --text_field=real_text --fps=HZ"),
    ],
)
def test_what_cannot_be_read_as_video_is_named(tmp_path, options, message):
    directory = _write(tmp_path / "d" / "1.0.0")
    with pytest.raises(errors.UserError, match=message):
        rlds.RldsSource(directory, options)


def test_the_folder_decides_and_else_the_description(tmp_path):
    image_step = {"observation/image": STEP["image"]}  # of no registered data set: only names count
    known = _write(tmp_path / "droid" / "1.0.0", "r2d2_faceblur", step=STEP | image_step)
    with pytest.raises(errors.DataError, match=r"r2d2_faceblur 1\.0\.0 has other fields"):
        rlds.RldsSource(known)  # so droid's standardisation was tried
    other = _write(tmp_path / "my_copy" / "1.0.0", "bridge_dataset")
    with pytest.raises(errors.DataError, match=r"bridge_dataset 1\.0\.0 has other fields"):
        rlds.RldsSource(other)
    neither = _write(tmp_path / "bridge_datasett" / "1.0.0", "unheard_of")
    with pytest.raises(
        errors.UserError, match=r"'bridge_datasett' or 'unheard_of'.*bridge_dataset"
    ):
        rlds.RldsSource(neither)


def test_a_folder_named_by_a_dot_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(_write(tmp_path / "d" / "1.0.0"))
    assert rlds.RldsSource(".", VIDEO).name == "d"


def test_left_out_splits_are_in_summary_and_manifest(tmp_path):
    directory = _write(tmp_path / "d" / "1.0.0", splits={"train": 2, "val": 1, "test": 3})
    source = rlds.RldsSource(directory, VIDEO)
    manifest = convert.convert(source, tmp_path / "store", origin={}, progress=False)
    assert manifest["episodes"] == 2 and manifest["recipe"]["splits"] == ["train"]
    assert manifest["recipe"]["left_out"] == ["split val: 1 episodes", "split test: 3 episodes"]
    assert "left out split val: 1 episodes" in convert.summary(manifest, 1.0)
    chosen = Options(**vars(VIDEO) | {"splits": ("val", "test")})
    assert [e.episode_id[:6] for e in rlds.RldsSource(directory, chosen).read()] == [
        "d/val/",
        "d/test",
        "d/test",
        "d/test",
    ]


def test_a_partial_download_is_one_short_message(tmp_path):
    directory = _write(tmp_path / "d" / "1.0.0", file_format="tfrecord")
    path = directory / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = ["2"] * 512
    path.write_text(json.dumps(info))
    (shard,) = directory.glob("*.tfrecord*")
    for index in set(range(512)) - {*range(3, 18), 22}:
        name = f"my_dataset-train.tfrecord-{index:05d}-of-00512"
        (directory / name).write_bytes(shard.read_bytes())
    with pytest.raises(errors.DataError) as caught:
        rlds.RldsSource(directory, VIDEO)
    text = str(caught.value)
    assert "16 of 512 shards of split train are missing: shards 3-17, 22 of 512" in text
    assert "--allow_missing_shards" in text and len(text) < 800 and "\n" not in text
    source = rlds.RldsSource(directory, Options(**vars(VIDEO) | {"allow_missing_shards": True}))
    left_out = "split train: 16 missing shards (3-17, 22 of 512), 32 episodes"
    assert source.recipe["left_out"] == [left_out] and source.total == 992
    for path in directory.glob("*.tfrecord*"):
        path.unlink()
    with pytest.raises(errors.DataError, match="no shard is there"):
        rlds.RldsSource(directory, Options(**vars(VIDEO) | {"allow_missing_shards": True}))


def test_damage_of_array_record_files_costs_what_is_damaged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    png = image.encode_png(noise)
    large = {"image": (f.Image(shape=(96, 96, 3)), lambda: tfds_directory.encoded(png))}
    directory = _write(tmp_path / "d" / "1.0.0", splits={"train": 2}, step=STEP | large)
    (path,) = directory.glob("*.array_record*")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(png[5000:5010])] ^= 1  # noise is stored as it is
    path.write_bytes(damaged)
    lost, good = rlds.RldsSource(directory, VIDEO, max_damaged=1).read()
    assert isinstance(lost, episodes.Reject) and "damaged record" in lost.reason
    assert lost.item == f"{path} record 0" and good.length == STEPS
    with pytest.raises(errors.DataError, match=r"damaged record.*download this file again"):
        list(rlds.RldsSource(directory, VIDEO).read())
    for size in (0, 300, 70_000):
        path.write_bytes(whole[:size])
        source = rlds.RldsSource(directory, VIDEO, max_damaged=None)
        assert [type(one) for one in source.read()] == [episodes.Reject] * 2
