"""Layers shared by the video UNet and the video VAE: channels-last convolutions, norms, attention.

Every layer keeps float32 parameters, computes in its `dtype`, and takes norm statistics and softmax
in float32. Legend: B batch, T frames, H W C height, width, channels, N tokens, D width.
The blocks follow diffusers' `resnet.py` and `attention.py` (spec: method 1.1, 1.2).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from defi_jax.array_typing import Array
from defi_jax.models.layers import fused_attention

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

    def halves(self, x: Array) -> tuple[jax.Array, jax.Array]:
        """Maps [..., in_dim] to the two halves of the output, each a product of its own.

        What is computed from one half is then the end of its product instead of another pass over
        an array of both.
        """
        kernel = self.kernel[...].astype(self.dtype)
        bias = jnp.zeros(kernel.shape[-1:]) if self.bias is None else self.bias[...]
        x, half = x.astype(self.dtype), kernel.shape[-1] // 2
        first = _matmul(x, kernel[:, :half]) + bias[:half].astype(self.dtype)
        return first, _matmul(x, kernel[:, half:]) + bias[half:].astype(self.dtype)


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
        before, here, after = jnp.split(_matmul(x, jnp.concatenate([*kernel], axis=-1)), 3, axis=-1)
        # Tap i of frame t reads frame t + i - 1, so its products move the other way.
        edge = jnp.zeros_like(here[:, :1])
        y = here + jnp.concatenate([edge, before[:, :-1]], axis=1)
        y = y + jnp.concatenate([after[:, 1:], edge], axis=1)
        return y + self.bias[...].astype(self.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation of [B, ..., C], statistics over all axes but the first, per group."""

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
    """Sinusoidal features, cosines first, a zero last where dim is odd: [...] -> f32 [..., dim]."""
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
    angles = jnp.asarray(values, jnp.float32)[..., None] * frequencies
    rest = jnp.zeros((*angles.shape[:-1], dim % 2), jnp.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), rest], axis=-1)


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


def attend_over_frames(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Softmax attention of each position over its frames, [B, T, N, heads, Dh] each."""
    query = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("btnhd,bsnhd->bnhts", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bnhts,bsnhd->btnhd", weights, value)


class Attention(nnx.Module):
    """Multi-head attention with diffusers' parameter names (`to_out` is a list there)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        qkv_bias: bool = False,
        attend: Callable[..., jax.Array] = fused_attention.plain,
        dtype,
        rngs,
    ):
        self.num_heads, self.attend = num_heads, attend
        context_dim = dim if context_dim is None else context_dim
        options = {"use_bias": qkv_bias, "dtype": dtype, "rngs": rngs}
        self.to_q = Linear(dim, dim, **options)
        self.to_k = Linear(context_dim, dim, **options)
        self.to_v = Linear(context_dim, dim, **options)
        self.to_out = nnx.List([Linear(dim, dim, dtype=dtype, rngs=rngs)])

    def __call__(self, x: Array, context: Array | None = None) -> jax.Array:
        """Attends from x [B, N, D] to context [B, M, Dc], or to x itself.

        x may have more axes, where `attend` says over which of them.
        """
        context = x if context is None else context
        query, key, value = (
            layer(y).reshape(*y.shape[:-1], self.num_heads, -1)
            for layer, y in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        return self.to_out[0](self.attend(query, key, value).reshape(x.shape))


class TextAttention(nnx.Module):
    """Multi-head attention to a short text, by diffusers' parameter names.

    logits = (x Wq) (text Wk)' = x (Wq (text Wk)'), and likewise for values and the output: with L
    text tokens fewer than a head is wide, taking the matrices into the text's side is cheaper than
    projecting every position, and exact. Keys and values serve all rows of a batch element.
    """

    def __init__(self, dim: int, num_heads: int, text_dim: int, *, dtype, rngs):
        self.num_heads = num_heads
        options = {"dtype": dtype, "rngs": rngs}
        self.to_q = Linear(dim, dim, use_bias=False, **options)
        self.to_k = Linear(text_dim, dim, use_bias=False, **options)
        self.to_v = Linear(text_dim, dim, use_bias=False, **options)
        self.to_out = nnx.List([Linear(dim, dim, **options)])

    def __call__(self, x: Array, text: Array) -> jax.Array:
        """Maps x [B, N, D] with text [B, L, Dc] to the shape of x."""
        to_out = self.to_out[0]
        assert to_out.bias is not None
        key, value = (self._heads(layer(text)) for layer in (self.to_k, self.to_v))
        if text.shape[1] >= key.shape[-1]:
            y = fused_attention.plain(self._heads(self.to_q(x)), key, value)
            return to_out(y.reshape(x.shape))
        dtype, (_, _, heads, width) = key.dtype, key.shape
        queries = self.to_q.kernel[...].astype(dtype).reshape(-1, heads, width)
        outputs = to_out.kernel[...].astype(dtype).reshape(heads, width, -1)
        key = jnp.einsum("blhd,chd->bhlc", key * width**-0.5, queries)
        value = jnp.einsum("blhd,hdc->bhlc", value, outputs)
        logits = jnp.einsum("bnc,bhlc->bhln", x, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-2).astype(dtype)
        return jnp.einsum("bhln,bhlc->bnc", weights, value) + to_out.bias[...].astype(dtype)

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)


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
