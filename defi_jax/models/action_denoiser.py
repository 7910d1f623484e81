"""Action denoiser: noisy action chunk, noise level and context -> clean action chunk.

An encoder mixes the context (language goal, video tokens, latent-action tokens); a decoder of the
noisy actions, modulated by the noise level, attends to it. The context depends on neither actions
nor noise, so `encode_context` computes it, with the decoder's cross-attention keys and values, once
for all sampling steps.

Paper: action adapter of section 3.3. Reimplements `GCDenoiser` and `DiffusionTransformer` of the
official Step3_DeFI.

Deviations: the reference's unused parameters (`goal_emb`, `proprio_emb`, `pos_emb`) do not exist
here. Its cross-attention is causal from the top left, so that action i sees context tokens 0..i
only; `cross_attention="causal"` keeps that for its weights, "full" does not. `action_positions` and
`modulation_offset` are ours, for training from scratch (off in `full`).

Dim legend: B batch, S action-chunk length, A action dimension, M context tokens, D width, K
latent-action tokens, Dh width of a head.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from defi_jax.array_typing import Array, Float, PRNGKey, typed
from defi_jax.diffusion import edm, samplers
from defi_jax.models.layers import attention, norms, stack
from defi_jax.models.layers import linear as linear_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionDenoiserConfig:
    """Sizes, in the reference's names.

    Attributes:
        action_dim: A.
        action_horizon: S.
        observation_dim: width of the video tokens.
        goal_dim: width of the language goal.
        latent_action_dim: width of the latent-action tokens.
        embed_dim: D.
        encoder_layers: depth of the context encoder.
        decoder_layers: depth of the action decoder.
        heads: attention heads.
        num_tokens: video tokens; the reference sizes its unused `pos_emb` by it.
        sigma_data: standard deviation of clean actions (EDM).
        sigma_min: smallest noise level, in training and sampling.
        sigma_max: largest noise level.
        sampling_steps: DDIM steps.
        cross_attention: "causal" (needed by official weights) or "full".
        attn_dropout: share of attention weights that are dropped.
        resid_dropout: the same after attention's output projection.
        mlp_dropout: the same after the feed-forward's output projection.
        action_positions: learn a position embedding of the actions.
        init_std: standard deviation of initial kernels; None is 1 / sqrt(fan-in), which learns
            faster at small widths.
        modulation_offset: added to the modulation's scales; 1 makes it start as the identity.
        scan_unroll: layers per iteration of the layer loops.
        remat: what of each layer the backward pass recomputes, see `stack.rematerialised`.
    """

    action_dim: int
    action_horizon: int
    observation_dim: int
    goal_dim: int
    latent_action_dim: int
    embed_dim: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    num_tokens: int
    sigma_data: float = 0.5
    sigma_min: float = 0.001
    sigma_max: float = 80.0
    sampling_steps: int = 10
    cross_attention: Literal["causal", "full"] = "causal"
    attn_dropout: float = 0.3
    resid_dropout: float = 0.1
    mlp_dropout: float = 0.05
    action_positions: bool = False
    init_std: float | None = 0.02
    modulation_offset: float = 0.0
    scan_unroll: int = 1
    remat: stack.Remat = "none"

    def __post_init__(self):
        if self.embed_dim % self.heads:
            raise ValueError(f"embed_dim {self.embed_dim} is no multiple of {self.heads} heads")
        if self.embed_dim % 2:
            raise ValueError(f"embed_dim {self.embed_dim} is odd; the sigma embedding needs halves")
        if self.cross_attention not in ("causal", "full"):
            raise ValueError(f"cross_attention is {self.cross_attention!r}, not 'causal' or 'full'")


# Official Step3_DeFI configuration.
_FULL = ActionDenoiserConfig(
    action_dim=7,
    action_horizon=10,
    observation_dim=384,
    goal_dim=512,
    latent_action_dim=768,
    embed_dim=384,
    encoder_layers=4,
    decoder_layers=4,
    heads=8,
    num_tokens=224,
)

PRESETS: dict[str, ActionDenoiserConfig] = {
    "full": _FULL,
    "small": dataclasses.replace(
        _FULL, observation_dim=256, latent_action_dim=384, embed_dim=256, num_tokens=64
    ),
    "tiny": ActionDenoiserConfig(
        action_dim=4,
        action_horizon=10,
        observation_dim=96,
        goal_dim=64,
        latent_action_dim=64,
        embed_dim=96,
        encoder_layers=2,
        decoder_layers=3,
        heads=4,
        num_tokens=18,
        cross_attention="full",
        attn_dropout=0.0,
        resid_dropout=0.0,
        mlp_dropout=0.0,
        action_positions=True,
        init_std=None,
        modulation_offset=1.0,
        scan_unroll=3,
    ),
}


@flax.struct.dataclass
class DenoiserContext:
    """What the decoder needs of the observation.

    Attributes:
        memory: [B, M, D], encoded context; not read by the decoder, kept for inspection.
        keys: [layers, B, M', heads, Dh], cross-attention keys; M' is M, or min(S, M) when causal.
        values: cross-attention values, shaped as `keys`.
    """

    memory: jax.Array
    keys: jax.Array
    values: jax.Array


# Layers


def _attention(config: ActionDenoiserConfig, **options: Any) -> attention.Attention:
    """Multi-head attention; query, key and value with bias, output without."""
    return attention.Attention(
        config.embed_dim, config.heads, out_bias=False, linear=_linear(config), **options
    )


def _feed_forward(config: ActionDenoiserConfig, **options: Any) -> linear_lib.MLP:
    dim = config.embed_dim
    return linear_lib.MLP(dim, 4 * dim, dim, linear=_linear(config), use_bias=False, **options)


def _embedding(config: ActionDenoiserConfig, in_dim: int, **options: Any) -> linear_lib.MLP:
    """The reference's small embedders."""
    dim = config.embed_dim
    return linear_lib.MLP(in_dim, 2 * dim, dim, linear=_linear(config), **options)


class EncoderBlock(nnx.Module):
    """Pre-norm block over the context tokens, not causal."""

    def __init__(self, config: ActionDenoiserConfig, *, dtype: Any, rngs: nnx.Rngs):
        dim = config.embed_dim
        self.config = config
        self.ln_1 = norms.layer_norm(dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.attn = _attention(config, dtype=dtype, rngs=rngs)
        self.ln_2 = norms.layer_norm(dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.mlp = _feed_forward(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, rng: PRNGKey | None) -> jax.Array:
        """Maps [B, M, D] to the same shape."""
        attn_rng, resid_rng, mlp_rng = _split(rng, 3)
        h = self.ln_1(x)
        h = self.attn(h, dropout_rate=self.config.attn_dropout, dropout_rng=attn_rng)
        x = x + attention.dropout(h, self.config.resid_dropout, resid_rng)
        return x + attention.dropout(self.mlp(self.ln_2(x)), self.config.mlp_dropout, mlp_rng)


class DecoderBlock(nnx.Module):
    """Causal self-attention, cross-attention, feed-forward; sigma modulates the outer two."""

    def __init__(self, config: ActionDenoiserConfig, *, dtype: Any, rngs: nnx.Rngs):
        dim = config.embed_dim
        self.config = config
        self.ln_1 = norms.layer_norm(dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.attn = _attention(config, dtype=dtype, rngs=rngs)
        self.cross_att = _attention(config, dtype=dtype, rngs=rngs)
        self.ln3 = norms.layer_norm(dim, dtype=dtype, rngs=rngs)
        self.ln_2 = norms.layer_norm(dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.mlp = _feed_forward(config, dtype=dtype, rngs=rngs)
        self.modulation = _linear(config)(dim, 6 * dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Array, condition: Array, keys: Array, values: Array, rng: PRNGKey | None
    ) -> jax.Array:
        """Maps [B, S, D] to the same shape, given the sigma embedding [B, 1, D]."""
        rates = self.config
        rngs = _split(rng, 5)
        modulation = jnp.split(self.modulation(jax.nn.silu(condition)), 6, axis=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
        h = shift_1 + (rates.modulation_offset + scale_1) * self.ln_1(x)
        h = self.attn(h, mask=_causal(h, h), dropout_rate=rates.attn_dropout, dropout_rng=rngs[0])
        x = x + gate_1 * attention.dropout(h, rates.resid_dropout, rngs[1])
        h = self.cross_att.read(
            self.ln3(x),
            keys,
            values,
            mask=_causal(x, keys) if rates.cross_attention == "causal" else None,
            dropout_rate=rates.attn_dropout,
            dropout_rng=rngs[2],
        )
        x = x + attention.dropout(h, rates.resid_dropout, rngs[3])
        h = self.mlp(shift_2 + (rates.modulation_offset + scale_2) * self.ln_2(x))
        return x + gate_2 * attention.dropout(h, rates.mlp_dropout, rngs[4])


# Denoiser


class ActionDenoiser(nnx.Module):
    """EDM-preconditioned diffusion transformer over action chunks."""

    def __init__(self, config: ActionDenoiserConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        dim, linear = config.embed_dim, _linear(config)
        options = {"dtype": dtype, "rngs": rngs}
        self.config, self.dtype = config, dtype
        self.tok_emb = linear(config.observation_dim, dim, **options)
        self.tok_emb_token = linear(config.latent_action_dim, dim, **options)
        self.lang_emb = _embedding(config, config.goal_dim, **options)
        # fp32: neighbouring noise levels must not round to one embedding.
        self.sigma_emb = _embedding(
            config, dim, activation=jax.nn.mish, dtype=jnp.float32, rngs=rngs
        )
        self.action_emb = linear(config.action_dim, dim, **options)
        self.action_pred = linear(dim, config.action_dim, **options)
        self.encoder_blocks = stack.stack_blocks(
            lambda rngs: EncoderBlock(config, dtype=dtype, rngs=rngs), config.encoder_layers, rngs
        )
        self.encoder_ln = norms.layer_norm(dim, use_bias=False, **options)
        self.decoder_blocks = stack.stack_blocks(
            lambda rngs: DecoderBlock(config, dtype=dtype, rngs=rngs), config.decoder_layers, rngs
        )
        self.decoder_ln = norms.layer_norm(dim, use_bias=False, **options)
        positions = 0.02 * jax.random.normal(rngs.params(), (config.action_horizon, dim))
        self.action_pos_emb = nnx.Param(positions) if config.action_positions else None

    @property
    def preconditioner(self) -> edm.Preconditioner:
        """EDM scalings of this denoiser."""
        return edm.Preconditioner(self.config.sigma_data)

    @typed
    def encode_context(
        self,
        latent_action_tokens: Float[Array, "B K Dl"],
        video_tokens: Float[Array, "B N Dv"],
        goal: Float[Array, "B 1 Dg"],
        *,
        dropout_rng: PRNGKey | None = None,
    ) -> DenoiserContext:
        """Encodes [goal | video tokens | latent-action tokens] and the decoder's keys and values.

        Args:
            latent_action_tokens: at the GIDM's model width.
            video_tokens: the Video Former's output.
            goal: pooled features of the instruction.
            dropout_rng: None for no dropout.
        """
        tokens = [
            self.lang_emb(goal),
            self.tok_emb(video_tokens),
            self.tok_emb_token(latent_action_tokens),
        ]
        memory, _ = stack.scan_blocks(
            self.encoder_blocks,
            lambda block, x, rng: (block(x, rng), None),
            jnp.concatenate(tokens, axis=1),
            _split_array(dropout_rng, self.config.encoder_layers),
            **self._scan_options,
        )
        memory = self.encoder_ln(memory)
        # Causal queries never reach past token S - 1: leave the other keys out.
        is_causal = self.config.cross_attention == "causal"
        reachable = memory[:, : self.config.action_horizon] if is_causal else memory
        _, (keys, values) = stack.scan_blocks(
            self.decoder_blocks,
            lambda block, carry, _: (carry, block.cross_att.keys_values(reachable)),
            None,
            unroll=self.config.scan_unroll,
        )
        return DenoiserContext(memory=memory, keys=keys, values=values)

    @typed
    def predict(
        self,
        context: DenoiserContext,
        actions: Float[Array, "B S A"],
        sigma: Float[Array, "B"],
        *,
        dropout_rng: PRNGKey | None = None,
    ) -> Float[Array, "B S A"]:
        """Returns the raw network's output in fp32, for actions already scaled by c_in.

        Args:
            context: what `encode_context` returned.
            actions: c_in * noisy actions.
            sigma: noise levels.
            dropout_rng: None for no dropout.
        """
        condition = self.embed_sigma(sigma).astype(self.dtype)
        x = self.action_emb(actions.astype(self.dtype))
        if self.action_pos_emb is not None:
            x = x + self.action_pos_emb.get_value().astype(self.dtype)

        def apply(block: DecoderBlock, x: Array, inputs: Any) -> tuple[jax.Array, None]:
            keys, values, rng = inputs
            return block(x, condition, keys, values, rng), None

        rngs = _split_array(dropout_rng, self.config.decoder_layers)
        inputs = (context.keys, context.values, rngs)
        x, _ = stack.scan_blocks(self.decoder_blocks, apply, x, inputs, **self._scan_options)
        return self.action_pred(self.decoder_ln(x)).astype(jnp.float32)

    @typed
    def denoise(
        self, context: DenoiserContext, actions: Float[Array, "B S A"], sigma: Float[Array, "B"]
    ) -> Float[Array, "B S A"]:
        """Returns D(actions; sigma), the estimate of the clean actions, in fp32."""
        c_skip, c_out, c_in, _ = self.preconditioner.scalings(
            sigma.astype(jnp.float32)[:, None, None]
        )
        actions = actions.astype(jnp.float32)
        return c_out * self.predict(context, c_in * actions, sigma) + c_skip * actions

    @typed
    def loss(
        self,
        context: DenoiserContext,
        actions: Float[Array, "B S A"],
        weights: Float[Array, "B S"],
        sigma: Float[Array, "B"],
        noise: Float[Array, "B S A"],
        *,
        dropout_rng: PRNGKey | None = None,
    ) -> Float[Array, ""]:
        """Returns the weighted mean squared error of the raw network's output.

        Args:
            context: what `encode_context` returned.
            actions: clean, normalised.
            weights: of each action's error, 0 past the end of the episode; their mean is 1 over the
                batch of the step, of which this may be a part.
            sigma: noise level of each sample.
            noise: unit normal.
            dropout_rng: None for no dropout; not the one given to `encode_context`.
        """
        column = sigma[:, None, None]
        noised = actions + column * noise
        target = self.preconditioner.target(actions, noised, column)
        _, _, c_in, _ = self.preconditioner.scalings(column)
        predicted = self.predict(context, c_in * noised, sigma, dropout_rng=dropout_rng)
        squares = jnp.square(predicted - target).mean(-1)
        return jnp.mean(weights * squares)

    def sample(
        self, context: DenoiserContext, x_init: Float[Array, "B S A"], sigmas: Float[Array, "n"]
    ) -> jax.Array:
        """Returns actions [B, S, A] by DDIM, the context being encoded before the loop.

        Args:
            context: what `encode_context` returned.
            x_init: normal noise of standard deviation sigmas[0].
            sigmas: decreasing noise levels, the last one 0.
        """

        def denoise(x: Array, sigma: Array) -> jax.Array:
            return self.denoise(context, x, jnp.broadcast_to(sigma, x.shape[:1]))

        return samplers.ddim(denoise, x_init, sigmas)

    def embed_sigma(self, sigma: Float[Array, "B"]) -> jax.Array:
        """Returns the fp32 embedding [B, 1, D] of the noise levels, through ln(sigma) / 4."""
        half = self.config.embed_dim // 2
        # The last frequency is exactly 1e-4: the reference divides by half - 1.
        frequencies = np.exp(-np.arange(half) * (math.log(1e4) / (half - 1))).astype(np.float32)
        angles = jnp.log(sigma.astype(jnp.float32))[:, None, None] / 4 * frequencies
        return self.sigma_emb(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1))

    @property
    def _scan_options(self) -> dict[str, Any]:
        return {"unroll": self.config.scan_unroll, "remat": self.config.remat}


def _linear(config: ActionDenoiserConfig) -> Callable[..., nnx.Linear]:
    """Linear layers with kernels N(0, init_std) and zero biases."""
    init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
    if config.init_std is not None:
        init = nnx.initializers.normal(config.init_std)
    return functools.partial(linear_lib.linear, kernel_init=init)


def _causal(queries: Array, keys: Array) -> np.ndarray:
    """bool[Q, M], aligned at the top left: query i sees keys 0..i, whatever Q and M are."""
    return np.tril(np.ones((queries.shape[1], keys.shape[1]), bool))


def _split(rng: PRNGKey | None, num: int) -> Any:
    """Returns `num` children of a key, or as many Nones."""
    return [None] * num if rng is None else jax.random.split(rng, num)


def _split_array(rng: PRNGKey | None, num: int) -> jax.Array | None:
    """Returns an array of `num` children of a key, or None."""
    return None if rng is None else jax.random.split(rng, num)
