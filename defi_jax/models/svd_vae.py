"""Stable Video Diffusion's VAE: images -> latents one by one, latents -> video with time mixing.

The encoder is Stable Diffusion's; the decoder's residual blocks are spatio-temporal, and a last
convolution runs over frames. Latents are not scaled here: `scaling_factor` is the caller's, who
also decides between the posterior's mean (its mode) and a sample.

Spec: method 1.2. Official file: diffusers 0.28 `autoencoder_kl_temporal_decoder.py`.
Legend: B batch, T frames, H W C height, width, channels, h w those of the latents, Cz their
channels.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax import errors
from defi_jax.array_typing import Array, Float, typed
from defi_jax.models.layers import attention as attention_lib
from defi_jax.models.layers import conv, norms, residual
from defi_jax.models.layers import linear as linear_lib

_DOWN_TYPE = "DownEncoderBlock2D"
_NORM_EPS = 1e-6
_TEMPORAL_EPS = 1e-5
# Stable Diffusion's bounds of the posterior's log-variance.
_LOGVAR_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVDVAEConfig:
    """The reference's own fields, levels from fine to coarse, plus one of ours.

    Attributes:
        layers_per_block: residual layers per encoder block, and of the decoder's mid block (which
            runs at most two of them, as in the reference); decoder blocks have one more.
        sample_size: image height and width the preset is meant for.
        scaling_factor: multiplies latents for the UNet; not applied here.
        force_upcast: the reference's advice to encode in float32; kept for round trips.
        norm_num_groups: ours; the reference has 32 everywhere.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = (_DOWN_TYPE,) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    sample_size: int = 768
    scaling_factor: float = 0.18215
    force_upcast: bool = True
    norm_num_groups: int = 32

    def __post_init__(self) -> None:
        """Checks the fields against each other.

        Raises:
            UserError: another block type, not one type per level, or widths that are no multiple of
                the norm groups.
        """
        if self.down_block_types != (_DOWN_TYPE,) * len(self.block_out_channels):
            raise errors.UserError(
                f"down_block_types {self.down_block_types}",
                "svd_vae config",
                f"give {_DOWN_TYPE} once per level of block_out_channels",
            )
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise errors.UserError(
                f"norm_num_groups {self.norm_num_groups} does not divide {self.block_out_channels}",
                "svd_vae config",
                "change either",
            )


PRESETS: dict[str, SVDVAEConfig] = {
    # stabilityai/stable-video-diffusion-img2vid, vae/config.json: 97,742,847 parameters.
    "full": SVDVAEConfig(),
}


