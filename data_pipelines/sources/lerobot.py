"""LeRobot datasets, v2.0, v2.1 and v3.0, without the lerobot package.

    meta/info.json                          version, features, rate, templates of paths
    v2: meta/episodes.jsonl, tasks.jsonl    {"episode_index", "length"}, {"task_index", "task"}
        data/chunk-000/episode_000000.parquet and videos/chunk-000/<camera>/episode_000000.mp4
    v3: meta/episodes/chunk-000/file-000.parquet, meta/tasks.parquet
        data/chunk-000/file-000.parquet and videos/<camera>/chunk-000/file-000.mp4: many episodes a
        file; `videos/<camera>/from_timestamp` says where in the video one begins

(Format: src/lerobot/datasets/utils.py and scripts/convert_dataset_v21_to_v30.py of the project.)
Frames are found by time, `from_timestamp + timestamp`, because concatenated videos drift; a frame
further than half an interval from its time is refused. Of the features, `observation.images.*`
(videos or images), `observation.state`, `action` and the steps' `task_index` are read. Depth videos
are left out. What an action means, LeRobot does not say: the manifest keeps its `names`.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from data_pipelines import episodes, files
from data_pipelines.formats import image, json_files, video
from data_pipelines.sources import base, video_clips
from defi_jax import errors

VERSIONS = ("v2.0", "v2.1", "v3.0")
_IMAGES = "observation.images."
_STATE, _ACTION = "observation.state", "action"
_EPISODE_COLUMNS = ("episode_index", "length", "data/chunk_index", "data/file_index")
_VIDEO_COLUMNS = ("chunk_index", "file_index", "from_timestamp")
_FIX = "download the dataset again, or check it with the lerobot package"


@dataclass(frozen=True, kw_only=True)
class Info:
    """What `meta/info.json` says.

    Attributes:
        directory: of the dataset.
        version: one of `VERSIONS`.
        fps: frames per second.
        cameras: ours -> feature, with the primary one first.
        videos: those features of `cameras` that are stored as videos, the others as images.
        columns: those of action and state that there are -> width.
        content: the file.
    """

    directory: pathlib.Path
    version: str
    fps: float
    cameras: Mapping[str, str]
    videos: frozenset[str]
    columns: Mapping[str, int]
    content: Mapping[str, Any]

    @property
    def is_v3(self) -> bool:
        """Whether files hold many episodes."""
        return self.version.startswith("v3")

    def path(self, template: str, **values: Any) -> pathlib.Path:
        """Fills `data_path` or `video_path`."""
        return video_clips.inside(self.directory, self.content[template].format(**values))


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One episode before it is read; see `base.Item`.

    Attributes:
        episode_id: see `episodes.Episode`.
        index: number of the episode.
        length: of its steps.
        data: parquet file.
        videos: feature -> video file and the time in it at which the episode begins, seconds.
    """

    episode_id: str
    index: int
    length: int
    data: pathlib.Path
    videos: Mapping[str, tuple[pathlib.Path, float]]

    @property
    def item(self) -> str:
        """What a reject names."""
        return f"{self.data}, episode {self.index}"


def open_source(
    directory: str | pathlib.Path,
    *,
    name: str,
    embodiment: str,
    primary: str,
    wrist: str,
    splits: Collection[str] | None,
    options: video_clips.ClipOptions,
    workers: base.Workers,
) -> base.ItemSource:
    """Opens a dataset.

    Args:
        directory: that holds `meta`, `data` and `videos`.
        name: of the dataset.
        embodiment: of the episodes; "" for the `robot_type` of the dataset.
        primary: camera that becomes "static": the end of its name; "" where there is only one.
        wrist: camera that becomes "gripper", likewise; "" for none.
        splits: of `info.json`; None for all episodes.
        options: how frames are stored.
        workers: how episodes are read.

    Raises:
        UserError: no such dataset, unknown version, camera or split, or frames are to be left out.
        DataError: the description is damaged, or contradicts itself.
    """
    if options.leaves_out_frames:
        raise errors.UserError(
            "leaving out frames would tear frames and actions apart",
            "--every, --sample_fps",
            "use neither",
        )
    info = _load_info(pathlib.Path(directory), primary, wrist)
    robot = embodiment or info.content.get("robot_type") or "robot"
    try:
        recordings = [_recording(info, name, row) for row in _episode_rows(info)]
        tasks = _load_tasks(info)
        _check_counts(info, recordings)
        chosen = _of_splits(info, recordings, splits)
    except _FORMAT_ERRORS as error:
        raise errors.DataError(
            f"description cannot be used ({error!r})", str(info.directory / "meta"), _FIX
        ) from error
    read = functools.partial(
        _read, info=info, tasks=tasks, source=name, embodiment=str(robot), options=options
    )
    recipe = _recipe(info, chosen, options)
    return base.ItemSource(name, chosen, read, recipe=recipe, workers=workers)


# ---- description ----

# What wrong or missing values raise; pyarrow's errors are ValueErrors or OSErrors, mostly.
_FORMAT_ERRORS = (
    KeyError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
    OverflowError,
    OSError,
    pyarrow.ArrowException,
)


