"""The data loader: mixture of episode sources -> batches of an objective.

    config -> components of the mixture -> sample kinds -> order -> places -> samples -> batches
    (`config`, `mixtures`, `components`, `sample_kinds`, `batches`, `sampling`)

Batch k is a pure function of the config, the seed and k. The state is therefore one number, and
resuming is exact with any number of workers, processes or hosts that divides the global batch.

Which samples there are follows from the type of the batch, see `sample_kinds`. A GFDM batch spec
with latents instead of video makes a loader that reads latent caches: the same clips in the same
order. A joint batch spec with features instead of images makes a loader that reads no frames: it
takes features by sample from a file (`use_features`), which is computed from `scan`. A sample's
paraphrase is then the same in every epoch.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from data_pipelines.loading import batches as batches_lib
from data_pipelines.loading import components as components_lib
from data_pipelines.loading import config as config_lib
from data_pipelines.loading import feature_rows, sample_kinds, sampling
from defi_jax import batch as batch_lib
from defi_jax import errors

READ_AHEAD = 2  # batches, without worker processes
READ_THREADS = 1  # several wait for the interpreter's lock and cost a third more; take workers
WORKER_AHEAD = 2  # batches each worker process keeps ready
BAD_WINDOW = 10_000  # samples over which max_bad_fraction counts at least
STATE_VERSION = 2


class Loader(abc.ABC):
    """Endless iterator over the host-local numpy batches of an objective.

    Attributes:
        normalizer: normalizer of the actions; travels into checkpoints and bundles.
        kinds: how a sample of each component is read, by name.
        bad_samples: damaged samples that were replaced so far, by component.
        still_pairs: frame pairs without motion that were replaced so far, by component.
    """

    def __init__(
        self,
        config: config_lib.DataConfig,
        batch_spec: batch_lib.Batch,
        prepared: components_lib.Prepared,
        request: sampling.Request,
    ):
        self._config, self._request = config, request
        self._spec = batch_lib.with_batch_size(batch_spec, request.local_batch)
        self._components = prepared.components
        self.kinds, self.normalizer = prepared.kinds, prepared.normalizer
        self._sampling = sampling.Sampling(kinds=prepared.kinds, request=request)
        decides = {**prepared.fingerprint, **request.fingerprint()}
        self._pipeline = {key: digest(value) for key, value in decides.items()}
        self._iterator: Any = None
        self._next_batch = 0
        self._bad_records: collections.deque[str] = collections.deque(maxlen=20)
        self.bad_samples: dict[str, int] = {}
        self.still_pairs: dict[str, int] = {}

    @abc.abstractmethod
    def _start(self) -> Any:
        """Starts reading ahead from the next batch; returns an iterator that can be closed."""

    @abc.abstractmethod
    def first(self, num_batches: int) -> Iterator[batch_lib.Batch]:
        """Yields the first batches of the order; neither reads nor changes the state."""

    @property
    @abc.abstractmethod
    def num_samples(self) -> int:
        """Samples of the split, each once; rows of the file for `use_features`."""

    @abc.abstractmethod
    def scan(self, spec: batch_lib.JointBatch) -> Iterator[tuple[batch_lib.Batch, np.ndarray]]:
        """Yields every sample once, by row; neither reads nor changes the state.

        Args:
            spec: abstract batch with images, of the batch size that is wanted.

        Yields:
            A batch, and bool[B]: False for damaged samples and past the end of the last batch.
        """

    @abc.abstractmethod
    def use_features(self, path: str | os.PathLike) -> None:
        """Takes the features of the batches from a .npy file with a row a sample, as `scan`."""

    @abc.abstractmethod
    def _contents(self) -> dict[str, dict[str, Any]]:
        """Returns what each component that has samples contributes, by name."""

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the batches; not of workers, processes or hosts."""
        return digest(self._pipeline)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> batch_lib.Batch:
        """Returns the next batch.

        Raises:
            DataError: too many samples are damaged.
        """
        if self._iterator is None:
            self._iterator = self._start()
            self._finalizer = weakref.finalize(self, self._iterator.close)
        raw = next(self._iterator)
        self._next_batch += 1
        self._count(raw["replaced"])
        return self._batch(raw)

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
        components_lib.check_robot(self._components, robot)

    def state(self) -> dict[str, Any]:
        """Returns the position, small and JSON-able."""
        return {
            "version": STATE_VERSION,
            "next_batch": self._next_batch,
            "bad_samples": dict(self.bad_samples),
            "still_pairs": dict(self.still_pairs),
            "pipeline": self._pipeline,
        }

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
        self.bad_samples = dict(state["bad_samples"])
        self.still_pairs = dict(state["still_pairs"])

    def describe(self) -> list[dict[str, Any]]:
        """Returns what each component contributes to this split, for checkpoints."""
        found, weights = self._contents(), {c.name: c.weight for c in self._components}
        return [
            {"name": name, "weight": weights[name], "rules": self.kinds[name].config.rules}
            | content
            for name, content in found.items()
        ]

    def close(self) -> None:
        """Stops threads and worker processes; the next batch starts them again."""
        if self._iterator is not None:
            self._finalizer()
        self._iterator = None

    def _count(self, replaced: sampling.Replaced) -> None:
        """Counts replaced samples and stops when too many are damaged."""
        for name, count in replaced.still.items():
            self.still_pairs[name] = self.still_pairs.get(name, 0) + count
        for name, sample, reason in replaced.bad:
            logging.warning("replaced sample %s of %s: %s", sample, name, reason)
            self.bad_samples[name] = self.bad_samples.get(name, 0) + 1
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

    def _batch(self, raw: Mapping[str, Any]) -> batch_lib.Batch:
        """Returns the batch, checked against the spec."""
        batch = batch_lib.assemble(self._spec, raw["arrays"], raw["text"])
        batch_lib.check(batch, self._spec)
        return batch


