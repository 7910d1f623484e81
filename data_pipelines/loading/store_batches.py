"""Batches of episode stores: which samples there are, in which order, read ahead by workers.

Batch k is a pure function of config, seed and k. No jax, so that worker processes only need numpy.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from data_pipelines.loading import config as config_lib
from data_pipelines.loading import mixtures, sample_kinds
from data_pipelines.loading import reading as reading_lib
from defi_jax import errors

READ_THREADS = 1  # several wait for the interpreter's lock and cost a third more; take workers
WORKER_AHEAD = 2  # batches each worker process keeps ready

Place = sample_kinds.Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSet:
    """The samples of one component's split in a row: number -> episode and number within it.

    Attributes:
        component: component of the mixture.
        episodes: int64[n], numbers of the episodes that have samples.
        ends: int64[n], how many samples there are up to each of them, its own included.
    """

    component: mixtures.Component
    episodes: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(
        cls, component: mixtures.Component, episodes: np.ndarray, counts: np.ndarray
    ) -> SampleSet:
        """Returns the samples of the episodes, `counts` of each.

        episodes [4, 7] with 3 and 2 samples: 0..2 are episode 4's, 3..4 episode 7's
        """
        ends = np.cumsum(counts[counts > 0])
        return cls(component=component, episodes=episodes[counts > 0], ends=ends)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def place(self, row: int) -> Place:
        """Returns where sample number `row` lies."""
        number = int(np.searchsorted(self.ends, row, side="right"))
        return Place(
            component=self.component.name,
            source=self.component.source,
            episode=int(self.episodes[number]),
            sample=row - (int(self.ends[number - 1]) if number else 0),
            row=row,
        )

    def describe(self) -> dict[str, Any]:
        """Returns what the component contributes, JSON-able.

        "start_digests" identifies the start states of simulated episodes, so that an evaluation
        can prove that it starts elsewhere; it is empty for other data. "origins" are what
        self-made episodes say of themselves, for the results of whoever learns from them.
        """
        source, rows = self.component.source, self.episodes
        metadata = [source.meta(int(i)).metadata for i in rows]
        digests = {entry["start_digest"] for entry in metadata if "start_digest" in entry}
        origins = {str(entry["origin"]) for entry in metadata if "origin" in entry}
        return {
            "episodes": len(rows),
            "frames": int(source.lengths[rows].sum()),
            "samples": len(self),
            "episodes_with_actions": int(source.has_actions[rows].sum()),
            "start_digests": sorted(digests),
            "origins": sorted(origins),
        }


def order(sets: Sequence[SampleSet], seed: int) -> grain.MapDataset:
    """Returns the endless order of samples: index -> (number of the set, row).

    Every set is shuffled as a whole, anew in each epoch, and contains each of its samples once an
    epoch; sets are interleaved by weight in a fixed pattern.
    """
    streams = []
    for number, one in enumerate(sets):
        own_seed = zlib.crc32(f"{seed}/{one.component.name}".encode())
        stream = grain.MapDataset.range(len(one)).shuffle(seed=own_seed).repeat()
        streams.append(stream.map(functools.partial(_tagged, number)))
    return grain.MapDataset.mix(streams, weights=[one.component.weight for one in sets])


def _tagged(number: int, row: int) -> tuple[int, int]:
    return number, int(row)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreBatches:
    """This process's share of each global batch, random access; picklable.

    Batch k is a pure function of config, seed and k.

    Attributes:
        sets: the samples of each component.
        reading: how they are read.
        first: batch number that index 0 stands for.
    """

    sets: tuple[SampleSet, ...]
    reading: reading_lib.Reading
    first: int = 0
    _order: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_order", order(self.sets, self.reading.request.seed))

    @classmethod
    def of(
        cls,
        config: config_lib.DataConfig,
        components: Sequence[mixtures.Component],
        reading: reading_lib.Reading,
    ) -> StoreBatches:
        """Returns the batches of the components that have samples in the split.

        Raises:
            DataError: a component has nothing to train on.
            UserError: no episode of any component is held out.
        """
        sets, percent = [], config.holdout_percent
        for component in components:
            source, kind = component.source, reading.kinds[component.name]
            takes = reading.request.takes
            in_split = np.array([takes(name, percent) for name in source.episode_ids])
            rows = np.flatnonzero(kind.can_use(source) & in_split)
            counts = kind.num_samples(source.lengths[rows])
            samples = SampleSet.of(component, rows, counts)
            if len(samples):
                sets.append(samples)
            elif reading.request.train:
                raise errors.DataError(
                    "no episode is of usable length or left for training",
                    f"data set {component.name!r}",
                    "leave it out of data.mixture, lower data.holdout_percent or raise "
                    "data.max_frames",
                )
        if not sets:
            raise errors.UserError(
                f"no episode of {', '.join(reading.kinds)} is held out for evaluation",
                f"data.holdout_percent={percent}",
                "raise it, collect more episodes, or set eval_batches=0",
            )
        return cls(sets=tuple(sets), reading=reading)

    def __len__(self) -> int:
        return 1 << 40  # endless; grain wants a number

    @property
    def num_samples(self) -> int:
        """Samples of the split, each once."""
        return sum(len(one) for one in self.sets)

    def contents(self) -> dict[str, dict[str, Any]]:
        """Returns what each component that has samples contributes, by name."""
        return {one.component.name: one.describe() for one in self.sets}

    def take(self, count: int) -> Iterator[dict[str, Any]]:
        """Yields the first batches of the order."""
        yield from (dataclasses.replace(self, first=0)[number] for number in range(count))

    def start(self, number: int, workers: int) -> grain.DatasetIterator:
        """Returns an iterator that reads ahead from batch `number`, in this process or in workers.

        What workers return lives in shared memory that is lost at exit.
        """
        options = grain.ReadOptions(
            num_threads=READ_THREADS, prefetch_buffer_size=1 if workers else reading_lib.READ_AHEAD
        )
        ahead = dataclasses.replace(self, first=number)
        dataset = grain.MapDataset.source(ahead).to_iter_dataset(options)
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

    def places(self) -> list[Place]:
        """Where the samples of batch `first` lie, damaged ones included."""
        own = self.reading.request
        start = self.first * own.global_batch + own.process_index * own.local_batch
        pairs = (self._order[index] for index in range(start, start + own.local_batch))
        return [self.sets[number].place(row) for number, row in pairs]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `arrays` [B, ...], `text` by role and `replaced`."""
        return self.reading.batch(self.first + index, self._draw, reading_lib.Replaced())

    def _draw(
        self, index: int, attempt: int, former: Place | None, rng: np.random.Generator
    ) -> Place:
        """See `reading.Draw`: by the order, then any other of the component."""
        del attempt
        if former is None:
            number, row = self._order[index]
            return self.sets[number].place(row)
        own = next(one for one in self.sets if one.component.name == former.component)
        return own.place(int(rng.integers(len(own))))
