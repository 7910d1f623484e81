"""Reads object arrays of numpy files, which are pickles, without running anything of them.

The stream is interpreted by `torch_pickle`, which looks no name up; this file adds what numpy's own
names mean. CALVIN stores its language annotations this way: `np.save(path, {"language": ...})`.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from defi_jax import errors
from defi_jax.weights.torch_file import unpickler

_MAX_BYTES = 1 << 30  # the largest published annotation has 30 MB
_DTYPE = re.compile(r"(?:[?biufSU]\d*|O8?)")
_FIX = "download it again"
_NAME = unpickler.Name


class _Dtype(unpickler.Stateful):
    """numpy.dtype of a plain kind."""

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise ValueError("a dtype of no plain kind")
        self.is_object = code[0] == "O"
        self._code, self._order = code, "="

    def set_state(self, state: Any) -> None:
        """(version, byte order, ...): only the order matters for plain kinds."""
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("an unknown byte order")
        self._order = state[1]

    def read(self, content: Any) -> np.ndarray:
        """Returns the numbers or texts that bytes hold, flat."""
        if self.is_object:
            raise ValueError("bytes for objects")
        return np.frombuffer(content, self._order + self._code)


class Array(unpickler.Stateful):
    """numpy.ndarray as the pickle describes it.

    Attributes:
        content: plain values as an array, objects as a flat list; None before the state is set.
    """

    def __init__(self, *_: Any):
        self.content: np.ndarray | list[Any] | None = None

    def set_state(self, state: Any) -> None:
        """(version, shape, dtype, is Fortran order, bytes or list of objects)."""
        _, shape, dtype, is_fortran, content = state
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("a shape that is no tuple of sizes")
        if not isinstance(dtype, _Dtype):
            raise ValueError("array without a dtype")
        if not dtype.is_object:
            self.content = dtype.read(content).reshape(shape, order="F" if is_fortran else "C")
        elif isinstance(content, list) and len(content) == math.prod(shape):
            self.content = content
        else:
            raise ValueError("array with another number of objects than its shape says")


def items(value: Any) -> list[Any]:
    """Returns the elements of a list, tuple or array, as plain Python values where they are plain.

    Raises:
        ValueError: it is none of these.
    """
    found = value.content if isinstance(value, Array) else value
    found = found.tolist() if isinstance(found, np.ndarray) else found
    if not isinstance(found, list | tuple):
        raise ValueError(f"expected a list, found {type(value).__name__}")
    return list(found)


def load_dict(path: pathlib.Path) -> Mapping[str, Any]:
    """Reads a file that `numpy.save(path, dictionary)` wrote.

    Returns:
        The dictionary; its values are plain, or `Array` for `items`.

    Raises:
        DataError: no such file, damaged, or its pickle names what is not on the list.
    """
    with errors.DataError.instead_of((OSError, ValueError), "not a saved dictionary", path, _FIX):
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES >> 20} MiB")
        pickled = _after_header(path.read_bytes())
    root = unpickler.load(pickled, str(path), rebuild=_REBUILD, alone=_ALONE)
    with errors.DataError.instead_of(ValueError, "damaged array", path, _FIX):
        (found,) = items(root) if isinstance(root, Array) else (root,)
    if not isinstance(found, dict):
        raise errors.DataError("holds no dictionary", path, _FIX)
    return found


def _after_header(data: bytes) -> bytes:
    """Returns what follows the header of a file that holds one object (NEP 1): magic, version,
    length of the header (2 bytes little-endian, from version 2 on 4), header, content.
    """
    if not data.startswith(b"\x93NUMPY"):
        raise ValueError("no numpy file")
    start = 10 if data[6:7] == b"\x01" else 12
    end = start + int.from_bytes(data[8:start], "little")
    header = data[start:end]
    if not re.search(rb"'descr': '\|O'", header) or not re.search(rb"'shape': \(\)", header):
        raise ValueError(f"an array with the header {header[:100]!r}")
    return data[end:]


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> Array:
    """numpy's _frombuffer: an array of plain values."""
    array = Array()
    array.set_state((1, shape, dtype, order == "F", content))
    return array


def _scalar(dtype: Any, content: Any) -> Any:
    """One number."""
    if not isinstance(dtype, _Dtype):
        raise ValueError("scalar of another kind than a number")
    return dtype.read(content)[0].item()


_CORES = ("numpy.core", "numpy._core")  # before and since numpy 2
_REBUILD = {
    _NAME("numpy", "dtype"): _Dtype,
    **{_NAME(f"{core}.multiarray", "_reconstruct"): Array for core in _CORES},
    **{_NAME(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{_NAME(f"{core}.numeric", "_frombuffer"): _from_buffer for core in _CORES},
}
_ALONE = {_NAME("numpy", "ndarray")}
