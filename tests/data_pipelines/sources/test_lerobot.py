"""Datasets as lerobot 0.3.3 (v2.1) and 0.4.4 (v3.0) write them, by a small writer of our own."""

import json
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from data_pipelines import episodes
from data_pipelines.formats import image, video
from data_pipelines.sources import base, lerobot, video_clips
from defi_jax import errors

FPS = 20
LENGTHS = (5, 8, 6)
TOP, WRIST = "observation.images.top", "observation.images.left_wrist"
OPTIONS = video_clips.ClipOptions()


def _brightness(episode: int, step: int) -> int:
    return 60 * episode + 6 * step


def _frames(episode: int) -> list[np.ndarray]:
    return [
        np.full((32, 48, 3), _brightness(episode, step), np.uint8)
        for step in range(LENGTHS[episode])
    ]


def _columns(episode: int) -> dict[str, list]:
    length = LENGTHS[episode]
    first = sum(LENGTHS[:episode])
    return {
        "action": [[episode + 0.5, float(step)] for step in range(length)],
        "observation.state": [[float(step), 0.25, -1.0] for step in range(length)],
        "timestamp": [step / FPS for step in range(length)],
        "frame_index": list(range(length)),
        "episode_index": [episode] * length,
        "index": list(range(first, first + length)),
        "task_index": [episode % 2] * length,
    }


def _write_table(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
    for name, kind in (
        ("timestamp", pyarrow.float32()),
        ("action", pyarrow.list_(pyarrow.float32())),
    ):
        if name in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, name, table[name].cast(kind))
    parquet.write_table(table, path)


def _info(version: str, **changes) -> dict:
    is_v3 = version.startswith("v3")
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    data = f"data/{place}.parquet"
    videos = "videos/{video_key}/" + place + ".mp4"
    if not is_v3:
        data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        videos = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    camera = {"dtype": "video", "shape": [32, 48, 3], "info": {"video.is_depth_map": False}}
    depth = {"dtype": "video", "shape": [32, 48, 1], "info": {"video.is_depth_map": True}}
    return {
        "codebase_version": version,
        "robot_type": "so101_follower",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "chunks_size": 2,
        "fps": FPS,
        "splits": {"train": "0:2", "test": "2:3"},
        "data_path": data,
        "video_path": videos,
        "features": {
            TOP: camera,
            WRIST: camera,
            "observation.images.depth": depth,
            "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
            "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
            "task_index": {"dtype": "int64", "shape": [1], "names": None},
        },
    } | changes


def _write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_v2(root, **changes):
    _write_json(root / "meta" / "info.json", _info("v2.1", **changes))
    rows = [
        {"episode_index": i, "tasks": ["x"], "length": length} for i, length in enumerate(LENGTHS)
    ]
    _write_lines(root / "meta" / "episodes.jsonl", rows)
    _write_lines(
        root / "meta" / "tasks.jsonl",
        [{"task_index": 0, "task": "öffnen"}, {"task_index": 1, "task": "push"}],
    )
    for episode in range(len(LENGTHS)):
        chunk = f"chunk-{episode // 2:03d}"
        name = f"episode_{episode:06d}"
        _write_table(root / "data" / chunk / f"{name}.parquet", _columns(episode))
        for camera in (TOP, WRIST):
            path = root / "videos" / chunk / camera / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            video.write_video(path, _frames(episode), fps=FPS)


def _write_v3(root, drift: float = 0.0, **changes):
    """Episodes 0 and 1 share files; episode 2 has its own."""
    _write_json(root / "meta" / "info.json", _info("v3.0", **changes))
    _write_table(
        root / "meta" / "tasks.parquet",
        {"task_index": [0, 1], "__index_level_0__": ["öffnen", "push"]},
    )
    rows: list[dict[str, Any]] = []
    for episode, length in enumerate(LENGTHS):
        file, start = episode // 2, LENGTHS[0] / FPS + drift if episode == 1 else 0.0
        row = {"episode_index": episode, "length": length, "tasks": ["x"]}
        row |= {"data/chunk_index": 0, "data/file_index": file}
        for camera in (TOP, WRIST):
            row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file}
            row |= {f"videos/{camera}/from_timestamp": start}
        rows.append(row)
    _write_table(root / "meta/episodes/chunk-000/file-000.parquet", pyarrow.Table.from_pylist(rows))
    for file, members in enumerate(((0, 1), (2,))):
        name = f"chunk-000/file-{file:03d}"
        tables = [pyarrow.table(_columns(episode)) for episode in members]
        _write_table(root / "data" / f"{name}.parquet", pyarrow.concat_tables(tables))
        for camera in (TOP, WRIST):
            path = root / "videos" / camera / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            video.write_video(path, [f for e in members for f in _frames(e)], fps=FPS)


