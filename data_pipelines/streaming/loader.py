"""Training straight from RLDS files, on disk or in a bucket, without conversion.

`make_loader` streams where <data.root>/<name> (or data.root itself, when it has that name) is an
RLDS directory for every name of the mixture, and else makes the loader of converted stores. The
same standardisation, sample kinds and sampling run in both, so a sample has the same pixels,
actions and text. What differs:

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
import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from absl import logging
from etils import epath

from data_pipelines import episodes, normalization
from data_pipelines.loading import components as components_lib
from data_pipelines.loading import config as config_lib
from data_pipelines.loading import loader, mixtures, sample_kinds, sampling
from data_pipelines.sources import rlds
from data_pipelines.streaming import pool as pool_lib
from data_pipelines.streaming import scan
from defi_jax import batch as batch_lib
from defi_jax import errors

FIRST_MIB = 64  # pool of `StreamLoader.first`
_DRAW = sampling.MAX_CANDIDATES  # of the pool; smaller numbers are attempts to read
STORE_ONLY = "convert the dataset (`python launch/data.py convert --source=rlds`) and train from it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedComponent(mixtures.Component):
    """A streamed dataset of a mixture; `source` is its first episode alone."""

    dataset: rlds.RldsSource

    def fingerprint(self) -> str:
        """Identifies the dataset's files and how they are standardised."""
        return scan.digest(self.dataset)

    def num_steps(self) -> int:
        """Returns the number of frames of all episodes; reads everything once."""
        return scan.scan(self.dataset).steps

    def statistics(self) -> dict[str, normalization.Statistics]:
        """Returns the statistics of all episodes; reads everything once."""
        return scan.scan(self.dataset).statistics


def make_loader(data_config: Any, batch_spec: batch_lib.Batch, **request: Any) -> loader.Loader:
    """Opens the mixture and returns its loader: a `StreamLoader` of RLDS directories or of stores.

    Args:
        data_config: the experiment's `data` section.
        batch_spec: abstract batch of the objective, of any batch size; batches are checked.
        **request: see `sampling.Request`.

    Raises:
        UserError: stores are absent, a number is impossible, or nothing is held out.
        DataError: a component lacks what the batch needs, or is damaged.
    """
    config = config_lib.DataConfig.of(data_config)
    asked = sampling.Request(**request)
    components = mixtures.open_components(config, _open_stream)
    prepared = components_lib.prepare(config, batch_spec, components, asked)
    is_streamed = any(isinstance(one, StreamedComponent) for one in components)
    make = StreamLoader if is_streamed else loader.StoreLoader
    return make(config, batch_spec, prepared, asked)


def _open_stream(
    config: config_lib.DataConfig, name: str, directory: epath.Path
) -> StreamedComponent:
    if config.latents:
        raise errors.UserError("latents of streamed data", "data.latents", STORE_ONLY)
    logging.warning(
        "streaming %s: a restored run goes on at its record positions, which is not exact; %s "
        "to resume exactly",
        name,
        STORE_ONLY,
    )
    dataset = rlds.RldsSource(directory, config.rlds_options(name), max_damaged=None)
    return StreamedComponent(name=name, source=_first(dataset), directory=None, dataset=dataset)


def _first(dataset: rlds.RldsSource) -> pool_lib.EpisodeView:
    """Returns the first usable episode, which stands for the others' cameras and actions.

    Raises:
        DataError: there is none.
    """
    for episode in dataset.read():
        if not isinstance(episode, episodes.Reject):
            return pool_lib.EpisodeView(episode)
    raise errors.DataError("no episode can be used", f"dataset {dataset.name}")


Positions = Mapping[str, pool_lib.Position]  # by component; from the start where absent


class _Stream:
    """Draws places from a pool for each component, weighted; reads batches in threads."""

    def __init__(
        self,
        config: config_lib.DataConfig,
        components: Sequence[StreamedComponent],
        reading: sampling.Sampling,
        positions: Positions,
        max_mib: int,
    ):
        self._sampling, self._holdout_percent = reading, config.holdout_percent
        self._replaced = sampling.Replaced()
        self._threads = concurrent.futures.ThreadPoolExecutor(
            max(config.workers, loader.READ_AHEAD)
        )
        weights = np.array([component.weight for component in components], np.float64)
        self._shares = weights / weights.sum()
        self._names = [component.name for component in components]
        self._pools = {
            one.name: self._pool(one, positions, max_mib << 20, share)
            for one, share in zip(components, self._shares, strict=True)
        }

    def batch(self, number: int) -> dict[str, Any]:
        """Returns a raw batch as `sampling.Sampling.batch`, with the positions after it."""
        raw = self._sampling.batch(number, self._draw, self._replaced, self._threads.map)
        self._replaced = sampling.Replaced()
        return raw | {"positions": {name: pool.position for name, pool in self._pools.items()}}

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _pool(
        self, component: StreamedComponent, positions: Positions, max_bytes: int, share: float
    ) -> pool_lib.Pool:
        request, kind = self._sampling.request, self._sampling.kinds[component.name]

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
            report=lambda reject: self._replaced.add(component.name, reject.item, reject.reason),
        )

    def _draw(
        self,
        index: int,
        attempt: int,
        former: sample_kinds.Place | None,
        rng: np.random.Generator,
    ) -> sample_kinds.Place:
        """See `sampling.Draw`; pools are drawn from apart from what the sample draws."""
        del rng
        draws = np.random.default_rng((self._sampling.request.seed, index, attempt or _DRAW))
        if former is None:
            name = self._names[int(draws.choice(len(self._names), p=self._shares))]
        else:
            name = former.component
        view, sample = self._pools[name].draw(draws)
        return sample_kinds.Place(component=name, source=view, episode=0, sample=sample)


