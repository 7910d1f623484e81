"""Latent actions: features of two frames and the instruction -> K latent-action tokens, and back.

`LatentActionEncoder` reads K learned queries and the patches of both frames with alternating
spatial and causal temporal attention; the queries of the second frame, projected, are z_e.
`LatentActionDecoder` rebuilds the second frame's features from the first frame and the tokens.
`LatentActionModel` is the encoder with its quantizer and the projection back to model width: the
part that the joint policy shares with the GIDM.

Paper: general inverse dynamics model (section 3.2). Reimplements `blocks.py` and the latent action
model of the official Step2_GIDM; the same files serve Step3_DeFI.

Deviation: `mask_order="tiled"` keeps the official order of text masks, which gives rows of one
sample the mask of another when B > 1; the default `aligned` does not.

Dim legend: B batch, T frames, N patches, L language tokens, K latent-action tokens, D model width,
Df width of the frame features, Dz width of a latent action.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from defi_jax.array_typing import Array, Bool, Float, typed
from defi_jax.models import vector_quantizer
from defi_jax.models.layers import attention, norms, stack
from defi_jax.models.layers import linear as linear_lib

MaskOrder = Literal["aligned", "tiled"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What the stacks of blocks over frames of tokens share.

    Attributes:
        model_dim: D.
        num_heads: attention heads.
        mask_order: which sample's text mask a row of tokens gets.
        scan_unroll: blocks per iteration of the layer loop.
        remat: what of each layer the backward pass recomputes, see `stack.rematerialised`.
    """

    model_dim: int
    num_heads: int
    mask_order: MaskOrder = "aligned"
    scan_unroll: int = 1
    remat: stack.Remat = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentActionConfig(TransformerConfig):
    """Sizes of the encoder, in the reference's names.

    Attributes:
        feature_dim: Df.
        text_dim: width of the text features.
        latent_dim: Dz.
        codebook_size: V.
        num_codes: K.
        encoder_blocks: depth of the encoder.
        quantizer: "vq" for discrete latent actions, "continuous" passes z_e on as it is.
    """

    feature_dim: int
    text_dim: int
    latent_dim: int
    codebook_size: int
    num_codes: int
    encoder_blocks: int
    quantizer: Literal["vq", "continuous"] = "vq"

    def __post_init__(self):
        if self.model_dim % self.num_heads:
            raise ValueError(f"model_dim {self.model_dim} is no multiple of {self.num_heads} heads")
        if self.quantizer not in ("vq", "continuous"):
            raise ValueError(f"quantizer is {self.quantizer!r}, not 'vq' or 'continuous'")
        if self.mask_order not in ("aligned", "tiled"):
            raise ValueError(f"mask_order is {self.mask_order!r}, not 'aligned' or 'tiled'")


@flax.struct.dataclass
class LatentActionOutput:
    """Latent actions of one batch.

    Attributes:
        tokens: [B, K, D], z_q projected to model width.
        z_e: float32[B, K, Dz], before quantisation.
        vq: quantised codes and their losses (zero losses and no indices when continuous).
    """

    tokens: jax.Array
    z_e: jax.Array
    vq: vector_quantizer.VQOutput


# Transformer


class Block(nnx.Module):
    """Pre-norm block: attention over tokens, causal attention over frames, feed-forward.

    Without the second where `is_temporal` is False. Projections have no bias but the last.
    """

    def __init__(self, config: TransformerConfig, *, is_temporal: bool, dtype: Any, rngs: nnx.Rngs):
        dim, options = config.model_dim, {"dtype": dtype, "rngs": rngs}
        torch = {"linear": linear_lib.torch_linear, **options}
        make = functools.partial(
            attention.Attention, dim, config.num_heads, qkv_bias=False, **torch
        )
        self.spatial_attn = make(attend=attention.over_tokens)
        self.temporal_attn = make(attend=attention.causally_over_frames) if is_temporal else None
        self.ffn = linear_lib.MLP(dim, 4 * dim, dim, **torch)
        self.norm1 = norms.layer_norm(dim, **options)
        self.norm2 = norms.layer_norm(dim, **options)
        self.norm3 = norms.layer_norm(dim, **options) if is_temporal else None

    def __call__(self, x: Array, mask: Array | None) -> jax.Array:
        """Maps [B, T, N, D] to the same shape; mask bool[B, T, 1, 1, N] says which keys count."""
        x = x + self.spatial_attn(self.norm1(x), mask=mask)
        if self.temporal_attn is None or self.norm3 is None:
            return x + self.ffn(self.norm2(x))
        x = x + self.temporal_attn(self.norm2(x))
        return x + self.ffn(self.norm3(x))


