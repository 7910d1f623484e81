"""CALVIN: play recordings of a Franka Panda in simulation, with language for parts of them.

    <directory>/{training,validation}/episode_<7 digits>.npz    one step each, 30 Hz
    <directory>/.../ep_start_end_ids.npy                        int[n, 2], recordings, inclusive
    <directory>/.../lang_annotations/auto_lang_ann.npy          pickled dictionary

All downloads (D, ABC, ABCD and debug) have this shape; what differs is which environments are in
`training`. Fields of a step (official description: github.com/mees/calvin, dataset/README.md):
`rgb_static` and `rgb_gripper` uint8[H, W, 3], `robot_obs` [15], and `rel_actions` or `actions` [7],
executed after the step's images. Relative actions are clipped differences in units of 0.02 m and
0.05 rad, absolute ones metres and radians of the world; both end with the gripper, +1 open.

The annotation has `language.ann` (texts), `language.task` and `info.indx` (first and last step,
inclusive). The embeddings that it holds as well are not read. Downloads name the folder after the
model of those embeddings as well, for example `lang_paraphrase-MiniLM-L3-v2`.
"""

from __future__ import annotations

import functools
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data_pipelines import episodes
from data_pipelines.formats import numpy_pickle
from data_pipelines.sources import base, video_clips
from defi_jax import errors

SPLITS = ("training", "validation")
CONTROL_HZ = 30.0
PLAY_STEPS = 600  # a recording has up to 60 000 steps; pieces of 20 s are read as one episode
_EMBODIMENTS = {"rel_actions": "franka_panda", "actions": "franka_panda_absolute"}
_CAMERAS = {"static": "rgb_static", "gripper": "rgb_gripper"}
_LANGUAGE_FOLDERS = ("lang_annotations", "lang_clip_resnet50", ".")
_ANNOTATION = "auto_lang_ann.npy"
_FIX = "download it again"
_MAX_MEMBER_BYTES = 1 << 26  # unpacked size of one array of a step

# What numpy's reader raises on damaged files; a header goes through Python's tokenizer.
_NUMPY_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    AttributeError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

