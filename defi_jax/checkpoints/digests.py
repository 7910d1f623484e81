"""Digests that detect what the checkpoint format does not: a flipped bit in array data.

A leaf's digest depends on its values, dtype and the position of each element, never on how it was
split over devices: every element's bits are mixed with its row-major position and the results are
summed modulo 2^32, twice with different mixing. Sums commute, so shards are added in any order.
The item `integrity` of a step holds them, and those of the step's other documents.

Files are digested by SHA-256 after the commit, into `<step>.sha256.json` beside the step.
"""

import concurrent.futures
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from defi_rollout import files
from etils import epath
from jax.experimental import multihost_utils

from defi_jax.checkpoints import storage

FILE_DIGESTS_SUFFIX = ".sha256.json"

_CHUNK = 2**20  # elements hashed at a time on the host, to bound its temporaries
_BLOCK_BYTES = 2**24
_UINTS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def integrity_document(leaves: Mapping[str, Any], documents: Mapping[str, Any]) -> dict[str, Any]:
    """Returns shape, dtype and digest of every leaf, and the digests of the other documents."""
    digests = leaf_digests(leaves)
    facts = {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "digest": digests[path]}
        for path, leaf in leaves.items()
    }
    return {
        "leaves": facts,
        "documents": {name: json_digest(value) for name, value in documents.items()},
    }


def changed_leaves(leaves: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Names the leaves of an integrity document that are absent or have another digest now."""
    digests = leaf_digests(leaves)
    return [path for path in sorted(facts) if digests.get(path) != facts[path]["digest"]]


def leaf_digests(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Returns 16 hex digits for each array; the same on any mesh and number of processes.

    Args:
        leaves: path to jax.Array (possibly not addressable as a whole) or numpy array.
    """
    sums = np.zeros((len(leaves), 2), np.uint32)
    on_device, parts = {}, []
    for row, leaf in enumerate(leaves.values()):
        if not isinstance(leaf, jax.Array):  # the same on every process: the first one's counts
            if jax.process_index() == 0:
                sums[row] = _host_sums(np.asarray(leaf))
        elif next(iter(leaf.devices())).platform != "cpu":
            on_device[row] = _part_sums(leaf, *_places(leaf.shape))
        else:
            # Of each part, one copy in the whole system has replica_id 0.
            shards = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
            parts += [(row, shard.data, _places(leaf.shape, shard.index)) for shard in shards]
    # In threads of their own, which are not in the caller's mesh: each part is on one device.
    shard_sums = _map(lambda part: np.asarray(_part_sums(part[1], *part[2])), parts)
    for (row, *_), of_shard in zip(parts, shard_sums, strict=True):
        sums[row] += of_shard
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)
    # Sums made on devices are already global: add them after the processes' own were gathered.
    for row, device_sums in jax.device_get(on_device).items():
        sums[row] += device_sums
    return {path: f"{a:08x}{b:08x}" for path, (a, b) in zip(leaves, sums.tolist(), strict=True)}


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order and white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_file_digests(step_path: epath.Path) -> None:
    """Writes the digests of a committed step's files beside it."""
    write_whole(digests_path(step_path), json.dumps(file_digests(step_path), indent=1))


