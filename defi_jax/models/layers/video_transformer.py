"""Transformer blocks of the video UNet: over the positions of a frame, then over the frames.

They follow diffusers' `transformer_temporal.py` and `attention.py` (spec: method 1.1).
Legend: B batch, T frames, H W C height, width, channels, N = H * W positions, L text tokens.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax.array_typing import Array
from defi_jax.models.layers import attention, norms, residual
from defi_jax.models.layers import linear as linear_lib

# Two layers on sinusoidal features.
timestep_embedding = functools.partial(linear_lib.MLP, activation=nnx.silu)


class FeedForward(nnx.Module):
    """GEGLU, value * GELU(gate), four times as wide inside (official `net.0.proj`, `net.2`)."""

    def __init__(self, dim: int, *, dtype, rngs):
        self.proj = linear_lib.linear(dim, 8 * dim, dtype=dtype, rngs=rngs)
        self.out = linear_lib.linear(4 * dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> jax.Array:
        """Maps [..., dim] to [..., dim].

        Value and gate are products of their own: what is computed from one is then the end of its
        product instead of another pass over an array of both.
        """
        assert self.proj.bias is not None
        kernel, bias = (leaf[...].astype(x.dtype) for leaf in (self.proj.kernel, self.proj.bias))
        kernels, biases = jnp.split(kernel, 2, axis=-1), jnp.split(bias, 2)
        value, gate = (
            linear_lib.flat_matmul(x, kernel) + bias
            for kernel, bias in zip(kernels, biases, strict=True)
        )
        return self.out(value * linear_lib.gelu(gate))


class TransformerBlock(nnx.Module):
    """Self-attention, attention to the text, feed-forward; the temporal one starts with another.

    The spatial one's self-attention is over the positions of a frame, the temporal one's over the
    frames of a position. All rows of a batch element read the same text.
    """

    def __init__(self, dim: int, num_heads: int, text_dim: int, *, is_temporal: bool, dtype, rngs):
        options = {"dtype": dtype, "rngs": rngs}
        no_bias = {"qkv_bias": False, **options}
        self.norm_in = norms.layer_norm(dim, **options) if is_temporal else None
        self.ff_in = FeedForward(dim, **options) if is_temporal else None
        self.norm1 = norms.layer_norm(dim, **options)
        attend = attention.over_frames if is_temporal else attention.over_tokens
        self.attn1 = attention.Attention(dim, num_heads, attend=attend, **no_bias)
        self.norm2 = norms.layer_norm(dim, **options)
        self.attn2 = attention.TextAttention(dim, num_heads, context_dim=text_dim, **no_bias)
        self.norm3 = norms.layer_norm(dim, **options)
        self.ff = FeedForward(dim, **options)

    def __call__(self, x: Array, text: Array) -> jax.Array:
        """Maps x [B, T, N, C] with text [B, L, Dc] to the shape of x."""
        B, T, N, C = x.shape
        if self.ff_in is not None and self.norm_in is not None:
            x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1(self.norm1(x))
        x = x.reshape(B, T * N, C)
        x = x + self.attn2(self.norm2(x), text)
        x = x + self.ff(self.norm3(x))
        return x.reshape(B, T, N, C)


class TransformerSpatioTemporal(nnx.Module):
    """Pairs of a spatial and a temporal transformer block around one residual."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_layers: int,
        text_dim: int,
        num_groups: int,
        *,
        dtype,
        rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.norm = norms.GroupNorm(dim, num_groups, 1e-6, dtype=dtype)
        self.proj_in = linear_lib.linear(dim, dim, **options)
        self.transformer_blocks, self.temporal_transformer_blocks = (
            nnx.List(
                TransformerBlock(dim, num_heads, text_dim, is_temporal=is_temporal, **options)
                for _ in range(num_layers)
            )
            for is_temporal in (False, True)
        )
        self.time_pos_embed = timestep_embedding(dim, 4 * dim, dim, **options)
        self.time_mixer = residual.AlphaBlender(0.5)
        self.proj_out = linear_lib.linear(dim, dim, kernel_init=linear_lib.ZEROS, **options)

    def __call__(self, x: Array, text: Array) -> jax.Array:
        """Maps x [B, T, H, W, C] with text [B, L, Dc] to the shape of x."""
        B, T, H, W, C = x.shape
        hidden = self.norm(x.reshape(B * T, H * W, C)).reshape(B, T, H * W, C)
        hidden = self.proj_in(hidden)
        positions = self.time_pos_embed(sinusoid(jnp.arange(T), C))[:, None]  # [T, 1, C]
        blocks = zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)
        for spatial_block, temporal_block in blocks:
            hidden = spatial_block(hidden, text)
            hidden = self.time_mixer(hidden, temporal_block(hidden + positions, text))
        return x + self.proj_out(hidden).reshape(x.shape)


def sinusoid(values: Array, dim: int) -> jax.Array:
    """Sinusoidal features, cosines first, a zero last where dim is odd: [...] -> f32 [..., dim]."""
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
    angles = jnp.asarray(values, jnp.float32)[..., None] * frequencies
    rest = jnp.zeros((*angles.shape[:-1], dim % 2), jnp.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), rest], axis=-1)
