"""Trajectories of dlimp (`dlimp.DLataset`) or of `sources.dlimp_dataset` as a source.

    dataset = dlimp.DLataset.from_rlds(builder, split="train", shuffle=False)
    source = TrajectorySource(dataset, dataset="bridge_dataset")
    convert.convert(source, "stores/bridge_dataset", origin={"kind": "dlimp"})

Only the raw trajectories are accepted: they are standardised here as their files would be.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import tree

from data_pipelines import episodes
from data_pipelines.open_x import base as standardize_base
from data_pipelines.open_x import episode as episode_builder
from data_pipelines.open_x import registry
from data_pipelines.sources import base, dlimp_dataset
from defi_jax import errors


class TrajectorySource:
    """Standardised episodes of raw trajectories; see `base.Source`.

    Args:
        raw: iterable of trajectories (`trajectories.Nested`), or a dataset that has
            `as_numpy_iterator` (TensorFlow's). The order decides episode ids, so it should not be
            shuffled.
        dataset: whose standardisation to apply.
        total: number of trajectories, for the progress bar; 0 where nobody knows.

    Raises:
        UserError: no standardisation for this dataset.
    """

    def __init__(self, raw: Any, *, dataset: str, total: int = 0):
        self.name, self.total = dataset, total
        self._raw = raw
        self._standard = registry.find(dataset)

    def read(self, skip: Collection[str] = frozenset()) -> base.Results:
        """See `base.Source.read`.

        Raises:
            DataError: a trajectory lacks a field of the dataset.
        """
        for number, trajectory in enumerate(_iterate(self._raw)):
            episode_id = f"{self.name}/{number:08d}"
            if episode_id not in skip:
                yield self._episode(episode_id, trajectory, f"trajectory {number}")

    def _episode(
        self, episode_id: str, trajectory: dlimp_dataset.Nested, where: str
    ) -> episodes.Episode | episodes.Reject:
        leaves = {"/".join(path): leaf for path, leaf in tree.flatten_with_path(trajectory)}
        fields = self._standard.fields
        missing = sorted(fields.keys() - leaves.keys())
        if missing:
            raise errors.DataError(
                f"dataset {self.name} has fields that are missing here: {', '.join(missing)}",
                where,
                "give the raw trajectories, before any restructuring",
            )
        return episode_builder.build(
            self._standard,
            {name: _values(leaves[name], field) for name, field in fields.items()},
            episode_id=episode_id,
            source=self.name,
            metadata=_metadata(leaves),
            where=where,
        )


def _iterate(raw: Any) -> Iterable[dlimp_dataset.Nested]:
    if not hasattr(raw, "as_numpy_iterator"):
        return raw
    import tensorflow as tf  # whoever has such a dataset has it

    options = tf.data.Options()
    options.deterministic = True  # dlimp lets fast trajectories overtake slow ones
    return raw.with_options(options).as_numpy_iterator()


def _values(leaf: np.ndarray, field: standardize_base.Field) -> np.ndarray | list[bytes]:
    """Returns the values of a field; compressed tensors, which dlimp leaves so, are inflated."""
    if field.kind != "tensor":
        return [bytes(value) for value in leaf]
    if leaf.dtype != object:
        return leaf
    inflated = [np.frombuffer(zlib.decompress(value), field.dtype) for value in leaf]
    return np.stack(inflated).reshape(len(leaf), *(size or -1 for size in field.shape))


def _metadata(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Scalars and texts of the episode, each repeated at every step."""
    prefix = f"{dlimp_dataset.METADATA}/"
    values = {}
    for name, leaf in leaves.items():
        if name.startswith(prefix) and leaf.ndim == 1 and len(leaf):
            first = leaf[0]
            text = first.decode(errors="replace") if isinstance(first, bytes) else first.item()
            values[name.removeprefix(prefix)] = text
    return values
