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
    """A stack of equal blocks over frames of tokens.

    Attributes:
        in_dim: width of the input tokens.
        model_dim: D.
        out_dim: width of the output tokens; None leaves them at D.
        num_blocks: depth.
        num_heads: attention heads.
        mask_order: which sample's text mask a row of tokens gets.
        scan_unroll: blocks per iteration of the layer loop.
        remat: recompute blocks in the backward pass.
    """

    in_dim: int
    model_dim: int
    out_dim: int | None = None
    num_blocks: int
    num_heads: int
    mask_order: MaskOrder = "aligned"
    scan_unroll: int = 1
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentActionConfig:
    """Sizes of the encoder, in the reference's names.

    Attributes:
        feature_dim: Df.
        text_dim: width of the text features.
        model_dim: D.
        num_heads: attention heads.
        latent_dim: Dz.
        codebook_size: V.
        num_codes: K.
        encoder_blocks: depth of the encoder.
        quantizer: "vq" for discrete latent actions, "continuous" passes z_e on as it is.
        mask_order: see `TransformerConfig`.
        scan_unroll: see `TransformerConfig`.
        remat: see `TransformerConfig`.
    """

    feature_dim: int
    text_dim: int
    model_dim: int
    num_heads: int
    latent_dim: int
    codebook_size: int
    num_codes: int
    encoder_blocks: int
    quantizer: Literal["vq", "continuous"] = "vq"
    mask_order: MaskOrder = "aligned"
    scan_unroll: int = 1
    remat: bool = False

    def __post_init__(self):
        if self.model_dim % self.num_heads:
            raise ValueError(f"model_dim {self.model_dim} is no multiple of {self.num_heads} heads")
        if self.quantizer not in ("vq", "continuous"):
            raise ValueError(f"quantizer is {self.quantizer!r}, not 'vq' or 'continuous'")
        if self.mask_order not in ("aligned", "tiled"):
            raise ValueError(f"mask_order is {self.mask_order!r}, not 'aligned' or 'tiled'")

    @property
    def encoder_transformer(self) -> TransformerConfig:
        """Config of the spatio-temporal encoder."""
        return TransformerConfig(
            in_dim=self.feature_dim,
            model_dim=self.model_dim,
            num_blocks=self.encoder_blocks,
            num_heads=self.num_heads,
            mask_order=self.mask_order,
            scan_unroll=self.scan_unroll,
            remat=self.remat,
        )


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


# Blocks


def _attention(config: TransformerConfig, attend: Any, **options: Any) -> attention.Attention:
    """Multi-head attention; projections without bias but the last."""
    return attention.Attention(
        config.model_dim,
        config.num_heads,
        qkv_bias=False,
        linear=linear_lib.torch_linear,
        attend=attend,
        **options,
    )


def _mlp(dim: int, **options: Any) -> linear_lib.MLP:
    return linear_lib.MLP(dim, 4 * dim, dim, linear=linear_lib.torch_linear, **options)


class SpatialBlock(nnx.Module):
    """Pre-norm block: attention over tokens, feed-forward."""

    def __init__(self, config: TransformerConfig, *, dtype: Any, rngs: nnx.Rngs):
        dim, options = config.model_dim, {"dtype": dtype, "rngs": rngs}
        self.spatial_attn = _attention(config, attention.attention, **options)
        self.ffn = _mlp(dim, **options)
        self.norm1 = norms.layer_norm(dim, **options)
        self.norm2 = norms.layer_norm(dim, **options)

    def __call__(self, x: Array, mask: Array | None) -> jax.Array:
        """Maps [B, T, N, D] to the same shape; mask bool[B, T, 1, 1, N] says which keys count."""
        x = x + self.spatial_attn(self.norm1(x), mask=mask)
        return x + self.ffn(self.norm2(x))


class SpatioTemporalBlock(nnx.Module):
    """Pre-norm block: attention over tokens, causal attention over frames, feed-forward."""

    def __init__(self, config: TransformerConfig, *, dtype: Any, rngs: nnx.Rngs):
        dim, options = config.model_dim, {"dtype": dtype, "rngs": rngs}
        self.spatial_attn = _attention(config, attention.attention, **options)
        self.temporal_attn = _attention(config, attention.causally_over_frames, **options)
        self.ffn = _mlp(dim, **options)
        self.norm1 = norms.layer_norm(dim, **options)
        self.norm2 = norms.layer_norm(dim, **options)
        self.norm3 = norms.layer_norm(dim, **options)

    def __call__(self, x: Array, mask: Array | None) -> jax.Array:
        """As `SpatialBlock`."""
        x = x + self.spatial_attn(self.norm1(x), mask=mask)
        x = x + self.temporal_attn(self.norm2(x))
        return x + self.ffn(self.norm3(x))