def _load_info(directory: pathlib.Path, primary: str, wrist: str) -> Info:
    path = directory / "meta" / "info.json"
    if not path.is_file():
        raise errors.UserError("no LeRobot dataset", str(directory), f"expected {path}")
    content = json_files.load(path, what="info.json", fix=_FIX)
    try:
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
        cameras = _name_cameras(_images(features), primary, wrist, path)
        return Info(
            directory=directory,
            version=version,
            fps=fps,
            cameras=cameras,
            videos=frozenset(f for f in cameras.values() if features[f]["dtype"] == "video"),
            columns={
                name: int(np.prod(features[name]["shape"]))
                for name in (_ACTION, _STATE)
                if name in features
            },
            content=content,
        )
    except _FORMAT_ERRORS as error:
        raise errors.DataError(f"info.json cannot be used ({error!r})", str(path), _FIX) from error


def _images(features: Mapping[str, Any]) -> list[str]:
    """Names the colour images and videos."""
    return [
        name
        for name, feature in features.items()
        if feature["dtype"] in ("image", "video") and not _is_depth(feature)
    ]


def _is_depth(feature: Mapping[str, Any]) -> bool:
    facts = {**feature, **(feature.get("info") or {}), **(feature.get("video_info") or {})}
    return bool(facts.get("video.is_depth_map") or facts.get("is_depth_map"))


def _name_cameras(
    images: Sequence[str], primary: str, wrist: str, path: pathlib.Path
) -> dict[str, str]:
    """Returns our name -> feature."""
    if not images:
        raise errors.UserError(
            "dataset has no camera", str(path), "only those with images are read"
        )
    shorts = ", ".join(name.removeprefix(_IMAGES) for name in images)
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
        short = name.removeprefix(_IMAGES)
        named[name if short in named else short] = name
    return named


def _episode_rows(info: Info) -> list[dict[str, Any]]:
    """Reads one mapping an episode."""
    meta = info.directory / "meta"
    if not info.is_v3:
        return _read_lines(meta / "episodes.jsonl")
    paths = sorted(meta.glob("episodes/*/*.parquet"))
    if not paths:
        raise ValueError("no meta/episodes/*/*.parquet")
    videos = [f"videos/{key}/{column}" for key in info.videos for column in _VIDEO_COLUMNS]
    columns = [*_EPISODE_COLUMNS, *videos]
    return [row for path in paths for row in _read_table(path, columns).to_pylist()]


def _recording(info: Info, name: str, row: Mapping[str, Any]) -> Recording:
    index = int(row["episode_index"])
    videos = {}
    if info.is_v3:
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        for key in sorted(info.videos):
            chunk, file, start = (row[f"videos/{key}/{column}"] for column in _VIDEO_COLUMNS)
            path = info.path("video_path", video_key=key, chunk_index=chunk, file_index=file)
            videos[key] = (path, float(start))
    else:
        chunk = index // int(info.content["chunks_size"])
        place = {"episode_chunk": chunk, "episode_index": index}
        for key in sorted(info.videos):
            videos[key] = (info.path("video_path", video_key=key, **place), 0.0)
    return Recording(
        episode_id=f"{name}/{index:06d}",
        index=index,
        length=int(row["length"]),
        data=info.path("data_path", **place),
        videos=videos,
    )


def _load_tasks(info: Info) -> dict[int, str]:
    meta = info.directory / "meta"
    if not info.is_v3:
        return {int(row["task_index"]): row["task"] for row in _read_lines(meta / "tasks.jsonl")}
    table = _read_table(meta / "tasks.parquet", None)
    # pandas writes the texts as its index, of either name.
    texts = "task" if "task" in table.column_names else "__index_level_0__"
    return {int(row["task_index"]): row[texts] for row in table.to_pylist()}


def _check_counts(info: Info, recordings: Sequence[Recording]) -> None:
    counts = {
        "total_episodes": len(recordings),
        "total_frames": sum(recording.length for recording in recordings),
    }
    for key, found in counts.items():
        if info.content[key] != found:
            raise ValueError(f"{key} is {info.content[key]}, the episodes say {found}")


def _of_splits(
    info: Info, recordings: Sequence[Recording], splits: Collection[str] | None
) -> list[Recording]:
    if splits is None:
        return list(recordings)
    known = info.content.get("splits") or {}
    absent = sorted(set(splits) - set(known))
    if absent:
        raise errors.UserError(
            f"no split {', '.join(absent)}", str(info.directory), f"it has: {', '.join(known)}"
        )
    wanted: set[int] = set()
    for split in splits:
        first, last = (int(number) for number in known[split].split(":"))
        if not 0 <= first <= last <= len(recordings):
            raise ValueError(f"split {split} is {known[split]} of {len(recordings)} episodes")
        wanted |= set(range(first, last))
    return [recording for recording in recordings if recording.index in wanted]


