"""Stacked blocks: equal blocks as one module whose parameters have a leading layer axis."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

_B = TypeVar("_B", bound=nnx.Module)


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
    remat: bool = False,
) -> tuple[Any, Any]:
    """Applies stacked blocks one after the other, compiled once.

    Args:
        stacked: what `stack_blocks` returned.
        function: (block, carry, x) -> (carry, y).
        carry: what passes from block to block.
        xs: per-block inputs with a leading layer axis.
        unroll: blocks per loop iteration; the number of blocks removes the loop.
        remat: recompute each block in the backward pass instead of storing its activations.

    Returns:
        The last carry and the stacked ys.
    """
    graphdef, state = nnx.split(stacked)

    def body(carry, inputs):
        block_state, x = inputs
        return function(nnx.merge(graphdef, block_state), carry, x)

    # prevent_cse only matters outside of scan (jax.checkpoint's documentation).
    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    return jax.lax.scan(body, carry, (state, xs), unroll=unroll)
