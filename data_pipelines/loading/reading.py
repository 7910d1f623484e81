"""How the samples of a batch are read, wherever they lie.

    index of a sample -> place -> begun -> finished, replaced where damaged or still
                      -> stacked, tokenised

Where they lie is drawn from an order over stores (`store_batches`), or from pools of streamed
episodes (`stream_batches`). All else is a pure function of (seed, index), so that sample `index` is
the same in any process, thread or run. No jax, so that worker processes only need numpy.
"""

from __future__ import annotations

import collections
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from data_pipelines.loading import sample_kinds, splits
from defi_jax import errors

MAX_BAD = 16  # damaged samples in a row before giving up
MAX_CANDIDATES = 256  # samples read for one, pairs without motion included, before giving up
READ_AHEAD = 2  # batches, without worker processes

Arrays = sample_kinds.Arrays
Place = sample_kinds.Place

# What a sample kind raises where another sample takes the place.
REPLACEABLE = (errors.DataError, OSError, sample_kinds.Still)

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
    request: splits.Request

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
