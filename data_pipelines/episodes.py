"""Episodes: the one schema every source becomes, and its store on disk.

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

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgpack
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines import episode_files, media
from defi_jax import errors

TEMPORARY_PREFIX = ".writing-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One demonstration or clip.

    Attributes:
        episode_id: unique within the store, stable between conversions.
        source: data set it came from.
        embodiment: robot or "human".
        instructions: paraphrases, the first is the canonical one; empty text where unlabelled.
        frames: encoded JPEG or PNG images by camera, all cameras equally many (n).
        actions: float32[n, A], action t is executed after frame t; None for action-free video.
        states: float32[n, P] proprioception, or None.
        fps: frames per second of `frames`.
        metadata: JSON-able.
    """

    episode_id: str
    source: str
    embodiment: str
    instructions: tuple[str, ...]
    frames: Mapping[str, Sequence[bytes]]
    actions: np.ndarray | None
    states: np.ndarray | None
    fps: float
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        problems = episode_files.problems(self)
        if problems:
            raise errors.DataError(
                "; ".join(problems), f"episode {self.episode_id!r}", "correct or leave it out"
            )

    @property
    def length(self) -> int:
        """Number of frames n."""
        return len(next(iter(self.frames.values())))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeMeta:
    """What the index knows of an episode; see `Episode`."""

    episode_id: str
    source: str
    embodiment: str
    instructions: tuple[str, ...]
    cameras: tuple[str, ...]
    length: int
    fps: float
    has_actions: bool
    has_states: bool
    metadata: Mapping[str, Any]


class EpisodeSource(Protocol):
    """Random access to episodes: `EpisodeStore`, or a source that makes them up."""

    @property
    def episode_ids(self) -> Sequence[str]:
        """Ids of all episodes."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """int64[len], frames of each episode."""
        ...

    @property
    def has_actions(self) -> np.ndarray:
        """bool[len], whether each episode has actions."""
        ...

    def __len__(self) -> int: ...

    def has_camera(self, camera: str) -> np.ndarray:
        """Returns bool[len], whether each episode has the camera."""
        ...

    def meta(self, i: int) -> EpisodeMeta:
        """Returns what is known of episode `i` without reading it."""
        ...

    def frames(self, i: int, camera: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns uint8[k, H, W, 3], the given frames in the given order."""
        ...

    def fetch(
        self, i: int, camera: str, indices: Sequence[int] | np.ndarray
    ) -> Iterator[np.ndarray]:
        """Reads the given frames now; yields uint8[H, W, 3], each decoded when it is taken."""
        ...

    def actions(self, i: int) -> np.ndarray | None:
        """Returns float32[n, A], or None."""
        ...

    def states(self, i: int) -> np.ndarray | None:
        """Returns float32[n, P], or None."""
        ...

    def fingerprint(self) -> str:
        """Returns a digest of all content."""
        ...


_META_NAMES = tuple(field.name for field in dataclasses.fields(EpisodeMeta))


# ---- writing ----