def _open(root, *, primary="top", wrist="left_wrist", splits=None, options=OPTIONS):
    return lerobot.open_source(
        root,
        name="set",
        embodiment="",
        primary=primary,
        wrist=wrist,
        splits=splits,
        options=options,
        workers=base.Workers(),
    )


def _read(root, **kwargs) -> list[Any]:
    return list(_open(root, **kwargs).read())


@pytest.mark.parametrize("write", [_write_v2, _write_v3])
def test_both_versions_give_the_same_episodes(tmp_path, write):
    write(tmp_path)
    found = _read(tmp_path)
    assert [e.episode_id for e in found] == ["set/000000", "set/000001", "set/000002"]
    for number, episode in enumerate(found):
        columns = _columns(number)
        np.testing.assert_array_equal(episode.actions, np.float32(columns["action"]))
        np.testing.assert_array_equal(episode.states, np.float32(columns["observation.state"]))
        assert list(episode.frames) == ["static", "gripper"] and episode.fps == FPS
        for frames in episode.frames.values():
            seen = [image.decode_image(frame).mean() for frame in frames]
            wanted = [_brightness(number, step) for step in range(LENGTHS[number])]
            np.testing.assert_allclose(seen, wanted, atol=2)
    assert [e.instructions for e in found] == [("öffnen",), ("push",), ("öffnen",)]
    assert found[0].embodiment == "so101_follower"


def test_the_recipe_keeps_what_actions_are_called(tmp_path):
    _write_v2(tmp_path)
    recipe = _open(tmp_path).recipe
    assert recipe["names"]["action"] == {"motors": ["a", "b"]} and recipe["version"] == "v2.1"
    assert recipe["cameras"] == {"static": TOP, "gripper": WRIST}  # and no depth


@pytest.mark.parametrize("version", ["v1.6", "v3.1", "v2", None])
def test_an_unknown_version_names_those_that_are_known(tmp_path, version):
    _write_v2(tmp_path, codebase_version=version)
    with pytest.raises(
        errors.UserError, match=rf"unknown LeRobot version '{version}'.*v2\.1, v3\.0"
    ):
        _read(tmp_path)


def test_cameras_are_chosen_not_guessed(tmp_path):
    _write_v2(tmp_path)
    with pytest.raises(errors.UserError, match=r"--primary, one of: top, left_wrist"):
        _open(tmp_path, primary="", wrist="")
    with pytest.raises(errors.UserError, match=r"no one camera 'front': --primary; cameras: top"):
        _open(tmp_path, primary="front")
    assert _open(tmp_path, primary="", wrist="left_wrist").recipe["cameras"]["static"] == TOP
    named = _open(tmp_path, primary=WRIST, wrist="").recipe["cameras"]
    assert named == {"static": WRIST, "top": TOP}


def test_splits_and_max_frames(tmp_path):
    _write_v3(tmp_path)
    (episode,) = _read(tmp_path, splits=["test"], options=video_clips.ClipOptions(max_frames=4))
    assert episode.episode_id == "set/000002" and episode.length == 4 == len(episode.actions)
    with pytest.raises(errors.UserError, match=r"no split val.*train, test"):
        _read(tmp_path, splits=["val"])


def test_small_drift_of_a_concatenated_video_finds_the_same_frames(tmp_path):
    _write_v3(tmp_path, drift=0.4 / FPS)
    second = _read(tmp_path)[1]
    seen = [image.decode_image(frame).mean() for frame in second.frames["static"]]
    np.testing.assert_allclose(seen, [_brightness(1, step) for step in range(8)], atol=2)


def test_drift_beyond_half_a_frame_is_rejected(tmp_path):
    _write_v3(tmp_path, drift=0.6 / FPS)
    reject = _read(tmp_path)[1]
    assert isinstance(reject, episodes.Reject) and "video has no frame at" in reject.reason


