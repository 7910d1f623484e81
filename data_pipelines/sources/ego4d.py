"""Ego4D's hand-object clips: from an action's pre frame to its post frame, with its narration.

Read from `fho_main.json` of the benchmark "Forecasting Hands and Objects" (official schema:
ego4d-data.org/docs/data/annotations-schemas), for each action of
`videos[].annotated_intervals[].narrated_actions[]`:

* `clip_critical_frames` {pre_frame, ..., post_frame}: frame numbers within `clips/<clip_uid>.mp4`;
  `critical_frames`: the same within `full_scale/<video_uid>.mp4`. The clip is used if it is there.
  Frame k is at k / `video_metadata.fps` seconds; a video of another rate is refused.
* `narration_text`: "#C C picks up a cup". The tag of the camera wearer is removed, "#unsure"
  becomes "something"; actions of other people ("#O ...") are rejected.
* `is_rejected`, `is_invalid_annotation`, `is_valid_action`, `redacted`: such actions are rejected.

The schema names the critical frames without describing them; their keys and units are those which
public code for this file uses. No real `fho_main.json` was seen here (it needs a licence).

DeFI's own Ego4D keeps every 15th frame of 30 Hz video, and the last one, cropped to its centre
square: `sample_fps=2`, `square_crop`; the extra last frame is left out here.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from data_pipelines import episodes
from data_pipelines.sources import video_clips, video_folder
from defi_jax import errors

FILE = "fho_main.json"
_FOLDERS = (".", "annotations", "v2/annotations", "v1/annotations")
_HEAD_BYTES = 1 << 20  # an annotation names its first interval within these
_BLOCK_CHARACTERS = 1 << 22  # the file has gigabytes and is read in blocks
_DAMAGED = "its annotation cannot be used"
_FORMAT_ERRORS = (KeyError, TypeError, AttributeError, ValueError, OverflowError)
_ELEMENT_CHARACTERS = 1 << 26  # a video's annotation has megabytes
_SEPARATORS = " \t\r\n,"
_WEARER = re.compile(r"#\s*c\s+c\s+", re.IGNORECASE)
_UNSURE = re.compile(r"#\s*unsure", re.IGNORECASE)


def find(directory: pathlib.Path) -> pathlib.Path | None:
    """Returns the annotation file below a directory."""
    paths = (directory / folder / FILE for folder in _FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def is_annotation(path: pathlib.Path) -> bool:
    """Tells whether a file is such an annotation, by its beginning."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return path.suffix == ".json" and b'"annotated_intervals"' in head


def find_clips(directory: pathlib.Path, annotation: pathlib.Path, name: str) -> video_clips.Found:
    """Lists the actions whose video is below the directory.

    Raises:
        DataError: the annotation is damaged.
    """
    videos = video_folder.VideoFolder(directory)
    found: list[video_clips.Clip | episodes.Reject] = []
    what, fix = "Ego4D annotation cannot be used", "download it again"
    with errors.DataError.instead_of((ValueError, RecursionError), what, annotation, fix):
        for place, entry in enumerate(stream_array(annotation, "videos")):
            try:
                for one in _read_video(entry, videos, name):
                    found.append(one)
            except _FORMAT_ERRORS as error:  # what came before stays
                item = f"{annotation}, video {place}"
                found.append(episodes.Reject(item, f"{_DAMAGED} ({error!r})"))
    recipe = {
        "kind": "ego4d",
        "captions": video_clips.describe_file(annotation) | {"field": "narration_text"},
        "selection": "valid actions of the camera wearer, from pre_frame to post_frame, inclusive",
    }
    return found, recipe


def stream_array(path: pathlib.Path, key: str) -> Iterator[Any]:
    """Yields the elements of the array at a key of a json file's object, in bounded memory.

    Raises:
        ValueError: no such array, an element too long, or damaged json.
    """
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        text = file.read(_BLOCK_CHARACTERS)
        start = re.search(rf'"{key}"\s*:\s*\[', text)
        if start is None:
            raise ValueError(f"no array '{key}'")
        text = text[start.end() :]
        while text := _skip(text, file):
            if text[0] == "]":
                return
            element, text = _next_element(decoder, text, file)
            yield element
    raise ValueError(f"array '{key}' without an end")


