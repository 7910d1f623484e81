"""Whether a LeRobot dataset's episode table, data files and videos agree.

Where they do not, an episode may show another one's pixels, and nothing later would notice: known
writers merged datasets so that two episodes claim the same seconds of one video. A table that
contradicts itself, the rows of the data or the files is therefore an error of the whole dataset;
damage of an episode's own files rejects this episode.
"""

from __future__ import annotations

import collections
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipelines.formats import video
from data_pipelines.sources import lerobot_tables as tables
from defi_jax import errors

_SHOWN = 6  # contradictions that an error lists
_OVERLAP, _GAP = 0.5, 0.75  # frames between neighbours in a video, as times are rounded
LENGTHS_DIFFER = 1.5  # frames between a video and its steps

Run = tuple[int, int, int]  # first step, number of steps, task_index or -1


def scan_rows(
    info: tables.Info, found: Sequence[tables.Recording]
) -> tuple[dict[int, list[Run]], dict[int, str], list[str]]:
    """Reads which rows belong to which episode.

    Returns:
        Episode -> its steps by task; episode -> why its rows cannot be used; contradictions.
    """
    by_file: dict[pathlib.Path, dict[int, tables.Recording]] = collections.defaultdict(dict)
    for one in found:
        by_file[one.data][one.index] = one
    runs, failures, contradictions = {}, {}, []
    for path, members in by_file.items():
        try:
            if not path.is_file():
                raise ValueError("data file is missing")
            rows = tables.read_task_rows(path, None if info.is_v3 else next(iter(members)))
        except tables.FORMAT_ERRORS as error:
            failures |= dict.fromkeys(members, f"data file cannot be read ({error})")
            continue
        problems = {}
        for index in sorted({*members, *rows}):
            length = members[index].length if index in members else 0
            if len(rows.get(index, ())) != length:
                count = f"{len(rows.get(index, ()))} rows of episode {index}"
                problems[index] = f"{count} in {path.name}, the table says {length}"
            else:
                runs[index] = _runs(rows[index])
        if info.is_v3:
            contradictions += problems.values()
        elif problems:
            failures |= dict.fromkeys(members, errors.listed(list(problems.values()), 2))
    return runs, failures, contradictions


def _runs(tasks: np.ndarray) -> list[Run]:
    """Cuts where the task changes: [4, 4, 4, 2, 2]  ->  [(0, 3, 4), (3, 2, 2)]."""
    bounds = [0, *(np.flatnonzero(np.diff(tasks)) + 1).tolist(), len(tasks)]
    return [(first, end - first, int(tasks[first])) for first, end in itertools.pairwise(bounds)]


def check(
    info: tables.Info, found: Sequence[tables.Recording], contradictions: Sequence[str]
) -> list[str]:
    """Compares the table of all episodes with itself, the totals and the files that are there.

    The contradictions that are given are those with the rows of the data.

    Returns:
        What no episode claims and is left out, texts.

    Raises:
        DataError: they contradict each other.
    """
    claimed = {one.data for one in found}
    claimed |= {part.path for one in found for part in one.videos.values()}
    stored = {*tables.stored(info.directory, info.content["data_path"], "")}
    for key in info.videos:
        stored |= {*tables.stored(info.directory, info.content["video_path"], key)}
    unclaimed = sorted(name for name in stored if info.directory / name not in claimed)
    claims: dict[pathlib.Path, list[tuple[float, float, int]]] = collections.defaultdict(list)
    for one in found:
        for path, start, end in one.videos.values():
            claims[path].append((start, end, one.index))
    problems = [*_table_problems(info, found)]
    for path, parts in claims.items():
        problems += _overlaps(sorted(parts), info.fps, str(path.relative_to(info.directory)))
    problems += contradictions
    if info.is_v3:
        problems += [f"no episode claims {name}" for name in unclaimed]
    if problems:
        raise errors.DataError(
            f"episode table contradicts itself or the files, {len(problems)} times "
            f"({errors.listed(problems, _SHOWN)})",
            str(info.directory / "meta"),
            "episodes might show others' frames: correct the tables, or make the dataset anew",
        )
    left_out = [f"files that no episode claims: {errors.listed(unclaimed, 3)}"] if unclaimed else []
    return left_out + (_unclaimed_ends(info, claims) if info.is_v3 else [])


def _table_problems(info: tables.Info, found: Sequence[tables.Recording]) -> Iterator[str]:
    totals = {"total_episodes": len(found), "total_frames": sum(one.length for one in found)}
    for key, total in totals.items():
        if info.content.get(key, total) != total:
            yield f"{key} is {info.content[key]}, the table says {total}"
    for index, count in collections.Counter(one.index for one in found).items():
        if count > 1:
            yield f"episode {index} is there {count} times"
    row = 0
    for one in found:
        if one.length < 1:
            yield f"episode {one.index} has {one.length} steps"
        if one.rows not in (None, (row, row + one.length)):
            yield f"episode {one.index} has rows {one.rows}, not {(row, row + one.length)}"
        row = one.rows[1] if one.rows else row
        for key, (_, start, end) in one.videos.items():
            if abs((end - start) * info.fps - one.length) > LENGTHS_DIFFER:
                yield f"episode {one.index} has {one.length} steps, {end - start:.2f} s of {key}"


def _overlaps(parts: Sequence[tuple[float, float, int]], fps: float, name: str) -> Iterator[str]:
    until, last = 0.0, -1
    for start, end, index in parts:
        if start < until - _OVERLAP / fps:
            shared = f"{start:.2f} to {min(end, until):.2f} s of {name}"
            yield f"episodes {last} and {index} both claim {shared}"
        elif start > until + _GAP / fps:
            yield f"no episode claims {until:.2f} to {start:.2f} s of {name}"
        until, last = max((until, last), (end, index))


def _unclaimed_ends(
    info: tables.Info, claims: Mapping[pathlib.Path, Sequence[tuple[float, float, int]]]
) -> list[str]:
    found = []
    for path, parts in claims.items():
        try:
            with video.open_video(path) as opened:
                rest = (opened.seconds or 0) - max(end for _, end, _ in parts)
        except errors.DataError:
            continue  # its episodes are rejected
        if rest * info.fps > LENGTHS_DIFFER:
            found.append(f"{rest:.2f} s of {path.relative_to(info.directory)}")
    return [f"ends of videos that no episode claims: {errors.listed(found, 3)}"] if found else []
