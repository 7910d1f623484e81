"""CLIP text tower: token ids [B, L] -> hidden states [B, L, D] and one embedding a text [B, Dp].

One module for both releases DeFI uses, which differ in names and in what is read, not in maths: the
Hugging Face ViT-B/32 (all hidden states condition the video model, spec 1.3) and OpenAI's ViT-B/32
(the projected end token is the policy's goal, spec 3.6). Mirrors transformers `CLIPTextModel
WithProjection` and OpenAI `clip/model.py: CLIP.encode_text`.

B batch, L language tokens, D width, Dp projection width.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax import errors
from defi_jax.array_typing import Array, Bool, Int, typed
from defi_jax.models.layers import attention, norms, stack
from defi_jax.models.layers import linear as linear_lib

# transformers keeps an old meaning for this id: pool at the largest id instead of the first end
# token (the published config.json says 2 although the end token is 49407).
_LEGACY_EOS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Numbers of the tower, under the names of transformers' `CLIPTextConfig`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    projection_dim: int
    max_position_embeddings: int
    hidden_act: str
    layer_norm_eps: float
    eos_token_id: int

    def __post_init__(self) -> None:
        if self.hidden_act not in linear_lib.ACTIVATIONS:
            raise errors.UserError(
                f"unknown hidden_act {self.hidden_act!r}",
                "clip_text",
                f"known: {', '.join(linear_lib.ACTIVATIONS)}",
            )
        if self.hidden_size % self.num_attention_heads:
            raise errors.UserError(
                f"hidden_size {self.hidden_size} is not a multiple of the heads", "clip_text"
            )


_VIT_B_32 = CLIPTextConfig(
    vocab_size=49408,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    projection_dim=512,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    eos_token_id=49407,
)

# openai/clip-vit-base-patch32 (Hugging Face) and OpenAI's ViT-B-32.pt: the same numbers.
PRESETS = {"full": _VIT_B_32}


@flax.struct.dataclass
class CLIPTextOutput:
    """Outputs of `CLIPText`.

    Attributes:
        last_hidden_state: float[B, L, D], after the final layer norm.
        text_embeds: float[B, Dp], the end token's state, projected, not normalised.
    """

    last_hidden_state: jax.Array
    text_embeds: jax.Array


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: CLIPTextConfig, *, dtype: Any, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, config.intermediate_size
        eps = config.layer_norm_eps
        options = {"dtype": dtype, "rngs": rngs}
        self.self_attn = attention.Attention(width, config.num_attention_heads, **options)
        self.layer_norm1 = norms.layer_norm(width, epsilon=eps, **options)
        activation = linear_lib.ACTIVATIONS[config.hidden_act]
        self.mlp = linear_lib.MLP(width, hidden, width, activation=activation, **options)
        self.layer_norm2 = norms.layer_norm(width, epsilon=eps, **options)

    def __call__(self, x: Array, mask: Array) -> jax.Array:
        """Maps [B, L, D] to [B, L, D]; mask broadcasts to [B, heads, L, L]."""
        x = x + self.self_attn(self.layer_norm1(x), mask=mask)
        return x + self.mlp(self.layer_norm2(x))


class CLIPText(nnx.Module):
    """CLIP text tower with its projection."""

    def __init__(self, config: CLIPTextConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        width = config.hidden_size
        init = nnx.initializers.normal(0.02)
        self.token_embedding = nnx.Embed(
            config.vocab_size, width, embedding_init=init, dtype=dtype, rngs=rngs
        )
        self.position_embedding = nnx.Embed(
            config.max_position_embeddings, width, embedding_init=init, dtype=dtype, rngs=rngs
        )
        self.layers = stack.stack_blocks(
            lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.num_hidden_layers, rngs
        )
        self.final_layer_norm = norms.layer_norm(
            width, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs
        )
        self.text_projection = linear_lib.linear(
            width, config.projection_dim, use_bias=False, dtype=dtype, rngs=rngs
        )

    @typed
    def __call__(
        self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None
    ) -> CLIPTextOutput:
        """Encodes texts.

        Args:
            ids: token ids, starting with the start token.
            mask: True for tokens that may be attended beside the causal rule; None for all.

        Returns:
            Hidden states and the projected state of the end token.

        Raises:
            UserError: more tokens than the tower has positions.
        """
        length = ids.shape[1]
        if length > self.config.max_position_embeddings:
            raise errors.UserError(
                f"{length} tokens, but {self.config.max_position_embeddings} positions", "clip_text"
            )
        x = self.token_embedding(ids) + self.position_embedding(jnp.arange(length))
        allowed = jnp.tril(jnp.ones((length, length), bool))[None, None]
        if mask is not None:
            allowed = allowed & mask[:, None, None, :]
        x, _ = stack.scan_blocks(
            self.layers, lambda block, carry, _: (block(carry, allowed), None), x
        )
        hidden = self.final_layer_norm(x)
        pooled = jnp.take_along_axis(hidden, self._end_position(ids)[:, None, None], axis=1)[:, 0]
        return CLIPTextOutput(last_hidden_state=hidden, text_embeds=self.text_projection(pooled))

    def _end_position(self, ids: Array) -> jax.Array:
        """int[B]: the first end token."""
        if self.config.eos_token_id == _LEGACY_EOS:
            return jnp.argmax(ids, axis=-1)
        return jnp.argmax(ids == self.config.eos_token_id, axis=-1)
