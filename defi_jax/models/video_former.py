"""Video Former: features of T predicted frames -> a few tokens per frame.

Learned latents of each frame read that frame's features (perceiver attention), then mix over time.

Paper: adapter of section 3.3. Reimplements `Video_Former_3D` of the official Step3_DeFI (the Video
Former of Video Prediction Policy). The temporal attention has no norm before it, as there.

Dim legend: B batch, T frames, N tokens per frame, M latents per frame, C channels, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax.array_typing import Array, Float, typed
from defi_jax.models.layers import attention, norms, stack
from defi_jax.models.layers import linear as linear_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFormerConfig:
    """Sizes, in the reference's names.

    Attributes:
        condition_dim: C of the features.
        dim: D.
        depth: number of layers.
        dim_head: width of a head of the perceiver attention (the temporal one has dim / heads).
        heads: attention heads.
        num_latents: tokens put out in all, a multiple of num_frames.
        num_frames: T.
        token_positions: N where each token of a frame has a learned position; 0 for none, as in the
            reference, whose features carry their position only implicitly.
        query_key_gain: factor on the initial queries and keys of the perceiver attention. Above 1,
            latents start by reading different tokens instead of the mean of all (ours; the
            reference has 1).
        scan_unroll: layers per iteration of the layer loop.
        remat: what of each layer the backward pass recomputes, see `stack.rematerialised`.
    """

    condition_dim: int
    dim: int
    depth: int
    dim_head: int
    heads: int
    num_latents: int
    num_frames: int
    token_positions: int = 0
    query_key_gain: float = 1.0
    scan_unroll: int = 1
    remat: stack.Remat = "none"

    def __post_init__(self):
        if self.num_latents % self.num_frames:
            raise ValueError(
                f"num_latents {self.num_latents} is no multiple of {self.num_frames} frames"
            )
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of {self.heads} heads")

    @property
    def latents_per_frame(self) -> int:
        """M."""
        return self.num_latents // self.num_frames


PRESETS: dict[str, VideoFormerConfig] = {
    # Official Step3_DeFI configuration.
    "full": VideoFormerConfig(
        condition_dim=2560,
        dim=384,
        depth=6,
        dim_head=64,
        heads=8,
        num_latents=224,
        num_frames=16,
        remat="elementwise",
    ),
    "small": VideoFormerConfig(
        condition_dim=1024,
        dim=256,
        depth=4,
        dim_head=32,
        heads=8,
        num_latents=64,
        num_frames=8,
    ),
    "tiny": VideoFormerConfig(
        condition_dim=192,
        dim=96,
        depth=2,
        dim_head=24,
        heads=4,
        num_latents=18,
        num_frames=3,
        token_positions=64,
        query_key_gain=3.0,
        scan_unroll=2,
    ),
}


class PerceiverAttention(attention.Attention):
    """Latents attend to a frame's features and to themselves."""

    def __init__(self, config: VideoFormerConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(
            config.dim,
            config.heads,
            inner_dim=config.heads * config.dim_head,
            qkv_bias=False,
            out_bias=False,
            linear=linear_lib.torch_linear,
            dtype=dtype,
            rngs=rngs,
        )
        for layer in (self.to_q, self.to_k):
            layer.kernel[...] = layer.kernel[...] * config.query_key_gain
        self.norm_media = norms.layer_norm(config.dim, dtype=dtype, rngs=rngs)
        self.norm_latents = norms.layer_norm(config.dim, dtype=dtype, rngs=rngs)

    def __call__(self, media: Array, latents: Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Maps media [B, T, N, D] and latents [B, T, M, D] to [B, T, M, D]."""
        latents = self.norm_latents(latents)
        tokens = jnp.concatenate([self.norm_media(media), latents], axis=2)
        return super().__call__(latents, tokens)


class FeedForward(nnx.Module):
    """Norm and a two-layer network without biases."""

    def __init__(self, dim: int, *, dtype: Any, rngs: nnx.Rngs):
        self.norm = norms.layer_norm(dim, dtype=dtype, rngs=rngs)
        options = {"linear": linear_lib.torch_linear, "dtype": dtype, "rngs": rngs}
        self.mlp = linear_lib.MLP(dim, 4 * dim, dim, use_bias=False, **options)

    def __call__(self, x: Array) -> jax.Array:
        """Maps [..., D] to the same shape."""
        return self.mlp(self.norm(x))


class VideoFormerLayer(nnx.Module):
    """Perceiver attention, temporal attention, feed-forward; residual each."""

    def __init__(self, config: VideoFormerConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.perceiver_attn = PerceiverAttention(config, dtype=dtype, rngs=rngs)
        self.temporal_attn = attention.Attention(
            config.dim,
            config.heads,
            linear=linear_lib.torch_linear,
            attend=attention.over_frames,
            dtype=dtype,
            rngs=rngs,
        )
        self.ff = FeedForward(config.dim, dtype=dtype, rngs=rngs)

    def __call__(self, media: Array, latents: Array) -> jax.Array:
        """Maps media [B, T, N, D] and latents [B, T, M, D] to [B, T, M, D]."""
        latents = latents + self.perceiver_attn(media, latents)
        latents = latents + self.temporal_attn(latents)
        return latents + self.ff(latents)


class VideoFormer(nnx.Module):
    """Compresses the features of a predicted video."""

    def __init__(self, config: VideoFormerConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype, dim = config, dtype, config.dim
        options = {"dtype": dtype, "rngs": rngs}

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape))

        self.latents = normal(config.num_frames, config.latents_per_frame, dim)
        self.time_pos_emb = normal(config.num_frames, 1, dim)
        self.token_pos_emb = (
            normal(1, config.token_positions, dim) if config.token_positions else None
        )
        self.goal_emb = linear_lib.MLP(
            config.condition_dim, 2 * dim, dim, linear=linear_lib.torch_linear, **options
        )
        self.layers = stack.stack_blocks(
            lambda rngs: VideoFormerLayer(config, dtype=dtype, rngs=rngs), config.depth, rngs
        )
        self.norm = norms.layer_norm(dim, **options)

    @typed
    def __call__(self, features: Float[Array, "B T N C"]) -> Float[Array, "B M D"]:
        """Returns tokens in frame-major order.

        Args:
            features: tokens of all cameras of each frame, T = num_frames, N = token_positions
                where it is not 0.
        """
        media = self.goal_emb(features) + self.time_pos_emb.get_value().astype(self.dtype)
        if self.token_pos_emb is not None:
            media = media + self.token_pos_emb.get_value().astype(self.dtype)
        latents = self.latents.get_value().astype(self.dtype)
        latents = jnp.broadcast_to(latents, (features.shape[0], *latents.shape))
        latents, _ = stack.scan_blocks(
            self.layers,
            lambda layer, x, _: (layer(media, x), None),
            latents,
            unroll=self.config.scan_unroll,
            remat=self.config.remat,
        )
        tokens = latents.reshape(features.shape[0], self.config.num_latents, self.config.dim)
        return self.norm(tokens)
