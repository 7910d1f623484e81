"""TFRecord files and tf.train.Example messages, without TensorFlow.

A TFRecord file is a run of frames (tensorflow/core/lib/io/record_writer.h):

    uint64 length | uint32 masked_crc32c(length) | byte[length] | uint32 masked_crc32c(bytes)

little-endian. Both checksums are verified: a flipped bit in the payload is otherwise silent.
An Example is a protocol buffer, a map from names to lists of bytes, float32 or int64
(tensorflow/core/example/{example,feature}.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any

import google_crc32c
import numpy as np
from etils import epath

from defi_jax import errors

Value = np.ndarray | list[bytes]  # float32[k], int64[k] or k byte strings

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_CRC_MASK_DELTA = 0xA282EAD8  # tensorflow/core/lib/hash/crc32c.h
_REFETCH = "download this file again"

# Wire types of protocol buffers.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK = (1 << 64) - 1  # negative integers are written as their two's complement


def masked_crc(data: bytes) -> int:
    """CRC32C, rotated and shifted as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _CRC_MASK_DELTA) & 0xFFFFFFFF


def read_records(path: epath.PathLike, *, start: int = 0) -> Iterator[bytes]:
    """Yields the records of a TFRecord file, one in memory at a time.

    Args:
        path: the file.
        start: number of records to pass over, of which only the headers are read.

    Raises:
        DataError: the file is missing, cut short or damaged; names the file and the record.
    """
    for record in salvage_records(path, start=start):
        if isinstance(record, errors.DataError):
            raise record
        yield record


def salvage_records(path: epath.PathLike, *, start: int = 0) -> Iterator[bytes | errors.DataError]:
    """Yields the records of a TFRecord file, and in the place of a damaged one what is wrong.

    A length has a checksum of its own, so the record behind a damaged one is found.

    Args:
        path: see `read_records`.
        start: see `read_records`.

    Raises:
        DataError: the file is missing, cut short or a length is damaged, so that the rest is lost.
    """
    path = epath.Path(path)
    if not path.exists():
        raise errors.DataError("TFRecord file is missing", str(path), _REFETCH)
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
                index += 1
                continue
            data = file.read(length)
            if masked_crc(data) != _FOOTER.unpack(file.read(_FOOTER.size))[0]:
                yield errors.DataError("damaged record (checksum differs)", where, _REFETCH)
            else:
                yield data
            index += 1


def write_record(file: IO[bytes], record: bytes) -> None:
    """Appends a record to an open TFRecord file."""
    header = struct.pack("<Q", len(record))
    file.write(header + _FOOTER.pack(masked_crc(header)))
    file.write(record)
    file.write(_FOOTER.pack(masked_crc(record)))


def serialize_example(features: Mapping[str, Value]) -> bytes:
    """Returns a tf.train.Example; the inverse of `parse_example`.

    Args:
        features: name -> floating or integer array of any shape, flattened, or byte strings.
    """
    entries = []
    for name, values in features.items():
        if isinstance(values, list):
            kind, content = 1, b"".join(_packed(1, value) for value in values)
        elif np.issubdtype(values.dtype, np.floating):
            kind, content = 2, _packed(1, values.astype("<f4").tobytes())
        else:
            numbers = values.ravel().astype(np.int64).tolist()
            kind, content = 3, _packed(1, b"".join(_encode_varint(n & _MASK) for n in numbers))
        feature = _packed(2, _packed(kind, content))
        entries.append(_packed(1, _packed(1, name.encode()) + feature))
    return _packed(1, b"".join(entries))


def parse_example(record: bytes, *, where: str) -> dict[str, Value]:
    """Parses a serialised tf.train.Example.

    Args:
        record: the message.
        where: what an error names.

    Returns:
        {feature name: float32[k], int64[k] or list of k byte strings}; absent lists are left out.

    Raises:
        DataError: the bytes are not such a message.
    """
    try:
        features = {}
        for number, example_field in _fields(memoryview(record)):
            if number != 1:
                continue
            for _, entry in _fields(example_field):
                name, value = _map_entry(entry)
                if value is not None:
                    features[name] = value
        return features
    except (ValueError, IndexError, TypeError) as error:
        raise errors.DataError(
            f"record is not a tf.train.Example ({error})", where, "check the dataset's format"
        ) from error


def _map_entry(entry: memoryview) -> tuple[str, Value | None]:
    name, value = "", None
    for number, content in _fields(entry):
        if number == 1:
            name = bytes(content).decode()
        elif number == 2:
            value = _feature(content)
    return name, value


def _feature(feature: memoryview) -> Value | None:
    """Reads Feature {oneof: BytesList = 1, FloatList = 2, Int64List = 3}."""
    value = None
    for kind, content in _fields(feature):
        items = [item for number, item in _fields(content) if number == 1]
        if kind == 1:
            value = [bytes(item) for item in items]
        elif kind == 2:  # packed, or one fixed32 each
            value = np.frombuffer(b"".join(items), "<f4")
        elif kind == 3:
            value = _int64_list(items)
    return value


def _int64_list(items: list[Any]) -> np.ndarray:
    if items and isinstance(items[0], int):  # unpacked: one varint each
        return np.array(items, np.uint64).view(np.int64)
    return np.concatenate([_packed_varints(item) for item in items] or [np.zeros(0, np.int64)])


def _packed_varints(data: memoryview) -> np.ndarray:
    octets = np.frombuffer(data, np.uint8)
    last = np.flatnonzero(octets < 0x80)  # the last byte of a varint has its top bit clear
    if octets.size and (not last.size or last[-1] != octets.size - 1):
        raise ValueError("integer list is cut short")
    first = np.concatenate([[0], last[:-1] + 1]) if last.size else last
    lengths = last - first + 1
    values = np.zeros(last.size, np.uint64)
    for position in range(int(lengths.max(initial=0))):
        if position >= 10:
            raise ValueError("integer longer than 64 bits")
        here = lengths > position
        part = octets[first[here] + position].astype(np.uint64) & np.uint64(0x7F)
        values[here] |= part << np.uint64(7 * position)
    return values.view(np.int64)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yields (field number, content) of a message; varints as int, else a memoryview.

    A number where the format has bytes is a TypeError or ValueError of whoever reads it.
    """
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire == _VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            length, position = _varint(message, position)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire}")
        if position + length > end:
            raise ValueError("field is cut short")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        octet = message[position]
        position += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
    raise ValueError("integer longer than 64 bits")


def _packed(number: int, content: bytes) -> bytes:
    """Returns a field of bytes."""
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(content)) + content


def _encode_varint(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)
