"""From an episode store to an RLDS directory as TFDS writes it, without TensorFlow.

    DIR/<name>/1.0.0/{dataset_info.json, features.json, <name>-train.tfrecord-00000-of-00003, ...}

`tfds.load(name, data_dir=DIR)`, dlimp, Octo's loader and `sources.rlds` read it. A step has
`observation/{image_0, ..., state}`, `action`, `language_instruction` and RLDS's own fields; images
are the stored JPEG or PNG bytes. Actions and states are the standardised ones: whoever reads the
export must not standardise them again.

The directory appears as a whole or not at all: it grows under a temporary name beside its place.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
from typing import Any

import numpy as np
import tqdm

from data_pipelines import episodes, files
from data_pipelines.formats import image as image_lib
from data_pipelines.formats import tfrecord
from data_pipelines.open_x import exported
from data_pipelines.store import reader
from defi_jax import errors

VERSION = "1.0.0"
SHARD_BYTES = 256 << 20  # TFDS's own shards are of this order

_NAME = re.compile(r"[a-z][a-z0-9_]*")  # as TFDS allows
_CLASSES = "tensorflow_datasets.core.features"
_FORMATS = {b"\xff\xd8": "jpeg", b"\x89P": "png"}


def export_tfds(
    store: reader.EpisodeStore,
    output: str | os.PathLike,
    *,
    name: str,
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Writes all episodes of a store as the split "train" of a TFDS dataset.

    Args:
        store: the episodes.
        output: TFDS's data_dir; the dataset becomes the directory `name` in it.
        name: of the dataset.
        progress: draw a progress bar on stderr.
        shard_bytes: a file is closed when it holds this many.

    Returns:
        `directory, episodes, frames, shards, bytes`.

    Raises:
        UserError: TFDS does not allow the name, the dataset exists or cannot be written, or
            episodes differ in cameras, actions or states.
        DataError: a record is damaged.
    """
    if not _NAME.fullmatch(name):
        raise errors.UserError(
            f"TFDS does not allow the name {name!r}",
            "--name",
            "give lower-case letters, digits and underscores, a letter first",
        )
    _check_uniform(store)
    target = pathlib.Path(output) / name / VERSION
    if target.exists():
        raise errors.UserError(
            "dataset exists already", str(target), "delete it, or choose another --output or --name"
        )
    partial = target.with_name(f".writing-{VERSION}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    files.make_directory(partial)
    try:
        shards = _Shards(partial, name, shard_bytes)
        schema = _write_episodes(store, shards, progress)
        shards.finish()
        _write_json(partial / "features.json", schema.describe())
        _write_json(partial / "dataset_info.json", _describe(name, store, shards))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        _remove_empty(target.parent, pathlib.Path(output))
        raise
    return {
        "directory": str(target),
        "episodes": len(store),
        "frames": int(store.lengths.sum()),
        "shards": len(shards.lengths),
        "bytes": shards.num_bytes,
    }


def _check_uniform(store: reader.EpisodeStore) -> None:
    """Raises UserError unless all episodes have the same fields, as a TFDS dataset must."""
    kinds: dict[tuple, str] = {}
    for i in range(len(store)):
        meta = store.meta(i)
        kinds.setdefault((meta.cameras, meta.has_actions, meta.has_states), meta.episode_id)
    if len(kinds) > 1:
        found = "; ".join(
            f"{episode_id!r} has cameras {', '.join(cameras)}, "
            f"{'with' if actions else 'without'} actions, {'with' if states else 'without'} states"
            for (cameras, actions, states), episode_id in kinds.items()
        )
        raise errors.UserError(
            f"episodes differ in their fields: {found}",
            str(store.directory),
            "convert them into stores of their own and export each",
        )


def _remove_empty(*directories: pathlib.Path) -> None:
    for directory in directories:
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


# ---- records ----


@dataclasses.dataclass
class _Schema:
    """What all steps have in common.

    Attributes:
        widths: field -> width of the vector.
        sizes: image field -> all (height, width) met.
        formats: image field -> all encodings met.
    """

    widths: dict[str, int] = dataclasses.field(default_factory=dict)
    sizes: dict[str, set[tuple[int, int]]] = dataclasses.field(default_factory=dict)
    formats: dict[str, set[str]] = dataclasses.field(default_factory=dict)

    def add_vectors(self, name: str, values: np.ndarray, where: str) -> None:
        """Raises UserError where an episode's vectors have another width than those before."""
        width = self.widths.setdefault(name, values.shape[1])
        if values.shape[1] != width:
            raise errors.UserError(
                f"{name} has {values.shape[1]} dimensions, earlier episodes have {width}",
                where,
                "convert them into stores of their own and export each",
            )

    def add_images(self, name: str, images: list[bytes], where: str) -> None:
        """Notes sizes and formats."""
        sizes = {image_lib.image_size(image, where=where) for image in images}
        self.sizes.setdefault(name, set()).update(sizes)
        self.formats.setdefault(name, set()).update(_FORMATS[image[:2]] for image in images)

    def describe(self) -> dict[str, Any]:
        """Returns features.json."""
        vectors = {name: _tensor("float32", width) for name, width in self.widths.items()}
        images = {name: self._image(name) for name in self.sizes}
        fields = images | vectors
        observation = {
            name.removeprefix("observation/"): field
            for name, field in fields.items()
            if name.startswith("observation/")
        }
        step = {name: field for name, field in fields.items() if "/" not in name}
        step |= {name: _tensor("bool") for name in ("is_first", "is_last", "is_terminal")}
        step |= {name: _tensor("float32") for name in ("reward", "discount")}
        step |= {"observation": _dict(observation), "language_instruction": _text()}
        steps = _feature(
            "dataset_feature.Dataset", sequence={"feature": _dict(step), "length": "-1"}
        )
        metadata = {exported.FIELD.split("/")[1]: _text()}
        return _dict({"steps": steps, "episode_metadata": _dict(metadata)})

    def _image(self, name: str) -> dict[str, Any]:
        sizes, formats = self.sizes[name], self.formats[name]
        height, width = next(iter(sizes)) if len(sizes) == 1 else (-1, -1)
        shape = {"dimensions": [str(height), str(width), "3"]}
        image = {"shape": shape, "dtype": "uint8"}
        if len(formats) == 1:
            image["encodingFormat"] = next(iter(formats))
        return _feature("image_feature.Image", image=image)


class _Shards:
    """Numbered TFRecord files that get their final names at the end, when their number is known.

    Attributes:
        lengths: records of each finished file.
        num_bytes: of all records.
    """

    def __init__(self, directory: pathlib.Path, name: str, shard_bytes: int):
        self._directory, self._name, self._shard_bytes = directory, name, shard_bytes
        self._file: Any = None
        self._records = 0
        self.lengths: list[int] = []
        self.num_bytes = 0

    def write(self, record: bytes) -> None:
        """Appends a record."""
        if self._file is None:
            self._file = self._path(len(self.lengths)).open("wb")
        tfrecord.write_record(self._file, record)
        self._records += 1
        self.num_bytes += len(record)
        if self._file.tell() >= self._shard_bytes:
            self._close()

    def finish(self) -> None:
        """Closes the last file and names them all."""
        if self._file is not None:
            self._close()
        count = len(self.lengths)
        for number in range(count):
            final = f"{self._name}-train.tfrecord-{number:05d}-of-{count:05d}"
            self._path(number).rename(self._directory / final)

    def _close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.lengths.append(self._records)
        self._file, self._records = None, 0

    def _path(self, number: int) -> pathlib.Path:
        return self._directory / f"{number}.tfrecord"


def _write_episodes(store: reader.EpisodeStore, shards: _Shards, progress: bool) -> _Schema:
    schema = _Schema()
    for i in tqdm.trange(len(store), desc="export", unit="ep", disable=not progress):
        shards.write(tfrecord.serialize_example(_features(store.episode(i), schema)))
    return schema


def _features(episode: episodes.Episode, schema: _Schema) -> dict[str, tfrecord.Value]:
    """Returns the features of an episode, as TFDS flattens them."""
    length, where = episode.length, f"episode {episode.episode_id!r}"
    step = np.arange(length)
    is_last = step == length - 1
    features: dict[str, tfrecord.Value] = {
        "is_first": step == 0,
        "is_last": is_last,
        "is_terminal": is_last,  # demonstrations end where their task does, as in Open-X
        "reward": is_last.astype(np.float32),
        "discount": np.ones(length, np.float32),
        "language_instruction": [episode.instructions[0].encode()] * length,
    }
    for name, values in ((exported.ACTION, episode.actions), (exported.STATE, episode.states)):
        if values is not None:
            schema.add_vectors(name, values, where)
            features[name] = values
    for number, images in enumerate(episode.frames.values()):
        name = f"{exported.IMAGE}{number}"
        schema.add_images(name, list(images), where)
        features[name] = list(images)
    in_steps = {f"steps/{name}": values for name, values in features.items()}
    return in_steps | {exported.FIELD: [exported.describe(episode).encode()]}


# ---- descriptions ----


def _describe(name: str, store: reader.EpisodeStore, shards: _Shards) -> dict[str, Any]:
    """Returns dataset_info.json."""
    return {
        "name": name,
        "version": VERSION,
        "description": (
            f"Episodes of the store {store.fingerprint()}, exported by DeFI-JAX. Actions and "
            "states are standardised: do not apply a dataset's own standardisation again."
        ),
        "fileFormat": "tfrecord",
        "releaseNotes": {VERSION: "Exported."},
        "splits": [
            {
                "name": "train",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(shards.num_bytes),
                "shardLengths": [str(length) for length in shards.lengths],
            }
        ],
    }


def _feature(kind: str, **content: Any) -> dict[str, Any]:
    return {"pythonClassName": f"{_CLASSES}.{kind}", **content}


def _dict(features: dict[str, Any]) -> dict[str, Any]:
    return _feature("features_dict.FeaturesDict", featuresDict={"features": features})


def _text() -> dict[str, Any]:
    return _feature("text_feature.Text", text={})


def _tensor(dtype: str, *shape: int) -> dict[str, Any]:
    kind = "tensor_feature.Tensor" if shape else "scalar.Scalar"
    dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
    return _feature(kind, tensor={"shape": dimensions, "dtype": dtype, "encoding": "none"})


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
