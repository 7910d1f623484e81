"""Writes an episode store, a shard at a time; `shards` describes the format."""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Collection

from data_pipelines import episodes, files
from data_pipelines.store import shards
from defi_jax import errors


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
        self._name = f"episodes-{shard}"
        self._episodes_per_shard, self._shard_bytes = episodes_per_shard, shard_bytes
        self._shard: shards.ShardWriter | None = None
        self._remove_leftovers()
        self._known = self.done_ids() if known is None else set(known)

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        try:
            if error_type is None:
                self.flush()
        finally:
            if self._shard is not None:
                self._shard.close()
            self._remove_leftovers()

    def done_ids(self) -> set[str]:
        """Ids of all published episodes of the store, whoever wrote them."""
        paths = shards.find_indexes(self._directory)
        return {line["episode_id"] for path in paths for line in shards.read_index(path)[1]}

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
        shard = self._shard = self._shard or shards.ShardWriter(self._directory, self._name)
        records = shards.episode_records(episode)
        digest = hashlib.sha256()
        for record in records:
            digest.update(record)
        shard.write(records, shards.index_line(episode, digest.hexdigest()))
        self._known.add(episode.episode_id)
        is_full = len(shard.lines) >= self._episodes_per_shard
        if is_full or shard.num_bytes >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Publishes the episodes written so far as a shard of their own."""
        if self._shard is None:
            return
        # The first free name, so that a deleted shard is written again under its own.
        names = (f"{self._name}-{number:05d}{shards.INDEX_SUFFIX}" for number in itertools.count())
        self._shard.publish(
            next(path for path in map(self._directory.joinpath, names) if not path.exists()),
            source=self._source,
            frames_per_record=shards.FRAMES_PER_RECORD,
            episodes=len(self._shard.lines),
        )
        self._shard = None

    def _remove_leftovers(self) -> None:
        """Removes this shard name's unpublished files, of this or of a killed run."""
        shards.remove_partial(self._directory, self._name)
        for path in self._directory.glob(f"{self._name}-*{shards.RECORDS_SUFFIX}"):
            if not shards.index_path(path).exists():
                path.unlink()
