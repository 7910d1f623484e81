"""Where arrays live: the mesh, the placement of every leaf by (path, shape), batches over devices.

Models know nothing of this. The axes are `replica` (copies, gradients summed), `fsdp` (parameters
and batch split) and `tensor` (matrices split by name). Axis types are Auto: the compiler inserts
the collectives.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from defi_jax import errors

AXES = ("replica", "fsdp", "tensor")
BATCH_SPEC = jax.P(("replica", "fsdp"))

# Below this many scalars an all-gather costs more time than a copy costs memory.
FSDP_MIN_SIZE = 2**16

# Parts of a train state whose large arrays are split.
SHARDED_GROUPS = r"(params|frozen|ema_params|opt_state|extra)(/|$)"
REPLICATED_GROUPS = r"(step|rng|bad_steps|skipped_steps)$"

# Matrices split over `tensor`: (path pattern, dimension). Into heads or hidden units by column,
# back from them by row, so that one attention or MLP needs a single reduction.
TENSOR_RULES: tuple[tuple[str, int], ...] = (
    (r"(to_q|to_k|to_v|query|key|value|qkv|q_proj|k_proj|v_proj|q|k|v)/kernel$", -1),
    (r"(to_out/0|to_out|out_proj|o|proj_attn)/kernel$", -2),
    (r"(net/0/proj|fc1|wi|wi_0|wi_1|c_fc)/kernel$", -1),
    (r"(net/2|fc2|wo|c_proj)/kernel$", -2),
)


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

    Raises:
        UserError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [int(config[axis]) for axis in AXES]
    given = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or given <= 0 or any(size < -1 for size in sizes):
        raise errors.UserError(
            f"mesh sizes {dict(zip(AXES, sizes, strict=True))} are not positive",
            "mesh",
            "give positive sizes, at most one of them -1 (the rest)",
        )
    sizes = [len(devices) // given if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise errors.UserError(
            f"{dict(zip(AXES, sizes, strict=True))} does not fit {len(devices)} devices",
            "mesh",
            "pass --config.mesh.fsdp=-1 or sizes whose product is the number of devices",
        )
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=auto, devices=devices)


def place(
    tree: Any, mesh: jax.sharding.Mesh, tensor_rules: Sequence[tuple[str, int]] = TENSOR_RULES
) -> Placement:
    """Chooses a sharding for every leaf of an abstract train state, from its path and shape alone.

    Raises:
        ValueError: if a leaf belongs to no known group, or a rule names a dimension it lacks.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    shardings, largest, total = [], ("", 0), 0
    for key_path, leaf in leaves:
        path = path_string(key_path)
        spec = leaf_spec(path, leaf.shape, mesh.shape, tensor_rules)
        sharding = jax.sharding.NamedSharding(mesh, spec)
        shardings.append(sharding)
        size = _num_bytes(leaf.dtype, sharding.shard_shape(leaf.shape))
        total += size
        if sharding.is_fully_replicated and size > largest[1]:
            largest = (path, size)
    return Placement(jax.tree_util.tree_unflatten(treedef, shardings), largest, total)


def leaf_spec(
    path: str,
    shape: Sequence[int],
    mesh_shape: Mapping[str, int],
    tensor_rules: Sequence[tuple[str, int]] = TENSOR_RULES,
) -> jax.P:
    """Returns the PartitionSpec of one leaf of a train state.

    A dimension named by a tensor rule goes over `tensor` where it divides; then the largest other
    dimension that divides goes over `fsdp`, if the leaf is large. What divides nowhere is copied.
    """
    if re.match(REPLICATED_GROUPS, path):
        return jax.P()
    if not re.match(SHARDED_GROUPS, path):
        raise ValueError(f"no placement rule covers {path!r} {tuple(shape)}")
    axes: list[str | None] = [None] * len(shape)
    for pattern, dim in tensor_rules:
        if re.search(f"(^|/){pattern}", path) and len(shape) >= 2:
            if shape[dim] % mesh_shape["tensor"] == 0 and mesh_shape["tensor"] > 1:
                axes[dim] = "tensor"
            break
    fsdp = mesh_shape["fsdp"]
    if math.prod(shape) >= FSDP_MIN_SIZE and fsdp > 1:
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % fsdp == 0]
        if free:
            # The last of equally large dimensions: kernels are usually contracted over the first.
            axes[max(free, key=lambda i: (shape[i], i))] = "fsdp"
    return jax.P(*axes)


def log_placement(placement: Placement, what: str = "train state") -> None:
    """One line with the size per device and the largest copied leaf."""
    path, size = placement.largest_replicated
    logging.info(
        "%s: %.1f MiB per device; largest replicated leaf %s (%.2f MiB)",
        what,
        placement.bytes_per_device / 2**20,
        path or "none",
        size / 2**20,
    )


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Sharding of every batch leaf: the first dimension over `replica` and `fsdp`."""
    return jax.sharding.NamedSharding(mesh, BATCH_SPEC)


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


def path_string(key_path: Sequence[Any]) -> str:
    """Returns "a/0/b" for a pytree key path of attributes, dict keys and indices."""
    return jax.tree_util.keystr(tuple(key_path), simple=True, separator="/")


def _num_bytes(dtype: Any, shape: Sequence[int]) -> int:
    is_key = jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)  # pyright: ignore[reportPrivateImportUsage]
    size = 4 if is_key else np.dtype(dtype).itemsize
    return math.prod(shape) * size
