"""Flags of `launch/data.py convert`, and the source that they name."""

from __future__ import annotations

import dataclasses
import pathlib
import typing
from collections.abc import Sequence
from typing import Any, Literal, cast

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
SIMULATED = ("metaworld", "calvin_sim", "libero_sim")
_SPLITS = ("rlds", "human_video", "video_layout", "calvin", "lerobot")
SOURCES = (*_SPLITS, *SIMULATED)
_RLDS, _CALVIN, _LEROBOT, _METAWORLD = ("rlds",), ("calvin",), ("lerobot",), ("metaworld",)

# How absl names the kinds of flags, by the types of their values.
_KINDS: dict[Any, str] = {
    str: "string",
    Sequence[str]: "list",
    bool: "bool",
    int: "integer",
    int | None: "integer",
    float: "float",
    float | None: "float",
}


def _flag(used_by: Sequence[str], default: Any, text: str, *least: float) -> Any:
    """Returns a field that is a flag of its type; a `Literal` lists the choices.

    Args:
        used_by: the sources, or the command, that read it.
        default: its value where it is not given.
        text: its help.
        *least: the least value of a number, where there is one.
    """
    return dataclasses.field(
        default=default, metadata={"used_by": used_by, "text": text, "least": least}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Flags of `launch/data.py convert` and `build`, and who uses each."""

    source: str = _flag(SOURCES, "", "kind of the raw data.")
    output: str = ""  # a flag that other commands share
    input: str = _flag(_FILES, "", "directory of the raw data.")
    name: str = _flag(_FILES, "", "name of the dataset instead of its own.")
    splits: Sequence[str] = _flag(
        _SPLITS, (), "splits to read; rlds: train by default, `all` for all."
    )
    embodiment: str = _flag(("lerobot", *_VIDEOS), "", "who acts in videos; human without actions.")
    captions: str = _flag(
        ("human_video", "build"), "", "caption file of a video folder; '' searches."
    )
    shorter_side: int = _flag(_FRAMES, 256, "shrink video frames to this, pixels.", 16)
    square_crop: bool = _flag(_FRAMES, False, "keep the centre square of video frames.")
    every: int = _flag(_FRAMES, 1, "keep every n-th video frame.", 1)
    sample_fps: float | None = _flag(
        _FRAMES, None, "video frames to keep a second, by their times.", 0
    )
    max_frames: int | None = _flag(_FRAMES, None, "video frames kept a clip.", 1)
    fps: float | None = _flag(
        ("rlds", "lerobot", *_VIDEOS), None, "true frame rate of the videos, Hz.", 0.01
    )
    image_format: Literal["jpeg", "png"] = _flag(_FRAMES, "jpeg", "of decoded frames.")
    calvin_part: Literal["language", "play"] = _flag(_CALVIN, "language", "calvin: what to read.")
    calvin_language: str = _flag(_CALVIN, "", "calvin: folder of the language annotation.")
    calvin_actions: Literal["rel_actions", "actions"] = _flag(
        _CALVIN, "rel_actions", "calvin: relative or absolute."
    )
    primary: str = _flag(_LEROBOT, "", "lerobot: camera that becomes 'static'.")
    wrist: str = _flag(_LEROBOT, "", "lerobot: camera that becomes 'gripper'.")
    subtasks: Literal["cut", "first"] = _flag(
        _LEROBOT, "cut", "lerobot: several tasks in an episode."
    )
    item_seconds: float = _flag(_FILES, 600, "time limit of a clip or episode.", 1)
    item_memory_mb: int = _flag(_FILES, 2048, "memory limit of a clip or episode.", 64)
    tasks: Sequence[str] = _flag(SIMULATED, (), "of a simulator: tasks.")
    episodes: int = _flag(SIMULATED, 50, "of a simulator: episodes a task.", 1)
    image_size: int = _flag(_METAWORLD, 64, "metaworld: side of a picture, pixels.", 8)
    seed: int = _flag(SIMULATED, 0, "of a simulator: seed of starts and noise.", 0)
    workers: int = _flag((*_FILES, *SIMULATED), 2, "parallel processes.", 1)
    strip_actions: bool = _flag(SOURCES, False, "write action-free video.")
    max_damaged: int = _flag(_RLDS, 0, "rlds: damaged records to leave out at most.", 0)
    dataset_version: str = _flag(_RLDS, "", "rlds: version's folder; the newest by default.")
    allow_missing_shards: bool = _flag(_RLDS, False, "rlds: read a partial download.")
    standardization: str = _flag(_RLDS, "", "rlds: .py file with STANDARDS of your own.")
    camera_fields: Sequence[str] = _flag(
        _RLDS, (), "rlds: camera=field to read as action-free video."
    )
    text_field: str = _flag(_RLDS, "", "rlds: field of the instruction of such video.")

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
            values |= dataclasses.asdict(self.clip_options())
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
        names = {field.name for field in dataclasses.fields(video_clips.ClipOptions)}
        return video_clips.ClipOptions(**{k: v for k, v in vars(self).items() if k in names})


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
    hints = typing.get_type_hints(ConvertOptions)
    for field in dataclasses.fields(ConvertOptions):
        if not field.metadata:
            continue
        hint, text = hints[field.name], field.metadata["text"]
        if typing.get_origin(hint) is Literal:
            choices: Any = typing.get_args(hint)
            flags.DEFINE_enum(field.name, cast(Any, field.default), choices, text)
        else:
            define = getattr(flags, f"DEFINE_{_KINDS[hint]}")
            define(field.name, field.default, text, *field.metadata["least"])
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
    unused = [
        f"--{field.name}"
        for field in fields
        if field.metadata and kind not in field.metadata["used_by"]
        if flags.FLAGS[field.name].present
    ]
    if unused and kind in ("build", *SOURCES):  # `run_convert` names an unknown source
        user = command if kind == command else f"--source={kind}"
        what = f"{user} does not use {', '.join(unused)}"
        raise errors.UserError(what, "command line", "leave it out")
    return ConvertOptions(**values)
