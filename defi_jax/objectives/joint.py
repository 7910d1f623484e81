"""Joint objective: one GFDM step's features, the GIDM encoder and a diffusion policy, together.

With images of N cameras, an instruction and the actions a that follow (official `VPP_policy.py`):

    (1) features = GFDM(first denoising step | camera image, text), per camera
    (2) context  = Video Former(features), latent action(frames 0 and f of camera 0), language goal
    (3) loss     = denoising loss of a given the context + codebook loss + w * commitment loss

`train_parts` says which parts train beside the adapter (Video Former, feature projections, action
denoiser): "adapter", "gfdm+adapter", "gidm+adapter" (DeFI's choice) or "all". What does not train
gets no gradient. The codebook is never restarted here, as in the official release.

With `cache_features` the features (1) of a frozen, deterministic GFDM come with the batch.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax import batch as batch_lib
from defi_jax import embodiment, errors, partition
from defi_jax.array_typing import Params, PRNGKey
from defi_jax.diffusion import edm
from defi_jax.models import gfdm, policy
from defi_jax.models import params as params_lib
from defi_jax.objectives import base, host, setup

# train_parts -> prefixes of the parameters that train beside the adapter's.
TRAIN_PARTS = {
    "adapter": (),
    "gfdm+adapter": ("gfdm/",),
    "gidm+adapter": ("policy/latent_action/",),
    "all": ("gfdm/", "policy/latent_action/"),
}

_MAX_FLOAT16 = 65504.0


class JointObjective(base.FeatureObjective):
    """Stage 3; parameters under "gfdm" and "policy", frozen encoders under "encoders"."""

    name = "joint"

    def __init__(self, config: Any):
        if not 1 <= config.execute_horizon <= config.data.action_horizon:
            raise errors.UserError(
                f"{config.execute_horizon} actions of chunks of {config.data.action_horizon}",
                "--config.execute_horizon",
                "give 1 to --config.data.action_horizon",
            )
        # Another robot could be trained, but not exported.
        self.robot = embodiment.get(config.embodiment, config.data.action_dim).name
        if config.cache_features:
            _check_constant_features(config)
        self.config = config
        self.caches_features = config.cache_features
        self.latents = setup.latent_encoder(config)
        self.texts = {role: setup.text_encoder(config, role) for role in ("gfdm", "gidm", "goal")}
        self.gfdm_config = setup.gfdm_config(config.model.gfdm, self.latents, self.texts["gfdm"])
        self.policy_config = setup.policy_config(config, self.gfdm_config, self.texts)
        dtype = jnp.dtype(config.compute_dtype)
        texts = {f"{role}_text": encoder for role, encoder in self.texts.items()}
        self.encoders = {"latents": self.latents, **texts}
        self.modules = {
            "gfdm": lambda rngs: gfdm.GFDM(self.gfdm_config, dtype=dtype, rngs=rngs),
            "policy": lambda rngs: policy.Policy(self.policy_config, dtype=dtype, rngs=rngs),
        }
        self._sample = jax.jit(self.sample_actions)
        self._sample_from_features = jax.jit(self._actions)

    def batch_spec(self, batch_size: int) -> batch_lib.JointBatch:
        """Abstract batch, with features instead of images where they are cached."""
        spec = self.pixel_batch_spec(batch_size)
        if not self.caches_features:
            return spec
        shape = self.gfdm_config.feature_shape(self._latent_side())
        shape = (batch_size, len(self.config.data.cameras), *shape)
        return dataclasses.replace(
            spec, images=None, features=jax.ShapeDtypeStruct(shape, jnp.float16)
        )

    def pixel_batch_spec(self, batch_size: int) -> batch_lib.JointBatch:
        """Abstract batch with images."""
        data, denoiser = self.config.data, self.policy_config.denoiser
        size = (len(data.cameras), data.image_size, data.image_size, 3)
        chunk = (batch_size, denoiser.action_horizon)
        return batch_lib.JointBatch(
            images=jax.ShapeDtypeStruct((batch_size, *size), jnp.uint8),
            text={
                role: batch_lib.tokens_spec(batch_size, encoder.tokenizer.text.length)
                for role, encoder in self.texts.items()
            },
            actions=jax.ShapeDtypeStruct((*chunk, denoiser.action_dim), jnp.float32),
            action_mask=jax.ShapeDtypeStruct(chunk, jnp.bool_),
        )

    def is_trainable(self, path: str) -> bool:
        """The adapter, and what `train_parts` adds."""
        if path.startswith(TRAIN_PARTS[self.config.train_parts]):
            return True
        return path.startswith("policy/") and not path.startswith("policy/latent_action/")

    def weigh(self, batch: batch_lib.JointBatch) -> batch_lib.JointBatch:
        """Each real action of the batch weighs the same, wherever a microbatch has it."""
        if batch.action_weights is not None:
            return batch
        real = batch.action_mask.astype(jnp.float32)
        # A batch of padding only has loss 0, not NaN.
        weights = real / jnp.maximum(real.mean(), 1 / real.size)
        return dataclasses.replace(batch, action_weights=weights)

    def loss_fn(
        self, params: Params, extra: dict, batch: batch_lib.JointBatch, rng: PRNGKey
    ) -> tuple[jax.Array, base.LossOutput]:
        """Equation (3)."""
        video_rng, sigma_rng, eps_rng, context_rng, dropout_rng = jax.random.split(rng, 5)
        batch, batch_size = self.weigh(batch), len(batch.actions)
        features = batch.features
        if features is None:
            noise = jax.random.normal(video_rng, (batch_size, *self.noise_shapes()["video"]))
            features = self._features(params, batch.images, batch.text, noise)
        # Its dropout draws masks for the whole batch, so that no mesh changes them.
        whole = {"denoiser": partition.gathered(params["policy"]["denoiser"])}
        model = params_lib.bind(self.modules["policy"], params["policy"] | whole)
        context = self._context(params, model, features, batch.text, context_rng)
        denoiser, draws = self.policy_config.denoiser, self.config.noise_draws
        sigma = edm.sample_sigma_loglogistic(
            sigma_rng,
            (draws, batch_size),
            denoiser.sigma_data,
            denoiser.sigma_min,
            denoiser.sigma_max,
        )
        eps = jax.random.normal(eps_rng, (draws, *batch.actions.shape))
        # The context costs most; several noise draws share it.
        losses = jax.vmap(
            lambda sigma, eps, rng: model.loss(
                context, batch.actions, batch.action_weights, sigma, eps, dropout_rng=rng
            )
        )(sigma, eps, jax.random.split(dropout_rng, draws))
        loss = jax.tree.map(jnp.mean, losses)
        metrics = {
            "loss": loss.total,
            "action": loss.act_loss,
            "commitment": loss.commitment_loss,
        }
        return loss.total, base.LossOutput(metrics=metrics, extra=extra)

    def evaluate(self, params: Params, batches: Iterable[Any], rng: PRNGKey) -> base.EvalOutput:
        """Error of sampled actions on held-out episodes, per dimension, in normalised units."""
        absolute, squared, real = [], [], []
        for index, batch in enumerate(batches):
            noise = self.draw_noise(len(batch.actions), jax.random.fold_in(rng, index))
            if batch.features is None:
                actions = self._sample(params, batch.images, batch.text, noise)
            else:
                actions = self._sample_from_features(
                    params, batch.features, batch.text, noise["actions"]
                )
            actions, true, known = host.fetch((actions, batch.actions, batch.action_mask))
            error = actions - true
            real.append(known)
            absolute.append(np.abs(error))
            squared.append(np.square(error))
        known = np.concatenate(real)
        mae = np.concatenate(absolute)[known].mean(axis=0)
        scalars = {"action_mse": float(np.concatenate(squared)[known].mean())}
        scalars["action_mae"] = float(mae.mean())
        scalars |= {f"action_mae/dim{i}": float(value) for i, value in enumerate(mae)}
        return base.EvalOutput(scalars=scalars)

    def warm_starts(self) -> list[base.WarmStart]:
        """Frozen encoders' weights, stage 1 into the GFDM, stage 2 into the latent-action model."""
        return [
            *super().warm_starts(),
            *setup.stage(self.config, "gfdm", "gfdm", "gfdm", self.gfdm_config.unet),
            *setup.stage(self.config, "gidm", "gidm/latent_action", "policy/latent_action"),
        ]

    def describe(self) -> dict[str, Any]:
        """Facts for checkpoints."""
        return {**super().describe(), "train_parts": self.config.train_parts}

    # Features computed once; see base.FeatureObjective.

    def feature_params(self, params: Params) -> Params:
        """The forward model and the encoders of its inputs."""
        flat = params_lib.flatten(params)
        prefixes = ("gfdm/", "encoders/latents/", "encoders/gfdm_text/")
        used = {path: leaf for path, leaf in flat.items() if path.startswith(prefixes)}
        return params_lib.unflatten(used)

    def feature_facts(self) -> dict[str, Any]:
        """What features depend on beside parameters and batch."""
        return {
            "gfdm": dataclasses.asdict(self.gfdm_config),
            "encoders": self.config.encoders.to_dict(),
            "compute_dtype": self.config.compute_dtype,
        }

    def precompute_features(self, params: Params, batch: batch_lib.JointBatch) -> jax.Array:
        """Equation (1) for a batch with images, float16[B, cams, T, h, w, C]."""
        assert batch.images is not None
        noise = jnp.zeros((len(batch.images), *self.noise_shapes()["video"]))  # its scale is 0
        features = self._features(params, batch.images, batch.text, noise)
        return features.astype(jnp.float16)

    # Sampling; export and rollouts go through `sample_actions`.

    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each noise of one example: of the videos [cams, T, h, w, c], actions [S, A]."""
        side, denoiser = self._latent_side(), self.policy_config.denoiser
        cameras, frames = len(self.config.data.cameras), self.gfdm_config.num_frames
        return {
            "video": (cameras, frames, side, side, self.latents.channels),
            "actions": (denoiser.action_horizon, denoiser.action_dim),
        }

    def draw_noise(self, batch_size: int, rng: PRNGKey) -> dict[str, jax.Array]:
        """Unit noise for `sample_actions`."""
        return {
            name: jax.random.normal(noise_rng, (batch_size, *shape))
            for noise_rng, (name, shape) in zip(
                jax.random.split(rng), self.noise_shapes().items(), strict=True
            )
        }

    def sample_actions(
        self,
        params: Params,
        images: jax.Array,
        text: dict[str, batch_lib.TextTokens],
        noise: dict[str, jax.Array],
    ) -> jax.Array:
        """Observation -> normalised actions, float32[B, S, A].

        Args:
            params: all parameters of the objective.
            images: uint8[B, cams, H, W, 3].
            text: tokens by role.
            noise: what `draw_noise` returned.
        """
        features = self._features(params, images, text, noise["video"])
        return self._actions(params, features, text, noise["actions"])

    def _actions(self, params, features, text, noise):
        """Samples actions for features, by DDIM from unit noise [B, S, A]."""
        model = params_lib.bind(self.modules["policy"], params["policy"])
        return model.sample(self._context(params, model, features, text, None), noise)

    def _latent_side(self) -> int:
        return self.config.data.image_size // self.latents.factor

    def _context(self, params, model, features, text, dropout_rng):
        """Equation (2), for features computed now or once."""
        instruction = self.encode_text(params, "gidm", text["gidm"])
        inputs = (features.astype(jnp.float32), instruction.tokens, instruction.mask)
        seen = self.apply(params, "policy", "observe", *inputs)
        goal = self.encode_text(params, "goal", text["goal"]).pooled
        return model.add_goal(seen, goal, dropout_rng=dropout_rng)

    def _features(self, params, images, text, noise):
        """Equation (1): [B, cams, T, h, w, C]; cameras are further examples of one batch."""
        batch, cameras = images.shape[:2]
        images = images.reshape(batch * cameras, *images.shape[2:])
        latents = self.encode(params, "latents", images)
        tokens = self.encode_text(params, "gfdm", text["gfdm"]).tokens
        per_camera = jnp.broadcast_to(tokens[:, None], (batch, cameras, *tokens.shape[1:]))
        features = self.apply(
            params,
            "gfdm",
            "features",
            noise.reshape(batch * cameras, *noise.shape[2:]),
            latents / self.latents.scale,
            per_camera.reshape(batch * cameras, *tokens.shape[1:]),
        )
        features = features.reshape(batch, cameras, *features.shape[1:])
        if "gfdm/" not in TRAIN_PARTS[self.config.train_parts]:
            features = jax.lax.stop_gradient(features)  # frozen: no backward pass through the UNet
        return _round_to_float16(features) if self.caches_features else features


def _round_to_float16(features: jax.Array) -> jax.Array:
    """Rounds to values that float16 holds, keeping the dtype, so that serving equals training.

    Not by casts to and fro: XLA may leave such a pair out.
    """
    features = jnp.clip(features, -_MAX_FLOAT16, _MAX_FLOAT16)
    return jax.lax.reduce_precision(features, exponent_bits=5, mantissa_bits=10)


def _check_constant_features(config: Any) -> None:
    """Raises UserError naming every key that makes features change from step to step."""
    noise_scale = config.model.gfdm.feature_noise_scale
    changing = {
        f"train_parts={config.train_parts}": "gfdm/" in TRAIN_PARTS[config.train_parts],
        f"model.gfdm.feature_noise_scale={noise_scale}": noise_scale != 0,
        "data.augment=True": config.data.augment,
    }
    found = [f"--config.{key}" for key, is_changing in changing.items() if is_changing]
    if found:
        raise errors.UserError(
            "cache_features=True needs features that stay the same",
            ", ".join(found),
            "change these, or give --config.cache_features=False",
        )
