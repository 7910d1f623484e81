"""What every source offers to the converter: a count, and a stream of episodes and rejects."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from data_pipelines import episodes


@dataclass(frozen=True)
class Reject:
    """An item that gave no episode.

    Attributes:
        item: the file, or file and record.
        reason: what is wrong with it, one line.
    """

    item: str
    reason: str


class Source(Protocol):
    """A raw dataset on disk.

    Attributes:
        name: of the dataset; becomes `Episode.source`.
        total: number of items that `read` walks over.
    """

    name: str
    total: int

    def read(self, skip: Collection[str] = frozenset()) -> Iterator[episodes.Episode | Reject]:
        """Yields one result an item, in an order that depends on the dataset alone.

        Args:
            skip: episode ids whose item need not be decoded; nothing is yielded for them.

        Raises:
            DataError: the dataset as a whole is damaged.
        """
        ...


class WithoutActions:
    """A source as action-free video: its episodes lose actions and states."""

    def __init__(self, source: Source):
        self.name, self.total = source.name, source.total
        self._source = source

    def read(self, skip: Collection[str] = frozenset()) -> Iterator[episodes.Episode | Reject]:
        """See `Source`."""
        for item in self._source.read(skip):
            is_reject = isinstance(item, Reject)
            yield item if is_reject else dataclasses.replace(item, actions=None, states=None)
