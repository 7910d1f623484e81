"""LeRobot datasets as lerobot 0.3.3 (v2.1) and 0.4.4 (v3.0) write them, by a writer of our own.

lerobot itself needs PyTorch. Episode e shows one grey at step s, `brightness(e, s)`.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from data_pipelines.formats import image
from data_pipelines.sources import base, lerobot, video_clips
from tests.fixtures import films

FPS = 20
LENGTHS = (5, 8, 6)
TOP, WRIST = "observation.images.top", "observation.images.left_wrist"
OPTIONS = video_clips.ClipOptions()


def brightness(episode: int, step: int) -> int:
    return 60 * episode + 6 * step


def frames(episode: int) -> list[np.ndarray]:
    return [
        np.full((32, 48, 3), brightness(episode, step), np.uint8)
        for step in range(LENGTHS[episode])
    ]


def columns(episode: int) -> dict[str, list]:
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


def write_table(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = content if isinstance(content, pyarrow.Table) else pyarrow.table(content)
    for name, kind in (
        ("timestamp", pyarrow.float32()),
        ("action", pyarrow.list_(pyarrow.float32())),
    ):
        if name in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, name, table[name].cast(kind))
    parquet.write_table(table, path)


def info(version: str, **changes) -> dict:
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


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_v2(root, **changes):
    write_json(root / "meta" / "info.json", info("v2.1", **changes))
    rows = [
        {"episode_index": i, "tasks": ["x"], "length": length} for i, length in enumerate(LENGTHS)
    ]
    write_lines(root / "meta" / "episodes.jsonl", rows)
    write_lines(
        root / "meta" / "tasks.jsonl",
        [{"task_index": 0, "task": "öffnen"}, {"task_index": 1, "task": "push"}],
    )
    for episode in range(len(LENGTHS)):
        chunk = f"chunk-{episode // 2:03d}"
        name = f"episode_{episode:06d}"
        write_table(root / "data" / chunk / f"{name}.parquet", columns(episode))
        for camera in (TOP, WRIST):
            path = root / "videos" / chunk / camera / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            films.write_video(path, frames(episode), fps=FPS)


def write_v3(root, drift: float = 0.0, **changes):
    """Episodes 0 and 1 share files; episode 2 has its own."""
    write_json(root / "meta" / "info.json", info("v3.0", **changes))
    write_table(
        root / "meta" / "tasks.parquet",
        {"task_index": [0, 1], "__index_level_0__": ["öffnen", "push"]},
    )
    rows: list[dict[str, Any]] = []
    for episode, length in enumerate(LENGTHS):
        file, start = episode // 2, LENGTHS[0] / FPS + drift if episode == 1 else 0.0
        row = {"episode_index": episode, "length": length, "tasks": ["x"]}
        row |= {"data/chunk_index": 0, "data/file_index": file}
        first = sum(LENGTHS[:episode])
        row |= {"dataset_from_index": first, "dataset_to_index": first + length}
        for camera in (TOP, WRIST):
            row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file}
            row |= {f"videos/{camera}/from_timestamp": start}
            row |= {f"videos/{camera}/to_timestamp": start + length / FPS}
        rows.append(row)
    write_table(root / "meta/episodes/chunk-000/file-000.parquet", pyarrow.Table.from_pylist(rows))
    for file, members in enumerate(((0, 1), (2,))):
        name = f"chunk-000/file-{file:03d}"
        tables = [pyarrow.table(columns(episode)) for episode in members]
        write_table(root / "data" / f"{name}.parquet", pyarrow.concat_tables(tables))
        for camera in (TOP, WRIST):
            path = root / "videos" / camera / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            films.write_video(path, [f for e in members for f in frames(e)], fps=FPS)


def open_set(root, **changes) -> base.ItemSource:
    cameras = {"primary": "top", "wrist": "left_wrist"}
    of_dataset = {key: changes.pop(key) for key in (*cameras, "subtasks") if key in changes}
    how = video_clips.Reading(**{"name": "set", "options": OPTIONS, **changes})
    return lerobot.open_source(root, how, **cameras | of_dataset)


def read_set(root, **kwargs) -> list[Any]:
    return list(open_set(root, **kwargs).read())


def seen(episode, camera: str = "static") -> np.ndarray:
    """Returns the grey of each frame."""
    return np.array([image.decode_image(frame).mean() for frame in episode.frames[camera]])


def shown(episode: int, steps: range | None = None) -> list[int]:
    """Returns the grey that each step should have."""
    return [brightness(episode, step) for step in steps or range(LENGTHS[episode])]


def change_table(path: pathlib.Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Rewrites the rows of a parquet file."""
    rows = parquet.read_table(path).to_pylist()
    change(rows)
    write_table(path, pyarrow.Table.from_pylist(rows))


def change_episodes(root: pathlib.Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Rewrites the episode table of either version."""
    lines = root / "meta" / "episodes.jsonl"
    if lines.exists():
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
        change(rows)
        write_lines(lines, rows)
    else:
        change_table(root / "meta/episodes/chunk-000/file-000.parquet", change)