def _skip(text: str, file: TextIO) -> str:
    """Returns what follows the separators between elements, with more of the file if need be."""
    rest = text.lstrip(_SEPARATORS)
    while not rest and (more := file.read(_BLOCK_CHARACTERS)):
        rest = more.lstrip(_SEPARATORS)
    return rest


def _next_element(decoder: json.JSONDecoder, text: str, file: TextIO) -> tuple[Any, str]:
    """Returns the element at the beginning of the text, and the rest of the text."""
    while True:
        try:
            element, end = decoder.raw_decode(text)
            return element, text[end:]
        except ValueError as error:
            if len(text) > _ELEMENT_CHARACTERS:
                raise ValueError(f"an element without an end ({error})") from error
            # It goes on in the next block; doubling keeps retries few.
            more = file.read(max(_BLOCK_CHARACTERS, len(text)))
            if not more:
                raise
            text += more


def _read_video(
    entry: Mapping[str, Any], videos: video_folder.VideoFolder, name: str
) -> Iterator[video_clips.Clip | episodes.Reject]:
    """Yields the actions of one video."""
    uid, rate = entry["video_uid"], float(entry["video_metadata"]["fps"])
    if not 0 < rate < math.inf:
        raise ValueError(f"video {uid} has {rate} frames a second")
    for number, interval in enumerate(entry["annotated_intervals"]):
        actions = interval["narrated_actions"]
        clip_uid = interval["clip_uid"]
        is_clip = bool(clip_uid) and len(videos.find(clip_uid)) == 1
        found = videos.find(clip_uid if is_clip else uid)
        if len(found) != 1:
            reason = f"{len(found) or 'no'} such videos ({len(actions)} actions)"
            yield episodes.Reject(f"{uid}, clip {clip_uid}", reason)
            continue
        for index, action in enumerate(actions):
            item = f"{found[0]}, action {number}-{index}"
            try:
                frames = action["clip_critical_frames" if is_clip else "critical_frames"]
                reason = _unusable(interval, action, frames)
            except _FORMAT_ERRORS as error:
                reason = f"{_DAMAGED} ({error!r})"
            if reason:
                yield episodes.Reject(item, reason)
                continue
            yield video_clips.Clip(
                item=item,
                episode_id=f"{name}/{uid}/{number:03d}-{index:03d}",
                videos={"static": found[0]},
                instructions=(caption(action["narration_text"]),),
                window=video_clips.Window(
                    start=frames["pre_frame"] / rate, end=frames["post_frame"] / rate, rate=rate
                ),
                metadata={"narration": action["narration_text"], "uid": action.get("uid")},
            )


def _unusable(
    interval: Mapping[str, Any], action: Mapping[str, Any], frames: Mapping[str, Any] | None
) -> str:
    """Returns why an action gives no clip, "" where it does; a flag that is absent says nothing."""
    if interval.get("redacted"):
        return "its interval is redacted"
    is_invalid = action.get("is_valid_action") is False or action.get("is_invalid_annotation")
    if is_invalid or action.get("is_rejected"):
        return f"annotators rejected it ({action.get('reject_reason') or 'no reason given'})"
    text = action["narration_text"]
    if not _WEARER.match(text.strip()) or not caption(text):
        return f"its narration {text!r} is not about the camera wearer"
    pre, post = (None if frames is None else frames.get(f"{end}_frame") for end in ("pre", "post"))
    if not isinstance(pre, int) or not isinstance(post, int):
        return "it has no pre and post frame"
    return "" if 0 <= pre < post else f"its pre frame {pre} is not before its post frame {post}"


def caption(narration: str) -> str:
    """Makes a caption: "#C C picks up #unsure" becomes "picks up something"."""
    return _UNSURE.sub("something", _WEARER.sub("", narration.strip(), count=1)).strip()
