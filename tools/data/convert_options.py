"""Flags of `launch/data.py convert`, and the source that they name."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from absl import flags

from data_pipelines.sources import (
    base,
    calvin,
    human_video,
    lerobot,
    rlds,
    rlds_directory,
    video_clips,
    video_layout,
)
from data_pipelines.tfds_builders import rlds_writer
from defi_jax import errors

_VIDEOS = ("human_video", "video_layout", "build")
_FRAMES = ("calvin", "lerobot", *_VIDEOS)
_FILES = ("rlds", *_FRAMES)
SOURCES = ("rlds", "human_video", "video_layout", "calvin", "lerobot", "metaworld")
_SPLITS = ("rlds", "human_video", "video_layout", "calvin", "lerobot")

_text, _list, _enum, _whole, _real, _switch = "string", "list", "enum", "integer", "float", "bool"


def _flag(kind: str, used_by: Sequence[str], *arguments: Any) -> Any:
    """Returns a field that is a flag.

    Args:
        kind: suffix of `flags.DEFINE_<kind>`.
        used_by: the sources, or the command, that read it.
        *arguments: what that takes after the name: default, help, and choices or the least value.
    """
    return dataclasses.field(metadata={"kind": kind, "used_by": used_by, "args": arguments})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Flags of `launch/data.py convert` and `build`, and who uses each."""

    source: str = _flag(_text, SOURCES, "", "kind of the raw data.")
    output: str  # a flag that other commands share
    input: str = _flag(_text, _FILES, "", "directory of the raw data.")
    name: str = _flag(_text, _FILES, "", "name of the dataset instead of its own.")
    splits: Sequence[str] = _flag(
        _list, _SPLITS, [], "splits to read; rlds: train by default, `all` for all."
    )
    embodiment: str = _flag(
        _text, ("lerobot", *_VIDEOS), "", "who acts in videos; human without actions."
    )
    captions: str = _flag(
        _text, ("human_video", "build"), "", "caption file of a video folder; '' searches."
    )
    shorter_side: int = _flag(_whole, _FRAMES, 256, "shrink video frames to this, pixels.", 16)
    square_crop: bool = _flag(_switch, _FRAMES, False, "keep the centre square of video frames.")
    every: int = _flag(_whole, _FRAMES, 1, "keep every n-th video frame.", 1)
    sample_fps: float | None = _flag(
        _real, _FRAMES, None, "video frames to keep a second, by their times.", 0
    )
    max_frames: int | None = _flag(_whole, _FRAMES, None, "video frames kept a clip.", 1)
    fps: float | None = _flag(
        _real, ("rlds", "lerobot", *_VIDEOS), None, "true frame rate of the videos, Hz.", 0.01
    )
    image_format: Literal["jpeg", "png"] = _flag(
        _enum, _FRAMES, "jpeg", ["jpeg", "png"], "of decoded frames."
    )
    calvin_part: Literal["language", "play"] = _flag(
        _enum, ("calvin",), "language", ["language", "play"], "calvin: what to read."
    )
    calvin_language: str = _flag(
        _text, ("calvin",), "", "calvin: folder of the language annotation."
    )
    calvin_actions: Literal["rel_actions", "actions"] = _flag(
        _enum,
        ("calvin",),
        "rel_actions",
        ["rel_actions", "actions"],
        "calvin: relative or absolute.",
    )
    primary: str = _flag(_text, ("lerobot",), "", "lerobot: camera that becomes 'static'.")
    wrist: str = _flag(_text, ("lerobot",), "", "lerobot: camera that becomes 'gripper'.")
    subtasks: Literal["cut", "first"] = _flag(
        _enum, ("lerobot",), "cut", ["cut", "first"], "lerobot: several tasks in an episode."
    )
    item_seconds: float = _flag(_real, _FILES, 600, "time limit of a clip or episode.", 1)
    item_memory_mb: int = _flag(_whole, _FILES, 2048, "memory limit of a clip or episode.", 64)
    tasks: Sequence[str] = _flag(_list, ("metaworld",), [], "metaworld: tasks.")
    episodes: int = _flag(_whole, ("metaworld",), 50, "metaworld: episodes a task.", 1)
    image_size: int = _flag(_whole, ("metaworld",), 64, "metaworld: side of a picture, pixels.", 8)
    seed: int = _flag(_whole, ("metaworld",), 0, "metaworld: seed of starts and noise.", 0)
    workers: int = _flag(_whole, (*_FILES, "metaworld"), 2, "parallel processes.", 1)
    strip_actions: bool = _flag(_switch, (*_SPLITS, "metaworld"), False, "write action-free video.")
    max_damaged: int = _flag(_whole, ("rlds",), 0, "rlds: damaged records to leave out at most.", 0)
    dataset_version: str = _flag(
        _text, ("rlds",), "", "rlds: version's folder; the newest by default."
    )
    allow_missing_shards: bool = _flag(_switch, ("rlds",), False, "rlds: read a partial download.")
    standardization: str = _flag(_text, ("rlds",), "", "rlds: .py file with STANDARDS of your own.")
    camera_fields: Sequence[str] = _flag(
        _list, ("rlds",), [], "rlds: camera=field to read as action-free video."
    )
    text_field: str = _flag(_text, ("rlds",), "", "rlds: field of the instruction of such video.")

    def origin(self) -> dict[str, Any]:
        """What decides the content of a store converted from files; paths by name, to move them."""
        values = {
            "kind": self.source,
            "input": pathlib.Path(self.input).resolve().name,
            "captions": pathlib.Path(self.captions).name,
        }
        same = ["name", "splits", "embodiment"]
        same += ["calvin_part", "calvin_actions"] if self.source == "calvin" else []
        same += ["calvin_language"] if self.calvin_language else []
        same += ["primary", "wrist", "subtasks"] if self.source == "lerobot" else []
        values |= {name: getattr(self, name) for name in same}
        if self.source == "rlds":  # the recipe says the rest
            values |= {"standardization": pathlib.Path(self.standardization).name}
        else:
            values |= self.clip_options().to_json()
        return values | ({"strip_actions": True} if self.strip_actions else {})

    def rlds_options(self) -> rlds_directory.RldsOptions:
        """What is read of an RLDS directory."""
        given: dict[str, Any] = {
            key: getattr(self, key) for key in rlds_directory.KEYS if getattr(self, key)
        }
        for key in given.keys() & {"splits", "camera_fields"}:
            given[key] = tuple(given[key])
        return rlds_directory.RldsOptions(**given)

    def clip_options(self) -> video_clips.ClipOptions:
        """How frames are stored."""
        return video_clips.ClipOptions(
            shorter_side=self.shorter_side,
            square_crop=self.square_crop,
            every=self.every,
            sample_fps=self.sample_fps,
            max_frames=self.max_frames,
            image_format=self.image_format,
            fps=self.fps,
        )


