"""Samples of a mixture: where they lie in the episodes, in which order they come, their batches.

Everything here is a pure function of (seed, index): sample `index` of the stream is the same in any
process, thread or run. No jax, so that worker processes only need numpy.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines import episodes
from data_pipelines.loading import sample_kinds
from data_pipelines.transforms import text
from defi_jax import errors

MAX_BAD = 16  # damaged samples in a row before giving up
MAX_CANDIDATES = 256  # samples read for one, pairs without motion included, before giving up

Arrays = sample_kinds.Arrays


class Table:
    """Samples of one source in a row: sample number -> episode and number within the episode.

    episodes [4, 7] with 3 and 2 samples: 0..2 are episode 4's, 3..4 episode 7's

    Args:
        episode_numbers: int64[n].
        counts: int64[n], samples of each.
    """

    def __init__(self, episode_numbers: np.ndarray, counts: np.ndarray):
        self._episodes = episode_numbers[counts > 0]
        self._ends = np.cumsum(counts[counts > 0])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def episodes(self) -> np.ndarray:
        """int64, numbers of the episodes that have samples."""
        return self._episodes

    def __call__(self, sample: int) -> tuple[int, int]:
        """Returns the episode's number and the sample's number within it."""
        row = int(np.searchsorted(self._ends, sample, side="right"))
        start = int(self._ends[row - 1]) if row else 0
        return int(self._episodes[row]), sample - start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One component of a mixture with its samples.

    Attributes:
        name: of the component.
        weight: relative share of the samples.
        source: the episodes.
        reader: how a sample is read.
        table: the samples of the split.
    """

    name: str
    weight: float
    source: episodes.EpisodeSource
    reader: sample_kinds.Reader
    table: Table

    def start_digests(self) -> list[str]:
        """Returns the digests that the simulator's episodes carry in their metadata, sorted."""
        metadata = (self.source.meta(int(i)).metadata for i in self.table.episodes)
        return sorted({entry["start_digest"] for entry in metadata if "start_digest" in entry})


@dataclasses.dataclass(frozen=True)
class Bad:
    """A sample that could not be read.

    Attributes:
        part: name of the component.
        record: which episode and sample.
        reason: message of the error.
    """

    part: str
    record: str
    reason: str


@dataclasses.dataclass
class Replaced:
    """What was replaced while a batch was read.

    Attributes:
        bad: damaged samples.
        still: number of frame pairs without motion, by component.
    """

    bad: list[Bad] = dataclasses.field(default_factory=list)
    still: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, part: str, record: str, reason: Exception) -> None:
        """Notes a sample that is replaced, and why."""
        if isinstance(reason, sample_kinds.Still):
            self.still[part] = self.still.get(part, 0) + 1
        else:
            self.bad.append(Bad(part, record, str(reason)))


class Candidates:
    """Counts what is read for one sample until there is a good one.

    Args:
        part: name of the component.
        replaced: where a sample that is replaced is noted.
    """

    def __init__(self, part: str, replaced: Replaced):
        self._part, self._replaced = part, replaced
        self._bad: list[str] = []
        self._still = 0

    def reject(self, record: str, reason: Exception) -> None:
        """Notes that a sample is not taken.

        Raises:
            DataError: so many in a row that the data set must be damaged, or without motion.
        """
        self._replaced.add(self._part, record, reason)
        if isinstance(reason, sample_kinds.Still):
            self._still += 1
        else:
            self._bad.append(record)
        where = f"data set {self._part!r}"
        if len(self._bad) == MAX_BAD:
            raise errors.DataError(
                f"{MAX_BAD} samples in a row are damaged ({', '.join(self._bad)}; last: {reason})",
                where,
                "check it with `python launch/data.py validate` and convert again",
            )
        if self._still + len(self._bad) == MAX_CANDIDATES:
            raise errors.DataError(
                f"{self._still} frame pairs in a row show no motion (last: {reason})",
                where,
                "lower data.drop_still, widen data.pair_offset, or leave the data set out",
            )


# What a reader raises where another sample takes the place.
REPLACEABLE = (errors.DataError, OSError, sample_kinds.Still)


def is_held_out(episode_id: str, percent: float) -> bool:
    """Whether the episode belongs to the held-out split, by a hash of its id alone."""
    fine, coarse = divmod(zlib.crc32(episode_id.encode()) % 10_000, 100)
    return coarse + fine / 100 < percent  # whole percents by the last two digits alone


def order(parts: Sequence[Part], seed: int) -> grain.MapDataset:
    """Returns the endless order of samples: index -> (part, sample number).

    Every part is shuffled as a whole, anew in each epoch, and contains each of its samples once an
    epoch; parts are interleaved by weight in a fixed pattern.
    """
    streams = []
    for number, part in enumerate(parts):
        own_seed = zlib.crc32(f"{seed}/{part.name}".encode())
        stream = grain.MapDataset.range(len(part.table)).shuffle(seed=own_seed).repeat()
        streams.append(stream.map(_Tag(number)))
    return grain.MapDataset.mix(streams, weights=[part.weight for part in parts])


@dataclasses.dataclass(frozen=True)
class _Tag:
    """Pairs a sample number with its part's."""

    number: int

    def __call__(self, sample: int) -> tuple[int, int]:
        return self.number, int(sample)


