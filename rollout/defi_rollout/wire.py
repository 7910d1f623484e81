"""openpi's wire format: one msgpack map per message, with numpy arrays; decoded strictly.

    array   {b"__ndarray__": True, b"data": bytes in C order, b"dtype": "<f4", b"shape": [2]}
    scalar  {b"__npgeneric__": True, b"data": value, b"dtype": "<f4"}

Sizes are checked before anything is made of them, and no type comes from the message: what is not
in `DTYPES` is refused, in both directions. Needs only numpy and msgpack; runs on Python 3.8.
"""

from __future__ import annotations

from typing import Any, cast

import msgpack
import numpy as np

from defi_rollout import errors

DTYPES = frozenset(
    ["|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
)

_MAX_DIMENSIONS = 6
_MAX_LENGTH = 1 << 24  # of one axis: also where another is empty
_MAX_ENTRIES = 4096  # of one map or list
_MAX_VALUES = 1 << 16  # of a message: an empty list is one byte there, and 56 here
_MAX_TEXT = 1 << 16  # bytes
_MAX_DEPTH = 8
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_FIX = "send what openpi-client or defi_rollout.Client sends"


class WireError(errors.UserError):
    """A message that is not of this format, or a value that it cannot hold."""


def pack(value: Any) -> bytes:
    """Encodes maps, lists, strings, numbers and numpy arrays.

    Raises:
        WireError: a type or dtype that the format does not hold, such as object arrays.
    """
    kinds = (TypeError, ValueError, OverflowError)
    with WireError.instead_of(kinds, "cannot be sent", "message", _FIX):
        return cast(bytes, msgpack.packb(value, default=_encode))


def unpack(message: bytes) -> Any:
    """Decodes a message; arrays are read-only views of it.

    Raises:
        WireError: anything but a whole message of this format.
    """
    left = _MAX_VALUES

    def count(values: list[Any]) -> list[Any]:
        nonlocal left
        left -= 1 + len(values)
        if left < 0:
            raise WireError("too many values", "message", _FIX)
        return values

    kinds = (ValueError, msgpack.UnpackException, RecursionError)
    with WireError.instead_of(kinds, "not msgpack", "message", _FIX):
        value = msgpack.unpackb(
            message,
            list_hook=count,
            object_pairs_hook=lambda pairs: _decode_map(count(pairs)),
            ext_hook=_refuse_extension,
            max_map_len=_MAX_ENTRIES,
            max_array_len=_MAX_ENTRIES,
            max_str_len=_MAX_TEXT,
            max_bin_len=len(message),
        )
    _check_depth(value, _MAX_DEPTH)
    return value


def _encode(value: Any) -> Any:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise WireError(f"a {type(value).__name__} cannot be sent", "message", _FIX)
    if value.dtype.str.replace(">", "<") not in DTYPES:
        raise WireError(
            f"numpy's {value.dtype} cannot be sent",
            "message",
            "cast it, bfloat16 to float32; send strings as str or lists of str",
        )
    value = value.astype(value.dtype.newbyteorder("<"), copy=False)
    if isinstance(value, np.generic):
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    content = {b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {_ARRAY: True, **content}


def _decode_map(pairs: list[tuple[Any, Any]]) -> Any:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        raise WireError("a key stands twice", "message", _FIX)
    if _ARRAY in entry:
        return _decode_array(entry)
    if _SCALAR in entry:
        return _decode_scalar(entry)
    if not all(isinstance(key, str) for key in entry):
        raise WireError("a map has keys of bytes: another dialect of arrays", "message", _FIX)
    return entry


def _decode_array(entry: dict[bytes, Any]) -> np.ndarray:
    dtype = _decode_dtype(entry, {_ARRAY, b"data", b"dtype", b"shape"})
    data, shape = entry[b"data"], entry[b"shape"]
    is_shape = (
        isinstance(shape, list)
        and len(shape) <= _MAX_DIMENSIONS
        and all(type(length) is int and 0 <= length <= _MAX_LENGTH for length in shape)
    )
    size = dtype.itemsize
    for length in shape if is_shape else ():
        size *= length
    if not is_shape or not isinstance(data, bytes) or len(data) != size:
        raise WireError("an array's shape and data do not fit", "message", _FIX)
    return np.frombuffer(data, dtype).reshape(shape)


def _decode_scalar(entry: dict[bytes, Any]) -> np.generic:
    dtype = _decode_dtype(entry, {_SCALAR, b"data", b"dtype"})
    data = entry[b"data"]
    if not isinstance(data, (bool, int, float)):
        raise WireError("a scalar that is not a number", "message", _FIX)
    kinds, what = (ValueError, ArithmeticError), "a scalar out of its range"
    with WireError.instead_of(kinds, what, "message", _FIX), np.errstate(over="raise"):
        return dtype.type(data)


def _decode_dtype(entry: dict[bytes, Any], keys: set[bytes]) -> np.dtype:
    if entry.keys() != keys:
        raise WireError("an array or scalar with other entries", "message", _FIX)
    name = entry[b"dtype"]
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError(f"dtype {name!r} is refused", "message", _FIX)
    return np.dtype(name)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise WireError(f"msgpack extension {code}", "message", _FIX)


def _check_depth(value: Any, left: int) -> None:
    if isinstance(value, (dict, list)):
        if not left:
            raise WireError("nested too deep", "message", _FIX)
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)