class StoreLoader(Loader):
    """The `Loader` of converted stores: random access, in this process or in workers.

    Attributes:
        batches: this process's share of each global batch, by number.
    """

    def __init__(
        self,
        config: config_lib.DataConfig,
        batch_spec: batch_lib.Batch,
        prepared: components_lib.Prepared,
        request: sampling.Request,
    ):
        super().__init__(config, batch_spec, prepared, request)
        self._pipeline["features"] = digest(sample_kinds.kind_of(batch_spec).has_fixed_text)
        self.batches = batches_lib.Batches(sets=self._sample_sets(), sampling=self._sampling)

    def _sample_sets(self) -> tuple[batches_lib.SampleSet, ...]:
        """Returns the samples of each component that has any in the split.

        Raises:
            DataError: a component has nothing to train on.
            UserError: no episode of any component is held out.
        """
        sets, percent = [], self._config.holdout_percent
        for component in self._components:
            source, kind = component.source, self.kinds[component.name]
            in_split = np.array([self._request.takes(name, percent) for name in source.episode_ids])
            rows = np.flatnonzero(kind.can_use(source) & in_split)
            counts = kind.num_samples(source.lengths[rows])
            samples = batches_lib.SampleSet.of(component, rows, counts)
            if len(samples):
                sets.append(samples)
            elif self._request.train:
                raise errors.DataError(
                    "no episode is of usable length or left for training",
                    f"data set {component.name!r}",
                    "leave it out of data.mixture, lower data.holdout_percent or raise "
                    "data.max_frames",
                )
        if not sets:
            raise errors.UserError(
                f"no episode of {', '.join(self.kinds)} is held out for evaluation",
                f"data.holdout_percent={percent}",
                "raise it, collect more episodes, or set eval_batches=0",
            )
        return tuple(sets)

    def first(self, num_batches: int) -> Iterator[batch_lib.Batch]:
        """See `Loader`."""
        for number in range(num_batches):
            yield self._batch(self.batches.starting_at(0)[number])

    @property
    def num_samples(self) -> int:
        """See `Loader`."""
        return sum(len(one) for one in self.batches.sets)

    def scan(self, spec: batch_lib.JointBatch) -> Iterator[tuple[batch_lib.Batch, np.ndarray]]:
        """See `Loader`."""
        blank = {"images": spec.images, "actions": spec.actions, "action_mask": spec.action_mask}
        kinds = {name: kind.with_images for name, kind in self._feature_kinds().items()}
        every = batches_lib.EachOnce(
            sets=self.batches.sets,
            sampling=dataclasses.replace(self._sampling, kinds=kinds),
            batch_size=spec.actions.shape[0],
            blank={name: np.zeros(leaf.shape[1:], leaf.dtype) for name, leaf in blank.items()},
        )
        options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
        iterator = iter(grain.MapDataset.source(every).to_iter_dataset(options))
        try:
            for raw in iterator:
                batch = batch_lib.assemble(spec, raw["arrays"], raw["text"])
                batch_lib.check(batch, spec)
                yield batch, np.array(raw["good"])
        finally:
            iterator.close()

    def use_features(self, path: str | os.PathLike) -> None:
        """See `Loader`."""
        self.close()
        counts = {one.component.name: len(one) for one in self.batches.sets}
        rows = feature_rows.open_rows(path, counts)
        kinds = {
            name: dataclasses.replace(kind, features=rows[name])
            for name, kind in self._feature_kinds().items()
        }
        with_features = dataclasses.replace(self._sampling, kinds=kinds)
        self.batches = dataclasses.replace(self.batches, sampling=with_features)

    def _feature_kinds(self) -> dict[str, sample_kinds.FeatureWindows]:
        kinds = self.kinds.items()
        return {n: kind for n, kind in kinds if isinstance(kind, sample_kinds.FeatureWindows)}

    def _contents(self) -> dict[str, dict[str, Any]]:
        """See `Loader`."""
        return {one.component.name: one.describe() for one in self.batches.sets}

    def _start(self) -> grain.DatasetIterator:
        """See `Loader`."""
        workers = self._config.workers
        options = grain.ReadOptions(
            num_threads=READ_THREADS, prefetch_buffer_size=1 if workers else READ_AHEAD
        )
        batches = self.batches.starting_at(self._next_batch)
        dataset = grain.MapDataset.source(batches).to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():  # grain's worker processes read absl flags
                flags.FLAGS.mark_as_parsed()
            logging.info("starting %d worker processes; the first batch waits", workers)
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=workers, per_worker_buffer_size=WORKER_AHEAD
                )
            )
        return iter(dataset)

    def _batch(self, raw: Mapping[str, Any]) -> batch_lib.Batch:
        """See `Loader`; what workers return lives in shared memory that is lost at exit."""
        if self._config.workers:
            raw = {**raw, "arrays": {name: np.array(x) for name, x in raw["arrays"].items()}}
        return super()._batch(raw)


def digest(value: Any) -> str:
    """Returns a short digest of JSON-able content."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
