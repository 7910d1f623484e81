"""Random access to the episodes of a store; `shards` describes the format."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.store import shards
from defi_jax import errors

_META_NAMES = tuple(field.name for field in dataclasses.fields(episodes.EpisodeMeta))


class EpisodeStore(episodes.EpisodeSource):
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
        self._shards = shards.find_indexes(self.directory)
        if not self._shards:
            raise errors.UserError("data directory holds no episodes", str(self.directory), fix)
        self._lines = self._merge_indexes()
        self._readers = shards.Readers(self._shards)
        self.episode_ids = tuple(line["episode_id"] for line in self._lines)
        self.lengths = np.array([line["length"] for line in self._lines], np.int64)
        self.has_actions = np.array([line["has_actions"] for line in self._lines], bool)

    def _merge_indexes(self) -> list[dict[str, Any]]:
        merged: dict[str, dict[str, Any]] = {}
        for shard, path in enumerate(self._shards):
            header, lines = shards.read_index(path)
            shards.check_size(path, header["bytes"])
            for line in lines:
                if line["episode_id"] in merged:
                    first = self._shards[merged[line["episode_id"]]["shard"]]
                    raise errors.DataError(
                        f"episode {line['episode_id']!r} is there twice",
                        f"{first} and {path}",
                        "delete one of the shards",
                    )
                per_record = header["frames_per_record"]
                merged[line["episode_id"]] = line | {"shard": shard, "per_record": per_record}
        return [merged[episode_id] for episode_id in sorted(merged)]

    def has_camera(self, camera: str) -> np.ndarray:
        """See `episodes.EpisodeSource`."""
        return np.array([camera in line["cameras"] for line in self._lines], bool)

    def meta(self, i: int) -> episodes.EpisodeMeta:
        """Returns what the index knows of episode `i`."""
        line = self._lines[i]
        values = {name: line[name] for name in _META_NAMES}
        values |= {name: tuple(line[name]) for name in ("instructions", "cameras")}
        return episodes.EpisodeMeta(**values)

    def frame_bytes(self, i: int, camera: str, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """Returns the encoded images of the given frames, in the given order.

        Raises:
            DataError: a record is damaged, or the episode has no such camera or frame.
        """
        line = self._lines[i]
        if camera not in line["cameras"]:
            raise errors.DataError(
                f"episode {line['episode_id']!r} has no camera {camera!r}",
                str(self.directory),
                f"use one of {', '.join(line['cameras'])}",
            )
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

    def fetch(
        self, i: int, camera: str, indices: Sequence[int] | np.ndarray
    ) -> Iterator[np.ndarray]:
        """See `episodes.EpisodeSource`; errors are those of `frame_bytes`."""
        encoded = self.frame_bytes(i, camera, indices)
        where = f"episode {self._lines[i]['episode_id']!r}, camera {camera!r} in {self.directory}"
        return image.decode_images(encoded, where=where)

    def actions(self, i: int) -> np.ndarray | None:
        """Returns float32[n, A], or None where the episode has no actions."""
        return shards.unpack_column(self._columns(i)["actions"])

    def states(self, i: int) -> np.ndarray | None:
        """Returns float32[n, P], or None where the episode has no states."""
        return shards.unpack_column(self._columns(i)["states"])

    def episode(self, i: int) -> episodes.Episode:
        """Returns the whole episode, for conversions and exports."""
        meta = self.meta(i)
        everything = range(meta.length)
        return episodes.Episode(
            **{name: getattr(meta, name) for name in episodes.SHARED},
            frames={camera: self.frame_bytes(i, camera, everything) for camera in meta.cameras},
            actions=self.actions(i),
            states=self.states(i),
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
        records = self._read_bytes(line, offsets)
        try:  # a shard that loses its end while it is open yields records that are empty
            contents = [dict(msgpack.unpackb(record)) for record in records]
        except (TypeError, ValueError) as error:
            raise self._damaged(line, str(error)) from error
        if any(content.get("episode") != line["episode_id"] for content in contents):
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
        path = shards.records_path(shard)
        return errors.DataError(
            f"damaged record ({reason})",
            f"episode {line['episode_id']!r} in {path}",
            "delete this shard (both files) and convert again",
        )
