"""LeRobot datasets of other writers' kinds: GR00T, several tasks, cameras, codecs, odd splits."""

import fractions
import json
import shutil

import av
import numpy as np
import pyarrow
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.sources import video_clips
from data_pipelines.store import convert, reader, validate
from defi_jax import errors
from tests.data_pipelines.sources import lerobot_sets
from tests.data_pipelines.sources.lerobot_sets import FPS, LENGTHS, TOP, WRIST

WRITERS = pytest.mark.parametrize("write", [lerobot_sets.write_v2, lerobot_sets.write_v3])
DATA = "data/chunk-000/episode_000000.parquet"


def _change_rows(root, change) -> None:
    for path in sorted(root.glob("data/*/*.parquet")):
        lerobot_sets.change_table(path, lambda rows: [change(row) for row in rows])


def _check_store(source, path) -> dict:
    """Converts; `validate` must find nothing."""
    manifest = convert.convert(source, path, origin={}, progress=False)
    findings, _ = validate.validate(path, progress=False)
    assert [f for f in findings if f.check not in ("constant", "language")] == []
    return manifest


# ---- tasks ----


def _several_tasks(root, write):
    write(root)
    _change_rows(root, lambda row: row.update(task_index=int(row["frame_index"] > 2)))


@WRITERS
def test_an_episode_of_several_tasks_is_cut_where_they_change(tmp_path, write):
    _several_tasks(tmp_path / "raw", write)
    manifest = _check_store(lerobot_sets.open_set(tmp_path / "raw"), tmp_path / "store")
    note = "3 episodes of several tasks cut at 3 changes"
    assert manifest["recipe"]["notes"] == [note] and note in convert.summary(manifest, 1.0)
    assert manifest["recipe"]["left_out"] == ["camera depth: a depth map"]
    store = reader.EpisodeStore(tmp_path / "store")
    assert list(store.episode_ids)[:3] == [
        "set/000000-000000",
        "set/000000-000003",
        "set/000001-000000",
    ]
    assert store.meta(1).instructions == ("push",) and store.meta(0).instructions == ("öffnen",)
    assert store.meta(3).metadata == {"episode_index": 1, "steps": [3, 7]}
    frames = store.frames(3, "gripper", range(5)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(frames, lerobot_sets.shown(1, range(3, 8)), atol=2)
    wanted = np.float32(lerobot_sets.columns(1)["action"][3:])
    np.testing.assert_array_equal(store.actions(3), wanted)


@WRITERS
def test_the_first_task_can_be_the_text_of_the_whole_episode(tmp_path, write):
    _several_tasks(tmp_path, write)
    source = lerobot_sets.open_set(tmp_path, subtasks="first")
    assert source.recipe["left_out"][1:] == ["tasks after the first: 3, of 3 episodes"]
    found: list = list(source.read())
    assert [one.length for one in found] == list(LENGTHS) and "notes" not in source.recipe
    assert {one.instructions for one in found} == {("öffnen",)}
    assert [one.episode_id for one in found] == ["set/000000", "set/000001", "set/000002"]


def test_max_frames_counts_in_each_piece_and_a_task_may_come_back(tmp_path):
    lerobot_sets.write_v2(tmp_path)
    changed = lerobot_sets.columns(0) | {"task_index": [0, 1, 1, 1, 0]}
    lerobot_sets.write_table(tmp_path / DATA, changed)
    options = video_clips.ClipOptions(max_frames=2)
    found = lerobot_sets.read_set(tmp_path, options=options)
    assert [one.length for one in found] == [1, 2, 1, 2, 2]
    np.testing.assert_allclose(lerobot_sets.seen(found[1]), [6, 12], atol=2)
    assert found[1].metadata["steps"] == [1, 2] and found[2].metadata["steps"] == [4, 4]


@WRITERS
@pytest.mark.parametrize("lost", ["table", "column"])
def test_without_tasks_the_episode_table_names_the_instruction(tmp_path, write, lost):
    write(tmp_path)
    if lost == "table":
        next(tmp_path.glob("meta/tasks.*")).unlink()
    else:
        _change_rows(tmp_path, lambda row: row.pop("task_index"))
    lerobot_sets.change_episodes(tmp_path, lambda rows: rows[1].update(tasks=[]))
    source = lerobot_sets.open_set(tmp_path)
    assert source.recipe["left_out"][1:] == ["instructions: none in 1 episodes"]
    assert [one.instructions for one in source.read()] == [("x",), ("",), ("x",)]


# ---- GR00T ----


def _write_gr00t(root, **changes):
    """v2.0 without frame_index, time from one interval on, and a camera without files."""
    info = lerobot_sets.info("v2.0", splits={"train": "0:100"}, total_chunks=0)
    other = {"observation.images.egoview": info["features"][TOP]}
    features = {name: value for name, value in info["features"].items() if name != WRIST}
    lerobot_sets.write_v2(root, **info | {"features": other | features} | changes)
    modality = {"annotation": {"human.action.task_description": {}, "human.validity": {}}}
    lerobot_sets.write_json(root / "meta" / "modality.json", modality)

    def change(row):
        row["timestamp"] = np.float64((row.pop("frame_index") + 1) / FPS)
        row["annotation.human.validity"] = 1
        row["annotation.human.action.task_description"] = row["task_index"]

    _change_rows(root, change)


@pytest.mark.parametrize("splits", [None, ["train"]])
def test_gr00t_as_published(tmp_path, splits):
    _write_gr00t(tmp_path / "raw")
    source = lerobot_sets.open_set(tmp_path / "raw", primary="", wrist="", splits=splits)
    manifest = _check_store(source, tmp_path / "store")
    said = ["camera egoview: no video files", "camera depth: a depth map"]
    said += ["split train: it is 0:100, of 3 episodes"] if splits else []
    assert manifest["recipe"]["left_out"] == said
    assert manifest["recipe"]["cameras"] == {"static": TOP} and manifest["episodes"] == 3
    assert all(f"  left out {what}" in convert.summary(manifest, 1.0) for what in said)
    store = reader.EpisodeStore(tmp_path / "store")
    for number, length in enumerate(LENGTHS):
        frames = store.frames(number, "static", range(length)).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(frames, lerobot_sets.shown(number), atol=2)


def test_gr00t_task_in_an_annotation_column_only(tmp_path):
    _write_gr00t(tmp_path)
    _change_rows(tmp_path, lambda row: row.pop("task_index"))
    found = lerobot_sets.read_set(tmp_path, primary="", wrist="")
    assert [one.instructions for one in found] == [("öffnen",), ("push",), ("öffnen",)]


def test_a_camera_without_files_cannot_be_asked_for(tmp_path):
    _write_gr00t(tmp_path)
    with pytest.raises(errors.UserError, match=r"no one camera 'egoview': --primary; cameras: top"):
        lerobot_sets.open_set(tmp_path, primary="egoview", wrist="")
    for path in tmp_path.rglob("*.mp4"):
        path.unlink()
    with pytest.raises(errors.UserError, match=r"no camera that can be read.*top: no video files"):
        lerobot_sets.open_set(tmp_path, primary="", wrist="")


# ---- time ----


@WRITERS
@pytest.mark.parametrize("first", [0.05, 1.0, 1.7e9])
def test_time_counts_from_the_first_step(tmp_path, write, first):
    write(tmp_path)
    for path in sorted(tmp_path.glob("data/*/*.parquet")):
        table = lerobot_sets.parquet.read_table(path)
        times = np.asarray(table["frame_index"]) / FPS + first
        place = table.column_names.index("timestamp")
        lerobot_sets.parquet.write_table(table.set_column(place, "timestamp", [times]), path)
    for number, one in enumerate(lerobot_sets.read_set(tmp_path)):
        np.testing.assert_allclose(lerobot_sets.seen(one), lerobot_sets.shown(number), atol=2)


@WRITERS
def test_without_time_and_number_rows_are_frames(tmp_path, write):
    write(tmp_path)
    _change_rows(tmp_path, lambda row: (row.pop("timestamp"), row.pop("frame_index")))
    for number, one in enumerate(lerobot_sets.read_set(tmp_path)):
        np.testing.assert_allclose(lerobot_sets.seen(one), lerobot_sets.shown(number), atol=2)


@pytest.mark.parametrize(
    "times",
    [[0.0, 0.05, 0.05, 0.1, 0.15], [0.0, 0.05, 0.02, 0.15, 0.2], [0.0, None, 0.1, 0.15, 0.2]],
)
def test_times_that_do_not_rise_reject_the_episode(tmp_path, times):
    lerobot_sets.write_v2(tmp_path)
    lerobot_sets.write_table(tmp_path / DATA, lerobot_sets.columns(0) | {"timestamp": times})
    first, second, _ = lerobot_sets.read_set(tmp_path)
    assert isinstance(first, episodes.Reject) and isinstance(second, episodes.Episode)


# ---- cameras, codecs and images ----


def test_depth_and_other_kinds_of_cameras_are_left_out_and_said(tmp_path):
    features = lerobot_sets.info("v2.1")["features"]
    features["observation.images.infrared"] = {"dtype": "video", "shape": [32, 48, 1]}
    features["observation.images.film"] = {"dtype": "image", "shape": [3, 32, 48]}
    features["observation.images.range"] = {
        "dtype": "video",
        "shape": [32, 48, 3],
        "video_info": {"video.is_depth_map": True},
    }
    lerobot_sets.write_v2(tmp_path, features=features)
    source = lerobot_sets.open_set(tmp_path)
    assert source.recipe["left_out"] == [
        "camera depth: a depth map",
        "camera infrared: no colours, its shape is [32, 48, 1]",
        "camera film: no column in the data",
        "camera range: a depth map",
    ]
    assert all(isinstance(one, episodes.Episode) for one in source.read())


def _encode(path, levels, codec: str, *, with_audio: bool) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        sound = container.add_stream("aac", rate=16000) if with_audio else None
        for level in levels:
            frame = np.full((64, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
        for number in range(len(levels) if sound else 0):  # longer than the pictures
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            noise.sample_rate, noise.pts = 16000, 1024 * number
            noise.time_base = fractions.Fraction(1, 16000)
            container.mux(sound.encode(noise))
        if sound:
            container.mux(sound.encode(None))


@pytest.mark.parametrize(
    ("codec", "with_audio"), [("libsvtav1", False), ("libx265", False), ("libx264", True)]
)
def test_other_codecs_and_sound(tmp_path, codec, with_audio):
    lerobot_sets.write_v2(tmp_path)
    path = tmp_path / "videos/chunk-000" / TOP / "episode_000001.mp4"
    _encode(path, lerobot_sets.shown(1), codec, with_audio=with_audio)
    found = lerobot_sets.read_set(tmp_path)[1]
    np.testing.assert_allclose(lerobot_sets.seen(found), lerobot_sets.shown(1), atol=3)


@pytest.mark.parametrize("encode", [image.encode_png, image.encode_jpeg])
def test_images_in_the_table_of_v3(tmp_path, encode):
    features = lerobot_sets.info("v3.0")["features"]
    features[TOP] = {"dtype": "image", "shape": [32, 48, 3]}
    lerobot_sets.write_v3(tmp_path / "raw", features=features)
    for path in tmp_path.glob(f"raw/videos/{TOP}/*/*"):
        path.unlink()

    def change(row):
        level = lerobot_sets.brightness(row["episode_index"], row["frame_index"])
        data = encode(np.full((32, 48, 3), level, np.uint8))
        row[TOP] = {"bytes": data, "path": f"frame_{row['frame_index']:06d}"}

    _change_rows(tmp_path / "raw", change)
    manifest = _check_store(lerobot_sets.open_set(tmp_path / "raw"), tmp_path / "store")
    store = reader.EpisodeStore(tmp_path / "store")
    assert manifest["episodes"] == 3
    frames = store.frames(1, "static", range(8)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(frames, lerobot_sets.shown(1), atol=2)


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (image.encode_png(np.zeros((32, 48, 3), np.uint8))[:-30], "damaged PNG"),
        (image.encode_png(np.zeros((32, 40, 3), np.uint8)), "differ in size"),
        (b"GIF89a", "not a JPEG or PNG"),
        (None, "no bytes in the table"),
    ],
)
def test_an_image_that_validate_would_refuse_is_rejected(tmp_path, stored, reason):
    features = lerobot_sets.info("v2.1")["features"] | {
        TOP: {"dtype": "image", "shape": [32, 48, 3]}
    }
    lerobot_sets.write_v2(tmp_path, features=features)
    whole = image.encode_png(np.zeros((32, 48, 3), np.uint8))
    _change_rows(tmp_path, lambda row: row.update({TOP: {"bytes": whole, "path": "x"}}))
    lerobot_sets.change_table(
        tmp_path / DATA, lambda rows: rows[3].update({TOP: {"bytes": stored, "path": "x"}})
    )
    first, second, _ = lerobot_sets.read_set(tmp_path)
    assert reason in first.reason and isinstance(second, episodes.Episode)


# ---- splits, links and names ----


def test_openpi_names_its_features_otherwise(tmp_path):
    features = lerobot_sets.info("v2.0")["features"]
    names = {"action": "actions", "observation.state": "state", TOP: "image"}
    features = {names[name]: features[name] for name in names}
    features["image"] = {"dtype": "image", "shape": [32, 48, 3]}
    lerobot_sets.write_v2(tmp_path, codebase_version="v2.0", features=features, video_path=None)
    png = image.encode_png(np.zeros((32, 48, 3), np.uint8))

    def change(row):
        row["image"] = {"bytes": png, "path": "frame_000000.png"}
        row["actions"], row["state"] = row.pop("action"), row.pop("observation.state")

    _change_rows(tmp_path, change)
    source = lerobot_sets.open_set(tmp_path, primary="", wrist="")
    first = next(iter(source.read()))
    columns = lerobot_sets.columns(0)
    np.testing.assert_array_equal(first.actions, np.float32(columns["action"]))
    np.testing.assert_array_equal(first.states, np.float32(columns["observation.state"]))
    assert source.recipe["left_out"] == []


def test_a_dataset_without_actions_says_so(tmp_path):
    features = lerobot_sets.info("v2.1")["features"]
    del features["action"]
    lerobot_sets.write_v2(tmp_path, features=features)
    source = lerobot_sets.open_set(tmp_path)
    assert source.recipe["left_out"][1:] == ["actions: no such feature"]
    assert next(iter(source.read())).actions is None


@WRITERS
@pytest.mark.parametrize("splits", [None, {}])
def test_a_dataset_without_splits_is_all_train(tmp_path, write, splits):
    write(tmp_path, splits=splits)
    assert len(lerobot_sets.read_set(tmp_path, splits=["train"])) == 3
    with pytest.raises(errors.UserError, match="no split test"):
        lerobot_sets.read_set(tmp_path, splits=["test"])


def test_other_splits_are_counted(tmp_path):
    lerobot_sets.write_v2(tmp_path)
    source = lerobot_sets.open_set(tmp_path, splits=["train"])
    assert "other splits: 1 episodes" in source.recipe["left_out"]


@WRITERS
def test_links_into_a_cache_and_other_names_are_followed(tmp_path, write):
    write(tmp_path / "blobs")
    for path in (tmp_path / "blobs").rglob("*.*"):
        if path.is_dir():
            continue
        link = tmp_path / "daten öäü" / path.relative_to(tmp_path / "blobs")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    found = lerobot_sets.read_set(tmp_path / "daten öäü", name="daten öäü")
    assert found[0].episode_id == "daten öäü/000000"
    np.testing.assert_allclose(lerobot_sets.seen(found[2]), lerobot_sets.shown(2), atol=2)


def test_the_recipe_does_not_know_where_a_dataset_lies(tmp_path):
    lerobot_sets.write_v2(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (lerobot_sets.open_set(tmp_path / name).recipe for name in ("here", "there"))
    assert json.dumps(here) == json.dumps(there)


# ---- hostile ----


def _places(value, path=()):
    """Yields the path of each value of a json document."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield (*path, key)
        yield from _places(value[key], (*path, key))


@pytest.mark.parametrize("odd", [None, "x", -1, 1e308, {}])
@pytest.mark.parametrize("write", [lerobot_sets.write_v2, lerobot_sets.write_v3])
def test_odd_values_of_the_description_are_one_error_or_rejects(tmp_path, write, odd):
    write(tmp_path)
    path = tmp_path / "meta" / "info.json"
    text = path.read_text()
    for place in list(_places(json.loads(text))):
        content = target = json.loads(text)
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = odd
        path.write_text(json.dumps(content))
        try:
            lerobot_sets.open_set(tmp_path, splits=["train"])
        except errors.UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("kind", ["decimal128(20, 2)", "string", "list<item: int64>", "null"])
def test_odd_column_types_are_one_error_or_rejects(tmp_path, kind):
    lerobot_sets.write_v3(tmp_path)
    types = {str(t): t for t in (pyarrow.decimal128(20, 2), pyarrow.string(), pyarrow.null())}
    types["list<item: int64>"] = pyarrow.list_(pyarrow.int64())
    for path in sorted(tmp_path.rglob("*.parquet")):
        table = lerobot_sets.parquet.read_table(path)
        for place, name in enumerate(table.column_names):
            try:
                column = table[name].cast(types[kind])
            except pyarrow.ArrowException:
                column = pyarrow.nulls(table.num_rows, types[kind])
            lerobot_sets.parquet.write_table(table.set_column(place, name, column), path)
            try:
                lerobot_sets.read_set(tmp_path)
            except errors.UserError as error:
                assert "\n" not in str(error)
        lerobot_sets.parquet.write_table(table, path)


@pytest.mark.parametrize("name", [DATA, f"videos/chunk-000/{TOP}/episode_000000.mp4"])
def test_folders_and_endless_links_in_place_of_files_are_rejected(tmp_path, name):
    lerobot_sets.write_v2(tmp_path)
    path = tmp_path / name
    path.unlink()
    path.mkdir()
    assert isinstance(lerobot_sets.read_set(tmp_path)[0], episodes.Reject)
    path.rmdir()
    path.symlink_to(path.name)
    assert isinstance(lerobot_sets.read_set(tmp_path)[0], episodes.Reject)


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
def test_actions_that_are_not_finite_reject_their_episode(tmp_path, number):
    lerobot_sets.write_v2(tmp_path)
    path = tmp_path / DATA
    table = lerobot_sets.parquet.read_table(path)
    place = table.column_names.index("action")
    odd = pyarrow.array([[0.0, number]] * LENGTHS[0])
    lerobot_sets.parquet.write_table(table.set_column(place, "action", odd), path)
    first, second, _ = lerobot_sets.read_set(tmp_path)
    assert "actions are not finite at step 0" in first.reason
    assert isinstance(second, episodes.Episode)
