"""Stacked blocks: equal blocks as one module whose parameters have a leading layer axis."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
from flax import nnx

_B = TypeVar("_B", bound=nnx.Module)

Remat = Literal["none", "elementwise", "blocks"]
REMAT = ("none", "elementwise", "blocks")
# What a backward pass needs of an attention kernel bears this name: the kernel's own output repeats
# one number a query over all lanes.
KEPT = "attention"
# What configs of older runs say of stacked blocks.
_BOOLEANS: dict[Any, Remat] = {False: "none", True: "blocks"}


def stack_blocks(make: Callable[[nnx.Rngs], _B], num_blocks: int, rngs: nnx.Rngs) -> _B:
    """Returns `num_blocks` independently initialised blocks as one stacked module."""
    stacked_make = nnx.vmap(make, in_axes=0, out_axes=0)
    return stacked_make(rngs.fork(split=num_blocks))


def scan_blocks(
    stacked: _B,
    function: Callable[[_B, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    unroll: int = 1,
    remat: Remat = "none",
) -> tuple[Any, Any]:
    """Applies stacked blocks one after the other, compiled once.

    Args:
        stacked: what `stack_blocks` returned.
        function: (block, carry, x) -> (carry, y).
        carry: what passes from block to block.
        xs: per-block inputs with a leading layer axis.
        unroll: blocks per loop iteration; the number of blocks removes the loop.
        remat: what of each block to recompute, see `rematerialised`.

    Returns:
        The last carry and the stacked ys.
    """
    graphdef, state = nnx.split(stacked)

    def body(carry, inputs):
        block_state, x = inputs
        return function(nnx.merge(graphdef, block_state), carry, x)

    # prevent_cse only matters outside of scan (jax.checkpoint's documentation).
    body = rematerialised(body, remat, prevent_cse=False)
    return jax.lax.scan(body, carry, (state, xs), unroll=unroll)


def rematerialised(
    function: Callable[..., Any], remat: Remat, **options: Any
) -> Callable[..., Any]:
    """Returns `function` with what its backward pass recomputes instead of storing.

    Args:
        function: of arrays.
        remat: "none", "elementwise" (all but matrix products, convolutions and attention) or
            "blocks" (everything but the arguments).
        **options: of `jax.checkpoint`.
    """
    remat = _BOOLEANS.get(remat, remat)
    if remat == "none":
        return function
    policy = _is_product if remat == "elementwise" else None
    return jax.checkpoint(function, policy=policy, **options)


def _is_product(primitive: Any, *_: Any, **params: Any) -> bool:
    """Whether a value is kept for the backward pass: matrix products, convolutions, attention."""
    if primitive.name == "name":
        return params["name"] == KEPT
    return primitive.name in ("dot_general", "conv_general_dilated")
