"""An RLDS directory as TFDS describes it: its version, its splits, their shards and the features.

`tensorflow_datasets` reads `dataset_info.json` and `features.json`, without TensorFlow. It is
imported on first use, because that takes half a second. `tfds.builder_from_directory` would refuse
a whole directory for one feature that needs TensorFlow (audio, video) or a class of its own, so
its two steps are taken here, and such a feature is passed over.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from etils import epath

from data_pipelines.formats import json_files
from data_pipelines.open_x import base as standardize_base
from data_pipelines.sources import base
from defi_jax import errors

Result = TypeVar("Result")
Field = standardize_base.Field
STEPS = "steps/"  # before the name of a step's field
ALL_SPLITS = ("all",)
FILE_FORMATS = ("tfrecord", "array_record")

_INFO, _FEATURES = "dataset_info.json", "features.json"
_SHOWN_RANGES = 20  # of missing shards, in a message


@dataclass(frozen=True, kw_only=True)
class RldsOptions:
    """What is read of an RLDS directory: a flag of `convert`, and a key of `data`, each.

    Attributes:
        dataset_version: name of the version's folder; "" for the newest.
        splits: that are read, `ALL_SPLITS` for every one.
        allow_missing_shards: whether a partial download is read as far as it goes.
        standardization: Python file with `STANDARDS` of data sets that the package does not know.
        camera_fields: "camera=field" of each image field to read as action-free video; with none,
            the standardisation decides.
        text_field: field of the instruction of action-free video; "" for none.
        fps: frames per second of action-free video; 0 where its episodes have a field `fps`.
    """

    dataset_version: str = ""
    splits: tuple[str, ...] = ("train",)
    allow_missing_shards: bool = False
    standardization: str = ""
    camera_fields: tuple[str, ...] = ()
    text_field: str = ""
    fps: float = 0.0


DEFAULTS = RldsOptions()
KEYS = tuple(field.name for field in dataclasses.fields(RldsOptions))


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a split, with the number of records it must hold."""

    split: str
    index: int
    path: epath.Path
    num_records: int
    file_format: str = "tfrecord"


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What the two JSON files beside the shards say.

    Attributes:
        name: in `dataset_info.json`.
        folder: name of the folder above the version, as in `tfds.builder(folder, data_dir=...)`.
        directory: the version's folder.
        shards: shards of the chosen splits that are there, in order.
        left_out: what is not read and how much, a text each.
        step_fields: field of a step, for example "observation/state" -> how it is stored.
        episode_fields: field of the episode, for example "episode_metadata/file_path".
        paths: field, a step's as "steps/...", -> its names from the outermost; a name may itself
            hold slashes.
    """

    name: str
    folder: str
    directory: epath.Path
    shards: tuple[Shard, ...]
    left_out: tuple[str, ...]
    step_fields: Mapping[str, Field]
    episode_fields: Mapping[str, Field]
    paths: Mapping[str, tuple[str, ...]]

    @property
    def version(self) -> str:
        """Name of the version's folder."""
        return self.directory.name

    @property
    def splits(self) -> list[str]:
        """Names of the splits of the shards, in order."""
        return list(dict.fromkeys(shard.split for shard in self.shards))


def is_dataset(directory: epath.PathLike) -> bool:
    """Whether a directory holds an RLDS dataset, itself or in a version folder."""
    directory = epath.Path(directory)
    return _is_directory(directory) and bool((directory / _INFO).exists() or _versions(directory))


def load_info(directory: epath.PathLike, options: RldsOptions = DEFAULTS) -> DatasetInfo:
    """Reads the description of a dataset and checks that its shards are there.

    Args:
        directory: the version folder, or the folder above.
        options: which version and splits.

    Raises:
        UserError: no such directory, version or split, or a file format that is not read.
        DataError: the description is damaged, or shards are missing.
    """
    if "://" not in os.fspath(directory):
        directory = os.path.abspath(directory)  # "." has no name
    directory = _version_directory(epath.Path(directory), options.dataset_version)
    name, config, splits = _parsed(directory / _INFO, _read_splits)
    leaves = _parsed(directory / _FEATURES, _read_features)
    fields = {"/".join(path): field for path, field in leaves}
    step_fields = {
        name.removeprefix(STEPS): field for name, field in fields.items() if _is_step(name)
    }
    if not step_fields:
        raise errors.DataError(
            "no 'steps' feature, so not an RLDS dataset", str(directory / _FEATURES)
        )
    shards, left_out = _choose(directory, splits, options)
    return DatasetInfo(
        name=name,
        folder=_folder_name(directory, config),
        directory=directory,
        shards=tuple(shards),
        left_out=tuple(left_out),
        step_fields=step_fields,
        episode_fields={name: field for name, field in fields.items() if not _is_step(name)},
        paths={"/".join(path): path for path, _ in leaves},
    )


