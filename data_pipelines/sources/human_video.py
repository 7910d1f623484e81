"""Videos with captions and no actions: people's hands, or any folder of clips.

Three folders are understood, told apart by what lies in them:

* `annotation/<split>/*.json` with `videos/`: the layout of `video_layout`, as the published
  Something-Something clips have it.
* a json list of {"id", "label"}: Something-Something v2's own label files; clips are `<id>.webm`.
* a json object {file: caption or list of captions}, or a csv with the columns `file` and `caption`
  (a file in several rows has several captions).

Files are searched below the folder, by relative path or by name. A video without caption, a caption
without video and a damaged video are rejects with a reason; nothing is dropped silently.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping

from data_pipelines import episodes
from data_pipelines.sources import base, video_clips, video_layout
from defi_jax import errors

VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v")
_FORMATS = "expected captions.json {file: caption}, a csv with columns file,caption, or annotation/"

Captions = dict[str, tuple[str, ...]]


def open_source(
    directory: str | pathlib.Path,
    *,
    name: str | None = None,
    embodiment: str = "human",
    captions: str | pathlib.Path | None = None,
    options: video_clips.ClipOptions,
    splits: Collection[str] | None = None,
) -> base.Source:
    """Opens a folder of captioned videos, whichever of the three kinds it is.

    Args:
        directory: the folder.
        name: of the dataset; None for the folder's name.
        embodiment: who acts in the videos.
        captions: caption file; None searches the folder's first level for exactly one.
        options: how clips are stored.
        splits: of the annotation layout.

    Raises:
        UserError: no such folder or file, no captions, or several caption files and none chosen.
        DataError: the caption file is damaged.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise errors.UserError("no such video folder", str(directory), "check --input")
    name = name or directory.resolve().name
    if captions is None and (directory / video_layout.ANNOTATION).is_dir():
        return video_layout.VideoLayoutSource(
            directory, name=name, embodiment=embodiment, options=options, splits=splits
        )
    path = _find_captions(directory) if captions is None else pathlib.Path(captions)
    if not path.is_file():
        raise errors.UserError("no such caption file", str(path), "check --captions")
    return CaptionedFolder(
        directory,
        name=name,
        embodiment=embodiment,
        captions=load_captions(path),
        options=options,
    )


class CaptionedFolder:
    """Clips of a folder with captions by file; see `base.Source`.

    Args:
        directory: searched for videos, with its subfolders.
        name: of the dataset.
        embodiment: who acts in the videos.
        captions: file (relative path, name, or name without suffix) -> texts.
        options: how clips are stored.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        name: str,
        embodiment: str,
        captions: Captions,
        options: video_clips.ClipOptions,
    ):
        self._directory = pathlib.Path(directory)
        self.name, self._embodiment, self._options = name, embodiment, options
        self._clips, self._rejects = _match(self._directory, name, captions)
        self.total = len(self._clips) + len(self._rejects)

    def read(self, skip: Collection[str] = frozenset()) -> Iterator[episodes.Episode | base.Reject]:
        """Yields clips; see `base.Source.read`."""
        yield from self._rejects
        for clip in self._clips:
            if clip.episode_id not in skip:
                yield video_clips.read_clip(
                    clip, source=self.name, embodiment=self._embodiment, options=self._options
                )


def load_captions(path: str | pathlib.Path) -> Captions:
    """Reads a caption file: json object, json list of {"id", "label"}, or csv.

    Raises:
        DataError: unreadable, not UTF-8, of another form, or without captions.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        captions = _parse_csv(text) if path.suffix == ".csv" else _parse_json(json.loads(text))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise errors.DataError(
            f"caption file cannot be used ({error!r})", str(path), _FORMATS
        ) from error
    if not captions:
        raise errors.DataError("caption file names no video", str(path), _FORMATS)
    return captions


def _parse_csv(text: str) -> Captions:
    captions: Captions = {}
    for row in csv.DictReader(io.StringIO(text, newline="")):
        captions[row["file"]] = (*captions.get(row["file"], ()), _text(row["caption"]))
    return captions


def _parse_json(content: object) -> Captions:
    if isinstance(content, list):
        return {str(entry["id"]): (_text(entry["label"]),) for entry in content}
    if isinstance(content, Mapping):
        return {
            file: tuple(_text(text) for text in (value if isinstance(value, list) else [value]))
            for file, value in content.items()
        }
    raise ValueError("neither an object nor a list")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"caption {value!r} is not a text")
    return value.strip()


def _find_captions(directory: pathlib.Path) -> pathlib.Path:
    found = sorted(path for path in directory.iterdir() if path.suffix in (".json", ".csv"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise errors.UserError("video folder has no captions", str(directory), _FORMATS)
    names = ", ".join(path.name for path in found)
    raise errors.UserError(
        f"several caption files ({names})", str(directory), "choose one with --captions"
    )


def _match(
    directory: pathlib.Path, name: str, captions: Captions
) -> tuple[list[video_clips.Clip], list[base.Reject]]:
    """Pairs captions with the videos of the folder; both sides' leftovers are rejects."""
    videos = sorted(
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
    )
    by_path = {path.relative_to(directory).as_posix(): [path] for path in videos}
    by_name: dict[str, list[pathlib.Path]] = {}
    for path in videos:
        for key in {path.name, path.stem}:
            by_name.setdefault(key, []).append(path)
    clips, rejects, used = [], [], set()
    for file, texts in sorted(captions.items()):
        matches = by_path.get(file) or by_name.get(file, [])
        if len(matches) != 1:
            reason = f"{len(matches)} videos of this name" if matches else "no such video"
            rejects.append(base.Reject(file, reason))
            continue
        relative = matches[0].relative_to(directory).as_posix()
        used.add(matches[0])
        clips.append(
            video_clips.Clip(
                item=str(matches[0]),
                episode_id=f"{name}/{relative}",
                videos={"static": matches[0]},
                instructions=texts or ("",),
                metadata={"file": relative},
            )
        )
    rejects += [base.Reject(str(path), "no caption") for path in videos if path not in used]
    return clips, rejects
