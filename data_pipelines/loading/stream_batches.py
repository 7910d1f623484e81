"""Batches straight from RLDS files, on disk or in a bucket, without conversion.

What differs from batches of stores:

- Order: shards are shuffled, and samples are drawn from a pool of `data.stream_mib` MiB of encoded
  episodes; a store is shuffled as a whole.
- Resume: a restored run goes on at its record positions. Samples that were in the pool are lost
  for that epoch, so the batches are not those of a run that was never stopped.
- Statistics and mixtures weighted by size need all records once; the result is kept in the user's
  cache directory.
- Damage: a damaged record is passed over in every epoch, and counts as one damaged sample. Where a
  record's length is damaged, all records behind it in the file are.
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from data_pipelines.loading import config as config_lib
from data_pipelines.loading import mixtures
from data_pipelines.loading import reading as reading_lib
from data_pipelines.streaming import pool as pool_lib
from data_pipelines.streaming import scan
from defi_jax import errors

FIRST_MIB = 64  # pool of `StreamBatches.take`
_DRAW = reading_lib.MAX_CANDIDATES  # of the pool; smaller numbers are attempts to read

Positions = Mapping[str, pool_lib.Position]  # by component; from the start where absent


class _Stream:
    """Draws places from a pool for each component, weighted; reads batches in threads."""

    def __init__(
        self,
        config: config_lib.DataConfig,
        components: Sequence[mixtures.StreamedComponent],
        reading: reading_lib.Reading,
        positions: Positions,
        max_mib: int,
    ):
        self._reading, self._holdout_percent = reading, config.holdout_percent
        self._replaced = reading_lib.Replaced()
        self._threads = concurrent.futures.ThreadPoolExecutor(
            max(config.workers, reading_lib.READ_AHEAD)
        )
        weights = np.array([component.weight for component in components], np.float64)
        self._shares = weights / weights.sum()
        self._names = [component.name for component in components]
        self._pools = {
            one.name: self._pool(one, positions, max_mib << 20, share)
            for one, share in zip(components, self._shares, strict=True)
        }

    def batch(self, number: int) -> dict[str, Any]:
        """Returns a raw batch as `reading.Reading.batch`, with the positions after it."""
        raw = self._reading.batch(number, self._draw, self._replaced, self._threads.map)
        self._replaced = reading_lib.Replaced()
        return raw | {"positions": {name: pool.position for name, pool in self._pools.items()}}

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _pool(
        self,
        component: mixtures.StreamedComponent,
        positions: Positions,
        max_bytes: int,
        share: float,
    ) -> pool_lib.Pool:
        request, kind = self._reading.request, self._reading.kinds[component.name]

        def count_samples(view: pool_lib.EpisodeView) -> int:
            return int(kind.num_samples(view.lengths)[0]) if kind.can_use(view)[0] else 0

        return pool_lib.Pool(
            component.dataset,
            pool_lib.Records(
                component.dataset,
                accept=lambda name: request.takes(name, self._holdout_percent),
                seed=request.seed,
                process_index=request.process_index,
                process_count=request.process_count,
            ),
            start=positions.get(component.name, pool_lib.Position(0, 0)),
            count_samples=count_samples,
            max_bytes=int(max_bytes * share),
            batch_samples=share * request.local_batch,
            cameras=kind.config.cameras,
            report=lambda reject: self._replaced.bad.append(
                (component.name, reject.item, reject.reason)
            ),
        )

    def _draw(
        self, index: int, attempt: int, former: reading_lib.Place | None, rng: np.random.Generator
    ) -> reading_lib.Place:
        """See `reading.Draw`; pools are drawn from apart from what the sample draws."""
        del rng
        draws = np.random.default_rng((self._reading.request.seed, index, attempt or _DRAW))
        if former is None:
            name = self._names[int(draws.choice(len(self._names), p=self._shares))]
        else:
            name = former.component
        view, sample = self._pools[name].draw(draws)
        return reading_lib.Place(component=name, source=view, episode=0, sample=sample)


class _Ahead:
    """Reads a stream in a thread, some batches ahead; the one that comes out sets `positions`."""

    def __init__(self, stream: _Stream, first: int, positions: dict[str, pool_lib.Position]):
        self._positions = positions
        self._stream, self._numbers = stream, itertools.count(first)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "stream")
        self._coming = collections.deque(self._submit() for _ in range(1 + reading_lib.READ_AHEAD))

    def __next__(self) -> dict[str, Any]:
        self._coming.append(self._submit())
        raw = self._coming.popleft().result()
        self._positions |= raw["positions"]
        return raw

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._stream.close()

    def _submit(self) -> concurrent.futures.Future[dict[str, Any]]:
        return self._thread.submit(self._stream.batch, next(self._numbers))


class StreamBatches:
    """This process's share of each global batch, one after the other; see the module's docstring.

    Raises:
        UserError: no dataset has a record in the split; or one has none to train on.
    """

    def __init__(
        self,
        config: config_lib.DataConfig,
        components: Sequence[mixtures.Component],
        reading: reading_lib.Reading,
    ):
        self._config, self._reading = config, reading
        self._positions: dict[str, pool_lib.Position] = {}
        streamed = [one for one in components if isinstance(one, mixtures.StreamedComponent)]
        self._components = [one for one in streamed if self._has_records(one)]
        absent = {one.name for one in streamed} - {one.name for one in self._components}
        if not self._components or (absent and reading.request.train):
            raise errors.UserError(
                f"no episode of {', '.join(sorted(absent))} is in split {reading.request.split}",
                f"data.holdout_percent={config.holdout_percent}",
                "change it, or set eval_batches=0",
            )

    def _has_records(self, component: mixtures.StreamedComponent) -> bool:
        """Whether a dataset has a record in the split."""
        shards, percent = component.dataset.info.shards, self._config.holdout_percent
        places = ((shard, index) for shard in shards for index in range(shard.num_records))
        ids = (component.dataset.episode_id(*place) for place in places)
        return any(self._reading.request.takes(name, percent) for name in ids)

    def contents(self) -> dict[str, dict[str, Any]]:
        """Returns what each component contributes; numbers are of the files, 0 where unknown."""
        return {
            one.name: {
                "episodes": one.dataset.total,
                "frames": scan.known_steps(one.dataset),
                "samples": 0,
                "episodes_with_actions": one.dataset.total * int(one.source.has_actions[0]),
                "start_digests": [],
                "origins": [],
            }
            for one in self._components
        }

    def take(self, count: int) -> Iterator[dict[str, Any]]:
        """Yields the first batches of the order."""
        stream = self._stream({}, FIRST_MIB)
        try:
            yield from map(stream.batch, range(count))
        finally:
            stream.close()

    def start(self, number: int, workers: int) -> _Ahead:
        """Returns an iterator that reads ahead from batch `number` at the record positions."""
        del workers  # threads of the stream
        stream = self._stream(self._positions, self._config.stream_mib)
        return _Ahead(stream, number, self._positions)

    def positions(self) -> dict[str, list[int]]:
        """Returns epoch and record by component, of all processes together, JSON-able."""
        count = self._reading.request.process_count
        return {n: [p.epoch, p.record * count] for n, p in self._positions.items()}

    def go_to(self, positions: Mapping[str, Sequence[int]]) -> None:
        """Continues at positions of `positions`, which is not exact."""
        count = self._reading.request.process_count
        self._positions = {
            name: pool_lib.Position(epoch, record // count)
            for name, (epoch, record) in positions.items()
        }
        logging.warning("restored record positions %s; this is not exact", positions)

    def _stream(self, positions: Positions, max_mib: int) -> _Stream:
        return _Stream(self._config, self._components, self._reading, positions, max_mib)
