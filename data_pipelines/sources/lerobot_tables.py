"""What a LeRobot dataset says of itself: its description, cameras, episodes, tasks and rows.

Paths are compared as they are written: the files of a download may be links into a cache elsewhere.
"""

from __future__ import annotations

import glob
import math
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from pyarrow import parquet

from data_pipelines.formats import json_files
from data_pipelines.sources import base
from defi_jax import errors

VERSIONS = ("v2.0", "v2.1", "v3.0")
# Features of an episode's columns; openpi writes the first names, the last one found counts.
_COLUMNS = {"actions": ("actions", "action"), "states": ("state", "observation.state")}
FIX = "download the dataset again, or check it with the lerobot package"
_IMAGES = "observation.images."
_EPISODE_COLUMNS = ["episode_index", "length", "data/chunk_index", "data/file_index"]
_VIDEO_COLUMNS = ("chunk_index", "file_index", "from_timestamp")
_ROW_COLUMNS = ("dataset_from_index", "dataset_to_index")

# What wrong or missing values raise; pyarrow's errors are ValueErrors or OSErrors, mostly.
FORMAT_ERRORS = (LookupError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)
FORMAT_ERRORS += (NotImplementedError, OSError, pyarrow.ArrowException)


@dataclass(frozen=True, kw_only=True)
class Info:
    """What `meta/info.json` says.

    Attributes:
        directory: directory of the dataset.
        version: one of `VERSIONS`.
        fps: frames per second.
        cameras: ours -> feature, with the primary one first.
        videos: those features of `cameras` that are stored as videos, the others as images.
        columns: "actions" and "states", where there are any -> feature.
        content: the file.
        left_out: cameras that are not read and why, texts.
    """

    directory: pathlib.Path
    version: str
    fps: float
    cameras: Mapping[str, str]
    videos: frozenset[str]
    columns: Mapping[str, str]
    content: Mapping[str, Any]
    left_out: tuple[str, ...]

    @property
    def is_v3(self) -> bool:
        """Whether files hold many episodes."""
        return self.version.startswith("v3")

    def path(self, template: str, **values: Any) -> pathlib.Path:
        """Fills `data_path` or `video_path`."""
        return _inside(self.directory, self.content[template].format(**values))


