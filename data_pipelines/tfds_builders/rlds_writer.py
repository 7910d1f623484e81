"""Writes episodes as RLDS, in the files and by the descriptions of TFDS, without TensorFlow.

    DIR/<name>/1.0.0/{dataset_info.json, features.json, <name>-train.array_record-00000-of-00003}

A record is an episode. A step has `observation/{image_0, ..., state}`, `action`,
`language_instruction` and RLDS's own fields; images are JPEG or PNG bytes as they came. What RLDS
has no place for is one JSON text an episode, see `open_x.exported`, by which our readers give back
the episode as it was.

TFDS's own writer keeps a split in memory up to 1 GB and needs TensorFlow beyond; this one writes
record by record.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from etils import epath
from tensorflow_datasets.core import example_serializer, naming

from data_pipelines import episodes, files
from data_pipelines.formats import image as image_lib
from data_pipelines.formats import tfrecord
from data_pipelines.open_x import exported
from defi_jax import errors

FILE_FORMATS = ("tfrecord", "array_record")
SHARD_BYTES = 256 << 20  # TFDS's own shards are of this order

_METADATA, _DESCRIPTION = exported.FIELD.split("/")
_OBSERVATION = "observation/"
_ENCODINGS = {b"\xff\xd8": "jpeg", b"\x89P": "png"}


@dataclasses.dataclass
class Schema:
    """What all episodes of a dataset have in common.

    Attributes:
        widths: vector of a step, for example "action" -> its number of dimensions.
        sizes: image of a step -> all (height, width) met.
        encodings: image of a step -> all encodings met.
    """

    widths: dict[str, int] = dataclasses.field(default_factory=dict)
    sizes: dict[str, set[tuple[int, int]]] = dataclasses.field(default_factory=dict)
    encodings: dict[str, set[str]] = dataclasses.field(default_factory=dict)

    def add(self, episode: episodes.Episode) -> None:
        """Takes up an episode.

        Raises:
            UserError: its fields or their widths are not those of the episodes before.
            DataError: an image is damaged.
        """
        where = f"episode {episode.episode_id!r}"
        widths = {name: values.shape[1] for name, values in _vectors(episode)}
        images = dict(_images(episode))
        if not self.sizes:
            self.widths, self.sizes = widths, {name: set() for name in images}
            self.encodings = {name: set() for name in images}
        if (widths, images.keys()) != (self.widths, self.sizes.keys()):
            earlier = _fields(self.widths, self.sizes)
            raise errors.UserError(
                f"it has {_fields(widths, images)}, earlier ones {earlier}",
                where,
                "convert them into stores of their own and export each",
            )
        for name, frames in images.items():
            self.sizes[name] |= {image_lib.image_size(frame, where=where) for frame in frames}
            self.encodings[name] |= {_ENCODINGS[frame[:2]] for frame in frames}

    def features(self) -> tfds.features.FeaturesDict:
        """Describes an episode as TFDS does; sizes and encodings where all images share them."""
        fields: dict[str, Any] = {name: self._image(name) for name in self.sizes}
        for name, width in self.widths.items():
            fields[name] = tfds.features.Tensor(shape=(width,), dtype=np.float32)
        return rlds_features(fields)

    def _image(self, name: str) -> tfds.features.Image:
        sizes, encodings = self.sizes[name], self.encodings[name]
        height, width = next(iter(sizes)) if len(sizes) == 1 else (None, None)
        encoding = next(iter(encodings)) if len(encodings) == 1 else None
        return tfds.features.Image(shape=(height, width, 3), encoding_format=encoding)


def rlds_features(fields: Mapping[str, Any]) -> tfds.features.FeaturesDict:
    """Describes an episode whose steps have these fields besides RLDS's own.

    Args:
        fields: "action" or "observation/..." -> its TFDS feature.
    """
    observation = {
        name.removeprefix(_OBSERVATION): feature
        for name, feature in fields.items()
        if name.startswith(_OBSERVATION)
    }
    step = {name: feature for name, feature in fields.items() if "/" not in name}
    step |= dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_)
    step |= dict.fromkeys(("reward", "discount"), np.float32)
    step |= {"observation": observation, "language_instruction": tfds.features.Text()}
    metadata = {_DESCRIPTION: tfds.features.Text()}
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(step), _METADATA: metadata},
    )


def example(episode: episodes.Episode) -> dict[str, Any]:
    """Returns an episode as TFDS encodes it: each field of a step as a list of `length` values."""
    length = episode.length
    is_last = np.arange(length) == length - 1
    steps: dict[str, Any] = {
        "observation": {},
        "is_first": np.arange(length) == 0,
        "is_last": is_last,
        "is_terminal": is_last,  # demonstrations end where their task does, as in Open-X
        "reward": is_last.astype(np.float32),
        "discount": np.ones(length, np.float32),
        "language_instruction": [episode.instructions[0]] * length,
    }
    for name, values in itertools.chain(_vectors(episode), _images(episode)):
        place = steps["observation"] if name.startswith(_OBSERVATION) else steps
        place[name.removeprefix(_OBSERVATION)] = values
    return {"steps": steps, _METADATA: {_DESCRIPTION: exported.describe(episode)}}


def serialize(features: tfds.features.FeaturesDict, found: Mapping[str, Any]) -> bytes:
    """Returns an example as a record; the same bytes for the same content."""
    specs: Any = features.get_serialized_info()
    serializer = example_serializer.ExampleSerializer(specs)
    proto = serializer.get_tf_example(features.encode_example(found))
    return proto.SerializeToString(deterministic=True)


class SplitFiles:
    """The numbered files of a split, which get their names at the end, when their number is known.

    Args:
        template: template of their names; the directory is there.
        shard_bytes: a file is closed when it holds this many bytes of records.
    """

    def __init__(self, template: naming.ShardedFileTemplate, *, shard_bytes: int = SHARD_BYTES):
        self._template, self._shard_bytes = template, shard_bytes
        self._writer: Any = None
        self._lengths: list[int] = []
        self._num_bytes = self._shard_size = 0

    def write(self, record: bytes) -> None:
        """Appends a record."""
        if self._writer is None:
            self._writer = _WRITERS[str(self._template.filetype_suffix)](
                self._unnamed(len(self._lengths))
            )
            self._lengths.append(0)
            self._shard_size = 0
        self._writer.write(record)
        self._lengths[-1] += 1
        self._shard_size += len(record)
        self._num_bytes += len(record)
        if self._shard_size >= self._shard_bytes:
            self.close()

    def close(self) -> None:
        """Closes the open file, if any."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def finish(self) -> tfds.core.SplitInfo:
        """Names the files; returns what TFDS says of the split."""
        self.close()
        final = self._template.sharded_filepaths(len(self._lengths))
        for number, path in enumerate(final):
            files.sync(pathlib.Path(self._unnamed(number)))
            self._unnamed(number).rename(path)
        return tfds.core.SplitInfo(
            name=str(self._template.split),
            shard_lengths=self._lengths,
            num_bytes=self._num_bytes,
            filename_template=self._template,
        )

    def _unnamed(self, number: int) -> epath.Path:
        return self._template.data_dir / f"{self._template.split}-{number}.unnamed"