# Transformers


class _Transformer(nnx.Module):
    """Stem, position code, language tokens appended, stacked blocks, optional output layer."""

    block: type[SpatialBlock] | type[SpatioTemporalBlock]

    def __init__(self, config: TransformerConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        dim = config.model_dim
        self.stem_norm_in = norms.layer_norm(config.in_dim, dtype=dtype, rngs=rngs)
        self.stem_proj = linear_lib.torch_linear(config.in_dim, dim, dtype=dtype, rngs=rngs)
        self.stem_norm_out = norms.layer_norm(dim, dtype=dtype, rngs=rngs)
        self.transformer_blocks = stack.stack_blocks(
            lambda block_rngs: self.block(config, dtype=dtype, rngs=block_rngs),
            config.num_blocks,
            rngs,
        )
        self.out = (
            None
            if config.out_dim is None
            else linear_lib.torch_linear(dim, config.out_dim, dtype=dtype, rngs=rngs)
        )

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
            rows = mask_rows(
                jnp.concatenate([visible, lang_mask], axis=1), num_frames, self.config.mask_order
            )
            mask = rows[:, :, None, None]
        x, _ = stack.scan_blocks(
            self.transformer_blocks,
            lambda block, tokens, _: (block(tokens, mask), None),
            x,
            unroll=self.config.scan_unroll,
            remat=self.config.remat,
        )
        return x if self.out is None else self.out(x)


class SpatioTemporalTransformer(_Transformer):
    """Alternates attention over tokens and over frames."""

    block = SpatioTemporalBlock


class SpatioTransformer(_Transformer):
    """Attention over tokens only; each frame by itself."""

    block = SpatialBlock


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
    table = np.zeros((num_tokens, dim))
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, : dim // 2])
    return table.astype(np.float32)


# Encoder, decoder and the part shared with the policy


class LatentActionEncoder(nnx.Module):
    """Frame pair and text -> z_e."""

    def __init__(self, config: LatentActionConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.num_codes = config.num_codes
        self.action_latent = nnx.Param(
            jax.random.uniform(
                rngs.params(), (1, 1, config.num_codes, config.feature_dim), minval=-1.0
            )
        )
        self.lang_proj = linear_lib.torch_linear(
            config.text_dim, config.model_dim, dtype=dtype, rngs=rngs
        )
        self.transformer = SpatioTemporalTransformer(
            config.encoder_transformer, dtype=dtype, rngs=rngs
        )
        self.to_codebook = linear_lib.torch_linear(
            config.model_dim, config.latent_dim, dtype=dtype, rngs=rngs
        )

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
        self.patch_up = linear_lib.torch_linear(
            config.feature_dim, config.model_dim, dtype=dtype, rngs=rngs
        )
        transformer = dataclasses.replace(
            config.encoder_transformer,
            in_dim=config.model_dim,
            out_dim=config.feature_dim,
            num_blocks=num_blocks,
        )
        self.transformer = SpatioTransformer(transformer, dtype=dtype, rngs=rngs)

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
        self.encoder = LatentActionEncoder(config, dtype=dtype, rngs=rngs)
        vq_config = vector_quantizer.VectorQuantizerConfig(
            codebook_size=config.codebook_size, latent_dim=config.latent_dim
        )
        is_discrete = config.quantizer == "vq"
        self.vq = vector_quantizer.VectorQuantizer(vq_config, rngs=rngs) if is_discrete else None
        self.action_up = linear_lib.torch_linear(
            config.latent_dim, config.model_dim, dtype=dtype, rngs=rngs
        )

    def __call__(self, features: Array, text: Array, text_mask: Array) -> LatentActionOutput:
        """Returns the latent actions; arguments as in `LatentActionEncoder`."""
        z_e = self.encoder(features, text, text_mask)
        vq = _pass_through(z_e) if self.vq is None else self.vq(z_e)
        return LatentActionOutput(tokens=self.action_up(vq.z_q), z_e=z_e, vq=vq)


def _pass_through(z_e: Array) -> vector_quantizer.VQOutput:
    """The output of a quantizer that does not quantise."""
    zero = jnp.zeros((), jnp.float32)
    return vector_quantizer.VQOutput(
        z_q=z_e, codes=z_e, indices=None, codebook_loss=zero, commitment_loss=zero
    )
