"""Digests that tell whether the files of a dataset are still the same.

Reading terabytes to know that they have not changed would cost as much as converting them. A file
counts by its name, its size and its last bytes, which are all of a small text and the checksum of
a TFRecord file's last record.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from defi_rollout import files as rollout_files
from etils import epath

from defi_jax import errors

LOCK = ".lock"
_SHOWN = 24  # characters of a value in messages
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


def _facts(path: str) -> list[Any]:
    try:
        size = epath.Path(path).stat().length
        with epath.Path(path).open("rb") as file:
            file.seek(max(0, size - _TAIL_BYTES))
            return [size, hashlib.sha256(file.read()).hexdigest()]
    except FileNotFoundError:
        return []


def make_directory(directory: pathlib.Path) -> None:
    """Makes the directory of a store.

    Raises:
        UserError: a file is in its place, or it may not be written.
    """
    what = "data directory cannot be made"
    with errors.UserError.instead_of(OSError, what, directory, "choose another --output"):
        directory.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def alone(directory: pathlib.Path, name: str = LOCK) -> Iterator[None]:
    """Holds a directory against a second run that would write the same files.

    Runs that lock files of other names share the directory.

    Raises:
        UserError: another run holds it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((directory / name).open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.UserError(
                "another run writes here", directory, "wait for it, or stop it"
            ) from error
        except OSError as error:
            raise errors.UserError(
                f"directory cannot be written ({error.strerror})",
                directory,
                "choose another --output",
            ) from error
        yield


def check_no_files(directory: pathlib.Path, without: str) -> None:
    """Raises UserError for a directory with files, hidden ones of killed runs aside.

    It lacks the file `without`, which would have told what they are; it need not be there itself.
    """
    found = directory.iterdir() if directory.is_dir() else ()
    if any(not path.name.startswith(".") for path in found):
        what = f"output holds files, but no {without}"
        raise errors.UserError(what, directory, "choose another --output")


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file at once, for human eyes; names of folders in it need not be Unicode."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    rollout_files.write(path, text.encode(errors="backslashreplace"))


def publish(*pairs: tuple[pathlib.Path, pathlib.Path]) -> None:
    """Gives finished files of one directory their names, by pairs of temporary path and path.

    They go in order: the last one makes them count.
    """
    for temporary, path in pairs:
        sync(temporary)
        os.replace(temporary, path)
    sync(pairs[-1][1].parent)


def sync(path: pathlib.Path) -> None:
    """Flushes a file or directory to disk, so that a rename never outlives its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def differences(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    """Says what two JSON objects do not share, by dotted key."""
    ours, theirs = _leaves(want, ""), _leaves(have, "")
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    return [f"{key} {_short(theirs.get(key))}, not {_short(ours.get(key))}" for key in keys]


def _leaves(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for name, child in value.items():
        found |= _leaves(child, f"{path}.{name}" if path else name)
    return found


def _short(value: Any) -> str:
    """The start of a value; digests are told apart by it."""
    return str(value)[:_SHOWN]