class Transformer(nnx.Module):
    """Stem, position code, language tokens appended, stacked blocks, optional output layer.

    From tokens of width `in_dim` to `out_dim`, None for D; `is_temporal` as in `Block`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        in_dim: int,
        num_blocks: int,
        *,
        out_dim: int | None = None,
        is_temporal: bool,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config = config
        dim, options = config.model_dim, {"dtype": dtype, "rngs": rngs}
        self.stem_norm_in = norms.layer_norm(in_dim, **options)
        self.stem_proj = linear_lib.torch_linear(in_dim, dim, **options)
        self.stem_norm_out = norms.layer_norm(dim, **options)
        self.transformer_blocks = stack.stack_blocks(
            lambda rngs: Block(config, is_temporal=is_temporal, dtype=dtype, rngs=rngs),
            num_blocks,
            rngs,
        )
        self.out = None if out_dim is None else linear_lib.torch_linear(dim, out_dim, **options)

    @typed
    def __call__(
        self,
        x: Float[Array, "B T N Din"],
        lang: Float[Array, "B L D"] | None = None,
        lang_mask: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B T NL Dout"]:
        """Returns all tokens, those of the language last.

        Args:
            x: tokens of each frame.
            lang: language tokens, the same for each frame, already of model width.
            lang_mask: False for padding; None attends to every language token.
        """
        num_frames, num_tokens = x.shape[1:3]
        x = self.stem_norm_out(self.stem_proj(self.stem_norm_in(x)))
        # The position code is added in fp32 and rounded once.
        x = (x + sinusoidal_positions(num_tokens, self.config.model_dim)).astype(x.dtype)
        mask = None
        if lang is not None:
            frames_of_lang = jnp.broadcast_to(
                lang[:, None], (lang.shape[0], num_frames, *lang.shape[1:])
            )
            x = jnp.concatenate([x, frames_of_lang.astype(x.dtype)], axis=2)
        if lang is not None and lang_mask is not None:
            visible = jnp.ones((x.shape[0], num_tokens), bool)
            keys = jnp.concatenate([visible, lang_mask], axis=1)
            mask = mask_rows(keys, num_frames, self.config.mask_order)[:, :, None, None]
        x, _ = stack.scan_blocks(
            self.transformer_blocks,
            lambda block, tokens, _: (block(tokens, mask), None),
            x,
            unroll=self.config.scan_unroll,
            remat=self.config.remat,
        )
        return x if self.out is None else self.out(x)


@typed
def mask_rows(
    mask: Bool[Array, "B M"], num_frames: int, order: MaskOrder
) -> Bool[Array, "B {num_frames} M"]:
    """Returns the key mask of each (sample, frame) row.

    `aligned`: row (b, t) gets the mask of b. `tiled`: the official code tiles the masks over a
    flattened row index, so row r = b * T + t gets the mask of sample r mod B.
    """
    batch_size, num_keys = mask.shape
    if order == "tiled":
        return jnp.tile(mask, (num_frames, 1)).reshape(batch_size, num_frames, num_keys)
    return jnp.broadcast_to(mask[:, None], (batch_size, num_frames, num_keys))


def sinusoidal_positions(num_tokens: int, dim: int) -> np.ndarray:
    """Returns float32[num_tokens, dim] with sine and cosine interleaved, over the token axis."""
    positions = np.arange(num_tokens)[:, None]
    angles = positions * np.exp(-np.arange(0, dim, 2) * (math.log(1e4) / dim))
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(num_tokens, -1)
    return table[:, :dim].astype(np.float32)


# Encoder, decoder and the part shared with the policy


class LatentActionEncoder(nnx.Module):
    """Frame pair and text -> z_e."""

    def __init__(self, config: LatentActionConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.num_codes, width = config.num_codes, config.feature_dim
        self.action_latent = nnx.Param(
            jax.random.uniform(rngs.params(), (1, 1, config.num_codes, width), minval=-1.0)
        )
        self.lang_proj = linear_lib.torch_linear(config.text_dim, config.model_dim, **options)
        self.transformer = Transformer(
            config, width, config.encoder_blocks, is_temporal=True, **options
        )
        self.to_codebook = linear_lib.torch_linear(config.model_dim, config.latent_dim, **options)

    @typed
    def __call__(
        self,
        features: Float[Array, "B 2 N Df"],
        text: Float[Array, "B L Dt"],
        text_mask: Bool[Array, "B L"],
    ) -> Float[Array, "B K Dz"]:
        """Returns the continuous latent actions in fp32, for the quantizer's distances.

        Args:
            features: the current and the future frame's.
            text: features of the instruction.
            text_mask: False for padding.
        """
        queries = self.action_latent.get_value().astype(features.dtype)
        queries = jnp.broadcast_to(queries, (*features.shape[:2], *queries.shape[2:]))
        tokens = jnp.concatenate([queries, features], axis=2)
        encoded = self.transformer(tokens, self.lang_proj(text), text_mask)
        return self.to_codebook(encoded[:, 1, : self.num_codes]).astype(jnp.float32)


class LatentActionDecoder(nnx.Module):
    """Latent-action tokens and the first frame's features -> the second frame's features."""

    def __init__(
        self,
        config: LatentActionConfig,
        num_blocks: int,
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width, options = config.model_dim, {"dtype": dtype, "rngs": rngs}
        self.patch_up = linear_lib.torch_linear(config.feature_dim, width, **options)
        self.transformer = Transformer(
            config, width, num_blocks, out_dim=config.feature_dim, is_temporal=False, **options
        )

    @typed
    def __call__(
        self,
        tokens: Float[Array, "B K D"],
        first_frame_features: Float[Array, "B N Df"],
        lang: Float[Array, "B L D"],
        text_mask: Bool[Array, "B L"],
    ) -> Float[Array, "B N Df"]:
        """Returns the reconstruction in fp32.

        Args:
            tokens: latent actions at model width (`LatentActionOutput.tokens`).
            first_frame_features: the current frame's.
            lang: text features at model width (`LatentActionEncoder.lang_proj`).
            text_mask: False for padding.
        """
        num_codes, num_patches = tokens.shape[1], first_frame_features.shape[1]
        patches = self.patch_up(first_frame_features)
        x = jnp.concatenate([tokens.astype(patches.dtype), patches], axis=1)[:, None]
        x = self.transformer(x, lang, text_mask)
        return x[:, 0, num_codes : num_codes + num_patches].astype(jnp.float32)


class LatentActionModel(nnx.Module):
    """Encoder, quantizer and projection to model width."""

    def __init__(self, config: LatentActionConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.encoder = LatentActionEncoder(config, **options)
        sizes, is_discrete = (config.codebook_size, config.latent_dim), config.quantizer == "vq"
        self.vq = vector_quantizer.VectorQuantizer(*sizes, rngs=rngs) if is_discrete else None
        self.action_up = linear_lib.torch_linear(config.latent_dim, config.model_dim, **options)

    def __call__(self, features: Array, text: Array, text_mask: Array) -> LatentActionOutput:
        """Returns the latent actions; arguments as in `LatentActionEncoder`."""
        z_e = self.encoder(features, text, text_mask)
        if self.vq is None:
            zero = jnp.zeros((), jnp.float32)
            vq = vector_quantizer.VQOutput(z_e, z_e, None, zero, zero)
        else:
            vq = self.vq(z_e)
        return LatentActionOutput(tokens=self.action_up(vq.z_q), z_e=z_e, vq=vq)
