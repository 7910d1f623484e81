"""The two json files beside an RLDS dataset's shards: `dataset_info.json` and `features.json`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.formats import json_files
from data_pipelines.open_x import base as standardize_base
from defi_jax import errors

Field = standardize_base.Field
STEPS = "steps/"  # before the name of a step's field

_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a split, with the number of records it must hold."""

    split: str
    index: int
    path: epath.Path
    num_records: int


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What the two JSON files beside the shards say.

    Attributes:
        name: of the dataset.
        version: its folder's name.
        shards: of the chosen splits, in order.
        step_fields: field of a step, for example "observation/state" -> how it is stored.
        paths: field, a step's as "steps/...", -> its names from the outermost; a name may itself
            hold slashes.
        episode_fields: field of the episode, for example "episode_metadata/file_path".
    """

    name: str
    version: str
    shards: tuple[Shard, ...]
    step_fields: Mapping[str, Field]
    episode_fields: Mapping[str, Field]
    paths: Mapping[str, tuple[str, ...]]


def is_dataset(directory: epath.PathLike) -> bool:
    """Whether a directory holds an RLDS dataset, itself or in a version folder."""
    directory = epath.Path(directory)
    return _is_directory(directory) and bool(
        (directory / "dataset_info.json").exists() or _versions(directory)
    )


def load_info(directory: epath.PathLike, *, splits: Collection[str] | None = None) -> DatasetInfo:
    """Reads the description of a dataset and checks that its shards are there.

    Args:
        directory: the version folder, or the folder above; then the newest version is taken.
        splits: names to read; None for all.

    Raises:
        UserError: no such directory or split, or a file format other than TFRecord.
        DataError: the description is damaged, or shards are missing (all of them are named).
    """
    directory = _version_directory(epath.Path(directory))
    try:
        return _parse_info(directory, splits)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise errors.DataError(
            f"dataset_info.json or features.json is not as TFDS writes it ({error!r})",
            str(directory),
            "download both again",
        ) from error


def _parse_info(directory: epath.Path, splits: Collection[str] | None) -> DatasetInfo:
    info = _load_json(directory / "dataset_info.json")
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise errors.UserError(
            f"RLDS file format '{info['fileFormat']}'", str(directory), "only tfrecord is read"
        )
    shards = tuple(_shards(directory, info, splits))
    missing = [shard.path.name for shard in shards if not shard.path.exists()]
    if missing:
        raise errors.DataError(
            f"{len(missing)} of {len(shards)} shards are missing",
            f"{directory}: {', '.join(missing)}",
            "download them again",
        )
    leaves = list(_leaves(_load_json(directory / "features.json"), (), sequences=0))
    fields = {"/".join(path): field for path, field in leaves}
    step_fields = {
        name.removeprefix(STEPS): field for name, field in fields.items() if _is_step(name)
    }
    if not step_fields:
        raise errors.DataError(
            "no 'steps' feature, so not an RLDS dataset", str(directory / "features.json")
        )
    return DatasetInfo(
        name=info["name"],
        version=directory.name,
        shards=shards,
        step_fields=step_fields,
        episode_fields={name: field for name, field in fields.items() if not _is_step(name)},
        paths={"/".join(path): path for path, _ in leaves},
    )


def _version_directory(directory: epath.Path) -> epath.Path:
    if not _is_directory(directory):
        raise errors.UserError("no such RLDS directory", str(directory), "check --input")
    if (directory / "dataset_info.json").exists():
        return directory
    versions = _versions(directory)
    if not versions:
        raise errors.UserError(
            "no dataset_info.json, here or in a version folder",
            str(directory),
            "give the folder that holds the .tfrecord files",
        )
    return max(versions, key=lambda path: tuple(int(part) for part in path.name.split(".")))


def _is_directory(path: epath.Path) -> bool:
    """Whether it is there.

    Raises:
        UserError: what reads this kind of path is not installed.
    """
    try:
        return path.is_dir()
    except ImportError as error:
        raise errors.UserError(
            f"bucket cannot be read ({error})", str(path), "pip install 'defi-jax[gcs]'"
        ) from error


def _versions(directory: epath.Path) -> list[epath.Path]:
    return [
        path
        for path in directory.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").exists()
    ]


def _load_json(path: epath.Path) -> dict[str, Any]:
    return json_files.load(path, what="description", fix="download it again")


def _shards(
    directory: epath.Path, info: Mapping[str, Any], splits: Collection[str] | None
) -> Iterator[Shard]:
    where = str(directory / "dataset_info.json")
    known = {split["name"]: split for split in info.get("splits", [])}
    absent = sorted(set(splits or known) - set(known))
    if absent or not known:
        raise errors.UserError(
            f"no split {', '.join(absent)}", where, f"it has: {', '.join(sorted(known)) or 'none'}"
        )
    for name in known if splits is None else splits:
        lengths = known[name].get("shardLengths")
        if not lengths:
            raise errors.DataError(f"split '{name}' has no shardLengths", where)
        template = known[name].get("filepathTemplate") or _DEFAULT_TEMPLATE
        for index, length in enumerate(lengths):
            filename = template.format(
                DATASET=info["name"],
                SPLIT=name,
                FILEFORMAT="tfrecord",
                SHARD_INDEX=f"{index:05d}",
                NUM_SHARDS=f"{len(lengths):05d}",
                SHARD_X_OF_Y=f"{index:05d}-of-{len(lengths):05d}",
            )
            path = directory / filename
            yield Shard(split=name, index=index, path=path, num_records=int(length))


def _is_step(name: str) -> bool:
    return name.startswith(STEPS)


def _leaves(
    node: Mapping[str, Any], path: tuple[str, ...], *, sequences: int
) -> Iterator[tuple[tuple[str, ...], Field]]:
    """Walks features.json; `sequences` counts the sequences around a leaf (the steps are one)."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, (*path, name), sequences=sequences)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], path, sequences=sequences + 1)
    elif sequences > (path[:1] == (STEPS.rstrip("/"),)):
        yield path, Field(kind="other")
    else:
        yield path, _leaf(node)


def _leaf(node: Mapping[str, Any]) -> Field:
    if "text" in node:
        return Field(kind="text")
    if "image" in node:
        return Field(kind="image", dtype="uint8")
    if "tensor" not in node:
        return Field(kind="other")
    tensor = node["tensor"]
    try:
        np.dtype(tensor["dtype"])
    except TypeError:
        return Field(kind="other")  # a sort of number that numpy does not know
    dimensions = [int(size) for size in tensor["shape"].get("dimensions", [])]
    return Field(
        kind="text" if tensor["dtype"] in ("string", "object") else "tensor",
        shape=tuple(size if size >= 0 else None for size in dimensions),
        dtype=tensor["dtype"],
        encoding=tensor.get("encoding", "none"),
    )