class _TfRecordWriter:
    """The face of an ArrayRecordWriter over a TFRecord file."""

    def __init__(self, path: str):
        self._file = open(path, "wb")  # noqa: SIM115 (closed by `close`)

    def write(self, record: bytes) -> None:
        tfrecord.write_record(self._file, record)

    def close(self) -> None:
        self._file.close()


def _array_record_writer(path: epath.Path) -> Any:
    return array_record_module.ArrayRecordWriter(str(path), "group_size:1")  # as TFDS does


_WRITERS = {
    "array_record": _array_record_writer,
    "tfrecord": lambda path: _TfRecordWriter(str(path)),
}


def _vectors(episode: episodes.Episode) -> Iterator[tuple[str, np.ndarray]]:
    for name, values in ((exported.ACTION, episode.actions), (exported.STATE, episode.states)):
        if values is not None:
            yield name, values


def _images(episode: episodes.Episode) -> Iterator[tuple[str, list[bytes]]]:
    for number, frames in enumerate(episode.frames.values()):
        yield f"{exported.IMAGE}{number}", list(frames)


def _fields(widths: Mapping[str, int], images: Mapping[str, Any]) -> str:
    """Says which fields steps have: "action[7], observation/image_0"."""
    return ", ".join([*(f"{name}[{width}]" for name, width in widths.items()), *images])
