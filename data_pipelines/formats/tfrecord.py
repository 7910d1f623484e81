"""TFRecord files and tf.train.Example messages, without TensorFlow.

A TFRecord file is a run of frames (tensorflow/core/lib/io/record_writer.h):

    uint64 length | uint32 masked_crc32c(length) | byte[length] | uint32 masked_crc32c(bytes)

little-endian. Both checksums are verified: a flipped bit in the payload is otherwise silent.
An Example maps names to lists of bytes, float32 or int64; TFDS carries its protocol buffer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

import google_crc32c
import numpy as np
from etils import epath

from defi_jax import errors

Value = np.ndarray | list[bytes]  # float32[k], int64[k] or k byte strings

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_CRC_MASK_DELTA = 0xA282EAD8  # tensorflow/core/lib/hash/crc32c.h
_REFETCH = "download this file again"


def masked_crc(data: bytes) -> int:
    """CRC32C, rotated and shifted as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _CRC_MASK_DELTA) & 0xFFFFFFFF


def salvage_records(path: epath.PathLike, *, start: int = 0) -> Iterator[bytes | errors.DataError]:
    """Yields the records of a TFRecord file, and in the place of a damaged one what is wrong.

    A length has a checksum of its own, so the record behind a damaged one is found.

    Args:
        path: the file; one record of it is in memory at a time.
        start: number of records to pass over, of which only the headers are read.

    Raises:
        DataError: the file is missing, cut short or a length is damaged, so that the rest is lost.
    """
    path = epath.Path(path)
    if not path.exists():
        raise errors.DataError("TFRecord file is missing", path, _REFETCH)
    size, offset, index = path.stat().length, 0, 0
    with path.open("rb") as file:
        while offset < size:
            where = f"{path} record {index}"
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise errors.DataError("TFRecord file is cut short", where, _REFETCH)
            length, length_crc = _HEADER.unpack(header)
            if masked_crc(header[:8]) != length_crc:
                raise errors.DataError(
                    "damaged record header, the rest of the file is lost", where, _REFETCH
                )
            offset += _HEADER.size + length + _FOOTER.size
            if offset > size:
                raise errors.DataError("TFRecord file is cut short", where, _REFETCH)
            if index < start:
                file.seek(offset)
            else:
                data, (data_crc,) = file.read(length), _FOOTER.unpack(file.read(_FOOTER.size))
                is_whole = masked_crc(data) == data_crc
                what = "damaged record (checksum differs)"
                yield data if is_whole else errors.DataError(what, where, _REFETCH)
            index += 1


def write_record(file: IO[bytes], record: bytes) -> None:
    """Appends a record to an open TFRecord file."""
    header = struct.pack("<Q", len(record))
    file.write(header + _FOOTER.pack(masked_crc(header)))
    file.write(record)
    file.write(_FOOTER.pack(masked_crc(record)))


def parse_example(record: bytes, *, where: str) -> dict[str, Value]:
    """Parses a serialised tf.train.Example; an error names `where`.

    Returns:
        {feature name: float32[k], int64[k] or list of k byte strings}; absent lists are left out.

    Raises:
        DataError: the bytes are not such a message.
    """
    from google.protobuf import message
    from tensorflow_datasets.proto import tf_example_pb2  # takes half a second to import

    example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
    what, fix = "record is not a tf.train.Example", "check the dataset's format"
    with errors.DataError.instead_of(message.DecodeError, what, where, fix):
        example.ParseFromString(record)
    features = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind == "bytes_list":
            features[name] = list(feature.bytes_list.value)
        elif kind == "float_list":
            features[name] = np.array(feature.float_list.value, np.float32)
        elif kind == "int64_list":
            features[name] = np.array(feature.int64_list.value, np.int64)
    return features
