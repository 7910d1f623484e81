"""Stable Video Diffusion's denoiser: noisy latent video, noise level and text -> v-prediction.

The backbone of the forward dynamics model (GFDM). Each UNet layer is a spatial residual block
followed by a temporal one, then (where the level has attention) a spatial transformer block
followed by a temporal one; learned scalars mix the two. Only what `encoder_hidden_states` holds
differs from SVD: text tokens instead of an image token. The joint stage reads features of the first
up blocks and stops there (`stop_after_up_block`).

Paper: section on GFDM; spec: method 1.1. Official files: diffusers 0.28
`unet_spatio_temporal_condition.py`, `unet_3d_blocks.py`, `transformer_temporal.py`.
Exact savings over the reference: keys and values of the text are computed once per batch element,
and the projection of the time embedding once per batch element, where it repeats both for every
frame.

Legend: B batch, T frames, H W C height, width, channels, N = H * W positions, L text tokens, E time
embedding width.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax import errors
from defi_jax.array_typing import Array, Float, typed
from defi_jax.models.layers import conv, norms, residual, stack, video_transformer
from defi_jax.models.layers import linear as linear_lib

_DOWN_TYPES = ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal")
_UP_TYPES = ("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal")
# Fields that are one number for all levels or one per level.
_PER_LEVEL = (
    "layers_per_block",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "num_attention_heads",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVDUNetConfig:
    """The reference's own fields, levels listed from fine to coarse, plus two of ours.

    Attributes:
        sample_size: latent height and width the preset is meant for; any multiple of
            2 ** (levels - 1) works.
        num_frames: frames the preset is meant for; any number works.
        down_block_types: per level, with or without attention ("CrossAttn...").
        up_block_types: per level from coarse to fine.
        addition_time_embed_dim: sinusoid width of each added id (fps, motion bucket, noise).
        projection_class_embeddings_input_dim: added ids times `addition_time_embed_dim`.
        layers_per_block: residual layers per down block; up blocks have one more. Like the next
            three fields, one number for all levels or one per level.
        norm_num_groups: ours; the reference has 32 everywhere.
        remat: ours; what of each layer the backward pass recomputes, see `stack.rematerialised`.
    """

    sample_size: int = 96
    in_channels: int = 8
    out_channels: int = 4
    num_frames: int = 14
    down_block_types: tuple[str, ...] = (*[_DOWN_TYPES[0]] * 3, _DOWN_TYPES[1])
    up_block_types: tuple[str, ...] = (_UP_TYPES[1], *[_UP_TYPES[0]] * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    addition_time_embed_dim: int = 256
    projection_class_embeddings_input_dim: int = 768
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention_dim: int | tuple[int, ...] = 1024
    transformer_layers_per_block: int | tuple[int, ...] = 1
    num_attention_heads: int | tuple[int, ...] = (5, 10, 20, 20)
    norm_num_groups: int = 32
    remat: stack.Remat = "none"

    def __post_init__(self) -> None:
        """Checks the fields against each other.

        Raises:
            UserError: a list of another length than the levels, an unknown block type, or widths
                that heads or norm groups do not divide.
        """
        for problem, is_wrong in (
            (
                "block types, one per level, needed",
                {len(self.down_block_types), len(self.up_block_types)} != {self.num_levels},
            ),
            (
                f"unknown down block in {self.down_block_types}",
                {*self.down_block_types} - {*_DOWN_TYPES},
            ),
            (f"unknown up block in {self.up_block_types}", {*self.up_block_types} - {*_UP_TYPES}),
            (f"unknown remat {self.remat!r}", self.remat not in stack.REMAT),
            (
                "norm_num_groups must divide block_out_channels",
                any(width % self.norm_num_groups for width in self.block_out_channels),
            ),
            (
                "addition_time_embed_dim must divide projection_class_embeddings_input_dim",
                self.projection_class_embeddings_input_dim % self.addition_time_embed_dim,
            ),
        ):
            if is_wrong:
                raise errors.UserError(problem, "svd_unet config", "correct the field")
        for field in _PER_LEVEL:
            self.per_level(field)
        for level, width in enumerate(self.block_out_channels):
            if width % self.per_level("num_attention_heads")[level]:
                raise errors.UserError(
                    f"{width} channels of level {level} are not divisible by its heads",
                    "svd_unet config",
                    "change num_attention_heads or block_out_channels",
                )

    @property
    def num_levels(self) -> int:
        """Number of resolutions."""
        return len(self.block_out_channels)

    @property
    def emb_dim(self) -> int:
        """Width E of the time embedding."""
        return 4 * self.block_out_channels[0]

    def per_level(self, field: str) -> tuple[int, ...]:
        """Returns a field that may be one number for all levels as one number per level."""
        value = getattr(self, field)
        values = (value,) * self.num_levels if isinstance(value, int) else value
        if len(values) != self.num_levels:
            raise errors.UserError(
                f"{field} has {len(values)} values for {self.num_levels} levels",
                "svd_unet config",
                "give one number, or one per level",
            )
        return values


class UNetOutput(NamedTuple):
    """What one forward pass returns.

    Attributes:
        sample: raw network output F [B, T, H, W, out_channels]; None after an early exit.
        up_features: output [B, T, h, w, c] of each up block that ran, coarse to fine.
    """

    sample: jax.Array | None
    up_features: tuple[jax.Array, ...]


def up_features(outputs: UNetOutput) -> jax.Array:
    """Joins the tapped up blocks: nearest-upsampled to the last one's size, stacked on channels.

    Returns:
        [B, T, h, w, C] with h, w of the last tap and C the sum of all taps' widths.
    """
    taps = outputs.up_features
    height = taps[-1].shape[2]
    return jnp.concatenate(
        [conv.upsample_nearest(tap, height // tap.shape[2]) for tap in taps], axis=-1
    )


class UNetLayer(NamedTuple):
    """One residual layer and the transformer after it, if any: the unit of rematerialisation."""

    resnet: residual.SpatioTemporalResBlock
    attention: video_transformer.TransformerSpatioTemporal | None
    remat: stack.Remat

    def __call__(self, x: jax.Array, emb: jax.Array, text: jax.Array) -> jax.Array:
        """Maps x [B, T, H, W, C] with emb [B, E] and text [B, L, Dc] to [B, T, H, W, C']."""

        def forward(x, emb, text):
            x = self.resnet(x, emb)
            return x if self.attention is None else self.attention(x, text)

        return stack.rematerialised(forward, self.remat)(x, emb, text)


class UNetBlock(nnx.Module):
    """The residual layers (and transformers) of one level, with an optional resize at the end."""

    def __init__(
        self,
        config: SVDUNetConfig,
        level: int,
        in_dims: tuple[int, ...],
        *,
        num_attentions: int,
        eps: float,
        resize: type[conv.Downsample] | type[conv.Upsample] | None = None,
        dtype,
        rngs,
    ):
        self.remat: stack.Remat = config.remat
        dim, options = config.block_out_channels[level], {"dtype": dtype, "rngs": rngs}
        groups = config.norm_num_groups
        self.resnets = nnx.List(
            residual.SpatioTemporalResBlock(
                in_dim, dim, emb_dim=config.emb_dim, num_groups=groups, eps=eps, **options
            )
            for in_dim in in_dims
        )
        self.attentions = nnx.List(
            video_transformer.TransformerSpatioTemporal(
                dim,
                config.per_level("num_attention_heads")[level],
                config.per_level("transformer_layers_per_block")[level],
                config.per_level("cross_attention_dim")[level],
                groups,
                **options,
            )
            for _ in range(num_attentions)
        )
        resizes = nnx.List([] if resize is None else [resize(dim, **options)])
        self.downsamplers = resizes if resize is conv.Downsample else nnx.List([])
        self.upsamplers = resizes if resize is conv.Upsample else nnx.List([])

    def steps(self) -> list[UNetLayer]:
        """The block's layers in order; the mid block has one transformer fewer than layers."""
        missing = len(self.resnets) - len(self.attentions)
        pairs = zip(self.resnets, [*self.attentions, *[None] * missing], strict=True)
        return [UNetLayer(resnet, attention, self.remat) for resnet, attention in pairs]


def _layer_widths(
    config: SVDUNetConfig,
) -> tuple[list[tuple[int, ...]], tuple[int, ...], list[tuple[int, ...]]]:
    """Returns the input widths of every residual layer: per down block, mid, per up block.

    Down layers leave one skip each, as do `conv_in` and the downsamplers; up layers take them back,
    last first, beside their own input.
    """
    widths, num_layers = config.block_out_channels, config.per_level("layers_per_block")
    down, skips, up, width = [], [widths[0]], [], widths[-1]
    for level, count in enumerate(num_layers):
        down.append((skips[-1], *[widths[level]] * (count - 1)))
        is_resized = level < config.num_levels - 1
        skips += [widths[level]] * (count + is_resized)
    for level in reversed(range(config.num_levels)):
        inputs = []
        for _ in range(num_layers[level] + 1):
            inputs.append(width + skips.pop())
            width = widths[level]
        up.append(tuple(inputs))
    return down, (widths[-1], widths[-1]), up


class SVDUNet(nnx.Module):
    """The whole network; see the module docstring."""

    def __init__(self, config: SVDUNetConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        width, emb_dim = config.block_out_channels[0], config.emb_dim
        options = {"dtype": dtype, "rngs": rngs}
        self.conv_in = conv.Conv2d(config.in_channels, width, **options)
        self.time_embedding = video_transformer.timestep_embedding(
            width, emb_dim, emb_dim, **options
        )
        self.add_embedding = video_transformer.timestep_embedding(
            config.projection_class_embeddings_input_dim, emb_dim, emb_dim, **options
        )
        down, mid, up = _layer_widths(config)
        coarsest = config.num_levels - 1
        make = functools.partial(UNetBlock, config, **options)
        self.down_blocks = nnx.List(
            make(
                level,
                down[level],
                num_attentions=len(down[level]) if kind == _DOWN_TYPES[0] else 0,
                eps=1e-6 if kind == _DOWN_TYPES[0] else 1e-5,
                resize=conv.Downsample if level < coarsest else None,
            )
            for level, kind in enumerate(config.down_block_types)
        )
        self.mid_block = make(coarsest, mid, num_attentions=1, eps=1e-5)
        self.up_blocks = nnx.List(
            make(
                coarsest - block,
                up[block],
                num_attentions=len(up[block]) if kind == _UP_TYPES[0] else 0,
                eps=1e-6,
                resize=conv.Upsample if block < coarsest else None,
            )
            for block, kind in enumerate(config.up_block_types)
        )
        self.conv_norm_out = norms.GroupNorm(width, config.norm_num_groups, 1e-5, dtype=dtype)
        self.conv_out = conv.Conv2d(
            width, config.out_channels, kernel_init=linear_lib.ZEROS, **options
        )

    @typed
    def __call__(
        self,
        sample: Float[Array, "B T H W Cin"],
        timestep: Float[Array, "B"],
        text: Float[Array, "B L Dc"],
        added_time_ids: Float[Array, "B I"],
        *,
        stop_after_up_block: int | None = None,
    ) -> UNetOutput:
        """Runs the network, or only as far as the features that the joint stage reads.

        Args:
            sample: c_in * noisy latents, concatenated with the condition latent on channels.
            timestep: c_noise = ln(sigma) / 4.
            text: text features, the same for every frame; pad positions are not masked.
            added_time_ids: (fps, motion bucket, noise augmentation strength).
            stop_after_up_block: index of the last up block to run; None runs everything.

        Raises:
            UserError: sample height or width that the levels cannot halve.
        """
        self._check_size(sample.shape[2:4])
        # What every layer reads beside its input: time embedding and text.
        shared = (self._embed_time(timestep, added_time_ids), text.astype(self.dtype))
        x = conv.over_frames(self.conv_in, sample)
        skips, taps = [x], []
        for block in self.down_blocks:
            for layer in block.steps():
                x = layer(x, *shared)
                skips.append(x)
            for downsample in block.downsamplers:
                x = downsample(x)
                skips.append(x)
        for layer in self.mid_block.steps():
            x = layer(x, *shared)
        for index, block in enumerate(self.up_blocks):
            for layer in block.steps():
                x = layer(jnp.concatenate([x, skips.pop()], axis=-1), *shared)
            for upsample in block.upsamplers:
                x = upsample(x)
            taps.append(x)
            if index == stop_after_up_block:
                return UNetOutput(None, tuple(taps))
        x = nnx.silu(conv.over_frames(self.conv_norm_out, x))
        return UNetOutput(conv.over_frames(self.conv_out, x), tuple(taps))

    def _embed_time(self, timestep: Array, added_time_ids: Array) -> jax.Array:
        """Returns the sum of the noise level's and the added ids' embeddings [B, E]."""
        levels = video_transformer.sinusoid(timestep, self.config.block_out_channels[0])
        ids = video_transformer.sinusoid(added_time_ids, self.config.addition_time_embed_dim)
        return self.time_embedding(levels) + self.add_embedding(ids.reshape(ids.shape[0], -1))

    def _check_size(self, size: tuple[int, ...]) -> None:
        multiple = 2 ** (self.config.num_levels - 1)
        if any(extent % multiple for extent in size):
            raise errors.UserError(
                f"sample of {size[0]}x{size[1]} pixels for {self.config.num_levels} levels",
                "svd_unet",
                f"use a multiple of {multiple}",
            )


def _levels(*widths: int) -> dict[str, Any]:
    """Block types of a preset: attention on all levels but the coarsest, as in SVD."""
    fine = len(widths) - 1
    return {
        "block_out_channels": widths,
        "down_block_types": (*[_DOWN_TYPES[0]] * fine, _DOWN_TYPES[1]),
        "up_block_types": (_UP_TYPES[1], *[_UP_TYPES[0]] * fine),
    }


PRESETS: dict[str, SVDUNetConfig] = {
    # Three frames of 8x8x48 space-to-depth latents (64 px); taps of up blocks 0 and 1 end at 8x8.
    "tiny": SVDUNetConfig(
        sample_size=8,
        in_channels=96,
        out_channels=48,
        num_frames=3,
        **_levels(48, 64, 96),
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48,
        layers_per_block=1,
        cross_attention_dim=128,
        num_attention_heads=(2, 2, 3),
        norm_num_groups=8,
    ),
    # Eight frames of 128 px as 16x16 VAE latents.
    "small": SVDUNetConfig(
        sample_size=16,
        num_frames=8,
        **_levels(128, 192, 384, 384),
        addition_time_embed_dim=128,
        projection_class_embeddings_input_dim=384,
        num_attention_heads=(2, 3, 6, 6),
    ),
    # stabilityai/stable-video-diffusion-img2vid, unet/config.json: 1,524,623,082 parameters.
    "full": SVDUNetConfig(),
}