class VAEAttention(attention_lib.Attention):
    """Single-head attention over an image's positions, with its own norm and residual."""

    def __init__(self, dim: int, num_groups: int, *, dtype, rngs):
        super().__init__(dim, 1, dtype=dtype, rngs=rngs)
        self.group_norm = norms.GroupNorm(dim, num_groups, _NORM_EPS, dtype=dtype)

    def __call__(self, x: Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Maps [B, H, W, C] to the same shape."""
        B, H, W, C = x.shape
        tokens = self.group_norm(x).reshape(B, H * W, C)
        return x + super().__call__(tokens).reshape(x.shape)


# Residual layers: of images in the encoder, of videos in the decoder.
_image_layer = functools.partial(
    residual.ResnetBlock, conv=conv.Conv2d, emb_dim=None, eps=_NORM_EPS
)
_video_layer = functools.partial(
    residual.SpatioTemporalResBlock,
    emb_dim=None,
    eps=_NORM_EPS,
    temporal_eps=_TEMPORAL_EPS,
    mix_factor=0.0,
    is_temporal_first=True,
)


class Block(nnx.Module):
    """Residual layers made by `layer`, then another size where there is one.

    Attributes:
        num_used: layers that run. A mid block pairs the layers after the first with its only
            attention, so the reference holds but never runs a third one.
    """

    def __init__(
        self,
        layer: Callable[..., Any],
        in_dim: int,
        dim: int,
        num_layers: int,
        *,
        num_groups: int,
        is_mid: bool = False,
        has_downsample: bool = False,
        has_upsample: bool = False,
        dtype,
        rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.num_used = min(num_layers, 2) if is_mid else num_layers
        self.resnets = nnx.List(
            layer(dim if index else in_dim, dim, num_groups=num_groups, **options)
            for index in range(num_layers)
        )
        self.attentions = nnx.List([VAEAttention(dim, num_groups, **options)] if is_mid else [])
        # Zeros only on the right and at the bottom, as the reference pads.
        self.downsamplers = nnx.List(
            [conv.Downsample(dim, padding=(0, 1), **options)] if has_downsample else []
        )
        self.upsamplers = nnx.List([conv.Upsample(dim, **options)] if has_upsample else [])

    def __call__(self, x: Array) -> jax.Array:
        """Maps [..., H, W, in_dim] to [..., H', W', dim]; the layer knows the leading axes."""
        x = self.resnets[0](x, None)
        for resnet in self.resnets[1 : self.num_used]:
            for attention in self.attentions:
                x = conv.over_frames(attention, x)
            x = resnet(x, None)
        for resize in (*self.downsamplers, *self.upsamplers):
            x = resize(x)
        return x


class Encoder(nnx.Module):
    """Images to twice the latent channels."""

    def __init__(self, config: SVDVAEConfig, *, dtype, rngs):
        widths, groups = config.block_out_channels, config.norm_num_groups
        coarse, options = widths[-1], {"dtype": dtype, "rngs": rngs}
        make = functools.partial(Block, _image_layer, num_groups=groups, **options)
        self.conv_in = conv.Conv2d(config.in_channels, widths[0], **options)
        dims = (widths[0], *widths)
        self.down_blocks = nnx.List(
            make(*pair, config.layers_per_block, has_downsample=level < len(widths) - 1)
            for level, pair in enumerate(itertools.pairwise(dims))
        )
        self.mid_block = make(coarse, coarse, 2, is_mid=True)
        self.conv_norm_out = norms.GroupNorm(coarse, groups, _NORM_EPS, dtype=dtype)
        self.conv_out = conv.Conv2d(coarse, 2 * config.latent_channels, **options)

    def __call__(self, x: Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, h, w, 2 Cz]."""
        x = self.conv_in(x)
        for block in (*self.down_blocks, self.mid_block):
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class TemporalDecoder(nnx.Module):
    """Latent videos to pixel videos."""

    def __init__(self, config: SVDVAEConfig, *, dtype, rngs):
        widths, groups = config.block_out_channels, config.norm_num_groups
        coarse, options = widths[-1], {"dtype": dtype, "rngs": rngs}
        make = functools.partial(Block, _video_layer, num_groups=groups, **options)
        self.conv_in = conv.Conv2d(config.latent_channels, coarse, **options)
        self.mid_block = make(coarse, coarse, config.layers_per_block, is_mid=True)
        dims = (coarse, *reversed(widths))
        self.up_blocks = nnx.List(
            make(*pair, config.layers_per_block + 1, has_upsample=index < len(widths) - 1)
            for index, pair in enumerate(itertools.pairwise(dims))
        )
        self.conv_norm_out = norms.GroupNorm(widths[0], groups, _NORM_EPS, dtype=dtype)
        self.conv_out = conv.Conv2d(widths[0], config.out_channels, **options)
        self.time_conv_out = conv.TemporalConv(config.out_channels, config.out_channels, **options)

    def __call__(self, x: Array) -> jax.Array:
        """Maps [B, T, h, w, Cz] to [B, T, H, W, C]."""
        x = conv.over_frames(self.conv_in, x)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x)
        x = nnx.silu(conv.over_frames(self.conv_norm_out, x))
        x = conv.over_frames(self.conv_out, x)
        B, T, H, W, C = x.shape
        return self.time_conv_out(x.reshape(B, T, H * W, C)).reshape(x.shape)


class SVDVAE(nnx.Module):
    """Encoder and temporal decoder; see the module docstring."""

    def __init__(self, config: SVDVAEConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config = config
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.quant_conv = linear_lib.linear(moments, moments, dtype=dtype, rngs=rngs)
        self.decoder = TemporalDecoder(config, dtype=dtype, rngs=rngs)

    @typed
    def encode(
        self, pixels: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B h w Cz"], Float[Array, "B h w Cz"]]:
        """Returns mean (which is the mode) and log-variance of the posterior, not scaled.

        Args:
            pixels: images in [-1, 1]. The decoder gives back height and width where they are
                multiples of 2 ** (levels - 1), and less of others, as in the reference.
        """
        mean, logvar = jnp.split(self.quant_conv(self.encoder(pixels)), 2, axis=-1)
        return mean, jnp.clip(logvar, *_LOGVAR_RANGE)

    @typed
    def decode(self, latents: Float[Array, "B T h w Cz"]) -> Float[Array, "B T H W C"]:
        """Returns the video in [-1, 1] (not clipped) of latents that are not scaled."""
        return self.decoder(latents)
