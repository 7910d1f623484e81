"""Writes latent caches (see `latents`): frozen encoders over a store, on all devices and hosts.

What a shard holds follows from the store alone, so that processes share the shards out by number
and a run that was killed goes on with those that are missing. A shard is published as those of
`episodes` are: complete or not at all, the index last.

No jax here: an `Encoder` is handed in, by defi_jax/training/caches/latents.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np
import tqdm
from absl import logging

from data_pipelines import episodes, files, pixels
from data_pipelines.latents import cache as latent_cache
from data_pipelines.store import shards
from defi_jax import errors

FRAMES_PER_SHARD = 4096  # about: a shard holds whole episodes
TEXTS_PER_SHARD = 1024
BAD_WINDOW = 10_000  # frames over which max_bad_fraction counts at least

_READ_AHEAD = 4  # batches, and threads that decode them

# Episode id, camera -> [length, h, w, c], scaled.
GivenLatents = Callable[[str, str], np.ndarray]


class Encoder(Protocol):
    """Frozen encoders on this process's devices.

    Attributes:
        facts: JSON-able, what latents and embeddings depend on: names, numbers, digests of weights.
        posterior: "mode" or "sample", how that of the latents is read.
        image_size: pixels of a side of the frames it takes.
        batch_size: frames or texts it takes at once, always this many.
    """

    facts: Mapping[str, Any]
    posterior: str
    image_size: int
    batch_size: int

    def frames(self, frames: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """uint8[B, S, S, 3], uint32[B, 2] (who and when, for draws) -> float[B, h, w, c]."""
        ...

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """B texts -> float[B, L, D]."""
        ...


def encode(
    source: episodes.EpisodeSource,
    directory: str | os.PathLike,
    encoder: Encoder,
    *,
    cameras: Sequence[str],
    dtype: str,
    overwrite: bool,
    max_bad_fraction: float,
    given: GivenLatents | None = None,
    process_index: int = 0,
    process_count: int = 1,
    barrier: Callable[[str], None] = lambda name: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Encodes what the cache of a store does not hold yet.

    All processes of a run call this, on a file system that they share; each writes its own shards.

    Args:
        directory: directory of this store's cache; created when absent.
        encoder: on this process's devices.
        cameras: those to encode, where an episode has them.
        dtype: one of `latents.DTYPES`, of what is stored.
        overwrite: delete a cache of something else that is there.
        max_bad_fraction: fraction of the frames, of 10 000 at least, that may be damaged.
        given: latents to take instead of computing them.
        barrier: waits until every process is here.

    Returns:
        The manifest.

    Raises:
        UserError: unknown dtype, the directory holds the cache of something else, or another run
            writes it.
        DataError: too many frames are damaged, or given latents do not fit.
        NumericsError: a latent or embedding is not finite in that dtype.
    """
    directory = pathlib.Path(directory)
    plan = _Plan(source, cameras, max_bad_fraction)
    start = _beginning(plan, encoder, dtype, is_given=given is not None)
    if process_index == 0:
        _begin(directory, start, overwrite)
    barrier("the cache is begun")
    with files.alone(directory, f".lock-{process_index}"):
        writer = _Writer(directory, encoder, plan, dtype, given)
        writer.write_all(plan.names[process_index::process_count], progress)
    barrier("all shards are written")
    if process_index == 0:
        cache = latent_cache.LatentCache(directory, partial=True)  # every shard is there
        plan.check_damage(cache.num_damaged)
        end = {"complete": True, "damaged": cache.num_damaged}
        files.write_json(directory / latent_cache.MANIFEST, start | end)
    barrier("the cache is complete")
    return latent_cache.read_manifest(directory)


def _beginning(plan: _Plan, encoder: Encoder, dtype: str, *, is_given: bool) -> dict[str, Any]:
    """Returns what decides a cache's content, as it comes back from the manifest."""
    if dtype not in latent_cache.DTYPES:
        known = ", ".join(latent_cache.DTYPES)
        raise errors.UserError(f"unknown dtype {dtype!r}", "--dtype", f"known: {known}")
    start = {
        "schema": latent_cache.SCHEMA_VERSION,
        "store": plan.source.fingerprint(),
        "cameras": plan.cameras,
        "dtype": dtype,
        "encoder": dict(encoder.facts),
        "posterior": encoder.posterior,
        "given": is_given,
        "frames": plan.num_frames,
        "texts": len(plan.texts),
        "shards": plan.names,
    }
    return json.loads(json.dumps(start))


