"""The files of an episode store.

A store is a directory of shards. Each shard is two files:

    episodes-<shard>-<number>.array_record   the records
    episodes-<shard>-<number>.index.jsonl    a header line, then one line an episode

The records of an episode lie one after another: for each camera (in the order of the index) the
frames in chunks of `FRAMES_PER_RECORD` (1) encoded images, then one record with actions and states.
Hence an index needs only the first record's number, and reading two frames of a long episode reads
two small records. Records are msgpack; frames keep the encoded bytes they came with.

Writing is atomic. A shard grows under temporary names and is published by two renames, the index
last, so that only a file with an index exists for a reader. Parallel writers own a shard name each.
Bytes depend on the episodes and their order alone, never on time or machine.
"""

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines import episodes, files
from data_pipelines.formats import array_records
from defi_jax import errors

SCHEMA_VERSION = 2
_READABLE = (1, 2)  # in the first one the index's digest did not cover its header
FRAMES_PER_RECORD = 1  # frames of pairs and clips lie apart; stores with any number are readable
MAX_OPEN_SHARDS = 128  # per process; file descriptors are the limit
RECORDS_SUFFIX = ".array_record"
INDEX_SUFFIX = ".index.jsonl"

WRITER_OPTIONS = "group_size:1,uncompressed"  # images are compressed; the hash stays on


def index_path(records: pathlib.Path) -> pathlib.Path:
    """Returns the index file of a records file."""
    return records.with_name(records.name.removesuffix(RECORDS_SUFFIX) + INDEX_SUFFIX)


def records_path(index: pathlib.Path) -> pathlib.Path:
    """Returns the records file of an index file."""
    return index.with_name(index.name.removesuffix(INDEX_SUFFIX) + RECORDS_SUFFIX)


