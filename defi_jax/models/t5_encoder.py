"""T5's encoder: token ids [B, L] and their mask -> hidden states [B, L, D].

Raffel et al. 2020, as DeFI's inverse model uses it frozen (spec 2.1). Mirrors transformers
`T5EncoderModel`: pre-norm, RMS norms without mean, no biases, no attention scale, one table of
relative position biases shared by all blocks (the reference stores it in block 0).

B batch, L language tokens, D width.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from defi_jax import errors
from defi_jax.array_typing import Array, Bool, Float, Int, typed
from defi_jax.models.layers import attention, stack
from defi_jax.models.layers import linear as linear_lib

_GATED = "gated-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5EncoderConfig:
    """Numbers of the encoder, under the names of transformers' `T5Config`.

    Attributes:
        feed_forward_proj: an activation, after "gated-" where a second branch multiplies it (T5
            v1.0 has "relu", v1.1 "gated-gelu").
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    feed_forward_proj: str
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float

    def __post_init__(self) -> None:
        if self.activation not in linear_lib.ACTIVATIONS:
            raise errors.UserError(
                f"unknown feed_forward_proj {self.feed_forward_proj!r}",
                "t5_encoder",
                f"known, also after {_GATED!r}: {', '.join(linear_lib.ACTIVATIONS)}",
            )
        if not 4 <= self.relative_attention_num_buckets < 4 * self.relative_attention_max_distance:
            raise errors.UserError(
                f"{self.relative_attention_num_buckets} buckets for distances up to "
                f"{self.relative_attention_max_distance}",
                "t5_encoder",
                "give at least 4, and fewer than 4 times the distance",
            )

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward has a gate branch."""
        return self.feed_forward_proj.startswith(_GATED)

    @property
    def activation(self) -> str:
        """Name in `linear.ACTIVATIONS`; "gated-gelu" means the tanh form of GELU."""
        if self.feed_forward_proj == "gated-gelu":
            return "gelu_new"
        return self.feed_forward_proj.removeprefix(_GATED)


# google-t5/t5-base.
PRESETS = {
    "full": T5EncoderConfig(
        vocab_size=32128,
        d_model=768,
        d_kv=64,
        d_ff=3072,
        num_layers=12,
        num_heads=12,
        feed_forward_proj="relu",
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
    )
}


class Block(nnx.Module):
    """Self-attention with a position bias, then the feed-forward, both pre-norm."""

    def __init__(self, config: T5EncoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        width = config.d_model

        def linear(in_dim: int, out_dim: int) -> nnx.Linear:
            return linear_lib.linear(in_dim, out_dim, use_bias=False, dtype=dtype, rngs=rngs)

        def norm() -> nnx.RMSNorm:
            return nnx.RMSNorm(width, epsilon=config.layer_norm_epsilon, dtype=dtype, rngs=rngs)

        self.attention_norm = norm()
        self.attention = attention.Attention(
            width,
            config.num_heads,
            inner_dim=config.num_heads * config.d_kv,
            qkv_bias=False,
            out_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.feed_forward_norm = norm()
        if config.is_gated:
            self.wi_0, self.wi_1 = linear(width, config.d_ff), linear(width, config.d_ff)
        else:
            self.wi = linear(width, config.d_ff)
        self.wo = linear(config.d_ff, width)

    def __call__(self, x: Array, bias: Array) -> jax.Array:
        """Maps [B, L, D] to [B, L, D]; bias float32[B, heads, L, L] includes the mask."""
        x = x + self.attention(self.attention_norm(x), bias=bias, scale=1.0)
        return x + self._feed_forward(self.feed_forward_norm(x))

    def _feed_forward(self, x: Array) -> jax.Array:
        activation = linear_lib.ACTIVATIONS[self.config.activation]
        if self.config.is_gated:
            return self.wo(activation(self.wi_0(x)) * self.wi_1(x))
        return self.wo(activation(self.wi(x)))


class T5Encoder(nnx.Module):
    """T5 encoder stack."""

    def __init__(self, config: T5EncoderConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.shared = nnx.Embed(config.vocab_size, config.d_model, dtype=dtype, rngs=rngs)
        # fp32: the bias is added to fp32 logits.
        self.relative_attention_bias = nnx.Embed(
            config.relative_attention_num_buckets, config.num_heads, rngs=rngs
        )
        self.block = stack.stack_blocks(
            lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.num_layers, rngs
        )
        self.final_layer_norm = nnx.RMSNorm(
            config.d_model, epsilon=config.layer_norm_epsilon, dtype=dtype, rngs=rngs
        )

    @typed
    def __call__(self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
        """Returns the hidden states; masked positions are computed but never attended."""
        config, positions = self.config, np.arange(ids.shape[1])
        buckets = relative_position_buckets(
            positions - positions[:, None],  # of the key, minus the query's
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        )
        position_bias = self.relative_attention_bias(buckets)  # [L, L, heads]
        bias = jnp.where(
            mask[:, None, None, :],
            jnp.moveaxis(position_bias, -1, 0)[None],
            jnp.finfo(jnp.float32).min,
        )
        x, _ = stack.scan_blocks(
            self.block, lambda block, carry, _: (block(carry, bias), None), self.shared(ids)
        )
        return self.final_layer_norm(x)


def relative_position_buckets(distance: np.ndarray, num_buckets: int, max_distance: int) -> Array:
    """Returns the bucket of each signed distance, int32 of the same shape.

    Half of the buckets are for keys behind, half for keys ahead; in each half the first ones hold
    one distance each and the rest grow logarithmically up to `max_distance`, beyond which all
    distances share the last (T5 paper, section 2.1).
    """
    half = num_buckets // 2
    exact = half // 2
    magnitude = np.abs(distance)
    # float32 as in the reference: the rounding decides on which side of a border a distance falls.
    ratio = np.log(np.maximum(magnitude, 1).astype(np.float32) / np.float32(exact))
    growth = (ratio / np.float32(math.log(max_distance / exact))) * np.float32(half - exact)
    far = np.minimum(exact + growth.astype(np.int32), half - 1)
    bucket = np.where(magnitude < exact, magnitude, far)
    return (bucket + np.where(distance > 0, half, 0)).astype(np.int32)
