"""Writes an episode store, a shard at a time; `shards` describes the format."""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Collection

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines import episodes, files
from data_pipelines.store import shards
from defi_jax import errors

TEMPORARY_PREFIX = ".writing-"


class EpisodeWriter:
    """Appends episodes to a store; use as a context manager.

    Args:
        directory: directory of the store; created when absent.
        source: name of the data set, written to the index header.
        shard: this writer's own name; parallel writers need different ones. Letters and digits.
        episodes_per_shard: a shard is published when it holds this many,
        shard_bytes: or this many bytes of records; what a killed run has to write again.
        known: ids of the published episodes, None to look them up.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        source: str,
        shard: str = "0",
        episodes_per_shard: int = 256,
        shard_bytes: int = 256 << 20,
        known: Collection[str] | None = None,
    ):
        if not re.fullmatch(r"[A-Za-z0-9_]+", shard):
            raise errors.UserError("shard name has characters other than A-Za-z0-9_", repr(shard))
        self._directory = pathlib.Path(directory)
        files.make_directory(self._directory)
        self._source = source
        self._prefix = f"episodes-{shard}-"
        self._episodes_per_shard, self._shard_bytes = episodes_per_shard, shard_bytes
        self._writer: array_record_module.ArrayRecordWriter | None = None
        self._lines: list[str] = []
        self._num_records = self._num_bytes = 0
        self._remove_leftovers()
        self._known = self.done_ids() if known is None else set(known)

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        try:
            if error_type is None:
                self.close()
        finally:
            self._abandon()

    def done_ids(self) -> set[str]:
        """Ids of all published episodes of the store, whoever wrote them."""
        ids: set[str] = set()
        for path in sorted(self._directory.glob(f"episodes-*{shards.INDEX_SUFFIX}")):
            ids.update(line["episode_id"] for line in shards.read_index(path)[1])
        return ids

    def write(self, episode: episodes.Episode) -> None:
        """Appends an episode.

        Raises:
            DataError: the store has an episode of this id.
        """
        if episode.episode_id in self._known:
            raise errors.DataError(
                "episode id exists already",
                f"{episode.episode_id!r} in {self._directory}",
                "skip the ids of done_ids(), or give each episode its own",
            )
        if self._writer is None:
            self._writer = array_record_module.ArrayRecordWriter(
                str(self._temporary(shards.RECORDS_SUFFIX)), shards.WRITER_OPTIONS
            )
        records = shards.episode_records(episode)
        digest = hashlib.sha256()
        for record in records:
            self._writer.write(record)
            digest.update(record)
        self._lines.append(shards.index_line(episode, self._num_records, digest.hexdigest()))
        self._num_records += len(records)
        self._num_bytes += sum(len(record) for record in records)
        self._known.add(episode.episode_id)
        is_full = len(self._lines) >= self._episodes_per_shard
        if is_full or self._num_bytes >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Publishes the episodes written so far as a shard of their own."""
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        records = self._temporary(shards.RECORDS_SUFFIX)
        index = self._temporary(shards.INDEX_SUFFIX)
        header = {
            "source": self._source,
            "records": self._num_records,
            "bytes": records.stat().st_size,
            "frames_per_record": shards.FRAMES_PER_RECORD,
            "episodes": len(self._lines),
        }
        index.write_text(shards.index_text(header, self._lines), encoding="utf-8")
        target = self._directory / (self._next_name() + shards.RECORDS_SUFFIX)
        files.publish((records, target), (index, shards.index_path(target)))
        self._lines, self._num_records, self._num_bytes = [], 0, 0

    def close(self) -> None:
        """Publishes what was written."""
        self.flush()

    def _abandon(self) -> None:
        """Drops what was not published yet."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._remove_leftovers()

    def _temporary(self, suffix: str) -> pathlib.Path:
        return self._directory / f"{TEMPORARY_PREFIX}{self._prefix}{suffix.lstrip('.')}"

    def _remove_leftovers(self) -> None:
        """Removes this shard name's unpublished files of a killed run."""
        for suffix in (shards.RECORDS_SUFFIX, shards.INDEX_SUFFIX):
            self._temporary(suffix).unlink(missing_ok=True)
        for path in self._directory.glob(f"{self._prefix}*{shards.RECORDS_SUFFIX}"):
            if not shards.index_path(path).exists():
                path.unlink()

    def _next_name(self) -> str:
        """Returns the first free one, so that a deleted shard is written again under its name."""
        names = (f"{self._prefix}{number:05d}" for number in itertools.count())
        suffix = shards.INDEX_SUFFIX
        return next(name for name in names if not (self._directory / (name + suffix)).exists())