def _recipe(
    info: Info, recordings: Sequence[Recording], options: video_clips.ClipOptions
) -> dict[str, Any]:
    features = info.content["features"]
    paths = {path for path in (info.directory / "meta").rglob("*") if path.is_file()}
    for recording in recordings:
        paths |= {recording.data, *(path for path, _ in recording.videos.values())}
    return {
        "kind": "lerobot",
        "version": info.version,
        "robot_type": info.content.get("robot_type"),
        "cameras": dict(info.cameras),
        "names": {column: features[column].get("names") for column in info.columns},
        "captions": {"file": "meta/tasks", "field": "task"},
        "selection": "every episode",
        "files": files.digest_files(info.directory.resolve(), {p.resolve() for p in paths}),
        "frames": options.to_json(),
    }


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json_files.parse(line) for line in lines if line.strip()]


def _read_table(
    path: pathlib.Path, columns: Sequence[str] | None, filters: Any = None
) -> pyarrow.Table:
    return parquet.read_table(
        path,
        columns=None if columns is None else list(columns),
        filters=filters,
        use_threads=False,
        page_checksum_verification=True,
        partitioning=None,  # pyright: ignore[reportArgumentType]
    )


# ---- episodes ----


def _read(
    recording: Recording,
    *,
    info: Info,
    tasks: Mapping[int, str],
    source: str,
    embodiment: str,
    options: video_clips.ClipOptions,
) -> episodes.Episode | episodes.Reject:
    try:
        steps = _read_steps(recording, info)
        length = min(recording.length, options.max_frames or recording.length)
        frames = {}
        for camera, key in info.cameras.items():
            if key in info.videos:
                path, start = recording.videos[key]
                times = np.asarray(steps["timestamp"][:length], np.float64) + start
                frames[camera] = list(_frames_at(path, times, info.fps, options))
            else:
                frames[camera] = [_image(row, options) for row in steps[key][:length]]
        columns = {
            name: _column(steps[name], name, width)[:length] for name, width in info.columns.items()
        }
        return episodes.Episode(
            episode_id=recording.episode_id,
            source=source,
            embodiment=embodiment,
            instructions=(_instruction(steps["task_index"], tasks),),
            frames=frames,
            actions=columns.get(_ACTION),
            states=columns.get(_STATE),
            fps=options.fps or info.fps,
            metadata={"episode_index": recording.index},
        )
    except _FORMAT_ERRORS as error:
        return episodes.Reject(recording.item, f"episode cannot be read ({error!r})")
    except errors.DataError as error:
        return episodes.Reject(recording.item, str(error))


def _read_steps(recording: Recording, info: Info) -> dict[str, list[Any]]:
    """Reads the episode's rows, column by column.

    Raises:
        DataError: the file is missing.
        ValueError: rows are missing, or not in order.
    """
    if not recording.data.is_file():
        raise errors.DataError("data file is missing", str(recording.data), _FIX)
    images = [key for key in info.cameras.values() if key not in info.videos]
    columns = ["episode_index", "frame_index", "timestamp", "task_index", *info.columns, *images]
    only = [("episode_index", "==", recording.index)] if info.is_v3 else None
    steps = _read_table(recording.data, columns, only).to_pydict()
    expected = list(range(recording.length))
    if steps["frame_index"] != expected or set(steps["episode_index"]) != {recording.index}:
        raise ValueError(
            f"{len(steps['frame_index'])} rows of frame_index where 0 to {recording.length - 1} "
            "are expected"
        )
    return steps


def _instruction(indices: Sequence[int], tasks: Mapping[int, str]) -> str:
    different = sorted(set(indices))
    if len(different) != 1:
        raise ValueError(f"its steps have {len(different)} tasks, an episode has one instruction")
    return str(tasks[different[0]]).strip()


def _column(rows: Sequence[Any], name: str, width: int) -> np.ndarray:
    """Returns float32[n, width]."""
    values = np.asarray(rows, np.float32).reshape(len(rows), -1)
    if values.shape[1] != width:
        raise ValueError(f"'{name}' is {values.shape[1]} wide, info.json says {width}")
    return values


def _image(row: Mapping[str, Any], options: video_clips.ClipOptions) -> bytes:
    """Keeps the stored bytes where their size is right."""
    data = row["bytes"]
    if not isinstance(data, bytes):
        raise ValueError("an image is no bytes in the table")
    if not options.square_crop and min(image.image_size(data)) <= options.shorter_side:
        return data
    return options.encode(image.decode_image(data))


def _frames_at(
    path: pathlib.Path, times: np.ndarray, fps: float, options: video_clips.ClipOptions
) -> Iterator[bytes]:
    """Yields the frames shown at increasing times, float64[n] seconds.

    Raises:
        DataError: damaged, or no frame within half an interval of a time.
    """
    count, nearest = 0, 0.5 / fps
    with video.open_video(path) as opened:
        for frame in opened.frames(float(times[0]), float(times[-1])):
            if count == len(times) or frame.time > times[count] + nearest:
                break
            if frame.time >= times[count] - nearest:
                yield options.encode(frame.image())
                count += 1
    if count < len(times):
        raise errors.DataError(
            f"video has no frame at {times[count]:.3f} s (found {count} of {len(times)})",
            str(path),
            _FIX,
        )
