"""EPIC-KITCHENS-100: the narrated action segments of its videos.

Columns read of `EPIC_100_train.csv` and `EPIC_100_validation.csv` (official description:
github.com/epic-kitchens/epic-kitchens-100-annotations, README): `narration_id`, `participant_id`,
`video_id` (the video is `<video_id>.MP4`, anywhere below the folder), `narration`, and
`start_timestamp`, `stop_timestamp` as HH:mm:ss.SS of the video. `start_frame` and `stop_frame`
count frames that were extracted at the video's rate; times say the same without them. The test
table has no narrations and is not read.

The field names and an example row come from the official description; no real video was seen here.
"""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Collection, Sequence

from data_pipelines import episodes
from data_pipelines.formats import csv_files
from data_pipelines.sources import base, video_clips, video_folder

_COLUMNS = ("narration_id", "participant_id", "video_id")
_COLUMNS += ("start_timestamp", "stop_timestamp", "narration")
_FIX = "download it again"
SPLITS = ("train", "validation")
_TIME = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def find(directory: pathlib.Path, splits: Collection[str] | None) -> list[pathlib.Path]:
    """Returns the tables of the splits, in the folder or in one below it.

    Raises:
        UserError: there are such tables, but not of a wanted split.
    """
    found = {}
    for split in SPLITS:
        name = f"EPIC_100_{split}.csv"
        paths = sorted([*directory.glob(name), *directory.glob(f"*/{name}")])
        found |= {split: paths[0]} if paths else {}
    if found:
        base.check_splits(splits, found, directory)
    return [path for split, path in found.items() if splits is None or split in splits]


def is_annotation(path: pathlib.Path) -> bool:
    """Tells whether a file is such a table, by its first line."""
    return "narration_id" in csv_files.read_header(path)


def find_clips(
    directory: pathlib.Path, tables: Sequence[pathlib.Path], name: str
) -> video_clips.Found:
    """Lists the segments whose video is below the directory.

    Raises:
        DataError: a table is damaged or lacks a column.
    """
    videos = video_folder.VideoFolder(directory)
    clips: list[video_clips.Clip | episodes.Reject] = []
    without_video: collections.Counter[tuple[str, int]] = collections.Counter()
    for table in tables:
        rows = csv_files.read_rows(table, _COLUMNS, what="EPIC-KITCHENS table", fix=_FIX)
        for number, row in enumerate(rows, 1):
            absent = [column for column in _COLUMNS if column not in row]
            if absent:
                reason = f"row is cut short, without {', '.join(absent)}"
                clips.append(episodes.Reject(f"{table.name}, segment {number}", reason))
                continue
            found = videos.find(row["video_id"])
            if len(found) == 1:
                clips.append(_clip(row, found[0], name, table))
            else:
                without_video[row["video_id"], len(found)] += 1
    for (video, matches), count in without_video.items():
        reason = f"{matches or 'no'} such videos ({count} segments)"
        clips.append(episodes.Reject(video, reason))
    recipe = {
        "kind": "epic_kitchens",
        "captions": [video_clips.describe_file(table) | {"field": "narration"} for table in tables],
        "selection": "every segment, from start_timestamp to stop_timestamp, inclusive",
    }
    return clips, recipe


def seconds(timestamp: str) -> float:
    """Reads "00:01:02.50" as 62.5.

    Raises:
        ValueError: another form.
    """
    match = _TIME.fullmatch(timestamp.strip())
    if match is None:
        raise ValueError(f"{timestamp!r} is no time HH:mm:ss.SS")
    hours, minutes, rest = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def _clip(
    row: dict[str, str], video: pathlib.Path, name: str, table: pathlib.Path
) -> video_clips.Clip | episodes.Reject:
    item = f"{table.name}, {row['narration_id']}"
    try:
        start, end = seconds(row["start_timestamp"]), seconds(row["stop_timestamp"])
    except ValueError as error:
        return episodes.Reject(item, str(error))
    if not start < end:
        return episodes.Reject(item, f"it ends at {end:g} s, before it starts at {start:g} s")
    if not row["narration"]:
        return episodes.Reject(item, "no narration")
    return video_clips.Clip(
        item=item,
        episode_id=f"{name}/{row['narration_id']}",
        videos={"static": video},
        instructions=(row["narration"],),
        window=video_clips.Window(start=start, end=end),
        metadata={"table": table.name, "participant": row["participant_id"]},
    )
