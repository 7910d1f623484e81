"""Features of the forward model instead of images, in a file with one row a sample.

`EachOnce` -> images -> (training computes features) -> file -> `use_rows` -> batches

Rows are in the order of the mixture's components: all of the first, then of the second, ...
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from data_pipelines.loading import reading as reading_lib
from data_pipelines.loading import sample_kinds, store_batches
from defi_jax import batch as batch_lib
from defi_jax import errors


class FeatureRows:
    """Features of one component's samples from a .npy file, float16[rows, ...].

    The file is mapped into memory anew in each process that reads it. A row of NaN stands for a
    sample whose frames are damaged.

    Args:
        path: the file.
        start: row of the component's first sample.
    """

    def __init__(self, path: str | os.PathLike, start: int):
        self._path, self._start = os.fspath(path), start
        self._rows = np.load(path, mmap_mode="r")

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return FeatureRows, (self._path, self._start)

    def __call__(self, row: int) -> np.ndarray:
        """Returns the features of the component's sample number `row`.

        Raises:
            DataError: its frames are damaged.
        """
        features = np.array(self._rows[self._start + row])
        if np.isnan(features.flat[0]):
            raise errors.DataError("no features, its frames are damaged", self._path)
        return features


def use_rows(
    batches: store_batches.StoreBatches, path: str | os.PathLike
) -> store_batches.StoreBatches:
    """Returns the batches with the features of a .npy file that has a row a sample.

    Raises:
        ValueError: the file has another number of rows.
    """
    rows, wanted = len(np.load(path, mmap_mode="r")), batches.num_samples
    if rows != wanted:
        raise ValueError(f"{path}: {rows} rows for {wanted} samples")
    kinds, start = {}, 0
    for one in batches.sets:
        kind = batches.reading.kinds[one.component.name]
        assert isinstance(kind, sample_kinds.FeatureWindows)
        features = FeatureRows(path, start)
        kinds[one.component.name] = dataclasses.replace(kind, features=features)
        start += len(one)
    reading = dataclasses.replace(batches.reading, kinds=kinds)
    return dataclasses.replace(batches, reading=reading)


def with_images(batches: store_batches.StoreBatches) -> store_batches.StoreBatches:
    """Returns the same batches with images where they have features."""
    kinds = {
        name: kind.with_images if isinstance(kind, sample_kinds.FeatureWindows) else kind
        for name, kind in batches.reading.kinds.items()
    }
    return dataclasses.replace(batches, reading=dataclasses.replace(batches.reading, kinds=kinds))


def read_all(
    batches: store_batches.StoreBatches, spec: batch_lib.JointBatch, first: int
) -> Iterator[dict[str, Any]]:
    """Yields every sample once, by row, with images; see `EachOnce`.

    Args:
        batches: what has the samples.
        spec: abstract batch with images, of the batch size that is wanted.
        first: number of the batch to begin with.
    """
    blank = {"images": spec.images, "actions": spec.actions, "action_mask": spec.action_mask}
    every = EachOnce(
        sets=batches.sets,
        reading=with_images(batches).reading,
        batch_size=spec.actions.shape[0],
        blank={name: np.zeros(leaf.shape[1:], leaf.dtype) for name, leaf in blank.items()},
    )
    options = grain.ReadOptions(
        num_threads=store_batches.READ_THREADS, prefetch_buffer_size=reading_lib.READ_AHEAD
    )
    left = grain.MapDataset.source(every)[first:]
    iterator = iter(left.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EachOnce:
    """Every sample once, set after set, in batches of one size.

    Samples that cannot be read, and those past the end of the last batch, are blank and no `good`.

    Attributes:
        sets: the samples of each component.
        reading: how they are read.
        batch_size: samples of a batch.
        blank: arrays of a sample that is not there.
    """

    sets: tuple[store_batches.SampleSet, ...]
    reading: reading_lib.Reading
    batch_size: int
    blank: sample_kinds.Arrays

    def __len__(self) -> int:
        return -(-sum(len(one) for one in self.sets) // self.batch_size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `arrays` [B, ...], `text` by role and `good` bool[B]."""
        start = index * self.batch_size
        read = [self._sample(row) for row in range(start, start + self.batch_size)]
        samples = [self.blank if sample is None else sample for sample, _ in read]
        return {
            "arrays": {name: np.stack([one[name] for one in samples]) for name in self.blank},
            "text": self.reading.tokenize([instruction for _, instruction in read]),
            "good": np.array([sample is not None for sample, _ in read]),
        }

    def _sample(self, number: int) -> tuple[sample_kinds.Arrays | None, str]:
        """Returns arrays and instruction, None and "" where there is no good sample."""
        own = self.reading
        for one in self.sets:
            if number < len(one):
                place = one.place(number)
                instruction = own.fixed_instruction(place)
                rng = np.random.default_rng(own.request.seed)
                try:
                    kind = own.kinds[place.component]
                    return kind.begin(place, instruction, rng)(), instruction
                except errors.DataError:
                    break
            number -= len(one)
        return None, ""