class VideoPart(NamedTuple):
    """An episode's part of a video, or (v2) a whole one: file, seconds of its begin and end."""

    path: pathlib.Path
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One episode, or consecutive steps of it with one task; see `base.Item`.

    Attributes:
        episode_id: see `episodes.Episode`.
        index: number of the episode.
        length: number of all its steps.
        data: parquet file.
        videos: feature -> its part of a video.
        rows: first row in the dataset and the one after its last, where the table says it.
        tasks: texts that the table lists, in no certain order.
        first: the first of the steps that are read.
        steps: how many are read.
        task: their task_index, -1 where it is not known.
    """

    episode_id: str
    index: int
    length: int
    data: pathlib.Path
    videos: Mapping[str, VideoPart]
    rows: tuple[int, int] | None
    tasks: tuple[str, ...]
    first: int
    steps: int
    task: int

    @property
    def item(self) -> str:
        """What a reject names."""
        return f"{self.data}, episode {self.index}"


def load_info(directory: pathlib.Path, primary: str, wrist: str) -> Info:
    """Reads `meta/info.json` and chooses cameras, see `lerobot.open_source`."""
    directory = pathlib.Path(os.path.normpath(directory))
    path = directory / "meta" / "info.json"
    if not path.is_file():
        raise errors.UserError("no LeRobot dataset", str(directory), f"expected {path}")
    content = json_files.load(path, what="info.json", fix=FIX)
    with errors.DataError.instead_of(FORMAT_ERRORS, "info.json cannot be used", path, FIX):
        version = str(content["codebase_version"])
        if version not in VERSIONS:
            raise errors.UserError(
                f"unknown LeRobot version '{version}'",
                str(path),
                f"known: {', '.join(VERSIONS)}; convert the dataset with the lerobot package",
            )
        fps = float(content["fps"])
        if not 0 < fps < math.inf:
            raise ValueError(f"fps is {fps}")
        if not version.startswith("v3") and int(content["chunks_size"]) < 1:
            raise ValueError(f"chunks_size is {content['chunks_size']}")
        features = content["features"]
        absent = _unusable_cameras(directory, content)
        left_out = [f"camera {_short(name)}: {reason}" for name, reason in absent.items()]
        present = [
            name
            for name, feature in features.items()
            if feature["dtype"] in ("image", "video") and name not in absent
        ]
        if not present:
            raise errors.UserError(
                "dataset has no camera that can be read",
                str(path),
                errors.listed(left_out, 3) or "only those with images are read",
            )
        cameras = _name_cameras(present, primary, wrist, path)
        columns = {
            ours: name for ours, names in _COLUMNS.items() for name in names if name in features
        }
        left_out += [f"{ours}: no such feature" for ours in _COLUMNS if ours not in columns]
        return Info(
            directory=directory,
            version=version,
            fps=fps,
            cameras=cameras,
            videos=frozenset(f for f in cameras.values() if features[f]["dtype"] == "video"),
            columns=columns,
            content=content,
            left_out=tuple(left_out),
        )


# ---- cameras ----


def _unusable_cameras(directory: pathlib.Path, content: Mapping[str, Any]) -> dict[str, str]:
    """Returns camera feature -> why it cannot be read."""
    tables = (directory / name for name in stored(directory, content["data_path"], ""))
    columns = next(filter(None, map(_columns, tables)), None)
    found = {}
    for name, feature in content["features"].items():
        kind, shape = feature["dtype"], feature.get("shape") or [3]
        facts = {**feature, **(feature.get("info") or {}), **(feature.get("video_info") or {})}
        if kind not in ("image", "video"):
            continue
        if facts.get("video.is_depth_map") or facts.get("is_depth_map"):
            found[name] = "a depth map"
        elif 3 not in (shape[0], shape[-1]):
            found[name] = f"no colours, its shape is {shape}"
        elif kind == "image" and columns and name not in columns:
            found[name] = "no column in the data"
        elif kind == "video" and not stored(directory, content["video_path"], name):
            found[name] = "no video files"
    return found


def _columns(path: pathlib.Path) -> list[str]:
    try:
        return parquet.read_schema(path).names
    except FORMAT_ERRORS:
        return []


def stored(directory: pathlib.Path, template: str, key: str) -> list[str]:
    """Returns the files below the dataset that a template of `info.json` may name."""
    pattern = re.sub(r"\{[^}]*\}", "*", template.replace("{video_key}", glob.escape(key)))
    _inside(directory, pattern)
    return sorted(str(path.relative_to(directory)) for path in directory.glob(pattern))


def _inside(directory: pathlib.Path, relative: str) -> pathlib.Path:
    path = pathlib.Path(os.path.normpath(directory / relative))
    if not path.is_relative_to(directory):
        raise errors.DataError("path points outside of the dataset", relative, "correct info.json")
    return path


def _short(name: str) -> str:
    return name.removeprefix(_IMAGES)


def _name_cameras(
    images: Sequence[str], primary: str, wrist: str, path: pathlib.Path
) -> dict[str, str]:
    """Returns our name -> feature."""
    shorts = ", ".join(map(_short, images))
    named = {}
    for camera, flag, wanted in (("static", "--primary", primary), ("gripper", "--wrist", wrist)):
        fitting = [name for name in images if wanted and wanted in (name, name.split(".")[-1])]
        if wanted and len(fitting) != 1:
            raise errors.UserError(f"no one camera '{wanted}'", flag, f"cameras: {shorts}")
        named |= {camera: fitting[0]} if wanted else {}
    rest = [name for name in images if name not in named.values()]
    if "static" not in named:
        if len(rest) != 1:
            raise errors.UserError(
                "which camera is the primary one", str(path), f"give --primary, one of: {shorts}"
            )
        named = {"static": rest.pop(), **named}
    for name in rest:
        named[name if _short(name) in named else _short(name)] = name
    return named


# ---- episodes, splits and tasks ----


def load_episodes(info: Info, name: str) -> list[Recording]:
    """Reads the episode table, in the order of the episodes' numbers; `name` is the dataset's."""
    meta = info.directory / "meta"
    if info.is_v3:
        videos = [f"videos/{key}/{column}" for key in info.videos for column in _VIDEO_COLUMNS]
        optional = [f"videos/{key}/to_timestamp" for key in info.videos]
        optional += ["tasks", *_ROW_COLUMNS]
        tables = [
            read_table(path, [*_EPISODE_COLUMNS, *videos], optional)
            for path in sorted(meta.glob("episodes/*/*.parquet"))
        ]
        rows = [row for table in tables for row in table.to_pylist()]
    else:
        rows = _read_lines(meta / "episodes.jsonl")
    if not rows:
        raise ValueError("no episodes in meta/episodes*")
    return sorted((_recording(info, name, row) for row in rows), key=lambda found: found.index)


def _recording(info: Info, name: str, row: Mapping[str, Any]) -> Recording:
    index, length = int(row["episode_index"]), int(row["length"])
    if info.is_v3:
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
    else:
        chunk = index // int(info.content["chunks_size"])
        place = {"episode_chunk": chunk, "episode_index": index}
    videos = {}
    for key in sorted(info.videos):
        at, start, end = place, 0.0, length / info.fps
        if info.is_v3:
            chunk, file, start = (row[f"videos/{key}/{column}"] for column in _VIDEO_COLUMNS)
            at = {"chunk_index": chunk, "file_index": file}
            start = float(start)
            end = float(row.get(f"videos/{key}/to_timestamp", start + end))
        if not 0 <= start <= end < math.inf:
            raise ValueError(f"episode {index} is from {start} to {end} s of {key}")
        videos[key] = VideoPart(info.path("video_path", video_key=key, **at), start, end)
    has_rows = all(isinstance(row.get(column), int) for column in _ROW_COLUMNS)
    return Recording(
        episode_id=f"{name}/{index:06d}",
        index=index,
        length=length,
        data=info.path("data_path", **place),
        videos=videos,
        rows=(row[_ROW_COLUMNS[0]], row[_ROW_COLUMNS[1]]) if has_rows else None,
        tasks=tuple(str(text) for text in row.get("tasks") or ()),
        first=0,
        steps=length,
        task=-1,
    )


def of_splits(
    info: Info, found: Sequence[Recording], splits: Collection[str] | None
) -> tuple[list[Recording], list[str]]:
    """Chooses the episodes of some splits; None for all.

    Returns:
        The episodes, and what was left out: GR00T's "0:100" may name more than there are.
    """
    if splits is None:
        return list(found), []
    total = max((one.index + 1 for one in found), default=0)
    known = info.content.get("splits") or {"train": f"0:{total}"}
    base.check_splits(splits, known, info.directory)
    wanted, left_out = [], []
    for split in splits:
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", str(known[split]))
        first, last = map(int, match.groups()) if match else (0, 0)
        if not first < min(last, total):
            raise ValueError(f"split {split} is {known[split]} of {total} episodes")
        if last > total:
            left_out.append(f"split {split}: it is {known[split]}, of {total} episodes")
        wanted.append(range(first, last))
    chosen = [one for one in found if any(one.index in part for part in wanted)]
    if len(chosen) < len(found):
        left_out.append(f"other splits: {len(found) - len(chosen)} episodes")
    return chosen, left_out


def load_tasks(info: Info) -> dict[int, str] | None:
    """Returns task_index -> text; None where the dataset has no such table."""
    path = info.directory / "meta" / ("tasks.parquet" if info.is_v3 else "tasks.jsonl")
    if not path.exists():
        return None
    if not info.is_v3:
        return {int(row["task_index"]): str(row["task"]) for row in _read_lines(path)}
    table = read_table(path, None)
    # pandas writes the texts as its index, of either name.
    texts = "task" if "task" in table.column_names else "__index_level_0__"
    return {int(row["task_index"]): str(row[texts]) for row in table.to_pylist()}


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json_files.parse(line) for line in lines if line.strip()]


# ---- rows ----


def read_table(
    path: pathlib.Path,
    columns: Sequence[str] | None,
    optional: Sequence[str] = (),
    filters: Any = None,
) -> pyarrow.Table:
    """Reads columns of a parquet file; None for all.

    Raises:
        ValueError: a column that is not optional is not there.
    """
    if columns is not None:
        stored = parquet.read_schema(path).names
        absent = sorted(set(columns) - set(stored))
        if absent:
            raise ValueError(f"{path.name} has no column {', '.join(absent)}")
        columns = [*columns, *(name for name in optional if name in stored)]
    return parquet.read_table(
        path,
        columns=columns,
        filters=filters,
        use_threads=False,
        page_checksum_verification=True,
        partitioning=None,  # pyright: ignore[reportArgumentType]
    )


def read_task_rows(path: pathlib.Path, alone: int | None) -> dict[int, np.ndarray]:
    """Reads the task of each row of a data file.

    GR00T's files may have it in an annotation column only. Files that do not say their episodes
    have only one, of the number `alone`.

    Returns:
        Episode -> int64[n], in the order of its rows; -1 without a task.
    """
    names = parquet.read_schema(path).names
    annotated = [name for name in names if name.startswith("annotation.") and "task" in name]
    task = "task_index" if "task_index" in names or not annotated else annotated[0]
    table = read_table(path, [], ["episode_index", task])

    def column(name: str, default: int | None) -> np.ndarray:
        if name not in names and default is not None:
            return np.full(table.num_rows, default)
        return table[name].cast(pyarrow.int64()).fill_null(-1).to_numpy()

    episodes, tasks = column("episode_index", alone), column(task, -1)
    order = np.argsort(episodes, kind="stable")
    numbers, starts = np.unique(episodes[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(tasks[order], starts[1:]), strict=True))