class _Ahead:
    """Reads a stream in a thread, some batches ahead; `positions` are those of the last one out."""

    def __init__(self, stream: _Stream, first: int, positions: Positions):
        self.positions = positions
        self._stream, self._numbers = stream, itertools.count(first)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "stream")
        self._coming = collections.deque(self._submit() for _ in range(1 + loader.READ_AHEAD))

    def __next__(self) -> dict[str, Any]:
        self._coming.append(self._submit())
        raw = self._coming.popleft().result()
        self.positions = raw["positions"]
        return raw

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._stream.close()

    def _submit(self) -> concurrent.futures.Future[dict[str, Any]]:
        return self._thread.submit(self._stream.batch, next(self._numbers))


class StreamLoader(loader.Loader):
    """A `loader.Loader` of streams; see the module's docstring for what differs."""

    def __init__(
        self,
        config: config_lib.DataConfig,
        batch_spec: batch_lib.Batch,
        prepared: components_lib.Prepared,
        request: sampling.Request,
    ):
        super().__init__(config, batch_spec, prepared, request)
        self._pipeline["streamed"] = loader.digest(True)
        self._streamed = self._in_split()
        self._positions: Positions = {}

    def _in_split(self) -> list[StreamedComponent]:
        """Returns the datasets that have a record in the split.

        Raises:
            UserError: none has; or one has none to train on.
        """
        percent, found = self._config.holdout_percent, []
        for one in self._components:
            assert isinstance(one, StreamedComponent)
            shards = one.dataset.info.shards
            places = ((shard, index) for shard in shards for index in range(shard.num_records))
            ids = (one.dataset.episode_id(*place) for place in places)
            if any(self._request.takes(name, percent) for name in ids):
                found.append(one)
        absent = self.kinds.keys() - {one.name for one in found}
        if not found or (absent and self._request.train):
            raise errors.UserError(
                f"no episode of {', '.join(sorted(absent))} is in split {self._request.split}",
                f"data.holdout_percent={percent}",
                "change it, or set eval_batches=0",
            )
        return found

    def first(self, num_batches: int) -> Iterator[batch_lib.Batch]:
        """See `loader.Loader`."""
        stream = self._stream({}, FIRST_MIB)
        try:
            for number in range(num_batches):
                yield self._batch(stream.batch(number))
        finally:
            stream.close()

    @property
    def num_samples(self) -> int:
        """Unknown before all is read; see `use_features`."""
        return self.use_features("")

    def scan(self, spec: batch_lib.JointBatch) -> NoReturn:
        """See `use_features`."""
        del spec
        self.use_features("")

    def use_features(self, path: str | os.PathLike) -> NoReturn:
        """Raises UserError: features are kept by sample, and a stream does not number them."""
        raise errors.UserError(
            "features of streamed data cannot be kept",
            "cache_features",
            f"give --config.cache_features=False, or {STORE_ONLY}",
        )

    def state(self) -> dict[str, Any]:
        """Returns the positions, those of all processes together, small and JSON-able."""
        count = self._request.process_count
        positions = {n: [p.epoch, p.record * count] for n, p in self._now().items()}
        return super().state() | {"positions": positions}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues at the record positions of `state`, which is not exact.

        Raises:
            UserError: the state is of another pipeline; names what differs.
        """
        super().restore(state)
        count = self._request.process_count
        self._positions = {
            name: pool_lib.Position(epoch, record // count)
            for name, (epoch, record) in state["positions"].items()
        }
        logging.warning("restored record positions %s; this is not exact", state["positions"])

    def close(self) -> None:
        """Stops the threads; the next batch starts them again at the record positions."""
        self._positions = self._now()
        super().close()

    def _now(self) -> Positions:
        return self._positions if self._iterator is None else self._iterator.positions

    def _contents(self) -> dict[str, dict[str, Any]]:
        """See `loader.Loader`; numbers are of the files, 0 where unknown."""
        return {
            one.name: {
                "episodes": one.dataset.total,
                "frames": scan.known_steps(one.dataset),
                "samples": 0,
                "episodes_with_actions": one.dataset.total * int(one.source.has_actions[0]),
                "start_digests": [],
            }
            for one in self._streamed
        }

    def _start(self) -> _Ahead:
        """See `loader.Loader`."""
        stream = self._stream(self._positions, self._config.stream_mib)
        return _Ahead(stream, self._next_batch, self._positions)

    def _stream(self, positions: Positions, max_mib: int) -> _Stream:
        return _Stream(self._config, self._streamed, self._sampling, positions, max_mib)