def _parsed(path: epath.Path, read: Callable[[epath.Path], Result]) -> Result:
    """Returns what a description says.

    Raises:
        DataError: it is not there, or not as TFDS writes it.
    """
    if not path.exists():
        raise errors.DataError("description is missing", path, "download it too")
    try:
        return read(path)
    except Exception as error:  # of JSON, of protocol buffers, or of TFDS
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise errors.DataError(
            f"description is not as TFDS writes it ({text})", path, "download it again"
        ) from error


# ---- folders ----


def _version_directory(directory: epath.Path, version: str) -> epath.Path:
    if not _is_directory(directory):
        raise errors.UserError("no such RLDS directory", directory, "check --input")
    if (directory / _INFO).exists():
        found = {directory.name: directory}
    else:
        found = {path.name: path for path in _versions(directory)}
    if not found:
        raise errors.UserError(
            f"no {_INFO}, here or in a version folder",
            directory,
            "give the folder that holds the records",
        )
    if version and version not in found:
        there = f"there is {', '.join(sorted(found))}"
        raise errors.UserError(f"no version {version}", directory, there)
    return found[version or max(found, key=lambda name: [*map(int, re.findall(r"\d+", name))])]


def _is_directory(path: epath.Path) -> bool:
    """Whether it is there.

    Raises:
        UserError: what reads this kind of path is not installed.
    """
    fix = "pip install 'defi-jax[gcs]'"
    with errors.UserError.instead_of(ImportError, "bucket cannot be read", path, fix):
        return path.is_dir()


def _is_version(name: str) -> bool:
    return re.fullmatch(r"\d+\.\d+\.\d+", name) is not None


def _versions(directory: epath.Path) -> list[epath.Path]:
    return [
        path for path in directory.iterdir() if _is_version(path.name) and (path / _INFO).exists()
    ]


def _folder_name(directory: epath.Path, config: str) -> str:
    """Returns the data set's name of <name>/<version>, <name>/<config>/<version> or <name>."""
    folder = directory.parent if _is_version(directory.name) else directory
    return folder.parent.name if config and folder.name == config else folder.name


# ---- splits and shards ----


def _read_splits(path: epath.Path) -> tuple[str, str, dict[str, list[Shard]]]:
    """Returns the dataset's name, its configuration ("" without), and shards by split."""
    from tensorflow_datasets.core import dataset_info

    info = dataset_info.read_from_json(path)
    if not info.name:
        raise ValueError("no name")
    file_format = info.file_format or FILE_FORMATS[0]  # older ones do not say it
    found = dataset_info.get_split_dict_from_proto(info, path.parent, file_format)
    splits = {}
    for name, split in found.items():
        lengths = [int(length) for length in split.shard_lengths]
        paths = split.filename_template.sharded_filepaths(len(lengths))
        splits[name] = [
            Shard(split=name, index=i, path=place, num_records=length, file_format=file_format)
            for i, (place, length) in enumerate(zip(paths, lengths, strict=True))
        ]
    return info.name, info.config_name, splits


def _choose(
    directory: epath.Path, splits: Mapping[str, list[Shard]], options: RldsOptions
) -> tuple[list[Shard], list[str]]:
    """Returns the shards to read, and what is left out.

    Raises:
        UserError: a split that there is not, or a file format that is not read.
        DataError: shards are missing.
    """
    where = directory / _INFO
    chosen = tuple(splits) if options.splits == ALL_SPLITS else options.splits
    hint = "; choose by `splits`, or all"
    base.check_splits(chosen or ("",), sorted(splits), where, hint)
    left_out = [
        f"split {name}: {sum(shard.num_records for shard in shards)} episodes"
        for name, shards in splits.items()
        if name not in chosen
    ]
    found: list[Shard] = []
    listed: dict[epath.Path, set[str]] = {}  # one listing of a bucket instead of many requests
    for name in dict.fromkeys(chosen):
        shards = splits[name]
        if not shards:
            raise errors.DataError(f"split '{name}' has no shardLengths", where)
        if shards[0].file_format not in FILE_FORMATS:
            what = f"RLDS file format '{shards[0].file_format}'"
            fix = f"only {' and '.join(FILE_FORMATS)} are read"
            raise errors.UserError(what, directory, fix)
        for folder in {shard.path.parent for shard in shards} - set(listed):
            listed[folder] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        there = [shard for shard in shards if shard.path.name in listed[shard.path.parent]]
        if len(there) < len(shards):
            missing = [shard for shard in shards if shard not in there]
            left_out.append(_missing(missing, len(shards), directory, options.allow_missing_shards))
        found += there
    if not found:
        raise errors.DataError("no shard is there", directory, "download them")
    return found, left_out


