"""RLDS directories as tensorflow_datasets writes them itself, without TensorFlow."""

import io
import pathlib
import struct
from collections.abc import Callable

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info, splits

from data_pipelines.formats import image, tfrecord

JPEG = image.encode_jpeg(np.full((8, 12, 3), 90, np.uint8))


def encoded(data: bytes = JPEG) -> io.BytesIO:
    """An image that TFDS stores as it is; encoding pixels would need TensorFlow."""
    return io.BytesIO(data)


def write(
    directory: pathlib.Path,
    features: tfds.features.FeaturesDict,
    episodes: dict[str, list[Callable[[], dict]]],
    *,
    name: str,
    file_format: str = "array_record",
    per_shard: int = 2,
    described: tfds.features.FeaturesDict | None = None,
) -> pathlib.Path:
    """Writes a dataset and returns its directory, a version's.

    Args:
        directory: to make.
        features: features of the records.
        episodes: split -> functions that make an episode each, as images are read once.
        name: in dataset_info.json.
        file_format: tfrecord files are framed here, because TFDS needs TensorFlow for it.
        per_shard: episodes of a file.
        described: in features.json, where it has features whose values TFDS cannot write here.
    """
    directory.mkdir(parents=True)
    identity = dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(directory), module_name="m"
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    made = {split: [make() for make in own] for split, own in episodes.items()}
    if file_format == "array_record":
        writer = tfds.core.SequentialWriter(info, per_shard, file_format=file_format)
        writer.initialize_splits(list(made))
        writer.add_examples(made)
        writer.close_all()
    else:
        _write_tfrecords(directory, features, made, name, per_shard, info)
    if described is not None:
        described.save_config(str(directory))
    return directory


def _write_tfrecords(directory, features, made, name, per_shard, info) -> None:
    found = []
    for split, own in made.items():
        records = [features.serialize_example(episode) for episode in own]
        shards = [records[i : i + per_shard] for i in range(0, len(records), per_shard)]
        template = tfds.core.ShardedFileTemplate(
            data_dir=directory, dataset_name=name, split=split, filetype_suffix="tfrecord"
        )
        for path, shard in zip(template.sharded_filepaths(len(shards)), shards, strict=True):
            _write_records(pathlib.Path(path), shard)
        lengths = [len(shard) for shard in shards]
        found.append(splits.SplitInfo(split, lengths, num_bytes=1, filename_template=template))
    info.set_file_format("tfrecord")
    info.set_splits(splits.SplitDict(found))
    info.write_to_directory(directory)


def _write_records(path: pathlib.Path, records: list[bytes]) -> None:
    with path.open("wb") as file:
        for record in records:
            header = struct.pack("<Q", len(record))
            file.write(header + struct.pack("<I", tfrecord.masked_crc(header)))
            file.write(record + struct.pack("<I", tfrecord.masked_crc(record)))
