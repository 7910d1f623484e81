"""Batches on their devices one step ahead, with the iterator state that belongs to the step."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax

from defi_jax import batch as batch_lib
from defi_jax import errors
from defi_jax.training import sharding


class DeviceBatches:
    """Endless global device batches of a loader.

    While the devices work on one batch, `prefetch` reads and uploads the next. `state` is the
    loader's state before the batch that `take` returns next, so that a checkpoint neither repeats
    nor loses the one in between.

    Args:
        loader: yields this process's part of each batch as numpy arrays.
        spec: abstract global batch; each batch is checked against it.
        mesh: where the batch goes.
    """

    def __init__(self, loader: batch_lib.Loader, spec: Any, mesh: jax.sharding.Mesh):
        self._loader, self._spec, self._mesh = loader, spec, mesh
        self._iterator = iter(loader)
        self._next: Any = None
        self._state_before_next: Any = None
        self.read_seconds = 0.0

    def prefetch(self) -> None:
        """Reads the next batch unless it is here already; `read_seconds` says how long it took."""
        if self._next is not None:
            return
        start = time.monotonic()
        self._state_before_next = self._loader.state()
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise errors.DataError(
                "the training data came to an end", "data.mixture", "the loader must repeat"
            ) from None
        self._next = _put(batch, self._spec, self._mesh)
        self.read_seconds = time.monotonic() - start

    def take(self) -> Any:
        """Returns the next batch."""
        self.prefetch()
        batch, self._next = self._next, None
        return batch

    @property
    def replaced(self) -> dict[str, int]:
        """What the loader has replaced so far: damaged samples, frame pairs without motion."""
        return {
            "bad_samples": sum(self._loader.bad_samples.values()),
            "still_pairs": sum(self._loader.still_pairs.values()),
        }

    def state(self) -> Any:
        """State to restore a loader to, so that it yields the batch that `take` returns next."""
        return self._loader.state() if self._next is None else self._state_before_next


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The same few device batches of a held-out split, as often as they are asked for.

    Attributes:
        loader: has `first(n)`, which yields its first n batches; None for no evaluation.
        num_batches: how many; 0 for no evaluation.
        spec: abstract global batch.
        mesh: where the batches go.
    """

    loader: batch_lib.HeldOutLoader | None
    num_batches: int
    spec: Any
    mesh: jax.sharding.Mesh

    def __bool__(self) -> bool:
        return self.loader is not None and self.num_batches > 0

    def __iter__(self) -> Iterator[Any]:
        assert self.loader is not None
        for batch in self.loader.first(self.num_batches):
            yield _put(batch, self.spec, self.mesh)


def _put(batch: Any, spec: Any, mesh: jax.sharding.Mesh) -> Any:
    """Checks this process's part of a batch and makes global arrays of it."""
    global_batch = jax.tree.leaves(spec)[0].shape[0]
    batch_lib.check(batch, batch_lib.with_batch_size(spec, global_batch // jax.process_count()))
    return sharding.global_batch_array(batch, global_batch, mesh)
