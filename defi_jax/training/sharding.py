"""Where arrays live: the mesh, the placement of every leaf by (path, shape), batches over devices.

The axes and the rule for parameters are those of `defi_jax.partition`. Axis types are Auto: outside
of `partition.over_examples` the compiler inserts the collectives.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

from defi_jax import errors, partition

# Parts of a train state whose large arrays are split.
SHARDED_GROUPS = r"(params|frozen|ema_params|opt_state|extra)(/|$)"
REPLICATED_GROUPS = r"(step|rng|bad_steps|skipped_steps)$|spikes/"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Shardings of a tree, and the facts worth a log line.

    Attributes:
        shardings: tree of NamedSharding, like the abstract tree.
        largest_replicated: (path, bytes) of the largest leaf that every device holds whole.
        bytes_per_device: bytes of the tree on each device.
    """

    shardings: Any
    largest_replicated: tuple[str, int]
    bytes_per_device: int


def make_mesh(
    config: Any,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> jax.sharding.Mesh:
    """Returns the mesh of `config` {"replica": n, "fsdp": n, "tensor": n}; one -1 takes the rest.

    Over several slices of TPUs, `replica` spans them: only gradients pass the slow network.

    Raises:
        UserError: if the sizes do not multiply to the number of devices, or `replica` does not
            divide into the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [int(config[axis]) for axis in partition.AXES]
    given = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or given <= 0 or any(size < -1 for size in sizes):
        raise errors.UserError(
            f"mesh sizes {dict(zip(partition.AXES, sizes, strict=True))} are not positive",
            "mesh",
            "give positive sizes, at most one of them -1 (the rest)",
        )
    sizes = [len(devices) // given if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise errors.UserError(
            f"{dict(zip(partition.AXES, sizes, strict=True))} does not fit {len(devices)} devices",
            "mesh",
            "pass --config.mesh.fsdp=-1 or sizes whose product is the number of devices",
        )
    auto = (jax.sharding.AxisType.Auto,) * len(partition.AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(tuple(sizes), partition.AXES, axis_types=auto, devices=devices)
    if sizes[0] % slices:
        raise errors.UserError(
            f"replica {sizes[0]} does not divide into {slices} slices",
            "--config.mesh.replica",
            f"use a multiple of {slices}",
        )
    within = (sizes[0] // slices, *sizes[1:])
    grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices)
    return jax.sharding.Mesh(grid, partition.AXES, axis_types=auto)


def place(tree: Any, mesh: jax.sharding.Mesh) -> Placement:
    """Chooses a sharding for every leaf of an abstract train state, from its path and shape alone.

    Raises:
        ValueError: if a leaf belongs to no known group, or a rule names a dimension it lacks.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    shardings, largest, total = [], ("", 0), 0
    for key_path, leaf in leaves:
        path = partition.path_string(key_path)
        spec = leaf_spec(path, leaf.shape, mesh.shape)
        sharding = jax.sharding.NamedSharding(mesh, spec)
        shardings.append(sharding)
        size = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        total += size
        if sharding.is_fully_replicated and size > largest[1]:
            largest = (path, size)
    return Placement(jax.tree_util.tree_unflatten(treedef, shardings), largest, total)


def leaf_spec(path: str, shape: Sequence[int], mesh_shape: Mapping[str, int]) -> jax.P:
    """Returns the PartitionSpec of one leaf of a train state: as its parameter's, or whole.

    Raises:
        ValueError: if the leaf belongs to no known group.
    """
    if re.match(REPLICATED_GROUPS, path):
        return jax.P()
    if not re.match(SHARDED_GROUPS, path):
        raise ValueError(f"no placement rule covers {path!r} {tuple(shape)}")
    return partition.param_spec(path, shape, mesh_shape)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Sharding of every batch leaf: the first dimension over `replica` and `fsdp`."""
    return jax.sharding.NamedSharding(mesh, partition.BATCH_SPEC)


def check_batch(global_batch: int, accumulation_steps: int, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError unless the batch divides over devices and microbatches."""
    shards = mesh.shape["replica"] * mesh.shape["fsdp"] * accumulation_steps
    if global_batch % shards or global_batch <= 0:
        raise errors.UserError(
            f"global_batch {global_batch} does not divide into {shards} parts",
            f"mesh {dict(mesh.shape)}, accumulation_steps {accumulation_steps}",
            f"use a multiple of {shards}",
        )


def global_batch_array(batch: Any, global_batch: int, mesh: jax.sharding.Mesh) -> Any:
    """Makes global device arrays of this process's part [B_local, ...] of a batch of numpy arrays.

    Raises:
        ValueError: if a leaf's first dimension is not `global_batch` over the number of processes.
    """
    sharding, local = batch_sharding(mesh), global_batch // jax.process_count()

    def put(leaf: np.ndarray) -> jax.Array:
        if leaf.shape[0] != local:
            raise ValueError(f"batch leaf {leaf.shape} should have {local} examples per process")
        shape = (global_batch, *leaf.shape[1:])
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(put, batch)
