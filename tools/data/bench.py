"""How fast the loader reads, beside the bare decoding and resizing of the same frames.

Both are measured in this process, in turns, by CPU seconds of all its threads: frames per second
and core, which other work on the machine changes little.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.formats import image
from data_pipelines.loading import loader as loader_lib
from data_pipelines.loading import store_batches
from data_pipelines.store import reader
from defi_jax import errors

ROUNDS = 5  # of the loader and the bare work in turns
_RECORDED_BATCHES = 8
_IDLE_SECONDS = 0.15  # without work, after which nothing is read ahead any more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured.

    Attributes:
        loader: frames per CPU second through the loader, median of the rounds.
        bare: frames per CPU second of decoding and resizing alone.
        ratio: median over the rounds of loader / bare.
        frames: read by the loader.
        seconds: seconds of wall time in the loader.
        rss_mib: resident memory after the first and the last round.
    """

    loader: float
    bare: float
    ratio: float
    frames: int
    seconds: float
    rss_mib: tuple[float, float]


class _Recorder:
    """A source that notes the encoded bytes of the frames it is asked for."""

    def __init__(self, source: reader.EpisodeStore, encoded: list[bytes]):
        self._source, self._encoded = source, encoded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def fetch(
        self, i: int, camera: str, indices: Sequence[int] | np.ndarray
    ) -> Iterator[np.ndarray]:
        """See `episodes.EpisodeStore`."""
        self._encoded += self._source.frame_bytes(i, camera, indices)
        return self._source.fetch(i, camera, indices)


def run(one: loader_lib.Loader, *, image_size: int, seconds: float) -> Result:
    """Measures a loader that reads in this process (`data.workers=0`).

    Args:
        one: loader of a mixture of episode stores.
        image_size: pixels of a side of what it gives.
        seconds: seconds of wall time in the loader, over all rounds.

    Raises:
        UserError: it reads no encoded frames.
    """
    if not isinstance(one.batches, store_batches.StoreBatches):
        raise errors.UserError(
            "streamed data are not measured", "data.root", "bench reads episode stores"
        )
    encoded = _frames_of(one.batches)
    frames_per_batch = len(encoded) / _RECORDED_BATCHES
    rates, limits, resident = [], [], []
    batches, wall = 0, 0.0
    for _ in range(ROUNDS):
        count, elapsed, cpu = _through_loader(one, seconds / ROUNDS)
        rates.append(count * frames_per_batch / cpu)
        batches, wall = batches + count, wall + elapsed
        limits.append(_bare(encoded, image_size, seconds / ROUNDS))
        resident.append(resident_mib())
    one.close()
    return Result(
        loader=statistics.median(rates),
        bare=statistics.median(limits),
        ratio=statistics.median(r / limit for r, limit in zip(rates, limits, strict=True)),
        frames=round(batches * frames_per_batch),
        seconds=wall,
        rss_mib=(resident[0], resident[-1]),
    )


def resident_mib() -> float:
    """Returns the resident memory of this process (Linux)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _frames_of(batches: store_batches.StoreBatches) -> list[bytes]:
    """Returns the encoded frames of the first batches."""
    encoded: list[bytes] = []
    sets = []
    for one_set in batches.sets:
        component = one_set.component
        if not isinstance(component.source, reader.EpisodeStore):
            raise errors.UserError(
                f"{component.name!r} holds no encoded frames",
                "data.mixture",
                "bench reads episode stores; give --config.data.root and --config.data.mixture",
            )
        recorder = _Recorder(component.source, encoded)
        recorded = dataclasses.replace(component, source=recorder)
        sets.append(dataclasses.replace(one_set, component=recorded))
    recording = dataclasses.replace(batches, sets=tuple(sets))
    for number in range(_RECORDED_BATCHES):
        recording[number]
    return encoded


def _through_loader(one: loader_lib.Loader, seconds: float) -> tuple[int, float, float]:
    """Returns the number of batches, and seconds of wall and CPU time.

    The loader has read ahead all it may when the clocks start and when they stop, so that each
    batch that is counted is paid for, and nothing reads during what is measured next.
    """
    next(one)
    _wait_until_idle()
    count, start, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() < start + seconds:
        next(one)
        count += 1
    _wait_until_idle()
    return count, time.monotonic() - start, time.process_time() - cpu


def _wait_until_idle() -> None:
    """Returns once this process has used no CPU time to speak of for a while."""
    is_busy = True
    while is_busy:
        before = time.process_time()
        time.sleep(_IDLE_SECONDS)
        is_busy = time.process_time() - before > 0.02 * _IDLE_SECONDS


def _bare(encoded: Sequence[bytes], size: int, seconds: float) -> float:
    """Returns frames per CPU second."""
    count, start, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() < start + seconds:
        for data in encoded:
            image.resize(image.decode_image(data), (size, size))
        count += len(encoded)
    return count / (time.process_time() - cpu)
