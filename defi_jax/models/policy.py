"""Joint policy, from the forward model's features on: features, text, goal -> action chunk.

    static frames {first, future} -> goal_emb + time_pos_emb -> latent-action encoder and VQ
    all cameras, all frames -> Video Former -> video tokens
    goal, video tokens, latent-action tokens -> action denoiser -> S actions

Paper: section 3.3. Reimplements `VPP_Policy` of the official Step3_DeFI after its feature
extractor; one to N cameras, camera 0 being the static one that the inverse dynamics model sees.

Dim legend: B batch, T frames, h w C grid and channels of the features, L language tokens, K
latent-action tokens, S action-chunk length, A action dimension.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax.array_typing import Array, Bool, Float, PRNGKey, typed
from defi_jax.diffusion import schedules
from defi_jax.models import action_denoiser, gidm, latent_action, video_former
from defi_jax.models.layers import linear as linear_lib

_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Configs of the parts and what joins them.

    Attributes:
        video_former: config of the Video Former; its condition_dim is C.
        gidm: config of the latent-action model (a GIDMConfig's decoder is ignored).
        denoiser: config of the action denoiser.
        condition_frames: the two predicted frames between which the latent action is inferred.
        codebook_weight: weight of the codebook loss.
        commitment_weight: weight of the commitment loss.
        normalize_features: whether each feature vector is brought to mean 0 and variance 1 first.
            The reference does not; activations of a UNet trained from scratch have uneven scales.
    """

    video_former: video_former.VideoFormerConfig
    gidm: latent_action.LatentActionConfig
    denoiser: action_denoiser.ActionDenoiserConfig
    condition_frames: tuple[int, int]
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    normalize_features: bool = False

    def __post_init__(self):
        pairs = {
            "denoiser.observation_dim": (self.denoiser.observation_dim, self.video_former.dim),
            "denoiser.latent_action_dim": (self.denoiser.latent_action_dim, self.gidm.model_dim),
            "denoiser.num_tokens": (self.denoiser.num_tokens, self.video_former.num_latents),
        }
        for name, (have, need) in pairs.items():
            if have != need:
                raise ValueError(f"{name} is {have}, but the part before it puts out {need}")
        if not 0 <= min(self.condition_frames) <= max(self.condition_frames) < self.num_frames:
            raise ValueError(
                f"condition_frames {self.condition_frames} are not among {self.num_frames} frames"
            )

    @property
    def num_frames(self) -> int:
        """T."""
        return self.video_former.num_frames


# full: official Step3_DeFI configuration; its features are 16 frames of 16 x 16 x 2560.
PRESETS: dict[str, PolicyConfig] = {
    name: PolicyConfig(
        video_former=video_former.PRESETS[name],
        gidm=gidm.PRESETS[name],
        denoiser=action_denoiser.PRESETS[name],
        condition_frames=condition_frames,
        normalize_features=name == "tiny",
    )
    for name, condition_frames in {"full": (0, 5), "small": (0, 5), "tiny": (0, 1)}.items()
}


@flax.struct.dataclass
class Observation:
    """What is seen, the instruction's goal left out.

    Attributes:
        video_tokens: [B, N, D] of the Video Former.
        latent_action: tokens, z_e, indices and VQ losses.
    """

    video_tokens: jax.Array
    latent_action: latent_action.LatentActionOutput


@flax.struct.dataclass
class PolicyContext(Observation):
    """Everything inferred from one observation.

    Attributes:
        denoiser: what the action denoiser needs.
    """

    denoiser: action_denoiser.DenoiserContext


@flax.struct.dataclass
class PolicyLoss:
    """Loss of the joint stage and its terms, all fp32 scalars.

    Attributes:
        total: act_loss + codebook_weight * codebook_loss + commitment_weight * commitment_loss.
        act_loss: mean squared error of the network's output over real actions.
        codebook_loss: pulls the codes towards the encoder's outputs.
        commitment_loss: pulls the encoder's outputs towards their codes.
    """

    total: jax.Array
    act_loss: jax.Array
    codebook_loss: jax.Array
    commitment_loss: jax.Array