def find_indexes(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the index files of a store's shards, sorted."""
    return sorted(directory.glob(f"episodes-*{INDEX_SUFFIX}"))


def episode_records(episode: episodes.Episode) -> list[bytes]:
    """Returns the episode's records: chunks of each camera, then the low-dimensional columns."""
    records = []
    for camera, frames in episode.frames.items():
        for start in range(0, len(frames), FRAMES_PER_RECORD):
            chunk = [bytes(frame) for frame in frames[start : start + FRAMES_PER_RECORD]]
            content = {"episode": episode.episode_id, "camera": camera, "start": start}
            records.append(msgpack.packb(content | {"frames": chunk}))
    columns = {"actions": _pack_column(episode.actions), "states": _pack_column(episode.states)}
    records.append(msgpack.packb({"episode": episode.episode_id} | columns))
    return records


def _pack_column(column: np.ndarray | None) -> dict[str, Any] | None:
    if column is None:
        return None
    return {"width": column.shape[1], "data": np.ascontiguousarray(column, "<f4").tobytes()}


def unpack_column(packed: Mapping[str, Any] | None) -> np.ndarray | None:
    """Returns float32[n, width] of a packed column, None for None."""
    if packed is None:
        return None
    return np.frombuffer(packed["data"], "<f4").reshape(-1, packed["width"]).astype(np.float32)


def index_line(episode: episodes.Episode, digest: str) -> dict[str, Any]:
    """Returns the episode's line of the index, but for the number of its first record."""
    changed = {"fps": float(episode.fps), "metadata": dict(episode.metadata), "sha256": digest}
    return vars(episode.meta) | changed


class ShardWriter:
    """A shard that grows under temporary names, and appears whole or not at all.

    Attributes:
        lines: of the index so far.
        num_bytes: of the records so far.
    """

    def __init__(self, directory: pathlib.Path, name: str):
        self._records = _temporary(directory, name, RECORDS_SUFFIX)
        self._index = _temporary(directory, name, INDEX_SUFFIX)
        self._writer = array_record_module.ArrayRecordWriter(str(self._records), WRITER_OPTIONS)
        self.lines: list[str] = []
        self._num_records = self.num_bytes = 0

    def write(self, records: Sequence[bytes], line: Mapping[str, Any]) -> None:
        """Appends records, and to the index a line with the number of the first of them."""
        for record in records:
            self._writer.write(record)
        line = {**line, "first_record": self._num_records}
        self.lines.append(json.dumps(line, sort_keys=True, ensure_ascii=False, allow_nan=False))
        self._num_records += len(records)
        self.num_bytes += sum(map(len, records))

    def publish(self, index: pathlib.Path, **facts: Any) -> None:
        """Gives the files their names; `facts` go to the index's header."""
        self.close()
        header = {"records": self._num_records, "bytes": self._records.stat().st_size}
        self._index.write_text(index_text(header | facts, self.lines), encoding="utf-8")
        files.publish((self._records, records_path(index)), (self._index, index))

    def close(self) -> None:
        """Closes the records; what was not published stays under its temporary name."""
        self._writer.close()


def index_text(header: Mapping[str, Any], lines: Sequence[str]) -> str:
    """Returns the content of an index file: the completed header and the lines."""
    body = "".join(line + "\n" for line in lines)
    completed = {**header, "schema": SCHEMA_VERSION}
    completed["sha256"] = _index_digest(completed, body.encode())
    return json.dumps(completed, sort_keys=True) + "\n" + body


def remove_partial(directory: pathlib.Path, name: str) -> None:
    """Removes what a `ShardWriter` of this name left behind."""
    for suffix in (RECORDS_SUFFIX, INDEX_SUFFIX):
        _temporary(directory, name, suffix).unlink(missing_ok=True)


def _temporary(directory: pathlib.Path, name: str, suffix: str) -> pathlib.Path:
    return directory / f".writing-{name}{suffix}"


def _index_digest(header: Mapping[str, Any], body: bytes) -> str:
    counted = {key: header[key] for key in header if key != "sha256"}
    first = "" if header["schema"] == 1 else json.dumps(counted, sort_keys=True)
    return hashlib.sha256(first.encode() + body).hexdigest()


def read_index(
    path: pathlib.Path, *, again: str = "convert"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns header and lines of a shard's index; `again` is what makes it anew, for messages.

    Raises:
        DataError: it is damaged, or an index of another schema.
    """
    fix = f"delete this file and its .array_record, and {again} again"
    try:
        first, _, body = path.read_bytes().partition(b"\n")
        header = json.loads(first)
        schema, digest = header["schema"], header["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise errors.DataError("episode index is damaged", str(path), fix) from error
    if schema not in _READABLE:
        what = f"episode store has schema {schema}, this code reads {SCHEMA_VERSION}"
        raise errors.DataError(what, str(path), f"{again} again")
    if digest != _index_digest(header, body):
        raise errors.DataError("episode index is damaged or truncated", str(path), fix)
    return header, [json.loads(line) for line in body.split(b"\n")[:-1]]


def check_size(index: pathlib.Path, size: int, *, again: str = "convert") -> None:
    """Raises DataError unless the index's records file is there in full."""
    records = records_path(index)
    found = records.stat().st_size if records.exists() else None
    if found != size:
        what = "missing" if found is None else f"truncated: {found} bytes instead of {size}"
        fix = f"copy it again, or delete both files of the shard and {again} again"
        raise errors.DataError(f"episode shard is {what}", str(records), fix)


class Readers:
    """Open files of a store's shards, at most `MAX_OPEN_SHARDS`, the least recent closed first."""

    def __init__(self, indexes: Sequence[pathlib.Path]):
        self._paths = [str(records_path(path)) for path in indexes]
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()

    def __getstate__(self) -> list[str]:
        return self._paths

    def __setstate__(self, paths: list[str]) -> None:
        self._paths = paths
        self._reset()

    def read(self, shard: int, numbers: Sequence[int]) -> list[bytes]:
        """Reads the records of these numbers.

        Raises:
            RuntimeError: the file is damaged (the message may be empty).
            IndexError: it has fewer records.
        """
        with self._lock:
            if shard not in self._open:
                self._open[shard] = array_record_module.ArrayRecordReader(
                    self._paths[shard], array_records.READER_OPTIONS, file_reader_buffer_size=32768
                )
            self._open.move_to_end(shard)
            reader = self._open[shard]
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        # one by one: for several numbers at once, it hands each to a thread of its own
        return [reader.read(number, number + 1)[0] for number in numbers]
