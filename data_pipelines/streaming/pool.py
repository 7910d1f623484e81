"""Episodes of an RLDS dataset one after another, and a pool of them to draw samples from.

    shards in the epoch's order -> records of this process -> episodes -> pool -> samples

A pool holds whole episodes with their encoded frames up to a number of bytes, and at most one epoch
of them: it drains before the next epoch begins, so that each sample comes once an epoch. Memory is
the pool and one record.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import logging

from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.sources import rlds, rlds_directory
from defi_jax import errors


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a process is in its stream.

    Attributes:
        epoch: number of times that all records were read.
        record: number of records of this epoch that it has passed, read or not.
    """

    epoch: int
    record: int


@dataclasses.dataclass(frozen=True)
class Record:
    """One record as it lies in its file; in the place of a lost one's bytes, what is wrong."""

    shard: rlds_directory.Shard
    index: int
    data: bytes | errors.DataError


class EpisodeView(episodes.EpisodeSource):
    """One episode in memory as an `episodes.EpisodeSource` of length 1.

    Attributes:
        num_bytes: size of the encoded frames.
    """

    def __init__(self, episode: episodes.Episode):
        self._episode = episode
        self.num_bytes = sum(len(data) for frames in episode.frames.values() for data in frames)
        self.episode_ids = (episode.episode_id,)
        self.lengths = np.array([episode.length], np.int64)
        self.has_actions = np.array([episode.actions is not None])

    def has_camera(self, camera: str) -> np.ndarray:
        """See `episodes.EpisodeSource`."""
        return np.array([camera in self._episode.frames])

    def meta(self, i: int) -> episodes.EpisodeMeta:
        """See `episodes.EpisodeSource`."""
        return self._episode.meta

    def fetch(
        self, i: int, camera: str, indices: Sequence[int] | np.ndarray
    ) -> Iterator[np.ndarray]:
        """See `episodes.EpisodeSource`."""
        encoded = self._episode.frames[camera]
        where = f"episode {self._episode.episode_id!r}, camera {camera!r}"
        return image.decode_images([encoded[int(t)] for t in indices], where=where)

    def actions(self, i: int) -> np.ndarray | None:
        """See `episodes.EpisodeSource`."""
        return self._episode.actions

    def states(self, i: int) -> np.ndarray | None:
        """See `episodes.EpisodeSource`."""
        return self._episode.states

    def fingerprint(self) -> str:
        """Returns the episode's id."""
        return self._episode.episode_id


class Records:
    """Records of a split in one epoch that belong to one of P processes.

    Processes take whole shards where each is sure to find a record of the split among its own, else
    every P-th record of the split. Where it has fewer than P, some processes share one.

    Args:
        source: the dataset.
        accept: episode id -> whether it belongs to the split.
        seed: seed of the order of the shards, anew in each epoch.
        process_index: number of this process.
        process_count: P.
    """

    def __init__(
        self,
        source: rlds.RldsSource,
        *,
        accept: Callable[[str], bool],
        seed: int,
        process_index: int,
        process_count: int,
    ):
        self._source, self._accept, self._seed = source, accept, seed
        self._shards = source.info.shards
        counts = [len(self._places(shard)) for shard in self._shards]
        by_shard = counts.count(0) < len(counts) // process_count
        self._own_shards = slice(process_index, None, process_count) if by_shard else slice(None)
        divisor = 1 if by_shard else max(1, min(process_count, sum(counts)))
        self._own_record = (process_index % divisor, divisor)

    def _places(self, shard: rlds_directory.Shard) -> list[int]:
        """Returns which records of a shard belong to the split."""
        numbers = range(shard.num_records)
        return [n for n in numbers if self._accept(self._source.episode_id(shard, n))]

    def epoch(self, start: Position) -> Iterator[tuple[Position, Record]]:
        """Yields the records from a position to the end of its epoch, each with the next one's."""
        order = np.random.default_rng((self._seed, start.epoch)).permutation(len(self._shards))
        remainder, divisor = self._own_record
        passed = passed_split = 0
        for shard in (self._shards[number] for number in order[self._own_shards]):
            places = self._places(shard)
            own = set(places[(remainder - passed_split) % divisor :: divisor])
            first = max(0, start.record - passed)
            if first <= max(own, default=-1):
                for index, data in enumerate(rlds.salvage_shard(shard, start=first), first):
                    if index in own:
                        yield Position(start.epoch, passed + index + 1), Record(shard, index, data)
            passed += shard.num_records
            passed_split += len(places)


