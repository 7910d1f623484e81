"""Features of the forward model, read from a file with one row a sample.

`batches.EachOnce` -> images -> (training computes features) -> file -> `open_rows` -> batches

Rows are in the order of the mixture's components: all of the first, then of the second, ...
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

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
        self.__setstate__({"_path": os.fspath(path), "_start": start})

    def __call__(self, row: int) -> np.ndarray:
        """Returns the features of the component's sample number `row`.

        Raises:
            DataError: its frames are damaged.
        """
        features = np.array(self._rows[self._start + row])
        if np.isnan(features.flat[0]):
            raise errors.DataError("no features, its frames are damaged", self._path)
        return features

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_start": self._start}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._path, self._start = state["_path"], state["_start"]
        self._rows = np.load(self._path, mmap_mode="r")


def open_rows(path: str | os.PathLike, counts: Mapping[str, int]) -> dict[str, FeatureRows]:
    """Returns the features of each component; `counts` are their samples, in order.

    Raises:
        ValueError: the file has another number of rows.
    """
    starts = np.cumsum([0, *counts.values()]).tolist()
    rows = {name: FeatureRows(path, start) for name, start in zip(counts, starts, strict=False)}
    found = len(np.load(path, mmap_mode="r"))
    if found != starts[-1]:
        raise ValueError(f"{path}: {found} rows for {starts[-1]} samples")
    return rows