@dataclasses.dataclass(frozen=True)
class _Begun:
    """A sample but for its pixels.

    Attributes:
        part_number: of the part.
        sample: its number within the part.
        instruction: its text.
        read: what decodes them and gives the arrays, or why the sample cannot be taken.
    """

    part_number: int
    sample: int
    instruction: str
    read: sample_kinds.Read | Exception


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
    """This process's share of each global batch, random access; picklable.

    Global batch k holds the samples [k G, (k + 1) G) of the order, whatever the number of
    processes; process p of P takes the p-th of P equal blocks.

    Attributes:
        parts: of the mixture.
        choose: of the instruction.
        tokenize: of the instructions of a batch.
        seed: of order and draws.
        global_batch: G, samples of all processes.
        process_index: p.
        process_count: P, divides G.
        fixed_text: whether a sample has the same paraphrase whenever it is drawn.
        features: (part, sample) -> what is added to the arrays as `features`; None for none.
        text_features: (source, instruction) -> what is added as `text_features`; None for none.
        first: batch number that index 0 stands for.
    """

    parts: tuple[Part, ...]
    choose: text.ChooseParaphrase
    tokenize: text.Tokenize
    seed: int
    global_batch: int
    process_index: int
    process_count: int
    fixed_text: bool = False
    features: Callable[[int, int], np.ndarray] | None = None
    text_features: Callable[[episodes.EpisodeSource, str], np.ndarray] | None = None
    first: int = 0
    _order: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_order", order(self.parts, self.seed))

    def __len__(self) -> int:
        return 1 << 40  # endless; grain wants a number

    @property
    def local_batch(self) -> int:
        """Samples of this process."""
        return self.global_batch // self.process_count

    def starting_at(self, batch: int) -> Batches:
        """Returns the same batches with index 0 at number `batch`."""
        return dataclasses.replace(self, first=batch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `arrays` [B, ...], `text` by role and `replaced`."""
        start = (self.first + index) * self.global_batch + self.process_index * self.local_batch
        numbers = range(start, start + self.local_batch)
        drawn = [self._order[number] for number in numbers]
        # pixels last: small work between them takes four times as long, see `readers`
        begun = [self._begin(number, *pair) for number, pair in zip(numbers, drawn, strict=True)]
        replaced = Replaced()
        read = (self._good(*pair, replaced) for pair in zip(numbers, begun, strict=True))
        arrays, instructions = stack(read, self.local_batch)
        return {"arrays": arrays, "text": self.tokenize(instructions), "replaced": replaced}

    def _begin(self, index: int, part_number: int, sample: int, attempt: int = 0) -> _Begun:
        """Draws and reads all but the pixels of a sample.

        Args:
            index: in the order.
            part_number: of the part.
            sample: of the part; from the second attempt on, one is drawn instead.
            attempt: to find a good sample for this index, from 0.
        """
        part = self.parts[part_number]
        rng = np.random.default_rng((self.seed, index, attempt))
        if attempt:
            sample = int(rng.integers(len(part.table)))
        i, within = part.table(sample)
        instruction = self._instruction(part, sample, rng)
        try:
            read: sample_kinds.Read | Exception = part.reader(part.source, i, within, rng)
        except REPLACEABLE as reason:
            read = reason
        return _Begun(part_number, sample, instruction, read)

    def _good(self, index: int, begun: _Begun, replaced: Replaced) -> tuple[Arrays, str]:
        """Finishes a sample; where it is not taken, another of its part, drawn from the index.

        Args:
            index: in the order.
            begun: the first attempt.
            replaced: receives what was not taken.

        Raises:
            DataError: see `Candidates`.
        """
        part = self.parts[begun.part_number]
        candidates = Candidates(part.name, replaced)
        for attempt in itertools.count(1):
            try:
                return self._finish(begun), begun.instruction
            except REPLACEABLE as reason:
                i, within = part.table(begun.sample)
                candidates.reject(f"{part.source.episode_ids[i]}#{within}", reason)
            begun = self._begin(index, begun.part_number, begun.sample, attempt)
        raise AssertionError("candidates end")

    def _finish(self, begun: _Begun) -> Arrays:
        if isinstance(begun.read, Exception):
            raise begun.read
        arrays = begun.read()
        if self.features is not None:
            arrays["features"] = self.features(begun.part_number, begun.sample)
        if self.text_features is not None:
            source = self.parts[begun.part_number].source
            arrays["text_features"] = self.text_features(source, begun.instruction)
        return arrays

    def _instruction(self, part: Part, sample: int, rng: np.random.Generator) -> str:
        if self.fixed_text:
            return fixed_instruction(part, sample, self.choose, self.seed)
        return self.choose(part.source.meta(part.table(sample)[0]).instructions, rng)


def stack(read: Iterable[tuple[Arrays, str]], count: int) -> tuple[Arrays, list[str]]:
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


def fixed_instruction(part: Part, sample: int, choose: text.ChooseParaphrase, seed: int) -> str:
    """Returns the paraphrase of a sample that follows from seed, part and sample alone."""
    rng = np.random.default_rng((seed, zlib.crc32(part.name.encode()), sample))
    return choose(part.source.meta(part.table(sample)[0]).instructions, rng)
