"""The data loader: the data section of an experiment -> batches of its objective.

    config -> components of the mixture -> sample kinds -> order -> places -> samples -> batches
    (`config`, `mixtures`, `sample_kinds`, `reading`)

Batch k is a pure function of the config, the seed and k. The state is therefore one number, and
resuming is exact with any number of workers, processes or hosts that divides the global batch.

Which samples there are follows from the type of the batch, see `sample_kinds`. A GFDM batch spec
with latents instead of video makes a loader that reads latent caches: the same clips in the same
order. A joint batch spec with features instead of images makes a loader that reads no frames: it
takes features by sample from a file (`use_features`), which is computed from `scan`. A sample's
paraphrase is then the same in every epoch.

Where <data.root>/<name> (or data.root itself, when it has that name) is an RLDS directory for every
name of the mixture, its files are streamed without conversion. The same standardisation, sample
kinds and reading run in both, so a sample has the same pixels, actions and text; `stream_batches`
says what differs.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from data_pipelines import episodes, files
from data_pipelines.loading import config as config_lib
from data_pipelines.loading import (
    features,
    meaning,
    mixtures,
    sample_kinds,
    splits,
    store_batches,
    stream_batches,
)
from data_pipelines.loading import reading as reading_lib
from defi_jax import batch as batch_lib
from defi_jax import errors

BAD_WINDOW = 10_000  # samples over which max_bad_fraction counts at least
STATE_VERSION = 2


def make_loader(data_config: Any, batch_spec: batch_lib.Batch, **request: Any) -> Loader:
    """Opens the mixture and returns its loader.

    Args:
        data_config: the experiment's `data` section.
        batch_spec: abstract batch of the objective, of any batch size; batches are checked.
        **request: see `splits.Request`.

    Raises:
        UserError: stores are absent, a number is impossible, or nothing is held out.
        DataError: a component lacks what the batch needs, or is damaged.
    """
    config = config_lib.DataConfig.of(data_config)
    asked = splits.Request(**request)
    return Loader(config, batch_spec, mixtures.prepare(config, batch_spec, asked), asked)


class Loader:
    """Endless iterator over the host-local numpy batches of an objective.

    Attributes:
        batches: where they come from.
        normalizer: normalizer of the actions; travels into checkpoints and bundles.
        kinds: how a sample of each component is read, by name.
        bad_samples: damaged samples that were replaced so far, by component.
        still_pairs: frame pairs without motion that were replaced so far, by component.
    """

    def __init__(
        self,
        config: config_lib.DataConfig,
        batch_spec: batch_lib.Batch,
        prepared: mixtures.Prepared,
        request: splits.Request,
    ):
        self._config, self._request = config, request
        self._spec = batch_lib.with_batch_size(batch_spec, request.local_batch)
        self._components = prepared.components
        self.kinds, self.normalizer = prepared.kinds, prepared.normalizer
        reading = reading_lib.Reading(kinds=prepared.kinds, request=request)
        # What workers return lives in shared memory that is lost at exit.
        self._copies = config.workers > 0 and not prepared.is_streamed
        self.batches: store_batches.StoreBatches | stream_batches.StreamBatches
        if prepared.is_streamed:
            self.batches = stream_batches.StreamBatches(config, prepared.components, reading)
        else:
            self.batches = store_batches.StoreBatches.of(config, prepared.components, reading)
        decides = {**prepared.fingerprint, **request.fingerprint()}
        self._pipeline = {key: _digest(value) for key, value in decides.items()}
        self._iterator: Any = None
        self._next_batch = 0
        self._bad_records: collections.deque[str] = collections.deque(maxlen=20)
        self.bad_samples: dict[str, int] = collections.Counter()
        self.still_pairs: dict[str, int] = collections.Counter()

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the batches; not of workers, processes or hosts."""
        return _digest(self._pipeline)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> batch_lib.Batch:
        """Returns the next batch.

        Raises:
            DataError: too many samples are damaged.
        """
        if self._iterator is None:
            self._iterator = self.batches.start(self._next_batch, self._config.workers)
            self._finalizer = weakref.finalize(self, self._iterator.close)
        raw = next(self._iterator)
        self._next_batch += 1
        self._count(raw["replaced"])
        return self._batch(raw, self._spec)

    def first(self, num_batches: int) -> Iterator[batch_lib.Batch]:
        """Yields the first batches of the order; neither reads nor changes the state."""
        for raw in self.batches.take(num_batches):
            yield self._batch(raw, self._spec)

    def numbered(
        self, number: int, spec: batch_lib.Batch
    ) -> tuple[batch_lib.Batch, list[str], list[str]]:
        """Rebuilds a batch from its number; neither reads nor changes the state.

        Args:
            number: of the batch in the order, from 0: step n of a run takes batch n - 1.
            spec: abstract batch, with images where the loader's has features.

        Returns:
            The batch, its samples as they were drawn, and those of them that were damaged: others
            of the data set are in their place.

        Raises:
            UserError: data are streamed.
        """
        own = dataclasses.replace(features.with_images(self._stores), first=number)
        raw = own[0]
        damaged = [f"{name}/{sample}" for name, sample, _ in raw["replaced"].bad]
        drawn = [f"{place.component}/{place}" for place in own.places()]
        return self._batch(raw, spec), drawn, damaged

    @property
    def num_samples(self) -> int:
        """Samples of the split, each once; rows of the file for `use_features`."""
        return self._stores.num_samples

    def scan(
        self, spec: batch_lib.JointBatch, first: int = 0
    ) -> Iterator[tuple[batch_lib.Batch, np.ndarray]]:
        """Yields every sample once, by row; neither reads nor changes the state.

        Args:
            spec: abstract batch with images, of the batch size that is wanted.
            first: number of the batch to begin with.

        Yields:
            A batch, and bool[B]: False for damaged samples and past the end of the last batch.
        """
        for raw in features.read_all(self._stores, spec, first):
            yield self._batch(raw, spec), np.array(raw["good"])

    def use_features(self, path: str | os.PathLike) -> None:
        """Takes the features of the batches from a .npy file with a row a sample, as `scan`."""
        self.close()
        self.batches = features.use_rows(self._stores, path)

    @property
    def _stores(self) -> store_batches.StoreBatches:
        """What has samples that are numbered.

        Raises:
            UserError: data are streamed.
        """
        if isinstance(self.batches, stream_batches.StreamBatches):
            raise errors.UserError(
                "samples of streamed data have no numbers to keep features or rebuild a batch by",
                "data.root",
                f"give --config.cache_features=False, or {mixtures.STORE_ONLY}",
            )
        return self.batches

    def check_latents(self, encoder: Mapping[str, Any], rebuild: str) -> None:
        """Checks which encoders made the latent caches that are read.

        Args:
            encoder: facts of the encoders that training has.
            rebuild: command that makes the caches anew, for the message.

        Raises:
            UserError: a cache was made by others; names what differs.
        """
        for kind in self.kinds.values():
            if isinstance(kind, sample_kinds.LatentClips):
                kind.cache.check_encoder(encoder, rebuild)

    def check_robot(self, robot: str) -> None:
        """Checks that the actions are those of a robot; see `embodiment.check_robot`."""
        meaning.check_robot({one.name: one.source for one in self._components}, robot)

    def state(self) -> dict[str, Any]:
        """Returns the position, small and JSON-able."""
        state = {
            "version": STATE_VERSION,
            "next_batch": self._next_batch,
            "bad_samples": dict(self.bad_samples),
            "still_pairs": dict(self.still_pairs),
            "pipeline": self._pipeline,
        }
        if isinstance(self.batches, stream_batches.StreamBatches):
            state["positions"] = self.batches.positions()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken, in this or another process.

        Raises:
            UserError: the state is of another pipeline; names what differs.
        """
        if state["version"] != STATE_VERSION:
            raise errors.UserError(f"data state of version {state['version']}", "checkpoint")
        theirs = state["pipeline"]
        keys = sorted(self._pipeline.keys() | theirs.keys())
        changed = [k for k in keys if self._pipeline.get(k) != theirs.get(k)]
        if changed:
            raise errors.UserError(
                f"the data pipeline is not the checkpoint's: {', '.join(changed)} changed",
                "data section of the config",
                "restore the old settings and data, or start a new workdir",
            )
        self.close()
        self._next_batch = state["next_batch"]
        self.bad_samples = collections.Counter(state["bad_samples"])
        self.still_pairs = collections.Counter(state["still_pairs"])
        if isinstance(self.batches, stream_batches.StreamBatches):
            self.batches.go_to(state["positions"])

    def describe(self) -> list[dict[str, Any]]:
        """Returns what each component contributes to this split, for checkpoints."""
        components = {one.name: one for one in self._components}
        return [
            {
                "name": name,
                "weight": components[name].weight,
                "rules": self.kinds[name].config.rules,
                "frame_sizes": _frame_sizes(
                    components[name].source, self.kinds[name].config.cameras
                ),
            }
            | content
            for name, content in self.batches.contents().items()
        ]

    def close(self) -> None:
        """Stops threads and worker processes; the next batch starts them again."""
        if self._iterator is not None:
            self._finalizer()
        self._iterator = None

    def _count(self, replaced: reading_lib.Replaced) -> None:
        """Counts replaced samples and stops when too many are damaged."""
        for name, count in replaced.still.items():
            self.still_pairs[name] += count
        for name, sample, reason in replaced.bad:
            logging.warning("replaced sample %s of %s: %s", sample, name, reason)
            self.bad_samples[name] += 1
            self._bad_records.append(f"{name}/{sample}")
        read = self._next_batch * self._request.local_batch
        total, most = sum(self.bad_samples.values()), self._config.max_bad_fraction
        if replaced.bad and total > most * max(read, BAD_WINDOW):
            raise errors.DataError(
                f"{total} of {read} samples are damaged, more than data.max_bad_fraction="
                f"{most} (last: {', '.join(self._bad_records)})",
                ", ".join(sorted(self.bad_samples)),
                "check with `python launch/data.py validate` and convert again",
            )

    def _batch(self, raw: Mapping[str, Any], spec: batch_lib.Batch) -> batch_lib.Batch:
        """Returns the batch, checked against the spec."""
        arrays = raw["arrays"]
        if self._copies:
            arrays = {name: np.array(array) for name, array in arrays.items()}
        batch = batch_lib.assemble(spec, arrays, raw["text"])
        batch_lib.check(batch, spec)
        return batch


def _frame_sizes(
    source: episodes.EpisodeSource, cameras: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Returns height and width of each camera's frames, of the first episode that has it whole."""
    sizes = {}
    for camera in cameras:
        for row in np.flatnonzero(source.has_camera(camera)):
            with contextlib.suppress(errors.DataError, OSError):  # damaged; sampling counts it
                sizes[camera] = source.frames(int(row), camera, [0]).shape[1:3]
                break
    return sizes


def _digest(value: Any) -> str:
    """Returns a short digest of JSON-able content."""
    return files.digest(value)[:16]