class EpisodeWriter:
    """Appends episodes to a store; use as a context manager.

    Args:
        directory: of the store; created when absent.
        source: name of the data set, written to the index header.
        shard: this writer's own name; parallel writers need different ones. Letters and digits.
        episodes_per_shard: a shard is published when it holds this many,
        shard_bytes: or this many bytes of records; what a killed run has to write again.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        source: str,
        shard: str = "0",
        episodes_per_shard: int = 256,
        shard_bytes: int = 256 << 20,
    ):
        if not re.fullmatch(r"[A-Za-z0-9_]+", shard):
            raise errors.UserError("shard name has characters other than A-Za-z0-9_", repr(shard))
        self._directory = pathlib.Path(directory)
        episode_files.make_directory(self._directory)
        self._source = source
        self._prefix = f"episodes-{shard}-"
        self._episodes_per_shard, self._shard_bytes = episodes_per_shard, shard_bytes
        self._writer: array_record_module.ArrayRecordWriter | None = None
        self._lines: list[str] = []
        self._num_records = self._num_bytes = 0
        self._remove_leftovers()
        self._known = self.done_ids()

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
        for path in sorted(self._directory.glob(f"episodes-*{episode_files.INDEX_SUFFIX}")):
            ids.update(line["episode_id"] for line in episode_files.read_index(path)[1])
        return ids

    def write(self, episode: Episode) -> None:
        """Appends an episode.

        Raises:
            DataError: the store has an episode of this id.
        """
        if episode.episode_id in self._known:
            raise errors.DataError(
                "episode id exists already", f"{episode.episode_id!r} in {self._directory}",
                "skip the ids of done_ids(), or give each episode its own",
            )  # fmt: skip
        if self._writer is None:
            self._writer = array_record_module.ArrayRecordWriter(
                str(self._temporary(episode_files.RECORDS_SUFFIX)), episode_files.WRITER_OPTIONS
            )
        records = episode_files.episode_records(episode)
        digest = hashlib.sha256()
        for record in records:
            self._writer.write(record)
            digest.update(record)
        self._lines.append(episode_files.index_line(episode, self._num_records, digest.hexdigest()))
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
        records = self._temporary(episode_files.RECORDS_SUFFIX)
        index = self._temporary(episode_files.INDEX_SUFFIX)
        header = {
            "source": self._source,
            "records": self._num_records,
            "bytes": records.stat().st_size,
            "frames_per_record": episode_files.FRAMES_PER_RECORD,
            "episodes": len(self._lines),
        }
        index.write_text(episode_files.index_text(header, self._lines), encoding="utf-8")
        target = self._directory / (self._next_name() + episode_files.RECORDS_SUFFIX)
        for temporary, path in ((records, target), (index, episode_files.index_path(target))):
            episode_files.sync(temporary)
            os.replace(temporary, path)
        episode_files.sync(self._directory)
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
        for suffix in (episode_files.RECORDS_SUFFIX, episode_files.INDEX_SUFFIX):
            self._temporary(suffix).unlink(missing_ok=True)
        for path in self._directory.glob(f"{self._prefix}*{episode_files.RECORDS_SUFFIX}"):
            if not episode_files.index_path(path).exists():
                path.unlink()

    def _next_name(self) -> str:
        """Returns the first free one, so that a deleted shard is written again under its name."""
        names = (f"{self._prefix}{number:05d}" for number in itertools.count())
        suffix = episode_files.INDEX_SUFFIX
        return next(name for name in names if not (self._directory / (name + suffix)).exists())


# ---- reading ----


class EpisodeStore:
    """Random access to the episodes of a directory, in the order of their ids.

    Reading is thread-safe. A store can be sent to another process, which opens its own files.

    Args:
        directory: written by `EpisodeWriter`.

    Raises:
        UserError: the directory is missing or holds no episodes.
        DataError: a shard is missing, truncated or contradicts its index.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = pathlib.Path(directory)
        fix = "write it with `python launch/data.py convert --output=...`"
        if not self.directory.is_dir():
            raise errors.UserError("no such data directory", str(self.directory), fix)
        self._shards = sorted(self.directory.glob(f"episodes-*{episode_files.INDEX_SUFFIX}"))
        if not self._shards:
            raise errors.UserError("data directory holds no episodes", str(self.directory), fix)
        self._lines = self._merge_indexes()
        self._readers = episode_files.Readers(self._shards)

    def _merge_indexes(self) -> list[dict[str, Any]]:
        merged: dict[str, dict[str, Any]] = {}
        for shard, path in enumerate(self._shards):
            header, lines = episode_files.read_index(path)
            episode_files.check_size(path, header["bytes"])
            for line in lines:
                if line["episode_id"] in merged:
                    first = self._shards[merged[line["episode_id"]]["shard"]]
                    raise errors.DataError(
                        f"episode {line['episode_id']!r} is there twice", f"{first} and {path}",
                        "delete one of the shards",
                    )  # fmt: skip
                per_record = header["frames_per_record"]
                merged[line["episode_id"]] = line | {"shard": shard, "per_record": per_record}
        return [merged[episode_id] for episode_id in sorted(merged)]

    def __len__(self) -> int:
        return len(self._lines)

    @functools.cached_property
    def episode_ids(self) -> tuple[str, ...]:
        """Ids of all episodes, sorted."""
        return tuple(line["episode_id"] for line in self._lines)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int64[len(self)], frames of each episode."""
        return np.array([line["length"] for line in self._lines], np.int64)

    @functools.cached_property
    def has_actions(self) -> np.ndarray:
        """bool[len(self)], whether each episode has actions."""
        return np.array([line["has_actions"] for line in self._lines], bool)

    def has_camera(self, camera: str) -> np.ndarray:
        """Returns bool[len(self)], whether each episode has the camera."""
        return np.array([camera in line["cameras"] for line in self._lines], bool)

    def meta(self, i: int) -> EpisodeMeta:
        """Returns what the index knows of episode `i`."""
        line = self._lines[i]
        values = {name: line[name] for name in _META_NAMES}
        values |= {name: tuple(line[name]) for name in ("instructions", "cameras")}
        return EpisodeMeta(**values)

    def frame_bytes(self, i: int, camera: str, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """Returns the encoded images of the given frames, in the given order.

        Raises:
            DataError: a record is damaged, or the episode has no such camera or frame.
        """
        line = self._lines[i]
        if camera not in line["cameras"]:
            raise errors.DataError(
                f"episode {line['episode_id']!r} has no camera {camera!r}", str(self.directory),
                f"use one of {', '.join(line['cameras'])}",
            )  # fmt: skip
        wrong = [int(t) for t in indices if not 0 <= t < line["length"]]
        if wrong:
            raise errors.DataError(
                f"frames {wrong} are outside of the episode's {line['length']}",
                f"episode {line['episode_id']!r} in {self.directory}",
            )
        per_record = line["per_record"]
        chunks_per_camera = -(-line["length"] // per_record)
        first = line["cameras"].index(camera) * chunks_per_camera
        chunks = sorted({int(t) // per_record for t in indices})
        contents = self._read(line, [first + chunk for chunk in chunks])
        frames: dict[int, bytes] = {}
        for chunk, content in zip(chunks, contents, strict=True):
            start = chunk * per_record
            if (content.get("camera"), content.get("start")) != (camera, start):
                raise self._damaged(line, "its records hold other frames")
            frames |= enumerate(content["frames"], start)
        absent = [int(t) for t in indices if int(t) not in frames]
        if absent:
            raise self._damaged(line, f"its records lack frames {absent}")
        return [frames[int(t)] for t in indices]

    def frames(self, i: int, camera: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decodes the given frames only; see `frame_bytes`.

        Returns:
            uint8[k, H, W, 3] in the order of `indices`.
        """
        return np.stack(list(self.fetch(i, camera, indices)))

    def fetch(
        self, i: int, camera: str, indices: Sequence[int] | np.ndarray
    ) -> Iterator[np.ndarray]:
        """Reads the given frames now, but decodes each when it is taken; see `frames`."""
        encoded = self.frame_bytes(i, camera, indices)
        where = f"episode {self._lines[i]['episode_id']!r}, camera {camera!r} in {self.directory}"
        return media.decode_images(encoded, where=where)

    def actions(self, i: int) -> np.ndarray | None:
        """Returns float32[n, A], or None where the episode has no actions."""
        return episode_files.unpack_column(self._columns(i)["actions"])

    def states(self, i: int) -> np.ndarray | None:
        """Returns float32[n, P], or None where the episode has no states."""
        return episode_files.unpack_column(self._columns(i)["states"])

    def episode(self, i: int) -> Episode:
        """Returns the whole episode, for conversions and exports."""
        meta = self.meta(i)
        everything = range(meta.length)
        return Episode(
            episode_id=meta.episode_id,
            source=meta.source,
            embodiment=meta.embodiment,
            instructions=meta.instructions,
            frames={camera: self.frame_bytes(i, camera, everything) for camera in meta.cameras},
            actions=self.actions(i),
            states=self.states(i),
            fps=meta.fps,
            metadata=meta.metadata,
        )

    def fingerprint(self) -> str:
        """Digest of all content, the same however episodes are spread over shards."""
        digest = hashlib.sha256()
        for line in self._lines:
            content = {k: v for k, v in line.items() if k not in ("shard", "first_record")}
            digest.update(json.dumps(content, sort_keys=True).encode())
        return digest.hexdigest()

    def verify(self, i: int) -> None:
        """Reads all of episode `i` and compares its digest.

        Raises:
            DataError: its bytes are not those written.
        """
        line = self._lines[i]
        records = -(-line["length"] // line["per_record"]) * len(line["cameras"]) + 1
        digest = hashlib.sha256()
        for record in self._read_bytes(line, range(records)):
            digest.update(record)
        if digest.hexdigest() != line["sha256"]:
            raise self._damaged(line, "its digest is not the index's")

    def _columns(self, i: int) -> dict[str, Any]:
        line = self._lines[i]
        chunks = -(-line["length"] // line["per_record"]) * len(line["cameras"])
        (content,) = self._read(line, [chunks])
        if "actions" not in content:
            raise self._damaged(line, "its records hold frames where actions should be")
        return content

    def _read(self, line: Mapping[str, Any], offsets: Iterable[int]) -> list[dict[str, Any]]:
        """Reads records by their number within the episode."""
        contents = [msgpack.unpackb(record) for record in self._read_bytes(line, offsets)]
        if any(content["episode"] != line["episode_id"] for content in contents):
            raise self._damaged(line, "its records belong to another episode")
        return contents

    def _read_bytes(self, line: Mapping[str, Any], offsets: Iterable[int]) -> list[bytes]:
        numbers = [line["first_record"] + offset for offset in offsets]
        try:
            return self._readers.read(line["shard"], numbers)
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._damaged(line, str(error) or "truncated") from error

    def _damaged(self, line: Mapping[str, Any], reason: str) -> errors.DataError:
        shard = self._shards[line["shard"]]
        path = episode_files.records_path(shard)
        return errors.DataError(
            f"damaged record ({reason})", f"episode {line['episode_id']!r} in {path}",
            "delete this shard (both files) and convert again",
        )  # fmt: skip
