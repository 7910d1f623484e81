"""Features of the forward model, one row a sample: read from a file, and the samples to make it.

    Scan -> image batches -> (training computes features) -> file -> FeatureRows -> batches

Rows are in the order of the mixture's parts: all samples of part 0, then of part 1, ...
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.loading import batches
from data_pipelines.transforms import text
from defi_jax import errors


class FeatureRows:
    """Features of every sample from a .npy file, float16[rows, ...].

    The file is mapped into memory anew in each process that reads it. A row of NaN stands for a
    sample whose frames are damaged.

    Args:
        path: the file.
        counts: samples of each part.
    """

    def __init__(self, path: str | os.PathLike, counts: Sequence[int]):
        self._path = os.fspath(path)
        self._starts = np.cumsum([0, *counts]).tolist()
        self._rows = np.load(self._path, mmap_mode="r")
        if len(self._rows) != self._starts[-1]:
            raise ValueError(f"{path}: {len(self._rows)} rows for {self._starts[-1]} samples")

    def __call__(self, part_number: int, sample: int) -> np.ndarray:
        """Returns the features of a sample.

        Raises:
            DataError: its frames are damaged.
        """
        row = np.array(self._rows[self._starts[part_number] + sample])
        if np.isnan(row.flat[0]):
            raise errors.DataError("no features, its frames are damaged", self._path)
        return row

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_starts": self._starts}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._rows = np.load(self._path, mmap_mode="r")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """Every sample once, in the order of `FeatureRows`, in batches of one size, with images.

    Samples that cannot be read, and those past the end of the last batch, are blank and no `good`.

    Attributes:
        parts: of the mixture; their readers draw nothing.
        choose: of the instruction; see `samples.fixed_instruction`.
        tokenize: of the instructions of a batch.
        seed: of the paraphrases.
        batch_size: samples of a batch.
        blank: arrays of a sample that is not there.
    """

    parts: tuple[batches.Part, ...]
    choose: text.ChooseParaphrase
    tokenize: text.Tokenize
    seed: int
    batch_size: int
    blank: batches.Arrays
    _ends: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        ends = np.cumsum([len(part.table) for part in self.parts])
        object.__setattr__(self, "_ends", ends)

    @property
    def num_samples(self) -> int:
        """Samples of all parts."""
        return int(self._ends[-1])

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `arrays` [B, ...], `text` by role and `good` bool[B]."""
        start = index * self.batch_size
        read = [self._sample(row) for row in range(start, start + self.batch_size)]
        return {
            "arrays": {name: np.stack([s[name] for s, _, _ in read]) for name in self.blank},
            "text": self.tokenize([instruction for _, instruction, _ in read]),
            "good": np.array([good for _, _, good in read]),
        }

    def _sample(self, row: int) -> tuple[batches.Arrays, str, bool]:
        """Returns arrays, instruction and whether they are those of a sample."""
        if row >= self.num_samples:
            return self.blank, "", False
        part, sample = self._place(row)
        i, within = part.table(sample)
        try:
            instruction = batches.fixed_instruction(part, sample, self.choose, self.seed)
            read = part.reader(part.source, i, within, np.random.default_rng(self.seed))
            return read(), instruction, True
        except errors.DataError:
            return self.blank, "", False

    def _place(self, row: int) -> tuple[batches.Part, int]:
        number = int(np.searchsorted(self._ends, row, side="right"))
        part = self.parts[number]
        return part, row - int(self._ends[number]) + len(part.table)