Part = Literal["language", "play"]
Actions = Literal["rel_actions", "actions"]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive steps of one recording; see `base.Item`.

    Attributes:
        folder: of the split.
        first: number of the first step.
        last: number of the last step, inclusive.
        text: instruction, "" for play.
        task: CALVIN's name of the task, "" for play.
    """

    episode_id: str
    folder: pathlib.Path
    first: int
    last: int
    text: str
    task: str

    @property
    def item(self) -> str:
        """What a reject names."""
        return f"{self.folder}, steps {self.first} to {self.last}"


_SELECTIONS = {
    "language": "every annotated window, first to last step, inclusive",
    "play": f"all recordings, in pieces of {PLAY_STEPS} steps",
}


def open_source(
    directory: str | pathlib.Path,
    how: video_clips.Reading,
    *,
    part: Part = "language",
    language: str = "",
    actions: Actions = "rel_actions",
) -> base.ItemSource:
    """Opens a download of CALVIN, or one of its splits.

    Args:
        directory: that holds `training` and `validation`, or one of these.
        part: the annotated windows, or all recordings without language in pieces.
        language: folder of the annotation within a split; "" for a usual one.
        actions: which of the two to keep.

    Raises:
        UserError: no such directory or split, no annotation, or frames are to be left out.
        DataError: annotations or recordings of all splits are damaged.
    """
    how.options.check_keeps_frames()
    folders = _split_folders(pathlib.Path(directory), how.splits)
    find = functools.partial(_annotated, language=language) if part == "language" else _play
    segments, files, failures = [], [], {}
    for split, folder in folders.items():
        try:
            found, file = find(folder, f"{how.name}/{split}")
            files.append({"split": split, **video_clips.describe_file(file)})
            segments += found
        except errors.UserError as error:
            failures[split] = error
    if not files:
        raise next(iter(failures.values()))
    if not segments:
        raise errors.DataError(f"no {part} segments", directory, "choose the other part")
    recipe: dict[str, Any] = {
        "kind": "calvin",
        "captions" if part == "language" else "recordings": files,
        "selection": _SELECTIONS[part],
        "actions": actions,
    }
    if failures:
        recipe["left_out"] = [f"split {split}: {error}" for split, error in failures.items()]
    return how.source(segments, _read, recipe, actions=actions)


# ---- which steps ----


def _split_folders(
    directory: pathlib.Path, splits: Collection[str] | None
) -> dict[str, pathlib.Path]:
    if not directory.is_dir():
        raise errors.UserError("no such CALVIN directory", directory, "check --input")
    if directory.name in SPLITS:
        found = {directory.name: directory}
    else:
        found = {split: directory / split for split in SPLITS if (directory / split).is_dir()}
    hint = "" if found else "; give the folder that holds them"
    base.check_splits(splits or (SPLITS if not found else ()), found, directory, hint)
    return {split: folder for split, folder in found.items() if splits is None or split in splits}


def _annotated(
    folder: pathlib.Path, prefix: str, language: str
) -> tuple[list[Segment], pathlib.Path]:
    names = (language,) if language else _LANGUAGE_FOLDERS
    paths = [folder / name / _ANNOTATION for name in names]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        others = sorted(path.parent.name for path in folder.glob(f"*/{_ANNOTATION}"))
        named = " or ".join(f"--calvin_language={other}" for other in others)
        raise errors.UserError(
            "no language annotations",
            str(paths[0]),
            f"found others: give {named}" if others else "use --calvin_part=play, or download them",
        )
    kinds = (KeyError, TypeError, ValueError)
    with errors.DataError.instead_of(kinds, "language annotation cannot be used", path, _FIX):
        return list(_parse_annotation(numpy_pickle.load_dict(path), folder, prefix)), path


def _parse_annotation(
    annotation: Mapping[str, Any], folder: pathlib.Path, prefix: str
) -> Iterator[Segment]:
    texts = numpy_pickle.items(annotation["language"]["ann"])
    tasks = numpy_pickle.items(annotation["language"]["task"])
    windows = [numpy_pickle.items(pair) for pair in numpy_pickle.items(annotation["info"]["indx"])]
    for number, (text, task, (first, last)) in enumerate(zip(texts, tasks, windows, strict=True)):
        if not isinstance(text, str) or not isinstance(task, str):
            raise ValueError(f"annotation {number} has no text")
        if not isinstance(first, int) or not isinstance(last, int) or not 0 <= first <= last:
            raise ValueError(f"annotation {number} is from step {first} to {last}")
        yield Segment(
            # The number, because a window may have several annotations.
            episode_id=f"{prefix}/{number:05d}-{first:07d}-{last:07d}",
            folder=folder,
            first=first,
            last=last,
            text=text.strip(),
            task=task,
        )


def _play(folder: pathlib.Path, prefix: str) -> tuple[list[Segment], pathlib.Path]:
    path = folder / "ep_start_end_ids.npy"
    segments = []
    for start, end in _recordings(path):
        if not _step_path(folder, end).exists():
            what = f"the recording from step {start} to {end} has no last step"
            raise errors.DataError(what, path, _FIX)
        for first in range(start, end + 1, PLAY_STEPS):
            last = min(first + PLAY_STEPS - 1, end)
            segments.append(
                Segment(
                    episode_id=f"{prefix}/play-{first:07d}-{last:07d}",
                    folder=folder,
                    first=first,
                    last=last,
                    text="",
                    task="",
                )
            )
    return segments, path


def _recordings(path: pathlib.Path) -> Sequence[tuple[int, int]]:
    with errors.DataError.instead_of(_NUMPY_ERRORS, "recordings cannot be read", path, _FIX):
        table = np.load(path, allow_pickle=False)
        if table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind not in "iu":
            raise ValueError(f"{table.dtype}{list(table.shape)}, not whole numbers [n, 2]")
        if (table[:, 0] > table[:, 1]).any() or (table < 0).any():
            raise ValueError("a recording ends before it starts")
    return [(int(first), int(last)) for first, last in table]


# ---- steps to episodes ----


def _read(segment: Segment, *, how: video_clips.Reading, actions: Actions) -> episodes.Episode:
    last = segment.last
    if how.options.max_frames is not None:
        last = min(last, segment.first + how.options.max_frames - 1)
    frames: dict[str, list[bytes]] = {camera: [] for camera in _CAMERAS}
    columns: dict[str, list[np.ndarray]] = {actions: [], "robot_obs": []}
    for number in range(segment.first, last + 1):
        step = _read_step(_step_path(segment.folder, number), actions)
        for camera, field in _CAMERAS.items():
            frames[camera].append(how.options.encode(step[field]))
        for field, rows in columns.items():
            rows.append(np.asarray(step[field], np.float32))
    with errors.DataError.instead_of(ValueError, "steps differ", segment.item, _FIX):
        stacked = {field: np.stack(rows) for field, rows in columns.items()}
    return episodes.Episode(
        episode_id=segment.episode_id,
        source=how.name,
        embodiment=how.embodiment or _EMBODIMENTS[actions],
        instructions=(segment.text,),
        frames=frames,
        actions=stacked[actions],
        states=stacked["robot_obs"],
        fps=CONTROL_HZ,
        metadata={"task": segment.task, "steps": [segment.first, last], "action_field": actions},
    )


def _step_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"episode_{number:07d}.npz"


def _read_step(path: pathlib.Path, actions: Actions) -> dict[str, np.ndarray]:
    """Reads the fields that are kept of one step.

    Raises:
        DataError: missing, damaged, or a field has another shape.
    """
    fields = (*_CAMERAS.values(), actions, "robot_obs")
    if not path.exists():
        raise errors.DataError("step is missing", path, _FIX)
    with (
        errors.DataError.instead_of(_NUMPY_ERRORS, "step cannot be read", path, _FIX),
        np.load(path, allow_pickle=False) as file,
    ):
        if any(info.file_size > _MAX_MEMBER_BYTES for info in file.zip.infolist()):
            raise ValueError("an array is larger than a step's can be")
        step = {field: file[field] for field in fields}
    for field, value in step.items():
        is_right = (
            value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3 and value.size
            if field in _CAMERAS.values()
            else value.dtype.kind == "f" and value.ndim == 1
        )
        if not is_right:
            kind = f"{value.dtype}{list(value.shape)}"
            raise errors.DataError(f"field '{field}' is {kind}", path, _FIX)
    return step
