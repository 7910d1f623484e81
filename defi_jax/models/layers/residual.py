"""Residual blocks shared by the video UNet and the video VAE.

They follow diffusers' `resnet.py` (spec: method 1.1, 1.2).
Legend: B batch, T frames, H W C height, width, channels, E width of the time embedding.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax.array_typing import Array
from defi_jax.models.layers import conv as conv_lib
from defi_jax.models.layers import linear as linear_lib
from defi_jax.models.layers import norms


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
        conv: type[conv_lib.Conv2d] | type[conv_lib.TemporalConv],
        emb_dim: int | None,
        num_groups: int,
        eps: float,
        dtype,
        rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.norm1 = norms.GroupNorm(in_dim, num_groups, eps, dtype=dtype)
        self.conv1 = conv(in_dim, out_dim, **options)
        self.time_emb_proj = (
            None if emb_dim is None else linear_lib.linear(emb_dim, out_dim, **options)
        )
        self.norm2 = norms.GroupNorm(out_dim, num_groups, eps, dtype=dtype)
        self.conv2 = conv(out_dim, out_dim, kernel_init=linear_lib.ZEROS, **options)
        self.conv_shortcut = (
            None if in_dim == out_dim else linear_lib.linear(in_dim, out_dim, **options)
        )

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
        self.spatial_res_block = ResnetBlock(
            in_dim, out_dim, conv=conv_lib.Conv2d, eps=eps, **options
        )
        temporal_eps = eps if temporal_eps is None else temporal_eps
        self.temporal_res_block = ResnetBlock(
            out_dim, out_dim, conv=conv_lib.TemporalConv, eps=temporal_eps, **options
        )
        self.time_mixer = AlphaBlender(mix_factor)

    def __call__(self, x: Array, emb: Array | None) -> jax.Array:
        """Maps x [B, T, H, W, in_dim] with emb [B, E] to [B, T, H, W, out_dim]."""
        B, T, H, W, C = x.shape
        spatial = self.spatial_res_block(x.reshape(B * T, H, W, C), emb).reshape(B, T, H * W, -1)
        temporal = self.temporal_res_block(spatial, emb)
        pair = (temporal, spatial) if self.is_temporal_first else (spatial, temporal)
        return self.time_mixer(*pair).reshape(B, T, H, W, -1)
