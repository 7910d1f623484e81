"""LeRobot datasets, v2.0, v2.1 and v3.0, without the lerobot package.

    meta/info.json                          version, features, rate, templates of paths
    v2: meta/episodes.jsonl, tasks.jsonl    {"episode_index", "length"}, {"task_index", "task"}
        data/chunk-000/episode_000000.parquet and videos/chunk-000/<camera>/episode_000000.mp4
    v3: meta/episodes/chunk-000/file-000.parquet, meta/tasks.parquet
        data/chunk-000/file-000.parquet and videos/<camera>/chunk-000/file-000.mp4: many episodes a
        file; `videos/<camera>/{from,to}_timestamp` says which part of the video is one's own

(Format: src/lerobot/datasets/utils.py and scripts/convert_dataset_v21_to_v30.py of the project.)
Frames are found by time, `from_timestamp + timestamp`, because concatenated videos drift; a frame
further than half an interval from its time is refused, and so is one of another episode. Timestamps
count from an episode's first, as GR00T's begin at 0.05 s, and are made from rows where there are
none. Of the features, videos and images, `observation.state` (or `state`), `action` (or `actions`)
and the steps' `task_index` are read. An episode with several tasks is cut where they change, unless
its first task is asked for. Depth is left out. What an action means, LeRobot does not say: the
manifest keeps its `names`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from data_pipelines import episodes, files
from data_pipelines.formats import image, video
from data_pipelines.sources import base, lerobot_checks, video_clips
from data_pipelines.sources import lerobot_tables as tables
from defi_jax import errors

Subtasks = Literal["cut", "first"]


def open_source(
    directory: str | pathlib.Path,
    how: video_clips.Reading,
    *,
    primary: str = "",
    wrist: str = "",
    subtasks: Subtasks = "cut",
) -> base.ItemSource:
    """Opens a dataset.

    Args:
        directory: that holds `meta`, `data` and `videos`.
        how: what is read; splits are those of `info.json`, the embodiment is its `robot_type`.
        primary: camera that becomes "static": the end of its name; "" where there is only one.
        wrist: camera that becomes "gripper", likewise; "" for none.
        subtasks: an episode of several tasks is cut at the changes, or has its first one's text.

    Raises:
        UserError: no such dataset, unknown version, camera or split, or frames are to be left out.
        DataError: the description is damaged, or contradicts itself or the files.
    """
    how.options.check_keeps_frames()
    info = tables.load_info(pathlib.Path(directory), primary, wrist)
    with errors.DataError.instead_of(
        tables.FORMAT_ERRORS, "description cannot be used", info.directory / "meta", tables.FIX
    ):
        found = tables.load_episodes(info, how.name)
        texts = tables.load_tasks(info)
        chosen, other_splits = tables.of_splits(info, found, how.splits)
    runs, failures, contradictions = lerobot_checks.scan_rows(info, found if info.is_v3 else chosen)
    unclaimed = lerobot_checks.check(info, found, contradictions)
    rejects = [
        episodes.Reject(one.item, failures[one.index]) for one in chosen if one.index in failures
    ]
    readable = [one for one in chosen if one.index not in failures]
    pieces = [piece for one in readable for piece in _by_task(one, runs[one.index], subtasks)]
    recipe = _recipe(info, chosen)
    recipe["left_out"] = [*info.left_out, *other_splits, *unclaimed, *_unnamed(pieces, texts)]
    changes = [len(runs[one.index]) - 1 for one in readable if len(runs[one.index]) > 1]
    if changes and subtasks == "cut":
        recipe["notes"] = [
            f"{len(changes)} episodes of several tasks cut at {sum(changes)} changes"
        ]
    elif changes:
        recipe["left_out"] += [f"tasks after the first: {sum(changes)}, of {len(changes)} episodes"]
    return how.source([*rejects, *pieces], _read, recipe, info=info, texts=texts)


def _recipe(info: tables.Info, chosen: Sequence[tables.Recording]) -> dict[str, Any]:
    features = info.content["features"]
    paths = {*(info.directory / "meta").rglob("*")}
    for one in chosen:
        paths |= {one.data, *(part.path for part in one.videos.values())}
    return {
        "kind": "lerobot",
        "version": info.version,
        "robot_type": info.content.get("robot_type"),
        "cameras": dict(info.cameras),
        "names": {name: features[name].get("names") for name in info.columns.values()},
        "captions": {"file": "meta/tasks", "field": "task"},
        "selection": "every episode",
        # No folders or endless links: reading rejects their episodes.
        "files": files.digest_files(info.directory, filter(os.path.isfile, paths)),
    }


def _by_task(
    one: tables.Recording, runs: Sequence[lerobot_checks.Run], subtasks: Subtasks
) -> list[tables.Recording]:
    """Cuts an episode into recordings of one task; ids depend on the dataset alone."""
    if len(runs) == 1 or subtasks == "first":
        return [dataclasses.replace(one, task=runs[0][2])]
    return [
        dataclasses.replace(
            one, episode_id=f"{one.episode_id}-{first:06d}", first=first, steps=steps, task=task
        )
        for first, steps, task in runs
    ]


def _unnamed(pieces: Sequence[tables.Recording], texts: Mapping[int, str] | None) -> list[str]:
    count = sum(not one.tasks for one in pieces if texts is None or one.task < 0)
    return [f"instructions: none in {count} episodes"] if count else []


# ---- episodes ----


def _read(
    one: tables.Recording,
    *,
    how: video_clips.Reading,
    info: tables.Info,
    texts: Mapping[int, str] | None,
) -> episodes.Episode:
    length = min(one.steps, how.options.max_frames or one.steps)
    kept = slice(one.first, one.first + length)
    with errors.DataError.instead_of(tables.FORMAT_ERRORS, "episode cannot be read"):
        rows = _read_rows(one, info)
        stamps = np.ravel(rows.get("timestamp", np.arange(one.length) / info.fps))
        times = np.asarray(stamps, np.float64) - float(stamps[0])
        frames = {}
        for camera, key in info.cameras.items():
            if key in info.videos:
                frames[camera] = list(_frames_at(one, key, times[kept], info, how.options))
            else:
                frames[camera] = _images(rows[key][kept], how.options)
        columns = {ours: _column(rows, name, info)[kept] for ours, name in info.columns.items()}
        metadata: dict[str, Any] = {"episode_index": one.index}
        if one.steps < one.length:
            metadata["steps"] = [one.first, one.first + length - 1]
        return episodes.Episode(
            episode_id=one.episode_id,
            source=how.name,
            embodiment=how.embodiment or str(info.content.get("robot_type") or "robot"),
            instructions=(_instruction(one, texts),),
            frames=frames,
            actions=columns.get("actions"),
            states=columns.get("states"),
            fps=how.options.fps or info.fps,
            metadata=metadata,
        )


def _read_rows(one: tables.Recording, info: tables.Info) -> dict[str, list[Any]]:
    """Reads the episode's rows, column by column.

    Raises:
        ValueError: they are not in order.
    """
    images = [key for key in info.cameras.values() if key not in info.videos]
    only = [("episode_index", "==", one.index)] if info.is_v3 else None
    table = tables.read_table(
        one.data, [*info.columns.values(), *images], ["frame_index", "timestamp"], only
    )
    rows = table.to_pydict()
    numbers = np.ravel(rows.get("frame_index", np.arange(table.num_rows)))
    if not np.array_equal(numbers, np.arange(one.length)):
        raise ValueError(f"rows of frame_index are not 0 to {one.length - 1}")
    return rows


def _instruction(one: tables.Recording, texts: Mapping[int, str] | None) -> str:
    """Returns the text of the task; where no row or table has it, what the episode lists."""
    if texts is None or one.task < 0:
        return one.tasks[0].strip() if len(one.tasks) == 1 else ""
    if one.task not in texts:
        raise ValueError(f"task_index {one.task} is not in meta/tasks")
    return texts[one.task].strip()


def _column(rows: Mapping[str, Sequence[Any]], name: str, info: tables.Info) -> np.ndarray:
    """Returns float32[n, width]."""
    width = math.prod(info.content["features"][name]["shape"])
    with np.errstate(over="ignore"):  # not finite then, which an episode refuses
        values = np.asarray(rows[name], np.float32).reshape(len(rows[name]), -1)
    if values.shape[1] != width:
        raise ValueError(f"'{name}' is {values.shape[1]} wide, info.json says {width}")
    return values


def _images(rows: Sequence[Any], options: video_clips.ClipOptions) -> list[bytes]:
    """Keeps the stored bytes where their size is right.

    Raises:
        DataError: an image is damaged, or of another size than the others.
    """
    stored = [row if isinstance(row, bytes) else row["bytes"] for row in rows]
    if not all(isinstance(data, bytes) for data in stored):
        raise ValueError("an image is no bytes in the table")
    kept = []
    for data, pixels in zip(stored, image.decode_images(stored), strict=True):
        is_small = min(pixels.shape[:2]) <= options.shorter_side
        kept.append(data if is_small and not options.square_crop else options.encode(pixels))
    return kept


def _frames_at(
    one: tables.Recording,
    key: str,
    times: np.ndarray,
    info: tables.Info,
    options: video_clips.ClipOptions,
) -> Iterator[bytes]:
    """Yields the frames shown at increasing times, float64[n] seconds from the episode's first.

    Raises:
        DataError: damaged, of another length, no frame within half an interval of a time, or it is
            another episode's.
    """
    path, start, end = one.videos[key]
    times, count, nearest = times + start, 0, 0.5 / info.fps
    with video.open_video(path) as opened:
        excess = 0.0 if opened.seconds is None else (opened.seconds - end) * info.fps
        if max(-excess, 0 if info.is_v3 else excess) > lerobot_checks.LENGTHS_DIFFER:
            what = f"video lasts {opened.seconds:.2f} s, its episode {start:.2f} to {end:.2f} s"
            raise errors.DataError(what, path, tables.FIX)
        if times[-1] > end - nearest:
            what = f"step at {times[-1]:.3f} s is after the episode's end at {end:.3f} s"
            raise errors.DataError(what, path, tables.FIX)
        for frame in opened.frames(float(times[0]), float(times[-1])):
            if count == len(times) or frame.time > times[count] + nearest:
                break
            if frame.time >= times[count] - nearest:
                yield options.encode(frame.image())
                count += 1
    if count < len(times):
        what = f"video has no frame at {times[count]:.3f} s (found {count} of {len(times)})"
        raise errors.DataError(what, path, tables.FIX)