def file_digests(step_path: epath.Path) -> dict[str, str]:
    """Digests of a step's files as they are, by their path in the step."""
    names = sorted(file_names(step_path))
    return dict(zip(names, _map(lambda name: file_digest(step_path / name), names), strict=True))


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a file that is there whole or, on a full disk or after a kill, as it was before."""
    if "://" in str(path):  # objects in a bucket are so by themselves
        path.write_text(text)
    else:
        files.write(pathlib.Path(path), text)


def file_damage(step_path: epath.Path, may_lack: str = "") -> list[str]:
    """Names the files of a step that are missing or changed since `write_file_digests`.

    Args:
        step_path: the step's folder.
        may_lack: files of this name may be missing, in any folder.

    Returns:
        One text per damaged file; empty if all are well, or if no digests were written (a run
        killed right after the commit).
    """
    path = digests_path(step_path)
    if not path.exists():
        return []
    try:
        expected = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        return [f"{path.name} is not readable"]

    def check(name: str) -> str:
        file = step_path / name
        if not file.exists():
            return "" if file.name == may_lack else f"{name} is missing"
        return "" if file_digest(file) == expected[name] else f"{name} has changed"

    return [problem for problem in _map(check, sorted(expected)) if problem]


def file_digest(path: epath.Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def digests_path(step_path: epath.Path) -> epath.Path:
    """Where the file digests of a step are kept."""
    return step_path.parent / f"{step_path.name}{FILE_DIGESTS_SUFFIX}"


def file_names(step_path: epath.Path, prefix: str = "") -> list[str]:
    """Paths of all files of a step, relative to it."""
    names = []
    for entry in storage.names(step_path):
        path, name = step_path / entry, f"{prefix}{entry}"
        names += file_names(path, f"{name}/") if path.is_dir() else [name]
    return names


def _map(function: Any, items: Sequence[Any]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, items))


def _places(
    shape: tuple[int, ...], index: tuple[slice, ...] | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """First row, column, ... of a part of an array, and the array's strides in elements."""
    parts = index or (slice(None),) * len(shape)
    starts = [part.indices(size)[0] for part, size in zip(parts, shape, strict=True)]
    strides = tuple(math.prod(shape[dim + 1 :]) % 2**32 for dim in range(len(shape)))
    return np.array(starts, np.uint32), strides


def _host_sums(data: np.ndarray) -> np.ndarray:
    """uint32[2] of a whole array, by numpy."""
    words = np.atleast_1d(np.ascontiguousarray(data).view(_UINTS[data.dtype.itemsize]))
    _, strides = _places(words.shape)
    rows = max(1, _CHUNK // max(1, math.prod(words.shape[1:])))
    total = np.zeros(2, np.uint32)
    for first in range(0, words.shape[0], rows):
        chunk = words[first : first + rows]
        position = np.zeros((1,) * chunk.ndim, np.uint32)
        for dim, stride in enumerate(strides):
            begin = first if dim == 0 else 0
            steps = (np.arange(begin, begin + chunk.shape[dim]) * stride).astype(np.uint32)
            position = position + steps.reshape([-1 if i == dim else 1 for i in range(chunk.ndim)])
        total += [part.sum(dtype=np.uint32) for part in _mixed(chunk.astype(np.uint32), position)]
    return total


@functools.partial(jax.jit, static_argnums=2)
def _part_sums(leaf: jax.Array, starts: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    """uint32[2] of a part of an array, computed where it lies."""
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    words = jax.lax.bitcast_convert_type(leaf, _UINTS[leaf.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for dim, stride in enumerate(strides):
        steps = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, dim) + starts[dim]
        position += steps * np.uint32(stride)
    sums = _mixed(words, position)
    if leaf.ndim:
        # Both at once, or all would be mixed twice; rows first, which threads of a CPU share.
        add = lambda a, b: (a[0] + b[0], a[1] + b[1])  # noqa: E731
        sums = jax.lax.reduce(sums, (np.uint32(0), np.uint32(0)), add, (leaf.ndim - 1,))
        sums = jax.lax.optimization_barrier(sums)
    return jnp.stack([jnp.sum(part, dtype=np.uint32) for part in sums])


def _mixed(words: Any, position: Any) -> tuple[Any, Any]:
    """Two mixtures of uint32 words; for a fixed position each is one to one.

    Multipliers: a well-mixing 32-bit integer hash found by search (Wellons, "hash-prospector").
    """
    mixed = words ^ (position * np.uint32(0x9E3779B1) + np.uint32(0x85EBCA6B))
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x7FEB352D)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x846CA68B)
    mixed = mixed ^ (mixed >> np.uint32(16))
    second = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    second = second ^ (second >> np.uint32(16))
    return mixed, second
