"""Layers shared by the latent-action model, the Video Former and the action denoiser.

Dim legend: Q queries, M keys, D width, Dh width of a head; leading `...` axes are batch axes.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax.array_typing import Array, Bool, Float, PRNGKey, typed

_B = TypeVar("_B", bound=nnx.Module)
_SQRT_HALF = math.sqrt(0.5)


def torch_linear(
    in_dim: int,
    out_dim: int,
    *,
    use_bias: bool = True,
    gain: float = 1.0,
    dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Returns a linear layer with PyTorch's default init, U(-1/sqrt(in), 1/sqrt(in)), * gain."""
    bound = gain * in_dim**-0.5
    return nnx.Linear(
        in_dim,
        out_dim,
        dot_general=flat_dot_general,
        use_bias=use_bias,
        kernel_init=_uniform(bound),
        bias_init=_uniform(bound),
        dtype=dtype,
        rngs=rngs,
    )


def flat_dot_general(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any
) -> jax.Array:
    """Multiplies [..., in] by [in, out] in 2-D, where CPU gradients are twice as fast."""
    del dimension_numbers  # always the last axis with the first
    flat = jax.lax.dot_general(
        x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options
    )
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def layer_norm(
    dim: int, *, use_bias: bool = True, dtype: Any, rngs: nnx.Rngs, epsilon: float = 1e-5
) -> nnx.LayerNorm:
    """Returns a layer norm whose statistics are fp32 and two-pass, as the reference's."""
    return nnx.LayerNorm(
        dim, use_bias=use_bias, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


class MLP(nnx.Module):
    """Linear, exact GELU, linear; all with PyTorch's init."""

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        *,
        use_bias: bool = True,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.fc1 = torch_linear(in_dim, hidden_dim, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.fc2 = torch_linear(hidden_dim, out_dim, use_bias=use_bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> jax.Array:
        """Maps [..., in_dim] to [..., out_dim]."""
        return self.fc2(gelu(self.fc1(x)))


def gelu(x: Array) -> jax.Array:
    """Exact GELU by erf, as PyTorch's.

    `jax.nn.gelu(approximate=False)` goes through erfc, which makes a feed-forward layer twice as
    slow on a CPU. In fp32 inside, because 1 + erf cancels for negative x.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * _SQRT_HALF))).astype(x.dtype)


def _tanh_gelu(x: Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def _quick_gelu(x: Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


# The activations of published text encoders, by transformers' names.
ACTIVATIONS: dict[str, Callable[[Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": _quick_gelu,
}


def split_heads(x: Array, heads: int) -> jax.Array:
    """Returns [..., heads, Dh] of [..., heads * Dh], head-major."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> jax.Array:
    """Inverse of `split_heads`."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


@typed
def attention(
    q: Float[Array, "*b Q heads Dh"],
    k: Float[Array, "*b M heads Dh"],
    v: Float[Array, "*b M heads Dv"],
    mask: Bool[Array, "..."] | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKey | None = None,
) -> Float[Array, "*b Q heads Dv"]:
    """Scaled dot-product attention with softmax in fp32.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: broadcastable to [..., heads, Q, M]; False is not attended, with weight exactly 0. No
            row may be False throughout.
        dropout_rate: of the attention weights, as the reference drops them.
        dropout_rng: None for no dropout.

    Returns:
        Weighted values in the dtype of `v`.
    """
    logits = jnp.einsum("...qhd,...khd->...hqk", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    # Softmax with its division after the second product: Dv numbers a query instead of M.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = jnp.swapaxes(weights.sum(axis=-1), -1, -2)[..., None]
    weights = dropout(weights, dropout_rate, dropout_rng).astype(v.dtype)
    mixed = jnp.einsum("...hqk,...khd->...qhd", weights, v, preferred_element_type=jnp.float32)
    return (mixed / total).astype(v.dtype)


def dropout(x: Array, rate: float, rng: PRNGKey | None) -> Array:
    """Zeroes a share `rate` of `x` and scales the rest up; identity when `rng` is None."""
    if rng is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(rng, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


# Stacked blocks: equal blocks as one module whose parameters have a leading layer axis.


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
        stacked: from `stack_blocks`.
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


def _uniform(bound: float) -> Callable:
    def init(rng, shape, dtype=jnp.float32):
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return init
