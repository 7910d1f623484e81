"""Batches: which samples they hold, in which order, and how these are read.

    index of a sample -> place -> begun -> finished, replaced where damaged or still
                      -> stacked, tokenised

Where the samples of a batch lie is drawn from an order over stores (`StoreBatches`), or from pools
of streamed episodes (`streams.StreamBatches`). All else is a pure function of (seed, index), so
that sample `index` is the same in any process, thread or run. No jax, so that worker processes
only need numpy.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from data_pipelines.loading import config as config_lib
from data_pipelines.loading import mixtures, sample_kinds
from defi_jax import errors

MAX_BAD = 16  # damaged samples in a row before giving up
MAX_CANDIDATES = 256  # samples read for one, pairs without motion included, before giving up
READ_AHEAD = 2  # batches, without worker processes
READ_THREADS = 1  # several wait for the interpreter's lock and cost a third more; take workers
WORKER_AHEAD = 2  # batches each worker process keeps ready

Arrays = sample_kinds.Arrays
Place = sample_kinds.Place

# What a sample kind raises where another sample takes the place.
REPLACEABLE = (errors.DataError, OSError, sample_kinds.Still)


# ---- reading ----

# Returns where a sample lies:
#   index: position of the sample in the run.
#   attempt: number of the try to find a good one for this index, from 0.
#   former: place of the last attempt; another of its component is drawn.
#   rng: generator of this index and attempt; what is drawn with it comes before the sample's draws.
Draw = Callable[[int, int, Place | None, np.random.Generator], Place]


@dataclasses.dataclass
class Replaced:
    """What was replaced while a batch was read.

    Attributes:
        bad: component, sample and error of each that is damaged.
        still: number of frame pairs without motion, by component.
    """

    bad: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    still: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(frozen=True)
class _Begun:
    """A sample but for its pixels: `read` decodes them, or says why it cannot be taken."""

    index: int
    place: Place
    instruction: str
    read: sample_kinds.Read | Exception


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How the samples of this process's share of each global batch are read; picklable.

    Global batch k holds the samples [k G, (k + 1) G), whatever the number of processes; process p
    of P takes the p-th of P equal blocks.

    Attributes:
        kinds: how a sample of each component is read, by name.
        request: request of the run.
    """

    kinds: Mapping[str, sample_kinds.SampleKind]
    request: config_lib.Request

    def batch(
        self, number: int, draw: Draw, replaced: Replaced, run: Callable[..., Iterable[Any]] = map
    ) -> dict[str, Any]:
        """Returns `arrays` [B, ...], `text` by role and `replaced` of global batch `number`.

        Args:
            number: number of the global batch.
            draw: where its samples lie.
            replaced: receives what was not taken.
            run: a `map` that may run in threads.

        Raises:
            DataError: so many samples in a row are not taken that the data set must be damaged.
        """
        own = self.request
        start = number * own.global_batch + own.process_index * own.local_batch
        # pixels last: small work between them takes four times as long, see `sample_kinds`
        begun = [self._begin(index, draw) for index in range(start, start + own.local_batch)]
        tried = zip(begun, run(_finish, begun), strict=True)
        read = (self._good(one, result, draw, replaced) for one, result in tried)
        arrays, instructions = _stack(read, own.local_batch)
        return {"arrays": arrays, "text": self.tokenize(instructions), "replaced": replaced}

    def tokenize(self, instructions: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns ids int32[B, L] and mask bool[B, L] by role."""
        return {role: own(instructions) for role, own in self.request.tokenizers.items()}

    def fixed_instruction(self, place: Place) -> str:
        """Returns the paraphrase that follows from seed, component and sample alone."""
        seed = (self.request.seed, zlib.crc32(place.component.encode()), place.row)
        return self._instruction(place, np.random.default_rng(seed))

    def _instruction(self, place: Place, rng: np.random.Generator) -> str:
        """Returns a paraphrase: a drawn one in training, else the first."""
        known = place.meta.instructions
        number = int(rng.integers(len(known)))
        return known[number if self.request.train else 0]

    def _begin(
        self, index: int, draw: Draw, attempt: int = 0, former: Place | None = None
    ) -> _Begun:
        rng = np.random.default_rng((self.request.seed, index, attempt))
        place = draw(index, attempt, former, rng)
        kind = self.kinds[place.component]
        fixed = kind.has_fixed_text
        instruction = self.fixed_instruction(place) if fixed else self._instruction(place, rng)
        try:
            read = kind.begin(place, instruction, rng)
        except REPLACEABLE as reason:
            read = reason
        return _Begun(index, place, instruction, read)

    def _good(
        self, begun: _Begun, result: Arrays | Exception, draw: Draw, replaced: Replaced
    ) -> tuple[Arrays, str]:
        """Returns the sample; where it is not taken, another of its component."""
        bad: list[str] = []
        still = 0
        while isinstance(result, Exception):
            component, sample = begun.place.component, str(begun.place)
            if isinstance(result, sample_kinds.Still):
                replaced.still[component] += 1
                still += 1
            else:
                replaced.bad.append((component, sample, str(result)))
                bad.append(sample)
            _check_patience(component, bad, still, result)
            begun = self._begin(begun.index, draw, len(bad) + still, begun.place)
            result = _finish(begun)
        return result, begun.instruction


def _finish(begun: _Begun) -> Arrays | Exception:
    """Returns the arrays of a sample, or why it cannot be taken."""
    if isinstance(begun.read, Exception):
        return begun.read
    try:
        return begun.read()
    except REPLACEABLE as reason:
        return reason


def _check_patience(component: str, bad: list[str], still: int, last: Exception) -> None:
    """Raises DataError where so many samples in a row were not taken that it must end."""
    where = f"data set {component!r}"
    if len(bad) == MAX_BAD:
        raise errors.DataError(
            f"{MAX_BAD} samples in a row are damaged ({', '.join(bad)}; last: {last})",
            where,
            "check it with `python launch/data.py validate` and convert again",
        )
    if still + len(bad) == MAX_CANDIDATES:
        raise errors.DataError(
            f"{still} frame pairs in a row show no motion (last: {last})",
            where,
            "lower data.drop_still, widen data.pair_offset, or leave the data set out",
        )


def _stack(read: Iterable[tuple[Arrays, str]], count: int) -> tuple[Arrays, list[str]]:
    """Returns the arrays [count, ...] and instructions of `count` samples.

    Each is copied as soon as it is read, while the processor's cache holds it.
    """
    arrays: Arrays = {}
    instructions = []
    for row, (sample, instruction) in enumerate(read):
        for name, value in sample.items():
            if not row:
                arrays[name] = np.empty((count, *np.shape(value)), np.asarray(value).dtype)
            arrays[name][row] = value
        instructions.append(instruction)
    return arrays, instructions


# ---- stores ----


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
        can prove that it starts elsewhere; it is empty for other data.
        """
        source, rows = self.component.source, self.episodes
        metadata = (source.meta(int(i)).metadata for i in rows)
        digests = {entry["start_digest"] for entry in metadata if "start_digest" in entry}
        return {
            "episodes": len(rows),
            "frames": int(source.lengths[rows].sum()),
            "samples": len(self),
            "episodes_with_actions": int(source.has_actions[rows].sum()),
            "start_digests": sorted(digests),
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
    reading: Reading
    first: int = 0
    _order: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_order", order(self.sets, self.reading.request.seed))

    @classmethod
    def of(
        cls,
        config: config_lib.DataConfig,
        components: Sequence[mixtures.Component],
        reading: Reading,
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
            num_threads=READ_THREADS, prefetch_buffer_size=1 if workers else READ_AHEAD
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

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `arrays` [B, ...], `text` by role and `replaced`."""
        return self.reading.batch(self.first + index, self._draw, Replaced())

    def _draw(
        self, index: int, attempt: int, former: Place | None, rng: np.random.Generator
    ) -> Place:
        """See `Draw`: by the order, then any other of the component."""
        del attempt
        if former is None:
            number, row = self._order[index]
            return self.sets[number].place(row)
        own = next(one for one in self.sets if one.component.name == former.component)
        return own.place(int(rng.integers(len(own))))
