"""From places to batches: the one way in which stores and streams are sampled.

    index -> place -> begun -> finished, replaced where damaged or still -> stacked, tokenised

Where the places of a batch come from is a `Draw`'s to say: an order over stores (`batches`) or
pools of streamed episodes (`streaming.loader`). All else is a pure function of (seed, index), so
that sample `index` is the same in any process, thread or run. No jax, so that worker processes
only need numpy.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from data_pipelines.loading import sample_kinds
from data_pipelines.transforms import text
from defi_jax import errors

SPLITS = ("train", "eval")
MAX_BAD = 16  # damaged samples in a row before giving up
MAX_CANDIDATES = 256  # samples read for one, pairs without motion included, before giving up

Arrays = sample_kinds.Arrays

# What a sample kind raises where another sample takes the place.
REPLACEABLE = (errors.DataError, OSError, sample_kinds.Still)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What a run asks of its loader.

    Attributes:
        tokenizers: by text role; "gfdm", "gidm" or for joint "gfdm", "gidm" and "goal".
        split: "train", or "eval" for the held-out episodes without any augmentation.
        seed: seed of order and draws.
        global_batch: samples of a batch over all processes.
        process_index: this process.
        process_count: number of processes, divides `global_batch`.
    """

    tokenizers: Mapping[str, text.Tokenizer]
    split: str
    seed: int
    global_batch: int
    process_index: int
    process_count: int

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r}")
        if self.global_batch % self.process_count:
            count = self.process_count
            what = f"global_batch {self.global_batch} is not a multiple of {count} processes"
            raise errors.UserError(what, "global_batch", f"give a multiple of {count}")

    @property
    def train(self) -> bool:
        """Whether it is the training split."""
        return self.split == "train"

    @property
    def local_batch(self) -> int:
        """Samples of this process."""
        return self.global_batch // self.process_count

    def takes(self, episode_id: str, holdout_percent: float) -> bool:
        """Whether an episode belongs to the split."""
        return is_held_out(episode_id, holdout_percent) != self.train

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the batches, JSON-able; not who reads which share of them."""
        return {
            "split": self.split,
            "seed": self.seed,
            "global_batch": self.global_batch,
            "tokenizers": {role: own.describe() for role, own in self.tokenizers.items()},
        }


def is_held_out(episode_id: str, percent: float) -> bool:
    """Whether the episode belongs to the held-out split, by a hash of its id alone."""
    fine, coarse = divmod(zlib.crc32(episode_id.encode()) % 10_000, 100)
    return coarse + fine / 100 < percent  # whole percents by the last two digits alone


@dataclasses.dataclass
class Replaced:
    """What was replaced while a batch was read.

    Attributes:
        bad: component, sample and error of each that is damaged.
        still: number of frame pairs without motion, by component.
    """

    bad: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    still: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, component: str, sample: object, reason: object) -> None:
        """Notes a sample that is replaced, and why."""
        if isinstance(reason, sample_kinds.Still):
            self.still[component] = self.still.get(component, 0) + 1
        else:
            self.bad.append((component, str(sample), str(reason)))


class Draw(Protocol):
    """Where the samples of batches come from."""

    def __call__(
        self, index: int, attempt: int, former: sample_kinds.Place | None, rng: np.random.Generator
    ) -> sample_kinds.Place:
        """Returns the place of a sample.

        Args:
            index: position of the sample in the run.
            attempt: number of the try to find a good one for this index, from 0.
            former: place of the last attempt; another of its component is drawn.
            rng: generator of this index and attempt; what is drawn with it comes before the
                sample's draws.
        """
        ...


@dataclasses.dataclass(frozen=True)
class _Begun:
    """A sample but for its pixels: `read` decodes them, or says why it cannot be taken."""

    index: int
    place: sample_kinds.Place
    instruction: str
    read: sample_kinds.Read | Exception


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the samples of this process's share of each global batch are read; picklable.

    Global batch k holds the samples [k G, (k + 1) G), whatever the number of processes; process p
    of P takes the p-th of P equal blocks.

    Attributes:
        kinds: how a sample of each component is read, by name.
        request: request of the run.
    """

    kinds: Mapping[str, sample_kinds.SampleKind]
    request: Request

    def batch(
        self, number: int, draw: Draw, replaced: Replaced, run: Callable[..., Iterable[Any]] = map
    ) -> dict[str, Any]:
        """Returns `arrays` [B, ...], `text` by role and `replaced` of global batch `number`.

        Args:
            number: number of the global batch.
            draw: where its samples come from.
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

    def fixed_instruction(self, place: sample_kinds.Place) -> str:
        """Returns the paraphrase that follows from seed, component and sample alone."""
        seed = (self.request.seed, zlib.crc32(place.component.encode()), place.row)
        return self._choose(place, np.random.default_rng(seed))

    def _choose(self, place: sample_kinds.Place, rng: np.random.Generator) -> str:
        """Returns a paraphrase: a drawn one in training, else the first."""
        return text.paraphrase(place.meta.instructions, rng, draw=self.request.train)

    def _begin(
        self,
        index: int,
        draw: Draw,
        attempt: int = 0,
        former: sample_kinds.Place | None = None,
    ) -> _Begun:
        rng = np.random.default_rng((self.request.seed, index, attempt))
        place = draw(index, attempt, former, rng)
        kind = self.kinds[place.component]
        fixed = kind.has_fixed_text
        instruction = self.fixed_instruction(place) if fixed else self._choose(place, rng)
        try:
            return _Begun(index, place, instruction, kind.begin(place, instruction, rng))
        except REPLACEABLE as reason:
            return _Begun(index, place, instruction, reason)

    def _good(
        self, begun: _Begun, result: Arrays | Exception, draw: Draw, replaced: Replaced
    ) -> tuple[Arrays, str]:
        """Returns the sample; where it is not taken, another of its component."""
        bad, still = [], 0
        for attempt in itertools.count(1):
            if not isinstance(result, Exception):
                return result, begun.instruction
            component, sample = begun.place.component, str(begun.place)
            replaced.add(component, sample, result)
            if isinstance(result, sample_kinds.Still):
                still += 1
            else:
                bad.append(sample)
            _check_patience(component, bad, still, result)
            begun = self._begin(begun.index, draw, attempt, begun.place)
            result = _finish(begun)
        raise AssertionError("unreachable")


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
