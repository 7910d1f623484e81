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

    A field of the episode as a whole, such as its text, stands at every step.

    Args:
        features: the parsed Example.
        info: description of the dataset.
        where: what errors name.
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
    if field.kind in ("text", "image"):
        if isinstance(values, np.ndarray) and values.size:
            raise ValueError("numbers instead of bytes")
        is_scalar = field.kind == "image" or not field.shape
        return list(values) if is_scalar else _texts(values, field.shape)
    shape = tuple(-1 if size is None else size for size in field.shape)
    if field.encoding in ("bytes", "zlib"):
        return np.stack([_unpack_bytes(value, field).reshape(shape) for value in values])
    if isinstance(values, list) and values:
        raise ValueError("bytes instead of numbers")
    if -1 in shape:
        raise ValueError("steps of varying size are not supported")
    return np.asarray(values).astype(field.dtype).reshape(-1, *shape)


def _texts(values: tfrecord.Value, shape: tuple[int | None, ...]) -> np.ndarray:
    """Returns object[T, ...] of byte strings."""
    if None in shape:
        raise ValueError("steps of varying size are not supported")
    texts = np.empty(len(values), object)
    texts[:] = values
    return texts.reshape(-1, *shape)


def _unpack_bytes(value: bytes, field: Field) -> np.ndarray:
    if field.encoding == "zlib":
        value = zlib.decompress(value)
    return np.frombuffer(value, field.dtype)
