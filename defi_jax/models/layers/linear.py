"""Linear layers, the two-layer network and its activations.

Every layer keeps float32 parameters and computes in its `dtype`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax.array_typing import Array

# Fan-in scaling for layers that feed a nonlinearity; zeros for layers that end a residual branch,
# so that a network trained from scratch starts as the identity (Dhariwal & Nichol 2021, section 3).
FAN_IN = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
ZEROS = nnx.initializers.zeros_init()
_SQRT_HALF = math.sqrt(0.5)


def flat_matmul(x: Array, kernel: Array, **options: Any) -> jax.Array:
    """Multiplies [..., in] by [in, out] in 2-D, where CPU gradients are twice as fast."""
    flat = jax.lax.dot_general(
        x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options
    )
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def _dot_general(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    del dimension_numbers  # always the last axis with the first
    return flat_matmul(x, kernel, **options)


# (in_dim, out_dim, *, use_bias, kernel_init, bias_init, dtype, rngs) -> layer.
linear = functools.partial(nnx.Linear, dot_general=_dot_general, kernel_init=FAN_IN)


def torch_linear(
    in_dim: int, out_dim: int, *, use_bias: bool = True, dtype: Any, rngs: nnx.Rngs
) -> nnx.Linear:
    """Returns a linear layer with PyTorch's default init, U(-1/sqrt(in), 1/sqrt(in))."""
    bound = in_dim**-0.5

    def uniform(rng: jax.Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    options: dict[str, Any] = {"kernel_init": uniform, "bias_init": uniform}
    return linear(in_dim, out_dim, use_bias=use_bias, dtype=dtype, rngs=rngs, **options)


class MLP(nnx.Module):
    """Linear, activation, linear; the layers are made by `linear`."""

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        *,
        activation: Callable[[Array], jax.Array] | None = None,
        linear: Callable[..., nnx.Linear] = linear,
        use_bias: bool = True,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        options = {"use_bias": use_bias, "dtype": dtype, "rngs": rngs}
        self.activation = gelu if activation is None else activation
        self.fc1 = linear(in_dim, hidden_dim, **options)
        self.fc2 = linear(hidden_dim, out_dim, **options)

    def __call__(self, x: Array) -> jax.Array:
        """Maps [..., in_dim] to [..., out_dim]."""
        return self.fc2(self.activation(self.fc1(x)))


def gelu(x: Array) -> jax.Array:
    """Exact GELU by erf, as PyTorch's.

    `jax.nn.gelu(approximate=False)` goes through erfc, which makes a feed-forward layer twice as
    slow on a CPU. In fp32 inside, because 1 + erf cancels for negative x.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * _SQRT_HALF))).astype(x.dtype)


def _quick_gelu(x: Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


# The activations of published text encoders, by transformers' names.
ACTIVATIONS: dict[str, Callable[[Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": gelu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": _quick_gelu,
}
