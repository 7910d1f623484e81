"""Layer and group normalisation: float32 parameters, statistics in float32 and in two passes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from defi_jax.array_typing import Array


def layer_norm(
    dim: int, *, use_bias: bool = True, dtype: Any, rngs: nnx.Rngs, epsilon: float = 1e-5
) -> nnx.LayerNorm:
    """Returns a norm of the last axis; one pass would lose the variance of a large mean."""
    return nnx.LayerNorm(
        dim, use_bias=use_bias, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


class GroupNorm(nnx.Module):
    """Group normalisation of [B, ..., C], statistics over all axes but the first, per group.

    In the place of `nnx.GroupNorm` for its gradient, see `_group_norm`.
    """

    def __init__(self, channels: int, num_groups: int, eps: float, *, dtype):
        self.num_groups, self.eps, self.dtype = num_groups, eps, dtype
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(self, x: Array) -> jax.Array:
        """Normalises and applies the affine; statistics in float32 and in two passes."""
        y: Any = _group_norm(x, self.scale[...], self.bias[...], self.num_groups, self.eps)
        return y.astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, num_groups: int, eps: float):
    """y = (x - mean) / sqrt(variance + eps) * scale + bias, float32 [B, ..., C].

    Its gradient is written out: as a scaled sum of the gradient, x and a constant per channel it
    reads each of the two arrays twice, half of what the derivative of the forward pass does.
    """
    return _group_norm_forward(x, scale, bias, num_groups, eps)[0]


def _group_norm_forward(x, scale, bias, num_groups, eps):
    wide = x.astype(jnp.float32)
    mean = _group_mean(_mean(wide), num_groups)
    variance = _group_mean(_mean(jnp.square(wide - _along(mean, x))), num_groups)
    inverse = lax.rsqrt(variance + eps)
    y = (wide - _along(mean, x)) * _along(inverse * scale, x) + bias
    return y, (x, scale, mean, inverse)


def _group_norm_backward(num_groups, eps, residuals, grad):
    del eps
    x, scale, mean, inverse = residuals
    wide = x.astype(jnp.float32)
    sums = _mean(grad)
    moments = _mean(grad * (wide - _along(mean, x))) * inverse  # with the normalised x
    # d/dx = inverse * (scale * grad - [scale * grad] - normalised * [scale * grad * normalised]),
    # where [.] is the mean over a group.
    pull = inverse * inverse * _group_mean(scale * moments, num_groups)
    offset = mean * pull - inverse * _group_mean(scale * sums, num_groups)
    dx = grad * _along(inverse * scale, x) - wide * _along(pull, x) + _along(offset, x)
    positions = x.size // (x.shape[0] * x.shape[-1])
    return dx.astype(x.dtype), positions * jnp.sum(moments, 0), positions * jnp.sum(sums, 0)


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)


def _mean(x: jax.Array) -> jax.Array:
    """Means over positions, [B, ..., C] -> [B, C]."""
    return jnp.mean(x, tuple(range(1, x.ndim - 1)))


def _along(values: jax.Array, x: jax.Array) -> jax.Array:
    """[B, C] -> [B, 1, ..., 1, C], to meet x [B, ..., C]."""
    return values.reshape(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])


def _group_mean(x: jax.Array, num_groups: int) -> jax.Array:
    """Averages [B, C] within each group of channels, keeping the shape."""
    grouped = x.reshape(x.shape[0], num_groups, -1)
    mean = jnp.mean(grouped, axis=-1, keepdims=True)
    return jnp.broadcast_to(mean, grouped.shape).reshape(x.shape)