def test_images_in_the_table_keep_their_bytes(tmp_path):
    features = _info("v2.1")["features"] | {TOP: {"dtype": "image", "shape": [32, 48, 3]}}
    features.pop(WRIST)
    _write_v2(tmp_path, features=features)
    png = image.encode_png(_frames(0)[1])
    for episode, length in enumerate(LENGTHS):
        rows = [{"bytes": png, "path": f"frame_{step}.png"} for step in range(length)]
        path = tmp_path / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"
        _write_table(path, _columns(episode) | {TOP: rows})
    first = _read(tmp_path, wrist="")[0]
    assert first.frames["static"] == [png] * 5
    small = _read(tmp_path, wrist="", options=video_clips.ClipOptions(shorter_side=16))[0]
    assert image.image_size(small.frames["static"][0]) == (16, 24)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"action": [[np.nan, 0.0]] * 5}, "actions are not finite at step 0"),
        ({"action": [[1.0]] * 5}, "'action' is 1 wide, info.json says 2"),
        ({"action": [[1.0, 2.0]] * 4 + [[1.0]]}, "cannot be read"),
        ({"frame_index": [0, 1, 2, 4, 3]}, "rows of frame_index where 0 to 4"),
        ({"episode_index": [0, 0, 0, 0, 1]}, "rows of frame_index"),
        ({"task_index": [0, 0, 0, 1, 1]}, "2 tasks"),
        ({"task_index": [7] * 5}, "cannot be read (KeyError(7))"),
        ({"timestamp": [0.0, 0.05, 0.1, 0.15, 0.9]}, "video has no frame at 0.9"),
    ],
)
def test_a_bad_episode_is_rejected_and_the_others_go_on(tmp_path, change, reason):
    _write_v2(tmp_path)
    _write_table(tmp_path / "data/chunk-000/episode_000000.parquet", _columns(0) | change)
    reject, second, third = _read(tmp_path)
    assert isinstance(reject, episodes.Reject) and reason in reject.reason
    assert "episode_000000.parquet, episode 0" in reject.item
    assert isinstance(second, episodes.Episode) and isinstance(third, episodes.Episode)


def test_missing_truncated_and_flipped_files_are_named(tmp_path):
    _write_v2(tmp_path)
    (tmp_path / "data/chunk-000/episode_000000.parquet").unlink()
    table = tmp_path / "data/chunk-000/episode_000001.parquet"
    table.write_bytes(table.read_bytes()[:-50])
    film = tmp_path / "videos/chunk-001" / TOP / "episode_000002.mp4"
    film.write_bytes(film.read_bytes()[:300])
    first, second, third = _read(tmp_path)
    assert "data file is missing" in first.reason and "Parquet" in second.reason
    assert "cut short" in third.reason and "episode_000002.mp4" in third.reason


def test_flipped_bytes_of_a_table_never_raise_anything_else(tmp_path):
    _write_v2(tmp_path)
    path = tmp_path / "data/chunk-000/episode_000000.parquet"
    data, rng = path.read_bytes(), np.random.default_rng(0)
    options = video_clips.ClipOptions(max_frames=1)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        assert len(_read(tmp_path, options=options, splits=["train"])) == 2


@pytest.mark.parametrize("write", [_write_v2, _write_v3])
@pytest.mark.parametrize(
    "change",
    [
        {"total_frames": 20},
        {"total_episodes": 2},
        {"data_path": "../{x}"},
        {"fps": "x"},
        {"fps": 0},
        {"fps": 10**400},
        {"splits": {"train": "2:1"}},
        {"splits": {"train": "0:9"}},
    ],
)
def test_a_description_that_contradicts_itself_is_a_data_error(tmp_path, write, change):
    write(tmp_path, **change)
    with pytest.raises(errors.DataError, match="cannot be used"):
        _read(tmp_path, splits=["train"] if "splits" in change else None)


@pytest.mark.parametrize(
    ("file", "text"),
    [("info.json", "[" * 99999), ("tasks.jsonl", "[" * 99999), ("info.json", None)],
)
def test_an_unusable_description_is_a_data_error(tmp_path, file, text):
    _write_v2(tmp_path, chunks_size=0)
    path = tmp_path / "meta" / file
    if text:
        _write_v2(tmp_path)
        path.write_text(text)
    with pytest.raises(errors.DataError, match=r"cannot be used.*meta"):
        _read(tmp_path)


def test_a_task_that_is_not_utf8_is_rejected(tmp_path):
    _write_v2(tmp_path)
    tasks = [{"task_index": 0, "task": "\ud800 hi"}, {"task_index": 1, "task": "push"}]
    _write_lines(tmp_path / "meta" / "tasks.jsonl", tasks)
    first, second, _ = _read(tmp_path)
    assert "not UTF-8" in first.reason and isinstance(second, episodes.Episode)


def test_paths_stay_inside_the_dataset(tmp_path):
    _write_v2(tmp_path, data_path="../episode_{episode_index}.parquet")
    with pytest.raises(errors.DataError, match="outside of the dataset"):
        _read(tmp_path)


def test_usage_errors(tmp_path):
    with pytest.raises(errors.UserError, match=r"no LeRobot dataset.*info\.json"):
        _read(tmp_path)
    _write_v2(tmp_path)
    with pytest.raises(errors.UserError, match="tear frames and actions apart"):
        _read(tmp_path, options=video_clips.ClipOptions(sample_fps=5))
