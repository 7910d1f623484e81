"""Videos with captions and no actions: people's hands, or any folder of clips.

What lies in the folder tells its kind:

* `annotation/<split>/*.json` with `videos/`: the layout of `video_layout`, as the published
  Something-Something clips have it.
* `fho_main.json`: Ego4D, see `ego4d`.
* `EPIC_100_*.csv`: EPIC-KITCHENS-100, see `epic_kitchens`.
* a json list of {"id", "label"}: Something-Something v2's own label files; clips are `<id>.webm`.
* a json object {file: caption or list of captions}, a json list of {"file", "caption"}, or a csv
  or tsv with the columns `file` and `caption` (a file in several rows has several captions).

Files are searched below the folder, by relative path or by name. A video without caption, a caption
without video, a caption that is not UTF-8 and a damaged video are rejects with a reason; nothing is
dropped silently.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines import episodes
from data_pipelines.formats import csv_files, json_files
from data_pipelines.sources import (
    base,
    ego4d,
    epic_kitchens,
    video_clips,
    video_folder,
    video_layout,
)
from defi_jax import errors

_FORMATS = "expected captions.json {file: caption}, a csv with columns file,caption, or annotation/"
_COLUMNS = ("file", "caption")

Captions = dict[str, tuple[str, ...]]


def open_source(
    directory: str | pathlib.Path,
    how: video_clips.Reading,
    *,
    captions: str | pathlib.Path | None = None,
) -> base.ItemSource:
    """Opens a folder of captioned videos, whichever kind it is.

    Args:
        how: what is read; splits are of the annotation layout and of EPIC-KITCHENS.
        captions: caption or annotation file; None searches the folder.

    Raises:
        UserError: no such folder or file, no captions, or several caption files and none chosen.
        DataError: the caption file is damaged.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise errors.UserError("no such video folder", directory, "check --input")
    if captions is None and video_layout.annotation_folder(directory):
        return video_layout.open_source(directory, how)
    path = None if captions is None else pathlib.Path(captions)
    found, recipe = _find_clips(directory, path, how)
    return how.source(found, video_clips.read_clip, recipe)


def _find_clips(
    directory: pathlib.Path, path: pathlib.Path | None, how: video_clips.Reading
) -> video_clips.Found:
    if path is not None and not path.is_file():
        raise errors.UserError("no such caption file", path, "check --captions")
    tables = epic_kitchens.find(directory, how.splits) if path is None else [path]
    if how.splits and (path is not None or not tables):
        raise errors.UserError(
            f"no split {', '.join(how.splits)}",
            path or directory,
            "only annotation/<split> and EPIC_100_<split>.csv have splits; leave out --splits",
        )
    annotation = ego4d.find(directory) if path is None else path
    if annotation is not None and ego4d.is_annotation(annotation):
        return ego4d.find_clips(directory, annotation, how.name)
    if tables and all(epic_kitchens.is_annotation(table) for table in tables):
        return epic_kitchens.find_clips(directory, tables, how.name)
    path = path or _find_captions(directory)
    captions, unusable = load_captions(path)
    recipe = {
        "kind": "captioned folder",
        "captions": video_clips.describe_file(path),
        "selection": "every video that has a caption, whole",
    }
    return [*unusable, *_match(directory, how.name, captions)], recipe


def load_captions(path: str | pathlib.Path) -> tuple[Captions, list[episodes.Reject]]:
    """Reads a caption file: json object, json list, or csv, as described above.

    Bytes that are not UTF-8 become lone surrogates, which no episode may hold: such a caption is
    rejected alone.

    Returns:
        The captions by file, and entries that are none.

    Raises:
        DataError: unreadable, of another form, or without captions.
    """
    path = pathlib.Path(path)
    captions: Captions = {}
    rejects = []
    if path.suffix.lower() in csv_files.SUFFIXES:
        rows = csv_files.read_rows(path, _COLUMNS, what="caption file", fix=_FORMATS)
        entries = [(row.get("file"), row.get("caption")) for row in rows]
    else:
        what = "caption file cannot be used"
        with errors.DataError.instead_of((OSError, ValueError), what, path, _FORMATS):
            entries = list(_parse_json(json_files.parse(csv_files.read_text(path))))
    for number, (file, caption) in enumerate(entries, 1):
        if isinstance(file, str) and isinstance(caption, str):
            captions[file] = (*captions.get(file, ()), caption.strip())
        else:
            reason = f"caption {caption!r} of file {file!r}: both must be texts"
            rejects.append(episodes.Reject(f"{path.name}, entry {number}", reason))
    if not captions:
        raise errors.DataError("caption file names no video", path, _FORMATS)
    return captions, rejects


def _parse_json(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yields file and caption, whatever they are."""
    if isinstance(content, list):
        for entry in content:
            fields = entry if isinstance(entry, Mapping) else {}
            file, text = ("file", "caption") if "file" in fields else ("id", "label")
            yield (str(fields[file]) if file in fields else None), fields.get(text)
    elif isinstance(content, Mapping):
        for file, value in content.items():
            for text in (value or [""]) if isinstance(value, list) else [value]:
                yield file, text
    else:
        raise ValueError("neither an object nor a list")


def _find_captions(directory: pathlib.Path) -> pathlib.Path:
    kinds = (".json", *csv_files.SUFFIXES)
    found = sorted(
        path
        for path in directory.iterdir()
        if path.suffix.lower() in kinds and path.is_file() and not path.name.startswith(".")
    )
    if len(found) == 1:
        return found[0]
    if not found:
        raise errors.UserError("video folder has no captions", directory, _FORMATS)
    names = ", ".join(path.name for path in found)
    what = f"several caption files ({names})"
    raise errors.UserError(what, directory, "choose one with --captions")


def _match(
    directory: pathlib.Path, name: str, captions: Captions
) -> Iterator[video_clips.Clip | episodes.Reject]:
    """Pairs captions with the videos of the folder; both sides' leftovers are rejects."""
    videos = video_folder.VideoFolder(directory)
    texts_of: dict[pathlib.Path, tuple[str, ...]] = {}
    for file, texts in sorted(captions.items()):
        found = videos.find(file)
        if len(found) == 1:
            texts_of[found[0]] = (*texts_of.get(found[0], ()), *texts)
        else:
            reason = f"{len(found)} videos of this name" if found else "no such video"
            yield episodes.Reject(file, reason)
    for path, texts in texts_of.items():
        relative = path.relative_to(directory).as_posix()
        yield video_clips.Clip(
            item=str(path),
            episode_id=f"{name}/{relative}",
            videos={"static": path},
            instructions=tuple(dict.fromkeys(texts)),
            metadata={"file": relative},
        )
    for path in videos.paths:
        if path not in texts_of:
            yield episodes.Reject(str(path), "no caption")
