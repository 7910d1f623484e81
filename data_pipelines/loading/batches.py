"""Batches of stores: where their samples lie, in which order they come, and all of them once.

Random access: batch k is a pure function of config, seed and k. No jax, for worker processes.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines.loading import mixtures, sample_kinds, sampling
from defi_jax import errors


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

    def place(self, row: int) -> sample_kinds.Place:
        """Returns where sample number `row` lies."""
        number = int(np.searchsorted(self.ends, row, side="right"))
        return sample_kinds.Place(
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
        streams.append(stream.map(_Tag(number)))
    return grain.MapDataset.mix(streams, weights=[one.component.weight for one in sets])


@dataclasses.dataclass(frozen=True)
class _Tag:
    """Pairs a row with the number of its set."""

    number: int

    def __call__(self, row: int) -> tuple[int, int]:
        return self.number, int(row)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
    """This process's share of each global batch, random access; picklable.

    Attributes:
        sets: the samples of each component.
        sampling: how they are read.
        first: batch number that index 0 stands for.
    """

    sets: tuple[SampleSet, ...]
    sampling: sampling.Sampling
    first: int = 0
    _order: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_order", order(self.sets, self.sampling.request.seed))

    def __len__(self) -> int:
        return 1 << 40  # endless; grain wants a number

    def starting_at(self, batch: int) -> Batches:
        """Returns the same batches with index 0 at number `batch`."""
        return dataclasses.replace(self, first=batch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `arrays` [B, ...], `text` by role and `replaced`."""
        return self.sampling.batch(self.first + index, self._draw, sampling.Replaced())

    def _draw(
        self,
        index: int,
        attempt: int,
        former: sample_kinds.Place | None,
        rng: np.random.Generator,
    ) -> sample_kinds.Place:
        """See `sampling.Draw`: by the order, then any other of the component."""
        del attempt
        if former is None:
            number, row = self._order[index]
            return self.sets[number].place(row)
        own = next(one for one in self.sets if one.component.name == former.component)
        return own.place(int(rng.integers(len(own))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EachOnce:
    """Every sample once, set after set, in batches of one size.

    Samples that cannot be read, and those past the end of the last batch, are blank and no `good`.

    Attributes:
        sets: the samples of each component.
        sampling: how they are read.
        batch_size: samples of a batch.
        blank: arrays of a sample that is not there.
    """

    sets: tuple[SampleSet, ...]
    sampling: sampling.Sampling
    batch_size: int
    blank: sampling.Arrays

    @property
    def num_samples(self) -> int:
        """Samples of all sets."""
        return sum(len(one) for one in self.sets)

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `arrays` [B, ...], `text` by role and `good` bool[B]."""
        start = index * self.batch_size
        read = [self._sample(row) for row in range(start, start + self.batch_size)]
        return {
            "arrays": {name: np.stack([s[name] for s, _, _ in read]) for name in self.blank},
            "text": self.sampling.tokenize([instruction for _, instruction, _ in read]),
            "good": np.array([good for _, _, good in read]),
        }

    def _sample(self, number: int) -> tuple[sampling.Arrays, str, bool]:
        """Returns arrays, instruction and whether they are those of a sample."""
        own = self.sampling
        for one in self.sets:
            if number < len(one):
                break
            number -= len(one)
        else:
            return self.blank, "", False
        place = one.place(number)
        try:
            instruction = own.fixed_instruction(place)
            rng = np.random.default_rng(own.request.seed)
            return own.kinds[place.component].begin(place, instruction, rng)(), instruction, True
        except errors.DataError:
            return self.blank, "", False
