"""Layers shared by the video UNet and the video VAE: channels-last convolutions, norms, attention.

Every layer keeps float32 parameters, computes in its `dtype`, and takes norm statistics and softmax
in float32. Legend: B batch, T frames, H W C height, width, channels, N tokens, D width.
The blocks follow diffusers' `resnet.py` and `attention.py` (spec: method 1.1, 1.2).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from defi_jax.array_typing import Array

# Fan-in scaling for layers that feed a nonlinearity; zeros for layers that end a residual branch,
# so that a network trained from scratch starts as the identity (Dhariwal & Nichol 2021, section 3).
FAN_IN = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
ZEROS = nnx.initializers.zeros_init()

# XLA's CPU convolution is ten times slower than a matmul on images of this many pixels or fewer.
_MATMUL_CONV_PIXELS = 4


class Linear(nnx.Module):
    """Affine map of the last axis."""

    def __init__(
        self, in_dim: int, out_dim: int, *, use_bias=True, kernel_init=FAN_IN, dtype, rngs
    ):
        self.dtype = dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_dim, out_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32)) if use_bias else None

    def __call__(self, x: Array) -> jax.Array:
        """Maps [..., in_dim] to [..., out_dim]."""
        y = _matmul(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies the last axis; in 2-D, where CPU gradients are twice as fast."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


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
        kernel_init=FAN_IN,
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
    return _matmul(jnp.concatenate(windows, axis=-1), kernel)


class TemporalConv(nnx.Module):
    """Zero-padded convolution of 3 taps over frames: a Conv3d of kernel (3, 1, 1) officially."""

    def __init__(self, in_dim: int, out_dim: int, *, kernel_init=FAN_IN, dtype, rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), (3, in_dim, out_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32))

    def __call__(self, x: Array) -> jax.Array:
        """Maps [B, T, N, in_dim] to [B, T, N, out_dim]."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        num_frames = x.shape[1]
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
        windows = jnp.concatenate([x[:, i : i + num_frames] for i in range(3)], axis=-1)
        y = _matmul(windows, kernel.reshape(-1, kernel.shape[-1]))
        return y + self.bias[...].astype(self.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation of [B, ..., C], statistics over all axes but the first, per group."""

    def __init__(self, channels: int, num_groups: int, eps: float, *, dtype):
        self.num_groups, self.eps, self.dtype = num_groups, eps, dtype
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(self, x: Array) -> jax.Array:
        """Normalises and applies the affine; statistics in float32 and in two passes."""
        positions = tuple(range(1, x.ndim - 1))
        wide = x.astype(jnp.float32)
        mean = self._group_mean(jnp.mean(wide, positions, keepdims=True))
        centred = wide - mean
        variance = self._group_mean(jnp.mean(jnp.square(centred), positions, keepdims=True))
        y = centred * (lax.rsqrt(variance + self.eps) * self.scale[...]) + self.bias[...]
        return y.astype(self.dtype)

    def _group_mean(self, x: jax.Array) -> jax.Array:
        """Averages [..., C] within each group of channels, keeping the shape."""
        grouped = x.reshape(*x.shape[:-1], self.num_groups, -1)
        mean = jnp.mean(grouped, axis=-1, keepdims=True)
        return jnp.broadcast_to(mean, grouped.shape).reshape(x.shape)


class LayerNorm(nnx.Module):
    """Layer normalisation of the last axis, statistics in float32."""

    def __init__(self, channels: int, *, eps: float = 1e-5, dtype):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(self, x: Array) -> jax.Array:
        """Normalises [..., C] and applies the affine."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * lax.rsqrt(variance + self.eps) * self.scale[...] + self.bias[...]
        return y.astype(self.dtype)


def sinusoid(values: Array, dim: int) -> jax.Array:
    """Sinusoidal features, cosines first: [...] -> float32 [..., dim]."""
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
    angles = jnp.asarray(values, jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """Two-layer SiLU network on sinusoidal features."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, dtype, rngs):
        self.linear_1 = Linear(in_dim, hidden_dim, dtype=dtype, rngs=rngs)
        self.linear_2 = Linear(hidden_dim, out_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> jax.Array:
        """Maps [..., in_dim] to [..., out_dim]."""
        return self.linear_2(nnx.silu(self.linear_1(x)))


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU through erf, as PyTorch has it; half the cost of `nnx.gelu`'s erfc on CPU."""
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Softmax attention [B, N, heads, Dh] x [B, M, heads, Dh] -> [B, N, heads, Dh].

    Logits and softmax are float32 whatever the inputs; no mask, scale Dh ** -0.5.
    """
    query = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, value)


class Attention(nnx.Module):
    """Multi-head attention with diffusers' parameter names (`to_out` is a list there)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        qkv_bias: bool = False,
        dtype,
        rngs,
    ):
        self.num_heads = num_heads
        context_dim = dim if context_dim is None else context_dim
        options = {"use_bias": qkv_bias, "dtype": dtype, "rngs": rngs}
        self.to_q = Linear(dim, dim, **options)
        self.to_k = Linear(context_dim, dim, **options)
        self.to_v = Linear(context_dim, dim, **options)
        self.to_out = nnx.List([Linear(dim, dim, dtype=dtype, rngs=rngs)])

    def __call__(self, x: Array, context: Array | None = None) -> jax.Array:
        """Attends from x [B, N, D] to context [B, M, Dc], or to x itself."""
        context = x if context is None else context
        query, key, value = (
            layer(y).reshape(*y.shape[:-1], self.num_heads, -1)
            for layer, y in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        return self.to_out[0](attend(query, key, value).reshape(x.shape))


class ResnetBlock(nnx.Module):
    """Two norm-SiLU-convolution layers with a residual; spatial or temporal by its convolution.

    Spatial inputs are [B*T, H, W, C], temporal ones [B, T, H*W, C]: in both the norm statistics run
    over all axes between the first and the last, which is what makes the temporal ones cross
    frames.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        conv: type[Conv2d] | type[TemporalConv],
        emb_dim: int | None,
        num_groups: int,
        eps: float,
        dtype,
        rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.norm1 = GroupNorm(in_dim, num_groups, eps, dtype=dtype)
        self.conv1 = conv(in_dim, out_dim, **options)
        self.time_emb_proj = None if emb_dim is None else Linear(emb_dim, out_dim, **options)
        self.norm2 = GroupNorm(out_dim, num_groups, eps, dtype=dtype)
        self.conv2 = conv(out_dim, out_dim, kernel_init=ZEROS, **options)
        self.conv_shortcut = None if in_dim == out_dim else Linear(in_dim, out_dim, **options)

    def __call__(self, x: Array, emb: Array | None) -> jax.Array:
        """Maps x [B * R, P, Q, in_dim] to out_dim channels; emb [B, E] serves R rows each."""
        hidden = self.conv1(nnx.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            assert emb is not None
            shift = self.time_emb_proj(nnx.silu(emb))
            rows = (emb.shape[0], x.shape[0] // emb.shape[0], shift.shape[-1])
            shift = jnp.broadcast_to(shift[:, None], rows)
            hidden = hidden + shift.reshape(x.shape[0], 1, 1, -1)
        hidden = self.conv2(nnx.silu(self.norm2(hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class AlphaBlender(nnx.Module):
    """Learned mix of the spatial and the temporal branch; `mix_factor` is a logit."""

    def __init__(self, mix_factor: float):
        self.mix_factor = nnx.Param(jnp.asarray(mix_factor, jnp.float32))

    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """Returns s * first + (1 - s) * second with s = sigmoid(mix_factor)."""
        share = nnx.sigmoid(self.mix_factor[...]).astype(first.dtype)
        return second + share * (first - second)


class SpatioTemporalResBlock(nnx.Module):
    """A spatial residual block, a temporal one on top, and a learned mix of the two.

    Attributes:
        is_temporal_first: the VAE's mixer weighs the temporal branch, the UNet's the spatial one.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        emb_dim: int | None,
        num_groups: int,
        eps: float,
        temporal_eps: float | None = None,
        mix_factor: float = 0.5,
        is_temporal_first: bool = False,
        dtype,
        rngs,
    ):
        self.is_temporal_first = is_temporal_first
        options = {"emb_dim": emb_dim, "num_groups": num_groups, "dtype": dtype, "rngs": rngs}
        self.spatial_res_block = ResnetBlock(in_dim, out_dim, conv=Conv2d, eps=eps, **options)
        temporal_eps = eps if temporal_eps is None else temporal_eps
        self.temporal_res_block = ResnetBlock(
            out_dim, out_dim, conv=TemporalConv, eps=temporal_eps, **options
        )
        self.time_mixer = AlphaBlender(mix_factor)

    def __call__(self, x: Array, emb: Array | None) -> jax.Array:
        """Maps x [B, T, H, W, in_dim] with emb [B, E] to [B, T, H, W, out_dim]."""
        B, T, H, W, C = x.shape
        spatial = self.spatial_res_block(x.reshape(B * T, H, W, C), emb).reshape(B, T, H * W, -1)
        temporal = self.temporal_res_block(spatial, emb)
        pair = (temporal, spatial) if self.is_temporal_first else (spatial, temporal)
        return self.time_mixer(*pair).reshape(B, T, H, W, -1)


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