class Pool:
    """Samples of a stream in random order; see the module's docstring.

    Args:
        source: the dataset.
        records: records of this process.
        start: where to begin.
        count_samples: an episode -> its number of samples, 0 for one that cannot be used.
        max_bytes: size of the frames in the pool, one episode at least.
        batch_samples: that a batch takes; a pool of fewer episodes says so once; 0 for silence.
        cameras: whose frames are kept.
        report: what to do with an episode that is unusable.
    """

    def __init__(
        self,
        source: rlds.RldsSource,
        records: Records,
        *,
        start: Position,
        count_samples: Callable[[EpisodeView], int],
        max_bytes: int,
        batch_samples: float = 0,
        cameras: Sequence[str],
        report: Callable[[episodes.Reject], None],
    ):
        self.position = start
        self._source, self._records = source, records
        self._count_samples, self._report = count_samples, report
        self._last_reject: episodes.Reject | None = None
        self._max_bytes, self._cameras = max_bytes, cameras
        self._batch_samples = batch_samples
        self._samples: list[tuple[EpisodeView, int]] = []  # not drawn yet
        self._left: collections.Counter[EpisodeView] = collections.Counter()  # of each episode
        self._bytes = 0
        self._epoch = records.epoch(start)

    def draw(self, rng: np.random.Generator) -> tuple[EpisodeView, int]:
        """Returns an episode and a sample's number within it, each once an epoch.

        Raises:
            DataError: a whole epoch gives no sample.
        """
        self._fill()
        if not self._samples:
            self._next_epoch()
        self._warn_if_small()
        chosen = int(rng.integers(len(self._samples)))
        self._samples[chosen], self._samples[-1] = self._samples[-1], self._samples[chosen]
        view, sample = self._samples.pop()
        self._left[view] -= 1
        if not self._left[view]:
            del self._left[view]
            self._bytes -= view.num_bytes
        return view, sample

    def _warn_if_small(self) -> None:
        """Says at the start that a batch's samples come from few episodes."""
        if len(self._left) < self._batch_samples:
            is_full = self._bytes >= self._max_bytes
            logging.warning(
                "%s: the pool holds %d episodes (%s) and a batch takes %.3g samples of it, so that "
                "some are of the same episode; %s",
                self._source.name,
                len(self._left),
                f"{self._bytes / 2**20:.1f} MiB",
                self._batch_samples,
                "raise data.stream_mib" if is_full else "these are all that the split has",
            )
        self._batch_samples = 0

    def _next_epoch(self) -> None:
        for _ in range(2):  # the first may have begun behind the last usable record
            self.position = Position(self.position.epoch + 1, 0)
            self._epoch = self._records.epoch(self.position)
            self._fill()
            if self._samples:
                return
        rejected = self._last_reject
        raise errors.DataError(
            "no episode has the cameras, actions and length that are asked for"
            + (f", or is whole (last: {rejected.item}: {rejected.reason})" if rejected else ""),
            f"dataset {self._source.name}, as far as this process reads it",
            "give other --config.data.cameras, or more data",
        )

    def _fill(self) -> None:
        """Reads episodes of this epoch until the pool is full."""
        while self._bytes < self._max_bytes or not self._samples:
            following = next(self._epoch, None)
            if following is None:
                return
            self.position, record = following
            view = self._view(record)
            num_samples = 0 if view is None else self._count_samples(view)
            if view is not None and num_samples:
                self._samples += [(view, sample) for sample in range(num_samples)]
                self._left[view] = num_samples
                self._bytes += view.num_bytes

    def _view(self, record: Record) -> EpisodeView | None:
        episode = self._source.try_episode(record.shard, record.index, record.data)
        if isinstance(episode, errors.DataError):
            episode = episodes.Reject(episode.where, episode.what)
        if isinstance(episode, episodes.Reject):
            self._last_reject = episode
            self._report(episode)
            return None
        kept = {name: frames for name, frames in episode.frames.items() if name in self._cameras}
        return EpisodeView(dataclasses.replace(episode, frames=kept)) if kept else None
