"""Parity runners of the DeFI modules: official weights and inputs in, official outputs out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax import errors
from defi_jax.diffusion import schedules
from defi_jax.models import action_denoiser, gidm, latent_action, policy, video_former
from defi_jax.models import params as params_lib
from defi_jax.weights import fields as fields_lib
from defi_jax.weights.parity import runner as parity_runner
from defi_jax.weights.tables import gidm as gidm_table
from defi_jax.weights.tables import policy as policy_table

Arrays = parity_runner.Arrays

_ACTIONS = {"actions": "B S A", "sigma": "B", "noise": "B S A", "initial_actions": "B S A"}
_JOINT_INPUTS = {
    "text_features": "B L gidm.text_dim",
    "text_mask": "B L",
    "goal": "B ...",
    **_ACTIONS,
}
_CAMERAS = ("static_features", "gripper_features")
_FRAMES = "B video_former.num_frames video_former.condition_dim h w"


def run_gidm(config: Mapping[str, Any], params: Arrays, inputs: Arrays) -> dict[str, np.ndarray]:
    """Runs the GIDM on two frames' features.

    Args:
        config: fields of `GIDMConfig`; `mask_order` is the official "tiled" when absent.
        params: the reference's state dict, without its `lam.` prefix.
        inputs: frame_features [B, 2, N, Df], text_features [B, L, Dt], text_mask [B, L].

    Returns:
        encoder_codes, quantized, indices, reconstruction [B, 1, N, Df], reconstruction_mse and
        codebook_mse.

    Raises:
        UserError: unknown, missing or contradictory config fields.
        DataError: names or shapes that do not fit the config.
    """
    model_config = fields_lib.make_config(
        gidm.GIDMConfig, {"mask_order": "tiled", **config}, "gidm"
    )
    parity_runner.check_inputs(
        inputs,
        {
            "frame_features": "B 2 N feature_dim",
            "text_features": "B L text_dim",
            "text_mask": "B L",
        },
        model_config,
        "gidm",
    )

    def make(rngs):
        return gidm.GIDM(model_config, rngs=rngs)

    ours = parity_runner.import_params(
        make, gidm_table.entries(model_config), params, gidm_table.DROPPED, "gidm"
    )

    @jax.jit
    def forward(ours, features, text, text_mask):
        return params_lib.bind(make, ours)(features, text, text_mask)

    output = forward(
        ours,
        jnp.asarray(inputs["frame_features"]),
        jnp.asarray(inputs["text_features"]),
        jnp.asarray(inputs["text_mask"]) > 0,
    )
    return _to_numpy(
        {
            "encoder_codes": output.z_e,
            "quantized": output.z_q,
            "indices": output.indices,
            "reconstruction": output.recon[:, None],
            "reconstruction_mse": output.recon_loss,
            "codebook_mse": output.codebook_loss,
        }
    )


def run_video_former(
    config: Mapping[str, Any], params: Arrays, inputs: Arrays
) -> dict[str, np.ndarray]:
    """Runs the Video Former.

    Args:
        config: fields of `VideoFormerConfig`.
        params: the reference's state dict.
        inputs: features [B, T, N, C].

    Returns:
        tokens [B, num_latents, dim].

    Raises:
        UserError: unknown, missing or contradictory config fields.
        DataError: names or shapes that do not fit the config.
    """
    model_config = fields_lib.make_config(video_former.VideoFormerConfig, config, "video_former")
    parity_runner.check_inputs(
        inputs,
        {"features": "B num_frames N condition_dim"},
        model_config,
        "video_former",
    )

    def make(rngs):
        return video_former.VideoFormer(model_config, rngs=rngs)

    ours = parity_runner.import_params(
        make, policy_table.video_former_entries(model_config), params, (), "video_former"
    )
    tokens = jax.jit(lambda ours, x: params_lib.bind(make, ours)(x))(
        ours, jnp.asarray(inputs["features"])
    )
    return _to_numpy({"tokens": tokens})


def run_action_denoiser(
    config: Mapping[str, Any], params: Arrays, inputs: Arrays
) -> dict[str, np.ndarray]:
    """Runs the denoiser once, its loss, and its sampler.

    Args:
        config: fields of `ActionDenoiserConfig`.
        params: the reference's state dict, names starting with `inner_model.`.
        inputs: latent_action_tokens, video_tokens, goal, actions, sigma, noise, initial_actions.

    Returns:
        denoised, sigmas, sampled_actions, loss.

    Raises:
        UserError: unknown, missing or contradictory config fields.
        DataError: names or shapes that do not fit the config.
    """
    model_config = fields_lib.make_config(
        action_denoiser.ActionDenoiserConfig, config, "action_denoiser"
    )
    parity_runner.check_inputs(
        inputs,
        {
            "latent_action_tokens": "B K latent_action_dim",
            "video_tokens": "B N observation_dim",
            "goal": "B 1 goal_dim",
            **_ACTIONS,
        },
        model_config,
        "action_denoiser",
    )

    def make(rngs):
        return action_denoiser.ActionDenoiser(model_config, rngs=rngs)

    ours = parity_runner.import_params(
        make,
        policy_table.denoiser_entries(model_config),
        params,
        policy_table.DENOISER_DROPPED,
        "action_denoiser",
    )
    sigmas = _sampling_sigmas(model_config)

    @jax.jit
    def forward(ours, arrays):
        model = params_lib.bind(make, ours)
        context = model.encode_context(
            arrays["latent_action_tokens"], arrays["video_tokens"], arrays["goal"]
        )
        mask = jnp.ones(arrays["actions"].shape[:2], bool)
        return {
            "denoised": model.denoise(context, arrays["actions"], arrays["sigma"]),
            "loss": model.loss(context, arrays["actions"], mask, arrays["sigma"], arrays["noise"]),
            "sampled_actions": model.sample(context, arrays["initial_actions"], sigmas),
        }

    outputs = forward(ours, {name: jnp.asarray(value) for name, value in inputs.items()})
    return _to_numpy({**outputs, "sigmas": sigmas})


def run_joint_policy(
    config: Mapping[str, Any], params: Arrays, inputs: Arrays
) -> dict[str, np.ndarray]:
    """Runs the joint policy from the forward model's features on.

    Args:
        config: {video_former, denoiser, gidm, condition_frames}; the mask order is in gidm or on
            top, and the official "tiled" when absent.
        params: the reference's state dict without encoders.
        inputs: static_features, gripper_features or both [B, T, C, h, w], text_features, text_mask,
            goal, actions, sigma, noise, initial_actions.

    Returns:
        video_tokens, latent_action_indices, latent_action_tokens, sampled_actions, action_loss and
        codebook_mse.

    Raises:
        UserError: unknown, missing or contradictory config fields.
        DataError: names or shapes that do not fit the config.
    """
    model_config = _make_policy_config(config)
    cameras = [name for name in _CAMERAS if name in inputs]
    specs = dict.fromkeys(cameras or _CAMERAS[:1], _FRAMES) | _JOINT_INPUTS
    parity_runner.check_inputs(inputs, specs, model_config, "joint_policy")

    def make(rngs):
        return policy.Policy(model_config, rngs=rngs)

    ours = parity_runner.import_params(
        make,
        policy_table.entries(model_config),
        params,
        policy_table.DROPPED,
        "joint_policy",
    )
    sigmas = _sampling_sigmas(model_config.denoiser)

    @jax.jit
    def forward(ours, features, arrays):
        model = params_lib.bind(make, ours)
        context = model.context(
            features, arrays["text_features"], arrays["text_mask"] > 0, arrays["goal"]
        )
        mask = jnp.ones(arrays["actions"].shape[:2], bool)
        loss = model.loss(context, arrays["actions"], mask, arrays["sigma"], arrays["noise"])
        return {
            "video_tokens": context.video_tokens,
            "latent_action_indices": context.latent_action.vq.indices,
            "latent_action_tokens": context.latent_action.tokens,
            "sampled_actions": model.denoiser.sample(
                context.denoiser, arrays["initial_actions"], sigmas
            ),
            "action_loss": loss.act_loss,
            "codebook_mse": loss.codebook_loss,
        }

    features = jnp.stack([jnp.asarray(inputs[name]) for name in cameras], axis=1)
    arrays = {name: jnp.asarray(value) for name, value in inputs.items() if name not in cameras}
    return _to_numpy(forward(ours, features.transpose(0, 1, 2, 4, 5, 3), arrays))


KINDS = {
    "gidm": run_gidm,
    "video_former": run_video_former,
    "action_denoiser": run_action_denoiser,
    "joint_policy": run_joint_policy,
}


def _make_policy_config(config: Mapping[str, Any]) -> policy.PolicyConfig:
    """Builds the policy's config of nested reference configs."""
    fields = dict(config)
    mask_order = fields.pop("mask_order", "tiled")
    parts = {
        "video_former": video_former.VideoFormerConfig,
        "gidm": latent_action.LatentActionConfig,
        "denoiser": action_denoiser.ActionDenoiserConfig,
    }
    for name, config_type in parts.items():
        if name not in fields:
            raise errors.UserError("missing config part", f"joint_policy.{name}", "add it")
        extra = {"mask_order": mask_order} if name == "gidm" else {}
        where = f"joint_policy.{name}"
        fields_lib.check_object(fields[name], where)
        fields[name] = fields_lib.make_config(config_type, {**extra, **fields[name]}, where)
    return fields_lib.make_config(policy.PolicyConfig, fields, "joint_policy")


def _sampling_sigmas(config: action_denoiser.ActionDenoiserConfig) -> jax.Array:
    sigmas = schedules.exponential(config.sampling_steps, config.sigma_min, config.sigma_max)
    return jnp.asarray(sigmas)


def _to_numpy(outputs: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in outputs.items()}
