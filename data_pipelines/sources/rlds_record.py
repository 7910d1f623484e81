"""One record of an RLDS dataset: the lists of an Example, cut into one value a step."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines.formats import tfrecord
from data_pipelines.sources import rlds_directory
from defi_jax import errors

Field = rlds_directory.Field


class RawSteps(Mapping):
    """The steps of one episode: field -> [T, ...] array or T byte strings, unpacked on access.

    A field of the episode as a whole, such as its text, stands at every step. Errors name `where`.
    """

    def __init__(
        self,
        features: Mapping[str, tfrecord.Value],
        info: rlds_directory.DatasetInfo,
        where: str,
    ):
        self._features, self._info, self._where = features, info, where

    def __getitem__(self, name: str) -> np.ndarray | list[bytes]:
        fields = self._info.step_fields
        if name in fields:
            return self._unpack(rlds_directory.STEPS + name, fields[name])
        value = self._unpack(name, self._info.episode_fields[name])
        images = (n for n, field in fields.items() if field.kind == "image")
        lists = (self._features.get(rlds_directory.STEPS + n, []) for n in images)
        return (value[:1] or [b""]) * max(map(len, lists), default=0)

    def _unpack(self, key: str, field: Field) -> Any:
        with errors.DataError.instead_of(
            (ValueError, TypeError, zlib.error),
            f"field '{key}' does not fit features.json",
            self._where,
            "check that features.json belongs to these files",
        ):
            return unpack(self._features.get(key, []), field)

    def __iter__(self) -> Iterator[str]:
        return iter(self._info.step_fields)

    def __len__(self) -> int:
        return len(self._info.step_fields)


def unpack(values: tfrecord.Value, field: Field) -> np.ndarray | list[bytes]:
    """Cuts the flat list of a field into one value a step.

    Raises:
        ValueError: the list does not hold such values.
    """
    if field.kind == "other":
        raise ValueError("this kind of feature is not supported")
    shape = tuple(-1 if size is None else size for size in field.shape)
    if field.encoding in ("bytes", "zlib"):
        inflate = zlib.decompress if field.encoding == "zlib" else bytes
        tensors = (np.frombuffer(inflate(value), field.dtype) for value in values)
        return np.stack([tensor.reshape(shape) for tensor in tensors])
    is_bytes = field.kind in ("text", "image")
    if len(values) and isinstance(values, list) != is_bytes:
        raise ValueError("numbers instead of bytes" if is_bytes else "bytes instead of numbers")
    if field.kind == "image" or (is_bytes and not shape):
        return list(values)
    if -1 in shape:
        raise ValueError("steps of varying size are not supported")
    return np.array(values, object if is_bytes else field.dtype).reshape(-1, *shape)