def _missing(missing: Sequence[Shard], count: int, directory: epath.Path, allowed: bool) -> str:
    """Returns what missing shards leave out.

    Raises:
        DataError: it is not allowed.
    """
    split, ranges = missing[0].split, _ranges([shard.index for shard in missing])
    if not allowed:
        raise errors.DataError(
            f"{len(missing)} of {count} shards of split {split} are missing: shards {ranges} of "
            f"{count}",
            f"{directory}, the first is {missing[0].path.name}",
            "download them again, or read what is there with --allow_missing_shards (of a stream "
            "data.allow_missing_shards=True)",
        )
    lost = sum(shard.num_records for shard in missing)
    return f"split {split}: {len(missing)} missing shards ({ranges} of {count}), {lost} episodes"


def _ranges(numbers: Sequence[int]) -> str:
    """Returns [3, 4, 5, 22] as "3-5, 22"."""
    by_gap = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in run] for _, run in by_gap]
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:_SHOWN_RANGES]]
    more = len(runs) - len(shown)
    return ", ".join(shown) + (f" and {more} more ranges" if more else "")


# ---- features ----


def _is_step(name: str) -> bool:
    return name.startswith(STEPS)


def _read_features(path: epath.Path) -> list[tuple[tuple[str, ...], Field]]:
    from google.protobuf import json_format
    from tensorflow_datasets.core import features
    from tensorflow_datasets.core.proto import feature_pb2

    content = json_files.parse(path.read_text(encoding="utf-8"))
    if "type" in content:  # as written before TFDS 4.4
        return list(_leaves(features.FeatureConnector.from_json(content).to_proto(), ()))
    message = feature_pb2.Feature()  # pyright: ignore[reportAttributeAccessIssue]
    return list(_leaves(json_format.ParseDict(content, message), ()))


def _leaves(
    feature: Any, path: tuple[str, ...], rank: int = 0
) -> Iterator[tuple[tuple[str, ...], Field]]:
    """Walks the features; `rank` counts the sequences around a leaf (the steps are one)."""
    kind = feature.WhichOneof("content")
    if kind is None:
        raise ValueError(f"feature '{'/'.join(path)}' has no content")
    if kind == "features_dict":
        for name, child in sorted(feature.features_dict.features.items()):
            yield from _leaves(child, (*path, name), rank)
    elif kind == "sequence":
        yield from _leaves(feature.sequence.feature, path, rank + 1)
    else:
        is_nested = rank > (path[:1] == (STEPS.rstrip("/"),))
        needs_tensorflow = kind in ("audio", "video")
        yield path, Field(kind="other") if is_nested or needs_tensorflow else _field(feature)


def _field(proto: Any) -> Field:
    """Returns how a feature is stored; "other" where that is not one value a step."""
    from tensorflow_datasets.core import features

    other = Field(kind="other")
    try:
        feature = features.FeatureConnector.from_proto(proto)
    except (ImportError, ValueError, TypeError, KeyError):
        return other  # it needs TensorFlow, or a class that is not installed
    value, stored = feature.get_tensor_info(), feature.get_serialized_info()
    if isinstance(value, Mapping) or isinstance(stored, Mapping):
        return other  # several lists, such as those of a tensor of free shape
    dtype = np.dtype(value.np_dtype)
    if isinstance(feature, features.Image):
        return Field(kind="image", dtype=dtype.name)
    if dtype.kind in "OSU":
        return Field(kind="text", shape=tuple(value.shape), dtype="object")
    encoding = proto.tensor.encoding or "none"
    if (np.dtype(stored.np_dtype).kind in "OSU") != (encoding != "none"):
        return other  # an encoded file, such as a video
    return Field(kind="tensor", shape=tuple(value.shape), dtype=dtype.name, encoding=encoding)
