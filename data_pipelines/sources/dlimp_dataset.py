"""RLDS trajectories as dlimp has them, without TensorFlow: lazy maps of trajectories and frames.

A trajectory of T steps is a nested dict of arrays [T, ...]; images, texts and other byte strings
are object arrays [T]. Images stay encoded until someone decodes them (`image.decode_image`).

    trajectories = Trajectories.from_rlds("gs://bucket/bridge_dataset/1.0.0", splits=["train"])
    frames = trajectories.traj_map(relabel).flatten().frame_map(decode)

Semantics of github.com/kvablack/dlimp, dlimp/dataset.py: features of the episode are repeated T
times below "traj_metadata"; "_len", "_traj_index" and "_frame_index" are added. Differences: order
is that of the files, `flatten` goes through one trajectory after another, compressed tensors come
inflated, features that are sequences within a step are left out, and arrays of the episode are
[T, ...], where dlimp repeats each number T times. A test holds both to what dlimp itself made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, cast

import numpy as np
import tree as dm_tree
from etils import epath

from data_pipelines.formats import tfrecord
from data_pipelines.sources import rlds, rlds_directory, rlds_record

Nested = dict[str, Any]  # of arrays, or of further dicts
Map = Callable[[Nested], Nested]

METADATA = "traj_metadata"


class Trajectories:
    """Trajectories, or frames after `flatten`; iterate as often as you like.

    Each time, `make` returns a new iterator over all of them.
    """

    def __init__(self, make: Callable[[], Iterator[Nested]], *, is_flattened: bool = False):
        self._make = make
        self.is_flattened = is_flattened

    @classmethod
    def from_rlds(
        cls, directory: epath.PathLike, *, splits: Collection[str] = ("train",)
    ) -> Trajectories:
        """Opens the files of an RLDS dataset, on disk or in a bucket.

        Directory, splits and errors are those of `rlds_directory.load_info` and `rlds.read_shard`.
        """
        options = rlds_directory.RldsOptions(splits=tuple(splits))
        info = rlds_directory.load_info(directory, options)
        return cls(lambda: _read(info))

    def __iter__(self) -> Iterator[Nested]:
        return self._make()

    def traj_map(self, function: Map) -> Trajectories:
        """Maps whole trajectories.

        Raises:
            ValueError: these are frames.
        """
        if self.is_flattened:
            raise ValueError("traj_map after flatten: these are frames")
        return Trajectories(lambda: map(function, self))

    def frame_map(self, function: Map) -> Trajectories:
        """Maps every frame, of trajectories or after `flatten`."""
        if self.is_flattened:
            return Trajectories(lambda: map(function, self), is_flattened=True)
        return Trajectories(lambda: (_stack([function(f) for f in _frames(t)]) for t in self))

    def filter(self, predicate: Callable[[Nested], bool]) -> Trajectories:
        """Keeps the trajectories (or frames) for which the predicate holds."""
        return Trajectories(lambda: filter(predicate, self), is_flattened=self.is_flattened)

    def flatten(self) -> Trajectories:
        """Returns the frames of all trajectories.

        Raises:
            ValueError: these are frames.
        """
        if self.is_flattened:
            raise ValueError("flatten twice")
        return Trajectories(lambda: (f for t in self for f in _frames(t)), is_flattened=True)


def _read(info: rlds_directory.DatasetInfo) -> Iterator[Nested]:
    number = 0
    for shard in info.shards:
        for index, record in enumerate(rlds.read_shard(shard)):
            yield _trajectory(info, record, number, where=f"{shard.path} record {index}")
            number += 1


def _trajectory(
    info: rlds_directory.DatasetInfo, record: bytes, number: int, *, where: str
) -> Nested:
    features = tfrecord.parse_example(record, where=where)
    steps = rlds_record.RawSteps(features, info, where)
    known = [name for name, field in info.step_fields.items() if field.kind != "other"]
    tree: Nested = {}
    for name in known:
        _insert(tree, info.paths[f"steps/{name}"][1:], _array(steps[name]))
    num_steps = len(steps[known[0]])
    for name, field in info.episode_fields.items():
        if field.kind != "other" and name in features:
            values = _array(rlds_record.unpack(features[name], field))
            _insert(tree, (METADATA, *info.paths[name]), np.repeat(values, num_steps, axis=0))
    tree["_len"] = np.full(num_steps, num_steps, np.int32)
    tree["_traj_index"] = np.full(num_steps, number, np.int64)
    tree["_frame_index"] = np.arange(num_steps, dtype=np.int32)
    return tree


def _insert(tree: Nested, path: tuple[str, ...], values: np.ndarray) -> None:
    *parents, name = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = values


def _array(values: np.ndarray | list[bytes]) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else np.array(values, object)


def _frames(trajectory: Nested) -> Iterator[Nested]:
    length = len(dm_tree.flatten(trajectory)[0])
    for step in range(length):
        yield cast(Nested, dm_tree.map_structure(lambda leaf, t=step: leaf[t], trajectory))


def _stack(frames: list[Nested]) -> Nested:
    def leaf(*values: Any) -> np.ndarray:
        return _array(list(values)) if isinstance(values[0], bytes) else np.stack(values)

    return cast(Nested, dm_tree.map_structure(leaf, *frames))
