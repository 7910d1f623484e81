"""Latent cache: every frame's latents and every instruction's embedding, computed once by a store.

    <cache>/<store>/cache.json                  what was encoded and by which encoders; written last
                                                with `"complete": true`
                    frames-00000.array_record   a record a frame: [h, w, c], empty where the frame
                                                is damaged
                    frames-00000.index.jsonl    a header, then a line an episode
                    texts-00000.array_record    a record a distinct instruction: [L, D]
                    texts-00000.index.jsonl     a header, then a line an instruction

Written by `encode.encode`, read here. Frames are kept one by one, not by clip: one cache serves any
clip length, stride, holdout or mixture. (The joint stage's `cache_features` keeps a row a training
sample, because its features depend on the run's own GFDM and windows; it lives and dies with the
run.)
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import episodes, files
from data_pipelines.store import shards
from defi_jax import errors

MANIFEST = "cache.json"
SCHEMA_VERSION = 2
DTYPES = ("float16", "float32")
AGAIN = "encode"  # what makes a damaged shard anew, in messages
COMMAND = "python launch/data.py encode"

_OVERWRITE = f"run {COMMAND} --overwrite"


class LatentCache:
    """Latents of a store's frames and embeddings of its instructions, random access.

    Reading is thread-safe. A cache can be sent to another process, which opens its own files.

    Args:
        directory: written by `encode`.
        partial: take one that is not marked as complete.

    Raises:
        UserError: there is none, or it is not complete.
        DataError: it is damaged.
    """

    def __init__(self, directory: str | os.PathLike, *, partial: bool = False):
        self.directory = pathlib.Path(directory)
        self.manifest = read_manifest(self.directory)
        if not (self.manifest["complete"] or partial):
            raise errors.UserError(
                "the latent cache is not complete",
                self.directory,
                f"run the same {COMMAND} again: it goes on where it stopped",
            )
        self._dtype = np.dtype(self.manifest["dtype"])
        self._latent_shape = tuple(self.manifest["encoder"]["latent_shape"])
        self._text_shape = tuple(self.manifest["encoder"]["text_shape"])
        indexes = [
            self.directory / (name + shards.INDEX_SUFFIX) for name in self.manifest["shards"]
        ]
        self._episodes: dict[str, dict[str, Any]] = {}
        self._texts: dict[str, tuple[int, int]] = {}
        for shard, path in enumerate(indexes):
            self._read_index(shard, path)
        self._readers = shards.Readers(indexes)

    def _read_index(self, shard: int, path: pathlib.Path) -> None:
        if not path.exists():
            raise errors.DataError("shard of the latent cache is missing", path, f"run {COMMAND}")
        header, lines = shards.read_index(path, again=AGAIN)
        shards.check_size(path, header["bytes"], again=AGAIN)
        for line in lines:
            if "text" in line:
                self._texts[line["text"]] = (shard, line["first_record"])
            else:
                self._episodes[line["episode_id"]] = line | {"shard": shard}

    @property
    def num_damaged(self) -> int:
        """Frames without latents."""
        return sum(line["damaged"] for line in self._episodes.values())

    def check_encoder(self, encoder: Mapping[str, Any], rebuild: str) -> None:
        """Raises UserError, naming what differs and `rebuild`, unless these encoders made it."""
        changed = files.differences(self.manifest["encoder"], encoder)
        if changed:
            origin = f"--posterior={self.manifest['posterior']}"
            if self.manifest["given"]:
                origin = "--official_latents=DIR"
            raise errors.UserError(
                f"stale latent cache: made with other encoders ({'; '.join(changed[:3])})",
                self.directory,
                f"rebuild it: {rebuild} {origin} --dtype={self.manifest['dtype']}",
            )

    def frames(
        self, episode_id: str, camera: str, indices: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Returns the latents of the given frames, float32[k, h, w, c].

        Raises:
            DataError: a record or the frame it was made from is damaged.
        """
        line = self._episodes[episode_id]
        first = line["first_record"] + line["cameras"].index(camera) * line["length"]
        records = self._read(line["shard"], [first + int(t) for t in indices])
        where = f"episode {episode_id!r} in {self.directory}"
        return np.stack([self._unpack(record, self._latent_shape, where) for record in records])

    def text(self, instruction: str) -> np.ndarray:
        """Returns the embedding of an instruction, float32[L, D]."""
        shard, record = self._texts[instruction]
        (content,) = self._read(shard, [record])
        return self._unpack(content, self._text_shape, f"{instruction!r} in {self.directory}")

    def _read(self, shard: int, numbers: Sequence[int]) -> list[bytes]:
        try:
            return self._readers.read(shard, numbers)
        except (RuntimeError, ValueError, IndexError) as error:
            name = self.manifest["shards"][shard]
            raise errors.DataError(
                f"damaged record ({str(error) or 'truncated'})",
                self.directory / name,
                f"delete both files of this shard and run {COMMAND} again",
            ) from error

    def _unpack(self, content: bytes, shape: tuple[int, ...], where: str) -> np.ndarray:
        if not content:
            raise errors.DataError("no latents, the frame is damaged", where, "convert it again")
        return np.frombuffer(content, self._dtype).reshape(shape).astype(np.float32)


def open_cache(
    source: episodes.EpisodeSource, directory: pathlib.Path, cameras: Sequence[str]
) -> LatentCache:
    """Returns the cache of a store, for cameras that will be asked for where an episode has them.

    Raises:
        UserError: there is none, it is not complete, or of other episodes or cameras.
        DataError: it is damaged.
    """
    cache = LatentCache(directory)
    if cache.manifest["store"] != source.fingerprint():
        raise errors.UserError(
            "the latent cache is of other episodes than the store now holds",
            directory,
            f"run {COMMAND} --overwrite for it",
        )
    lacking = set(cameras) - set(cache.manifest["cameras"])
    lacking = sorted(name for name in lacking if source.has_camera(name).any())
    if lacking:
        raise errors.UserError(
            f"the latent cache lacks the cameras {', '.join(lacking)}",
            directory,
            f"run {COMMAND} --overwrite with them in --config.data.cameras",
        )
    return cache


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest of a cache.

    Raises:
        UserError: there is no cache, or one of another schema.
        DataError: it is damaged.
    """
    path = directory / MANIFEST
    if not path.exists():
        raise errors.UserError("no latent cache", directory, f"write it with {COMMAND}")
    kinds, what = (OSError, ValueError, KeyError, TypeError), "latent cache's manifest"
    with errors.DataError.instead_of(kinds, f"{what} cannot be read", path, _OVERWRITE):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema = manifest["schema"]
        for key in ("complete", "store", "cameras", "dtype", "posterior", "given", "shards"):
            _ = manifest[key]
        _ = [manifest["encoder"][key] for key in ("latent_shape", "text_shape")]
    if schema != SCHEMA_VERSION:
        raise errors.UserError(
            f"latent cache of schema {schema}, this code reads {SCHEMA_VERSION}",
            directory,
            _OVERWRITE,
        )
    return manifest