def open_source(options: ConvertOptions) -> base.Source:
    """Opens a raw dataset on disk, without its actions where they are not wanted; see `_open`."""
    source = _open(options)
    return base.WithoutActions(source) if options.strip_actions else source


def _open(options: ConvertOptions) -> base.Source:
    """Opens a raw dataset on disk.

    Raises:
        UserError: unknown kind, or no input.
    """
    if not options.input:
        raise errors.UserError("no path given", "--input", "give --input=PATH")
    if options.source == "rlds":
        return rlds.RldsSource(
            options.input,
            options.rlds_options(),
            name=options.name or None,
            workers=workers(options),
            max_damaged=options.max_damaged,
        )
    how = video_clips.Reading(
        name=options.name or pathlib.Path(options.input).resolve().name,
        embodiment=options.embodiment,
        splits=options.splits or None,
        options=options.clip_options(),
        workers=workers(options),
    )
    if options.source == "calvin":
        return calvin.open_source(
            options.input,
            how,
            part=options.calvin_part,
            language=options.calvin_language,
            actions=options.calvin_actions,
        )
    if options.source == "lerobot":
        return lerobot.open_source(
            options.input,
            how,
            primary=options.primary,
            wrist=options.wrist,
            subtasks=options.subtasks,
        )
    if options.source == "video_layout":
        return video_layout.open_source(options.input, how)
    return human_video.open_source(options.input, how, captions=options.captions or None)


def workers(options: ConvertOptions) -> base.Workers:
    """How clips and episodes are read."""
    return base.Workers(
        count=options.workers,
        seconds=options.item_seconds,
        memory_bytes=options.item_memory_mb << 20,
    )


def define_flags() -> None:
    """Defines one flag for each option; `--output` is shared with other commands."""
    for field in dataclasses.fields(ConvertOptions):
        if field.metadata:
            define = getattr(flags, f"DEFINE_{field.metadata['kind']}")
            define(field.name, *field.metadata["args"])
    flags.DEFINE_string("runner", "", "convert: by Apache Beam: direct, dataflow, spark, flink.")
    flags.DEFINE_list("beam_flags", [], "convert: of Beam, such as --region=...")
    flags.DEFINE_string("builder", "", "build: something_something_v2, video_folder, ...")
    flags.DEFINE_enum(
        "file_format",
        None,
        rlds_writer.FILE_FORMATS,
        "build (array_record by default), export (tfrecord): of the records.",
    )


def from_flags(command: str = "convert") -> ConvertOptions:
    """Returns what the command line of "convert" or "build" says.

    Raises:
        UserError: it gives a flag that the source does not use.
    """
    fields = dataclasses.fields(ConvertOptions)
    values: dict[str, Any] = {field.name: flags.FLAGS[field.name].value for field in fields}
    kind = command if command == "build" else values["source"]
    known = kind == "build" or kind in SOURCES
    unused = [
        f"--{field.name}"
        for field in fields
        if known and field.metadata and kind not in field.metadata["used_by"]
        if flags.FLAGS[field.name].present
    ]
    if unused:
        user = command if kind == command else f"--source={kind}"
        raise errors.UserError(
            f"{user} does not use {', '.join(unused)}",
            "command line",
            "leave it out",
        )
    return ConvertOptions(**values)
