"""What every source offers to the converter: a count, and a stream of episodes and rejects."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

from data_pipelines import episodes
from data_pipelines.sources import workers as workers_lib
from defi_jax import errors

# Of each kind of reader. Raise the number of one that makes other episodes of the same files, and
# record what it makes now (tests/fixtures/make_versions.py): stores and streams that were begun
# under another number are refused.
READER_VERSIONS = {
    "calvin": 1,
    "captioned folder": 1,
    "ego4d": 1,
    "epic_kitchens": 1,
    "lerobot": 1,
    "official video layout": 1,
    "rlds": 1,
}


Workers = workers_lib.Workers
Results = Iterator[episodes.Episode | episodes.Reject]


class Source(Protocol):
    """A raw dataset on disk.

    Attributes:
        name: name of the dataset; becomes `Episode.source`.
        total: number of items that `read` walks over.
    """

    name: str
    total: int

    def read(self, skip: Collection[str] = frozenset()) -> Results:
        """Yields one result an item, in an order that depends on the dataset alone.

        Args:
            skip: episode ids whose item need not be decoded; nothing is yielded for them.

        Raises:
            DataError: the dataset as a whole is damaged.
        """
        ...


def recipe(source: Source) -> dict[str, Any]:
    """Returns how a source chose and made its episodes; {} where nothing was chosen.

    "reader" is the version of its kind.

    Its "left_out" is a list of texts for the summary, one for each kind of thing that is not read:
    "split validation: ...", "camera depth: ..."; its "notes" are others for the summary.
    """
    found = dict(getattr(source, "recipe", {}))
    if found.get("kind") in READER_VERSIONS:
        found["reader"] = READER_VERSIONS[found["kind"]]
    return found


def check_splits(
    wanted: Collection[str] | None, known: Collection[str], where: object, hint: str = ""
) -> None:
    """Raises UserError where a wanted split is not there; the hint follows what is."""
    if absent := sorted(set(wanted or ()) - set(known)):
        there = ", ".join(known) or "none"
        raise errors.UserError(f"no split {', '.join(absent)}", where, f"it has: {there}{hint}")


class Tally:
    """Counts what a source gave, for manifests."""

    def __init__(self):
        self._episodes = self._frames = 0
        self._seconds = 0.0
        self._rates, self._sizes, self._conversions = (collections.Counter() for _ in range(3))
        self._rejects: list[episodes.Reject] = []

    def add(self, found: episodes.Episode | episodes.EpisodeMeta | episodes.Reject) -> None:
        """Takes up an episode or a reject."""
        if isinstance(found, episodes.Reject):
            self._rejects.append(found)
            return
        self._episodes += 1
        self._frames += found.length
        self._seconds += found.length / found.fps
        self._rates[f"{found.fps:.4g}"] += 1
        if size := found.metadata.get("frame_size"):
            self._sizes["x".join(map(str, size))] += 1
        self._conversions.update(found.metadata.get(episodes.CONVERSIONS, ()))

    def to_json(self) -> dict[str, Any]:
        """Returns `episodes, frames, hours, fps, sizes, conversions, rejected_by_reason, rejected`.

        `fps`, `sizes` and `conversions` count episodes by frame rate and, where known, by frame
        size and by what was done to show a video as a player does. Reasons are counted
        whatever numbers, bytes and files they name.
        """
        varying = re.compile(r"b'.*'|b\".*\"|(?<![A-Z]\.)\b\d+(\.\d+)?\b")  # BT.2020 is a name
        reasons = collections.Counter(
            varying.sub("N", reject.reason.split(": ")[0]) for reject in self._rejects
        )
        return {
            "episodes": self._episodes,
            "frames": self._frames,
            "hours": round(self._seconds / 3600, 4),
            "fps": dict(self._rates),
            "sizes": dict(self._sizes),
            "conversions": dict(self._conversions),
            "rejected_by_reason": dict(reasons.most_common()),
            "rejected": [dataclasses.asdict(reject) for reject in self._rejects],
        }


class WithoutActions:
    """A source as action-free video: its episodes lose actions and states."""

    def __init__(self, source: Source):
        self.name, self.total, self.recipe = source.name, source.total, recipe(source)
        self.max_damaged: int | None = getattr(source, "max_damaged", None)  # of an `RldsSource`
        self._source = source

    def part(self, number: int, parts: int) -> WithoutActions:
        """See `ItemSource.part`."""
        return WithoutActions(self._source.part(number, parts))  # pyright: ignore[reportAttributeAccessIssue]

    def read(self, skip: Collection[str] = frozenset()) -> Results:
        """See `Source`."""
        for item in self._source.read(skip):
            is_reject = isinstance(item, episodes.Reject)
            yield item if is_reject else dataclasses.replace(item, actions=None, states=None)


class Item(Protocol):
    """One episode before it is read; picklable and small."""

    @property
    def episode_id(self) -> str:
        """See `episodes.Episode`."""
        ...

    @property
    def item(self) -> str:
        """What a reject names."""
        ...


class ItemSource:
    """A source whose episodes are read independently of each other, in worker processes.

    Args:
        found: items, in the order in which they are written, and rejects: what was found unusable
            before reading. An id that was there before is a reject, too.
        read_item: picklable; reads an item. A DataError makes it a reject.
        recipe: JSON-able; how items were chosen and are stored, kept in the manifest.
    """

    def __init__(
        self,
        name: str,
        found: Iterable[Item | episodes.Reject],
        read_item: Callable[[Any], episodes.Episode],
        *,
        recipe: Mapping[str, Any],
        workers: Workers,
    ):
        self.name, self.recipe = name, recipe
        self._read_item, self._workers = read_item, workers
        self._rejects: list[episodes.Reject] = []
        items: dict[str, Item] = {}
        for one in found:
            if isinstance(one, episodes.Reject):
                self._rejects.append(one)
            elif one.episode_id in items:
                reason = f"its id {one.episode_id!r} is there already"
                self._rejects.append(episodes.Reject(one.item, reason))
            else:
                items[one.episode_id] = one
        self._items = list(items.values())
        self.total = len(self._items) + len(self._rejects)

    def part(self, number: int, parts: int) -> ItemSource:
        """Returns the part of this number, of equally many items; the first has the rejects."""
        other, count = copy.copy(self), len(self._items)
        other._items = self._items[number * count // parts : (number + 1) * count // parts]
        other._rejects = [] if number else self._rejects
        other.total = len(other._items) + len(other._rejects)
        return other

    def shuffled(self) -> ItemSource:
        """Returns the same items ordered by a hash of their ids, as TFDS orders examples."""
        other = copy.copy(self)
        other._items = sorted(self._items, key=lambda item: _hash(item.episode_id))
        return other

    def read(self, skip: Collection[str] = frozenset()) -> Results:
        """See `Source`."""
        yield from self._rejects
        waiting = (item for item in self._items if item.episode_id not in skip)
        read = functools.partial(_read_or_reject, self._read_item)
        for item, result in workers_lib.run(read, waiting, self._workers):
            is_failure = isinstance(result, workers_lib.Failure)
            yield episodes.Reject(item.item, result.reason) if is_failure else result


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()


def _read_or_reject(
    read_item: Callable[[Any], episodes.Episode], item: Item
) -> episodes.Episode | episodes.Reject:
    try:
        return read_item(item)
    except errors.DataError as error:
        return episodes.Reject(item.item, str(error))
