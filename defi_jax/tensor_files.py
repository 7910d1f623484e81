"""Tensors in files, one at a time, so that a file may be larger than memory.

`SafetensorsFiles` reads one file or the shards of an index; `SafetensorsWriter` writes a file whose
tensors arrive in any order, also as slices of a stack.
"""

from __future__ import annotations

import abc
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from defi_jax import errors

# Element types of the format to ours.
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
INDEX_ENDS = (".index.json", ".index.fp16.json")
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TensorSpec(NamedTuple):
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors(Mapping[str, np.ndarray]):
    """Names to tensors that are read on access."""

    @abc.abstractmethod
    def spec(self, name: str) -> TensorSpec:
        """Returns shape and element type without reading the tensor."""

    def read(self, name: str, index: Any) -> np.ndarray:
        """Returns `self[name][index]`; files read no more than that where they can."""
        return self[name][index]


def spec_of(tensors: Mapping[str, Any], name: str) -> TensorSpec:
    """Returns the spec of a tensor in a file or of an array in a dict."""
    if isinstance(tensors, Tensors):
        return tensors.spec(name)
    return TensorSpec(tuple(np.shape(tensors[name])), np.dtype(tensors[name].dtype))


def read_slice(tensors: Mapping[str, Any], name: str, index: Any) -> np.ndarray:
    """Returns a slice of a tensor in a file or of an array in a dict."""
    if isinstance(tensors, Tensors):
        return tensors.read(name, index)
    return np.asarray(tensors[name][index])


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Says of tensors, by what is known of each, which are missing, unknown or not as wanted."""
    both = sorted(wanted.keys() & found.keys())
    return [
        *(f"missing {name}" for name in sorted(wanted.keys() - found.keys())),
        *(f"unknown {name}" for name in sorted(found.keys() - wanted.keys())),
        *(
            f"{name} is {found[name]}, the config wants {wanted[name]}"
            for name in both
            if found[name] != wanted[name]
        ),
    ]


class SafetensorsFiles(Tensors):
    """Tensors of one safetensors file, or of the shards of a `.index.json`.

    A file is mapped only while a tensor is read, so that what was read does not stay resident.

    Raises:
        DataError: a file is missing, damaged, of an unknown element type, or does not hold what the
            index says.
    """

    def __init__(self, path: pathlib.Path):
        self._shards: dict[str, pathlib.Path] = {}
        self._specs: dict[str, TensorSpec] = {}
        if not path.name.endswith(INDEX_ENDS):
            self._add(path)
            return
        index = {name: path.parent / file for name, file in _read_index(path).items()}
        for shard in sorted(set(index.values())):
            self._add(shard)
        problems = [
            f"{name} is not in {shard.name}"
            for name, shard in sorted(index.items())
            if self._shards.get(name) != shard
        ]
        if problems:
            raise errors.DataError(
                f"shards are not as the index says: {errors.listed(problems, 10)}",
                str(path),
                "download them again",
            )

    def __getitem__(self, name: str) -> np.ndarray:
        with safetensors.safe_open(self._shards[name], "numpy") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def spec(self, name: str) -> TensorSpec:
        """See `Tensors`."""
        return self._specs[name]

    def read(self, name: str, index: Any) -> np.ndarray:
        """See `Tensors`."""
        if index is ...:
            return self[name]
        with safetensors.safe_open(self._shards[name], "numpy") as file:
            return file.get_slice(name)[index]

    def _add(self, shard: pathlib.Path) -> None:
        kinds, what = (safetensors.SafetensorError, OSError), "not a safetensors file"
        with (
            errors.DataError.instead_of(kinds, what, shard, "download it again"),
            safetensors.safe_open(shard, "numpy") as file,
        ):
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
        unknown = sorted(
            f"{name} {dtype}" for name, (_, dtype) in found.items() if dtype not in _DTYPES
        )
        if unknown:
            raise errors.DataError(
                f"unknown element types: {', '.join(unknown)}", str(shard), "convert the file"
            )
        twice = sorted(found.keys() & self._shards.keys())
        if twice:
            raise errors.DataError(
                f"another shard has {errors.listed(twice, 10)} too", str(shard), "download it again"
            )
        for name, (shape, dtype) in found.items():
            self._shards[name] = shard
            self._specs[name] = TensorSpec(shape, _DTYPES[dtype])


def _read_index(path: pathlib.Path) -> dict[str, str]:
    """Returns the map from names to shards' file names; shards lie beside the index."""
    document = read_json(path)
    names = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(names, dict) or not all(
        isinstance(file, str) and pathlib.PurePath(file).name == file for file in names.values()
    ):
        raise errors.DataError("no weight_map of file names", str(path), "download it again")
    return names


def read_json(path: pathlib.Path) -> Any:
    """Returns the document.

    Raises:
        DataError: not JSON.
    """
    # Beside what is no JSON: nested or long numbers that Python's parser refuses.
    kinds = (ValueError, RecursionError)
    with errors.DataError.instead_of(kinds, "not JSON", path, "restore the file"):
        return json.loads(path.read_text())


class Below(Tensors):
    """The part of some tensors below a prefix, without the prefix."""

    def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str):
        self._tensors, self._prefix = tensors, prefix
        self._names = [name[len(prefix) :] for name in tensors if name.startswith(prefix)]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def spec(self, name: str) -> TensorSpec:
        """See `Tensors`."""
        return spec_of(self._tensors, self._prefix + name)

    def read(self, name: str, index: Any) -> np.ndarray:
        """See `Tensors`."""
        return read_slice(self._tensors, self._prefix + name, index)


class SafetensorsWriter:
    """Writes a safetensors file whose tensors are not in memory together.

    A context manager; leaving it without an error means that every byte was written.

    Args:
        path: the file.
        specs: name to shape and element type of everything that will be written.
        metadata: texts for the file's header.
    """

    def __init__(
        self,
        path: pathlib.Path,
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str] | None = None,
    ):
        self._specs = specs
        self._offsets: dict[str, int] = {}
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        # The widest first, so that each tensor is aligned to its element size.
        for name in sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name)):
            spec = specs[name]
            self._offsets[name], end = end, end + spec.nbytes
            header[name] = {
                "dtype": _NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [self._offsets[name], end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._missing = end
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._start + end)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: Any, *exc_info: Any) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"{self._missing} bytes of {self._file.name} were never written")

    def write(self, name: str, value: np.ndarray, layer: int | None = None) -> None:
        """Writes a tensor, or slice `layer` of its leading axis."""
        spec, offset = self._specs[name], self._offsets[name]
        shape = spec.shape if layer is None else spec.shape[1:]
        if (value.shape, value.dtype) != (shape, spec.dtype):
            raise ValueError(f"{name} is {value.dtype}{value.shape}, announced as {spec}")
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        self._file.seek(self._start + offset + (layer or 0) * data.size)
        self._file.write(data.data)
        self._missing -= data.size

    def write_all(self, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
        """Writes whole tensors, one after the other."""
        for name, value in tensors:
            self.write(name, value)
