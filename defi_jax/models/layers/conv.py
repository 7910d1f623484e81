"""Convolutions of images and videos, channels last, and what changes their size.

Every layer keeps float32 parameters and computes in its `dtype`.
Legend: B batch, T frames, H W C height, width, channels, N positions.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from defi_jax.array_typing import Array
from defi_jax.models.layers import linear as linear_lib

# XLA's CPU convolution is ten times slower than a matmul on images of this many pixels or fewer.
_MATMUL_CONV_PIXELS = 4


class Conv2d(nnx.Module):
    """Square convolution of images [B, H, W, C].

    Attributes:
        padding: zeros added (before, after) on both spatial axes.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        size: int = 3,
        *,
        stride: int = 1,
        padding: tuple[int, int] = (1, 1),
        kernel_init=linear_lib.FAN_IN,
        dtype,
        rngs,
    ):
        self.dtype, self.stride, self.padding = dtype, stride, padding
        shape = (size, size, in_dim, out_dim)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32))

    def __call__(self, x: Array) -> jax.Array:
        """Maps [B, H, W, in_dim] to [B, H', W', out_dim]."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.stride == 1 and x.shape[1] * x.shape[2] <= _MATMUL_CONV_PIXELS:
            y = _conv_as_matmul(x, kernel, self.padding)
        else:
            y = lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=(self.padding, self.padding),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return y + self.bias[...].astype(self.dtype)


def _conv_as_matmul(x: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> jax.Array:
    """The same convolution, stride 1, as one matmul over gathered windows."""
    size, _, in_dim, out_dim = kernel.shape
    x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    windows = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    kernel = kernel.reshape(size * size * in_dim, out_dim)
    return linear_lib.flat_matmul(jnp.concatenate(windows, axis=-1), kernel)


class TemporalConv(nnx.Module):
    """Zero-padded convolution of 3 taps over frames: a Conv3d of kernel (3, 1, 1) officially."""

    def __init__(self, in_dim: int, out_dim: int, *, kernel_init=linear_lib.FAN_IN, dtype, rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), (3, in_dim, out_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32))

    def __call__(self, x: Array) -> jax.Array:
        """Maps [B, T, N, in_dim] to [B, T, N, out_dim]."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        before, here, after = jnp.split(
            linear_lib.flat_matmul(x, jnp.concatenate([*kernel], axis=-1)), 3, axis=-1
        )
        # Tap i of frame t reads frame t + i - 1, so its products move the other way.
        edge = jnp.zeros_like(here[:, :1])
        y = here + jnp.concatenate([edge, before[:, :-1]], axis=1)
        y = y + jnp.concatenate([after[:, 1:], edge], axis=1)
        return y + self.bias[...].astype(self.dtype)


class Downsample(nnx.Module):
    """Halves the image with a strided 3x3 convolution."""

    def __init__(self, channels: int, *, padding: tuple[int, int] = (1, 1), dtype, rngs):
        self.conv = Conv2d(channels, channels, stride=2, padding=padding, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> jax.Array:
        """Maps [..., H, W, C] to [..., H/2, W/2, C]."""
        return over_frames(self.conv, x)


class Upsample(nnx.Module):
    """Doubles the image by nearest neighbours, then a 3x3 convolution."""

    def __init__(self, channels: int, *, dtype, rngs):
        self.conv = Conv2d(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> jax.Array:
        """Maps [..., H, W, C] to [..., 2H, 2W, C]."""
        return over_frames(self.conv, upsample_nearest(x, 2))


def over_frames(layer, x: Array) -> jax.Array:
    """Applies an image layer to the last three axes of x; the others are its batch."""
    y = layer(x.reshape(-1, *x.shape[-3:]))
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def upsample_nearest(x: Array, factor: int) -> jax.Array:
    """Repeats each pixel of [..., H, W, C] `factor` times along H and W."""
    *lead, H, W, C = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*lead, H, factor, W, factor, C))
    return x.reshape(*lead, H * factor, W * factor, C)
