"""Which part of an array each device holds, and models that run on each device's own examples.

The mesh axes are `replica` (copies, gradients summed), `fsdp` (parameters and batch split) and
`tensor` (matrices split by name). Large parameters are stored split over `fsdp` and are whole only
while they are used.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from defi_jax.array_typing import Array, Params

AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")
BATCH_SPEC = jax.P(BATCH_AXES)

# Below this many scalars an all-gather costs more time than a copy costs memory.
FSDP_MIN_SIZE = 2**16

# Matrices split over `tensor`: (path pattern, dimension). Into heads or hidden units by column,
# back from them by row, so that one attention or MLP needs a single reduction.
TENSOR_RULES: tuple[tuple[str, int], ...] = (
    (r"(to_q|to_k|to_v|fc1|wi|wi_0|wi_1)/kernel$", -1),
    (r"(to_out|fc2|wo)/kernel$", -2),
)


def param_spec(path: str, shape: Sequence[int], mesh_shape: Mapping[str, int]) -> jax.P:
    """Returns the PartitionSpec of a parameter, from its path and shape alone.

    A dimension named by a tensor rule goes over `tensor` where it divides; then the largest other
    dimension that divides goes over `fsdp`, if the array is large. What divides nowhere is copied.
    """
    axes: list[str | None] = [None] * len(shape)
    for pattern, dim in TENSOR_RULES:
        if matches(pattern, path) and len(shape) >= 2:
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


def matches(pattern: str, path: str) -> bool:
    """Whether a tensor rule is about the parameter at "a/b/c"."""
    return re.search(f"(^|/){pattern}", path) is not None


def over_examples(fn: Callable[..., Any], params: Params, *batch: Array, dtype: Any = None) -> Any:
    """Returns `fn(params, *batch)`, each device of the mesh in context on its own examples.

    Parameters are gathered whole by the devices, kernels in `dtype` (which is what the layers cast
    them to), and their gradients are summed into the stored parts: one collective each way, and no
    other in `fn`. Left to the compiler, the same program exchanges activations and partial weights
    (docs/scaling.md).

    Args:
        fn: computes each example (first axis) from that example alone; scalars among its outputs
            are means over the examples.
        params: nested dict of parameters.
        *batch: arrays [B, ...].
        dtype: element type in which `fn` uses kernels; None for the stored one.

    Returns:
        What `fn` returns.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    if parts == 1 or len(batch[0]) % parts:
        return fn(params, *batch)
    specs = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _fsdp_only(param_spec(path_string(path), leaf.shape, mesh.shape)),
        params,
    )

    is_mean: Any = None

    def on_one_device(params: Params, *batch: jax.Array) -> Any:
        nonlocal is_mean
        outputs = fn(jax.tree_util.tree_map_with_path(whole, params, specs), *batch)
        is_mean = jax.tree.map(lambda leaf: leaf.ndim == 0, outputs)
        return jax.tree.map(jnp.atleast_1d, outputs)

    def whole(path: Any, leaf: jax.Array, spec: jax.P) -> jax.Array:
        if "fsdp" not in spec:
            return leaf
        is_kernel = path_string(path).endswith("kernel")
        leaf = leaf.astype(dtype) if is_kernel and dtype is not None else leaf
        return lax.all_gather(leaf, "fsdp", axis=list(spec).index("fsdp"), tiled=True)

    outputs = jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(specs, *[BATCH_SPEC] * len(batch)),
        out_specs=BATCH_SPEC,
        # The compiler splits matrices over `tensor`, where there is such an axis.
        axis_names=set(BATCH_AXES if mesh.shape["tensor"] > 1 else AXES),
        check_vma=False,
    )(params, *batch)
    return jax.tree.map(lambda leaf, mean: jnp.mean(leaf) if mean else leaf, outputs, is_mean)


def gathered(params: Params) -> Params:
    """Returns parameters that every device has whole, but for what a tensor rule splits.

    For a model that is left to the compiler: with weights split over `fsdp` it may split the
    model's width over the devices instead of the batch, and exchange activations.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return params

    def whole(path: Any, leaf: jax.Array) -> jax.Array:
        spec = param_spec(path_string(path), leaf.shape, mesh.shape)
        kept = jax.P(*(axis if axis == "tensor" else None for axis in spec))
        return lax.with_sharding_constraint(leaf, kept)

    return jax.tree_util.tree_map_with_path(whole, params)


def _fsdp_only(spec: jax.P) -> jax.P:
    return jax.P(*(axis if axis == "fsdp" else None for axis in spec))


def path_string(key_path: Sequence[Any]) -> str:
    """Returns "a/0/b" for a pytree key path of attributes, dict keys and indices."""
    return jax.tree_util.keystr(tuple(key_path), simple=True, separator="/")
