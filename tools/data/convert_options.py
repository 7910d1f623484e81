"""Flags of `launch/data.py convert`, and the source that they name."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from data_pipelines.sources import workers as workers_lib
from data_pipelines.tfds_builders import rlds_writer
from defi_jax import errors

_FILES = {"input", "name", "splits", "item_seconds", "item_memory_mb", "workers", "strip_actions"}
_FRAMES = {"shorter_side", "square_crop", "every", "sample_fps", "max_frames", "image_format"}
_USED = {
    "rlds": _FILES | {*rlds_directory.KEYS, "max_damaged"},
    "human_video": _FILES | _FRAMES | {"embodiment", "captions", "fps"},
    "video_layout": _FILES | _FRAMES | {"embodiment", "fps"},
    "calvin": _FILES | _FRAMES | {"calvin_part", "calvin_language", "calvin_actions"},
    "lerobot": _FILES | _FRAMES | {"embodiment", "primary", "wrist", "subtasks", "fps"},
    "build": _FILES - {"splits", "strip_actions"} | _FRAMES | {"embodiment", "captions", "fps"},
    "metaworld": {"tasks", "episodes", "image_size", "seed", "workers", "strip_actions"},
}
SOURCES = tuple(kind for kind in _USED if kind != "build")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Flags of `launch/data.py convert`.

    Attributes:
        source: one of `SOURCES`.
        input: directory of the raw dataset.
        output: of the store.
        name: of the dataset; "" for its own.
        splits: to read; empty for all.
        embodiment: of videos; RLDS datasets know theirs.
        captions: caption file of a video folder; "" searches.
        shorter_side, square_crop, every, sample_fps, max_frames, image_format, fps: of videos, see
            `video_clips.ClipOptions`.
        calvin_part, calvin_language, calvin_actions: see `calvin.open_source`.
        primary, wrist, subtasks: cameras and tasks of LeRobot, see `lerobot.open_source`.
        item_seconds, item_memory_mb: what reading one clip or episode may take.
        tasks, episodes, image_size, seed, workers: of simulated demonstrations, see
            `sources.metaworld.collect`.
        strip_actions: make action-free video.
        max_damaged: records of RLDS files that may be damaged, and become rejects.
        dataset_version, allow_missing_shards, standardization, camera_fields, text_field: of RLDS,
            see `rlds_directory.RldsOptions`.
    """

    source: str
    input: str
    output: str
    name: str
    splits: Sequence[str]
    embodiment: str
    captions: str
    shorter_side: int
    square_crop: bool
    every: int
    sample_fps: float | None
    max_frames: int | None
    image_format: Any
    fps: float | None
    calvin_part: Any
    calvin_language: str
    calvin_actions: Any
    primary: str
    wrist: str
    subtasks: Any
    item_seconds: float
    item_memory_mb: int
    tasks: Sequence[str]
    episodes: int
    image_size: int
    seed: int
    workers: int
    strip_actions: bool
    max_damaged: int
    dataset_version: str
    allow_missing_shards: bool
    standardization: str
    camera_fields: Sequence[str]
    text_field: str

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
    splits = options.splits or None
    if options.source == "rlds":
        return rlds.RldsSource(
            options.input,
            options.rlds_options(),
            name=options.name or None,
            workers=workers(options),
            max_damaged=options.max_damaged,
        )
    common: dict[str, Any] = {
        "name": options.name or pathlib.Path(options.input).resolve().name,
        "splits": splits,
        "options": options.clip_options(),
        "workers": workers(options),
    }
    if options.source == "calvin":
        return calvin.open_source(
            options.input,
            part=options.calvin_part,
            language=options.calvin_language,
            actions=options.calvin_actions,
            **common,
        )
    common["embodiment"] = options.embodiment
    if options.source == "lerobot":
        return lerobot.open_source(
            options.input,
            primary=options.primary,
            wrist=options.wrist,
            subtasks=options.subtasks,
            **common,
        )
    if options.source == "video_layout":
        return video_layout.open_source(options.input, **common)
    return human_video.open_source(options.input, captions=options.captions or None, **common)


def workers(options: ConvertOptions) -> base.Workers:
    """How clips and episodes are read."""
    limits = workers_lib.Limits(
        seconds=options.item_seconds, memory_bytes=options.item_memory_mb << 20
    )
    return base.Workers(count=options.workers, limits=limits)


