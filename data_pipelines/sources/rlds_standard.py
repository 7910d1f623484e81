"""How an RLDS directory is read: by a registered name, a file of your own, or as mere video."""

from __future__ import annotations

import pathlib

import numpy as np
from absl import logging

from data_pipelines.open_x import base, exported, registry
from data_pipelines.sources import rlds_directory
from defi_jax import cli, embodiment, errors

Field = base.Field

ADAPT = "convert the version it was written for, or adapt data_pipelines/open_x/datasets"


def choose_name(info: rlds_directory.DatasetInfo, options: rlds_directory.RldsOptions) -> str:
    """Returns the folder's name, or the one in `dataset_info.json` where only that is known."""
    known = registry.standards(options.standardization)
    return info.name if info.name in known and info.folder not in known else info.folder


def find(
    info: rlds_directory.DatasetInfo, name: str, options: rlds_directory.RldsOptions
) -> base.Standard:
    """Returns how a dataset is read.

    Raises:
        UserError: nothing is known of it and the options do not say how.
    """
    if exported.is_export(info.episode_fields):
        return exported.standard(info.step_fields)
    if options.camera_fields:
        return _as_video(info, options)
    if options.text_field or options.fps:
        raise errors.UserError(
            "text_field and fps are of action-free video", info.folder, "give camera_fields, too"
        )
    known = registry.standards(options.standardization)
    if name not in known:
        raise _unknown_dataset(info, name, options)
    if options.standardization and not own_file_text(name, options):
        logging.warning("%s is not in %s", name, options.standardization)
    return known[name]


def own_file_text(name: str, options: rlds_directory.RldsOptions) -> str:
    """Returns the text of the file of one's own that says how a dataset is read, "" without."""
    path, package = options.standardization, registry.standards("")
    is_own = path and registry.standards(path).get(name) is not package.get(name)
    return pathlib.Path(path).read_text(encoding="utf-8") if is_own else ""


def _as_video(
    info: rlds_directory.DatasetInfo, options: rlds_directory.RldsOptions
) -> base.Standard:
    """Returns how a dataset is read as action-free video.

    Raises:
        UserError: an option is not "camera=field", names no such field, or the rate is missing.
    """
    pairs = [text.partition("=") for text in options.camera_fields]
    cameras = {camera: field for camera, _, field in pairs}
    if not all(cameras) or not all(cameras.values()) or len(cameras) < len(options.camera_fields):
        raise errors.UserError(
            f"cannot read {','.join(options.camera_fields)} as camera=field,camera=field",
            "camera_fields",
            _suggestion(info),
        )
    if not options.fps and not fps_field(info):
        raise errors.UserError(
            f"nothing says the frame rate of {info.folder}", "fps", "give --fps=HZ (data.fps)"
        )
    fields = {**info.episode_fields, **info.step_fields}
    text = fields.get(options.text_field, base.TEXT)
    return base.Standard(
        robot=embodiment.UNKNOWN,
        control_hz=options.fps,
        cameras=cameras,
        actions=None,
        states=None,
        convention=None,
        language=options.text_field,
        language_field=text if text.kind == "text" else base.TEXT,
    )


def fps_field(info: rlds_directory.DatasetInfo) -> str:
    """Returns the field of the episode that tells its frame rate, "" where there is none."""
    fields = info.episode_fields.items()
    named = [name for name, field in fields if name.split("/")[-1] == "fps" and not field.shape]
    return named[0] if named else ""


def _unknown_dataset(
    info: rlds_directory.DatasetInfo, name: str, options: rlds_directory.RldsOptions
) -> errors.UserError:
    known = registry.standards(options.standardization)
    names = name if name == info.name else f"{name}' or '{info.name}"
    return errors.UserError(
        f"no standardisation for dataset '{names}'",
        options.standardization or "data_pipelines/open_x/datasets",
        f"read it as action-free video with {_suggestion(info)}; with actions by a file of your "
        f"own, --standardization=FILE.py (docs/open_x.md); or give --name of a known one, "
        f"{cli.nearest(name, known)}",
    )


def _suggestion(info: rlds_directory.DatasetInfo) -> str:
    """Returns the flags of `convert` that read the dataset's first fields as video."""
    images = [n for n, field in info.step_fields.items() if _is_like(field, base.IMAGE)]
    texts = [n for n, field in info.step_fields.items() if field == base.TEXT]
    pairs = zip(("static", "gripper", "secondary"), images, strict=False)
    text = f" --text_field={texts[0]}" if texts else ""
    return f"--camera_fields={','.join(map('='.join, pairs))}{text} --fps=HZ"


def check_fields(info: rlds_directory.DatasetInfo, standard: base.Standard) -> None:
    """Compares the dataset's own description with what the standardisation was written for.

    Raises:
        DataError: a field is missing, or of another kind, shape or sort of number.
    """
    surprises = []
    for name, wanted in standard.fields.items():
        is_text = name == standard.language
        found = info.step_fields.get(name, info.episode_fields.get(name) if is_text else None)
        if found is None:
            surprises.append(f"'{name}' is missing")
        elif not _is_like(found, wanted):
            surprises.append(f"'{name}' is {_kind(found)}, expected {_kind(wanted)}")
    if surprises:
        raise errors.DataError(
            f"dataset {info.name} {info.version} has other fields than its standardisation reads",
            "; ".join(surprises),
            f"it has {', '.join(info.step_fields)}; {ADAPT}",
        )


def _kind(field: Field) -> str:
    if field.kind == "tensor":
        return f"{field.dtype}{list(field.shape)}"
    shape = list(field.shape) or ""
    return f"a {field.dtype} image" if field.kind == "image" else f"{field.kind}{shape}"


def _is_like(found: Field, wanted: Field) -> bool:
    """Whether a field has the wanted kind, shape and sort of number, whatever its precision."""
    if found.kind != wanted.kind or found.shape != wanted.shape:
        return False
    if found.kind == "image":
        return found.dtype == wanted.dtype
    sorts = {np.dtype(dtype).kind for dtype in {found.dtype, wanted.dtype} - {"any"}}
    return found.kind != "tensor" or len(sorts) == 1 or wanted.dtype == "any"