class _Plan:
    """Which frames and texts belong to which shard, and how many frames may be damaged."""

    def __init__(
        self, source: episodes.EpisodeSource, cameras: Sequence[str], max_bad_fraction: float
    ):
        self.source, self._max_bad_fraction = source, max_bad_fraction
        present = {name: source.has_camera(name) for name in cameras}
        self.cameras = [name for name in cameras if present[name].any()]
        counts = sum((present[name].astype(np.int64) for name in self.cameras), np.int64(0))
        if not self.cameras:
            raise errors.DataError(
                f"no episode has the cameras {', '.join(cameras)}",
                "--config.data.cameras",
                "give cameras that the store has (`launch/data.py list` names them)",
            )
        frames = source.lengths * counts
        self.num_frames = int(frames.sum())
        groups = (np.cumsum(frames) - frames) // FRAMES_PER_SHARD
        self.episodes = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        meta = (source.meta(i) for i in range(len(source)))
        self.texts = sorted({text for entry in meta for text in entry.instructions})
        self.names = [f"frames-{k:05d}" for k in range(len(self.episodes))]
        self.names += [f"texts-{k:05d}" for k in range(-(-len(self.texts) // TEXTS_PER_SHARD))]

    def check_damage(self, num_damaged: int) -> None:
        """Raises DataError where so many frames are damaged that the store must be."""
        if num_damaged > self._max_bad_fraction * max(self.num_frames, BAD_WINDOW):
            raise errors.DataError(
                f"{num_damaged} of {self.num_frames} frames or more are damaged, above "
                f"data.max_bad_fraction={self._max_bad_fraction}",
                "the store",
                "check with `python launch/data.py validate` and convert again",
            )

    def size(self, name: str) -> int:
        """Records of a shard."""
        kind, _, number = name.partition("-")
        if kind == "texts":
            return len(self.shard_texts(int(number)))
        return sum(len(self.rows(int(i))) for i in self.episodes[int(number)])

    def shard_texts(self, number: int) -> list[str]:
        """The instructions of a shard."""
        return self.texts[number * TEXTS_PER_SHARD : (number + 1) * TEXTS_PER_SHARD]

    def rows(self, i: int) -> list[tuple[int, str, int]]:
        """(episode, camera, frame) of an episode's records, in order."""
        length = self.source.meta(i).length
        return [(i, camera, t) for camera in self.cameras_of(i) for t in range(length)]

    def cameras_of(self, i: int) -> list[str]:
        """Those of an episode that are encoded, in the order of their records."""
        return [name for name in self.cameras if name in self.source.meta(i).cameras]


class _Writer:
    """Computes and publishes one shard after the other."""

    def __init__(
        self,
        directory: pathlib.Path,
        encoder: Encoder,
        plan: _Plan,
        dtype: str,
        given: GivenLatents | None,
    ):
        self._directory, self._encoder, self._plan, self._given = directory, encoder, plan, given
        self._dtype = np.dtype(dtype)
        self._num_damaged = 0

    def write_all(self, names: Sequence[str], progress: bool) -> None:
        """Writes those of the shards that are not there."""
        total = sum(self._plan.size(name) for name in names)
        label = self._directory.name
        with tqdm.tqdm(desc=label, total=total, unit="record", disable=not progress) as bar:
            for name in names:
                self.write(name, bar.update)

    def write(self, name: str, report: Callable[[int], Any]) -> None:
        """Writes a shard unless it is there; `report` is told how many records are done."""
        index = self._directory / (name + shards.INDEX_SUFFIX)
        if index.exists():
            report(self._plan.size(name))
            return
        kind, _, number = name.partition("-")
        make = {"frames": self._frames, "texts": self._texts}[kind]
        shard = shards.ShardWriter(self._directory, name)
        with contextlib.closing(shard):
            for values, line in make(int(number), report):
                shard.write(values, line)
            shard.publish(index)

    def _frames(
        self, number: int, report: Callable[[int], Any]
    ) -> Iterator[tuple[list[bytes], dict]]:
        """Records and index line of each episode of a shard."""
        chosen = [int(i) for i in self._plan.episodes[number]]
        if self._given is None:
            records = self._encoded([row for i in chosen for row in self._plan.rows(i)], report)
        else:
            records = self._copied(self._given, chosen, report)
        for i in chosen:
            meta = self._plan.source.meta(i)
            values = [next(records) for _ in self._plan.rows(i)]
            damaged = sum(not value for value in values)
            if damaged:
                logging.warning("%d frames of %s are damaged", damaged, meta.episode_id)
                self._num_damaged += damaged
                self._plan.check_damage(self._num_damaged)
            line = {"episode_id": meta.episode_id, "length": meta.length, "damaged": damaged}
            yield values, line | {"cameras": self._plan.cameras_of(i)}

    def _copied(
        self, given: GivenLatents, chosen: Sequence[int], report: Callable[[int], Any]
    ) -> Iterator[bytes]:
        """The records of episodes whose latents are given."""
        for i in chosen:
            meta = self._plan.source.meta(i)
            for camera in self._plan.cameras_of(i):
                values = given(meta.episode_id, camera)
                wanted = (meta.length, *self._encoder.facts["latent_shape"])
                if values.shape != wanted:
                    raise errors.DataError(
                        f"latents of {meta.episode_id!r} are {list(values.shape)}, not "
                        f"{list(wanted)}",
                        camera,
                        "convert whole videos, and give the config that the latents were made for",
                    )
                yield from (value.tobytes() for value in self._stored(values, "latents"))
                report(meta.length)

    def _encoded(
        self, rows: Sequence[tuple[int, str, int]], report: Callable[[int], Any]
    ) -> Iterator[bytes]:
        """A record a row, in order; frames are read ahead of the devices."""
        batches = FrameBatches(
            source=self._plan.source,
            rows=rows,
            batch_size=self._encoder.batch_size,
            image_size=self._encoder.image_size,
        )
        options = grain.ReadOptions(num_threads=_READ_AHEAD, prefetch_buffer_size=_READ_AHEAD)
        left = len(batches.rows)
        iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
        try:
            for batch in iterator:
                good = np.array(batch["good"])
                values = self._encoder.frames(np.array(batch["frames"]), np.array(batch["keys"]))
                contents = iter(self._stored(values[good], "latents"))
                count = min(left, len(good))
                yield from (next(contents).tobytes() if g else b"" for g in good[:count])
                left -= count
                report(count)
        finally:
            iterator.close()

    def _texts(
        self, number: int, report: Callable[[int], Any]
    ) -> Iterator[tuple[list[bytes], dict]]:
        """Record and index line of each instruction of a shard."""
        own, size = self._plan.shard_texts(number), self._encoder.batch_size
        for first in range(0, len(own), size):
            texts = own[first : first + size]
            values = self._encoder.texts(texts + [""] * (size - len(texts)))
            report(len(texts))
            stored = self._stored(values[: len(texts)], "text embeddings")
            for text, value in zip(texts, stored, strict=True):
                yield [value.tobytes()], {"text": text}

    def _stored(self, values: np.ndarray, what: str) -> np.ndarray:
        """Values in the dtype on disk."""
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values.astype(self._dtype))
        if not np.isfinite(stored).all():
            raise errors.NumericsError(
                f"{what} are not finite in {self._dtype}",
                self._directory,
                "check the weights, or give --dtype=float32",
            )
        return stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameBatches:
    """Frames as the encoder takes them, random access.

    Attributes:
        rows: (episode, camera, frame), by episode and camera.
        image_size: pixels of a side, as training resizes to.
        batch_size: rows of a batch; the last one is filled up with blank frames.
    """

    source: episodes.EpisodeSource
    rows: Sequence[tuple[int, str, int]]
    image_size: int
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns `frames` uint8[B, S, S, 3], `keys` uint32[B, 2] and `good` bool[B]."""
        rows = self.rows[index * self.batch_size : (index + 1) * self.batch_size]
        side = self.image_size
        frames = np.zeros((self.batch_size, side, side, 3), np.uint8)
        keys = np.zeros((self.batch_size, 2), np.uint32)
        good = np.zeros(self.batch_size, bool)
        for k, (i, camera, t) in enumerate(rows):
            episode_id = self.source.meta(i).episode_id
            name = f"{episode_id}/{camera}".encode()
            keys[k] = int.from_bytes(hashlib.sha256(name).digest()[:4]), t
            fix = "run the same command again when they can: it goes on where it stopped"
            unreadable = errors.UserError.instead_of(
                OSError, "frames cannot be read", episode_id, fix
            )
            with contextlib.suppress(errors.DataError), unreadable:
                frames[k] = pixels.resize(self.source.frames(i, camera, [t]), side)[0]
                good[k] = True
        return {"frames": frames, "keys": keys, "good": good}


def _begin(directory: pathlib.Path, start: Mapping[str, Any], overwrite: bool) -> None:
    """Makes the directory, or checks that what is there is the beginning of the same cache."""
    if (directory / latent_cache.MANIFEST).exists():
        try:
            _check_same(directory, start)
            return
        except errors.UserError:
            if not overwrite:
                raise
        shutil.rmtree(directory)
    files.check_no_files(directory, latent_cache.MANIFEST)
    files.make_directory(directory)
    files.write_json(directory / latent_cache.MANIFEST, {**start, "complete": False})


def _check_same(directory: pathlib.Path, start: Mapping[str, Any]) -> None:
    found = latent_cache.read_manifest(directory)
    found = {key: found[key] for key in found if key not in ("complete", "damaged")}
    changed = files.differences(found, start)
    if changed:
        raise errors.UserError(
            f"output holds another cache ({'; '.join(changed[:3])})",
            directory,
            "choose another --output, or add --overwrite to delete that one",
        )