def define_flags() -> None:
    """Defines one flag for each option; `--output` is shared with other commands."""
    flags.DEFINE_string("source", "", "kind of the raw data.")
    flags.DEFINE_string("input", "", "directory of the raw data.")
    flags.DEFINE_string("name", "", "name of the dataset instead of its own.")
    flags.DEFINE_list("splits", [], "splits to read; rlds: train by default, `all` for all.")
    flags.DEFINE_string("embodiment", "", "who acts in videos; human without actions.")
    flags.DEFINE_string("captions", "", "caption file of a video folder.")
    flags.DEFINE_integer("shorter_side", 256, "shrink video frames to this, pixels.", 16)
    flags.DEFINE_bool("square_crop", False, "keep the centre square of video frames.")
    flags.DEFINE_integer("every", 1, "keep every n-th video frame.", 1)
    flags.DEFINE_float("sample_fps", None, "video frames to keep a second, by their times.", 0)
    flags.DEFINE_integer("max_frames", None, "video frames kept a clip.", 1)
    flags.DEFINE_float("fps", None, "true frame rate of the videos, Hz.", 0.01)
    flags.DEFINE_enum("image_format", "jpeg", ["jpeg", "png"], "of decoded frames.")
    flags.DEFINE_enum("calvin_part", "language", ["language", "play"], "calvin: what to read.")
    flags.DEFINE_string("calvin_language", "", "calvin: folder of the language annotation.")
    flags.DEFINE_enum(
        "calvin_actions", "rel_actions", ["rel_actions", "actions"], "calvin: relative or absolute."
    )
    flags.DEFINE_string("primary", "", "lerobot: camera that becomes 'static'.")
    flags.DEFINE_string("wrist", "", "lerobot: camera that becomes 'gripper'.")
    flags.DEFINE_enum("subtasks", "cut", ["cut", "first"], "lerobot: several tasks in an episode.")
    flags.DEFINE_float("item_seconds", 600, "time limit of a clip or episode.", 1)
    flags.DEFINE_integer("item_memory_mb", 2048, "memory limit of a clip or episode.", 64)
    flags.DEFINE_list("tasks", [], "metaworld: tasks.")
    flags.DEFINE_integer("episodes", 50, "metaworld: episodes a task.", 1)
    flags.DEFINE_integer("image_size", 64, "metaworld: side of a picture, pixels.", 8)
    flags.DEFINE_integer("seed", 0, "metaworld: seed of starts and noise.", 0)
    flags.DEFINE_integer("workers", 2, "parallel processes.", 1)
    flags.DEFINE_bool("strip_actions", False, "Write action-free video.")
    flags.DEFINE_string("runner", "", "convert: by Apache Beam: direct, dataflow, spark, flink.")
    flags.DEFINE_list("beam_flags", [], "convert: of Beam, such as --region=...")
    flags.DEFINE_string("builder", "", "build: something_something_v2, video_folder, ...")
    flags.DEFINE_enum(
        "file_format",
        None,
        rlds_writer.FILE_FORMATS,
        "build (array_record by default), export (tfrecord): of the records.",
    )
    flags.DEFINE_integer("max_damaged", 0, "rlds: damaged records to leave out at most.", 0)
    flags.DEFINE_string("dataset_version", "", "rlds: version's folder; the newest by default.")
    flags.DEFINE_bool("allow_missing_shards", False, "rlds: read a partial download.")
    flags.DEFINE_string("standardization", "", "rlds: .py file with STANDARDS of your own.")
    flags.DEFINE_list("camera_fields", [], "rlds: camera=field to read as action-free video.")
    flags.DEFINE_string("text_field", "", "rlds: field of the instruction of such video.")


def from_flags(command: str = "convert") -> ConvertOptions:
    """Returns what the command line of "convert" or "build" says.

    Raises:
        UserError: it gives a flag that the source does not use.
    """
    names = [field.name for field in dataclasses.fields(ConvertOptions)]
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    kind = command if command in _USED else values["source"]
    used = _USED.get(kind, set(names)) | {"output"} | ({"source"} if kind != command else set())
    unused = [f"--{name}" for name in names if flags.FLAGS[name].present and name not in used]
    if unused:
        user = command if kind == command else f"--source={kind}"
        raise errors.UserError(
            f"{user} does not use {', '.join(unused)}",
            "command line",
            "leave it out",
        )
    return ConvertOptions(**values)
