"""Digests that tell whether a dataset and the rules for reading it are still the same.

Reading terabytes to know that they have not changed would cost as much as converting them. A file
counts by its name, its size and its last bytes, which are all of a small text and the checksum of
a TFRecord file's last record.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

_TAIL_BYTES = 4096
_THREADS = 16  # buckets answer slowly


def digest(content: Any) -> str:
    """Digest of a JSON-able value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_files(root: epath.PathLike, paths: Iterable[epath.PathLike]) -> str:
    """Digest of files by their paths below `root`, sizes and last bytes; absent ones count too."""
    ordered = sorted({os.fspath(path) for path in paths})
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        facts = list(pool.map(_facts, ordered))
    names = [os.path.relpath(path, os.fspath(root)) for path in ordered]
    return digest([[name, *fact] for name, fact in zip(names, facts, strict=True)])


def digest_rules(rules: Any) -> str:
    """Digest of a value made of dataclasses, containers and functions, with the functions' code.

    A function counts with its own code, what it encloses, and the module that it stands in.
    """
    functions = list(_functions(rules))
    modules = {inspect.getsource(module) for module in map(inspect.getmodule, functions) if module}
    own = [[inspect.getsource(function), repr(_enclosed(function))] for function in functions]
    named = re.sub(r" at 0x[0-9a-f]+", "", json.dumps([repr(rules), own]))
    return digest([named, sorted(modules)])


def _facts(path: str) -> list[Any]:
    try:
        size = epath.Path(path).stat().length
        with epath.Path(path).open("rb") as file:
            file.seek(max(0, size - _TAIL_BYTES))
            return [size, hashlib.sha256(file.read()).hexdigest()]
    except FileNotFoundError:
        return []


def _enclosed(function: Any) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__ or ()]


def _functions(value: Any) -> Iterator[Callable[..., Any]]:
    if inspect.isfunction(value):
        yield value
        inner = _enclosed(value)
    elif isinstance(value, functools.partial):
        inner = [value.func, value.args, value.keywords]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        inner = list(value.values())
    else:
        inner = list(value) if isinstance(value, list | tuple) else []
    for item in inner:
        yield from _functions(item)