class Policy(nnx.Module):
    """Adapter from predicted-video features to actions."""

    def __init__(self, config: PolicyConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype, options = config, dtype, {"dtype": dtype, "rngs": rngs}
        condition_dim, dim = config.video_former.condition_dim, config.gidm.feature_dim
        self.goal_emb = linear_lib.MLP(
            condition_dim, dim, dim, linear=linear_lib.torch_linear, **options
        )
        self.time_pos_emb = nnx.Param(jax.random.normal(rngs.params(), (2, 1, dim)))
        self.latent_action = latent_action.LatentActionModel(config.gidm, **options)
        self.video_former = video_former.VideoFormer(config.video_former, **options)
        self.denoiser = action_denoiser.ActionDenoiser(config.denoiser, **options)

    @typed
    def context(
        self,
        features: Float[Array, "B cams T h w C"],
        text: Float[Array, "B L Dt"],
        text_mask: Bool[Array, "B L"],
        goal: Float[Array, "B *one Dg"],
        *,
        dropout_rng: PRNGKey | None = None,
    ) -> PolicyContext:
        """Encodes an observation once, for the loss or for all sampling steps.

        Args:
            features: the forward model's; camera 0 is the static one.
            text: features of the instruction for the latent-action encoder.
            text_mask: False for padding.
            goal: pooled features of the instruction.
            dropout_rng: None for no dropout.
        """
        seen = self.observe(features, text, text_mask)
        return self.add_goal(seen, goal, dropout_rng=dropout_rng)

    def observe(
        self,
        features: Float[Array, "B cams T h w C"],
        text: Float[Array, "B L Dt"],
        text_mask: Bool[Array, "B L"],
    ) -> Observation:
        """The part of `context` that computes each example alone, without dropout."""
        if self.config.normalize_features:
            features = _standardize(features)
        features = features.astype(self.dtype)
        batch_size, _, num_frames, height, width, channels = features.shape
        pair = features[:, 0, jnp.asarray(self.config.condition_frames)]
        pair = self.goal_emb(pair.reshape(batch_size, 2, height * width, channels))
        pair = pair + self.time_pos_emb.get_value().astype(self.dtype)
        latent = self.latent_action(pair, text.astype(self.dtype), text_mask)
        # Tokens of a frame: all of camera 0, then all of camera 1, ...
        by_frame = jnp.moveaxis(features, 1, 2).reshape(batch_size, num_frames, -1, channels)
        return Observation(video_tokens=self.video_former(by_frame), latent_action=latent)

    def add_goal(
        self,
        seen: Observation,
        goal: Float[Array, "B *one Dg"],
        *,
        dropout_rng: PRNGKey | None = None,
    ) -> PolicyContext:
        """The other part of `context`.

        Args:
            seen: what `observe` returned.
            goal: [B, Dg] or [B, 1, Dg] pooled features of the instruction.
            dropout_rng: None for no dropout.
        """
        goal = goal.reshape(goal.shape[0], 1, goal.shape[-1]).astype(self.dtype)
        video, latent = seen.video_tokens, seen.latent_action
        denoiser = self.denoiser.encode_context(latent.tokens, video, goal, dropout_rng=dropout_rng)
        return PolicyContext(video_tokens=video, latent_action=latent, denoiser=denoiser)

    @typed
    def loss(
        self,
        context: PolicyContext,
        actions: Float[Array, "B S A"],
        weights: Float[Array, "B S"],
        sigma: Float[Array, "B"],
        noise: Float[Array, "B S A"],
        *,
        dropout_rng: PRNGKey | None = None,
    ) -> PolicyLoss:
        """Returns the denoising loss of clean actions noised by sigma * noise, plus the VQ terms.

        Args:
            context: what `context` returned.
            actions: clean, normalised.
            weights: of each action's error, 0 past the end of the episode, of mean 1.
            sigma: noise level of each sample.
            noise: unit normal.
            dropout_rng: None for no dropout; not the one given to `context`.
        """
        act_loss = self.denoiser.loss(
            context.denoiser, actions, weights, sigma, noise, dropout_rng=dropout_rng
        )
        vq = context.latent_action.vq
        return PolicyLoss(
            total=act_loss
            + self.config.codebook_weight * vq.codebook_loss
            + self.config.commitment_weight * vq.commitment_loss,
            act_loss=act_loss,
            codebook_loss=vq.codebook_loss,
            commitment_loss=vq.commitment_loss,
        )

    def sample(
        self, context: PolicyContext, noise: Float[Array, "B S A"], num_steps: int | None = None
    ) -> jax.Array:
        """Returns actions [B, S, A] by DDIM from unit-normal `noise`.

        Args:
            context: what `context` returned, encoded before, outside of the sampling loop.
            noise: unit normal; scaled by sigma_max here.
            num_steps: DDIM steps; None for the config's.
        """
        config = self.config.denoiser
        sigmas = schedules.exponential(
            config.sampling_steps if num_steps is None else num_steps,
            config.sigma_min,
            config.sigma_max,
        )
        return self.denoiser.sample(context.denoiser, noise * config.sigma_max, sigmas)


def _standardize(features: Array) -> jax.Array:
    """Layer norm over C without parameters, in fp32."""
    features = features.astype(jnp.float32)
    features = features - features.mean(axis=-1, keepdims=True)
    variance = jnp.square(features).mean(axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(variance + _NORM_EPSILON)
