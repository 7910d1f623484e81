"""The kinds of parity fixtures: which module, which weights, which outputs of it are compared.

Inputs and outputs have the reference's names and layouts: images are [B, C, H, W], videos
[B, T, C, H, W].
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from defi_jax import errors
from defi_jax.diffusion import schedules
from defi_jax.models import (
    action_denoiser,
    clip_text,
    dinov2,
    gidm,
    latent_action,
    policy,
    svd_unet,
    svd_vae,
    t5_encoder,
    video_former,
)
from defi_jax.weights import fields as fields_lib
from defi_jax.weights import sources
from defi_jax.weights.parity import runner
from defi_jax.weights.tables import policy as policy_table

Inputs = dict[str, jax.Array]
Outputs = runner.Outputs

_ACTIONS = {"actions": "B S A", "sigma": "B", "noise": "B S A", "initial_actions": "B S A"}
_CAMERAS = ("static_features", "gripper_features")


def channels_last(x: jax.Array) -> jax.Array:
    """[..., C, H, W] -> [..., H, W, C]."""
    return jnp.moveaxis(x, -3, -1)


def channels_first(x: Any) -> jax.Array:
    """[..., H, W, C] -> [..., C, H, W]."""
    return jnp.moveaxis(x, -1, -3)


# ---- video models ----


def _svd_unet(model: svd_unet.SVDUNet, inputs: Inputs) -> Outputs:
    """In full, and again as far as the features that the policy takes."""
    names = ("timestep", "encoder_hidden_states", "added_time_ids")
    arrays = (channels_last(inputs["sample"]), *(inputs[name] for name in names))
    truncated = model(*arrays, stop_after_up_block=1)
    return {
        "sample": channels_first(model(*arrays).sample),
        "up_features": channels_first(svd_unet.up_features(truncated)),
    }


def _svd_vae(model: svd_vae.SVDVAE, inputs: Inputs) -> Outputs:
    """The mode of the images' latents, not scaled, and its decoding as one video."""
    mode, _ = model.encode(channels_last(inputs["pixels"]))
    return {
        "latent_mode": channels_first(mode),
        "reconstruction": channels_first(model.decode(mode[None])[0]),
    }


# ---- frozen encoders ----


def _clip_text(model: clip_text.CLIPText, inputs: Inputs) -> Outputs:
    output = model(inputs["input_ids"].astype(jnp.int32))
    return {"last_hidden_state": output.last_hidden_state, "text_embeds": output.text_embeds}


def _t5_encoder(model: t5_encoder.T5Encoder, inputs: Inputs) -> Outputs:
    ids = inputs["input_ids"].astype(jnp.int32)
    return {"last_hidden_state": model(ids, inputs["attention_mask"] > 0)}


def _dinov2(model: dinov2.DINOv2, inputs: Inputs) -> Outputs:
    """Rows and columns that fill no patch are cut off, as the reference's convolution does."""
    pixels = channels_last(inputs["pixel_values"])
    patch = model.config.patch_size
    height, width = (side - side % patch for side in pixels.shape[1:3])
    if not height or not width:
        raise errors.UserError(
            "images smaller than a patch", "dinov2_registers", "record larger ones"
        )
    output = model(pixels[:, :height, :width])
    return {
        "last_hidden_state": output.last_hidden_state,
        "patch_tokens": output.patch_tokens,
    }


# ---- DeFI's own modules ----


def _gidm_config(given: Mapping[str, Any]) -> gidm.GIDMConfig:
    """The mask order is the official one where the fixture names none."""
    return fields_lib.make_config(gidm.GIDMConfig, {"mask_order": "tiled", **given}, "gidm")


def _gidm(model: gidm.GIDM, inputs: Inputs) -> Outputs:
    output = model(inputs["frame_features"], inputs["text_features"], inputs["text_mask"] > 0)
    return {
        "encoder_codes": output.z_e,
        "quantized": output.z_q,
        "indices": output.indices,
        "reconstruction": output.recon[:, None],
        "reconstruction_mse": output.recon_loss,
        "codebook_mse": output.codebook_loss,
    }


def _action_denoiser(model: action_denoiser.ActionDenoiser, inputs: Inputs) -> Outputs:
    """One denoising, the loss and the sampler."""
    names = ("latent_action_tokens", "video_tokens", "goal")
    context = model.encode_context(*(inputs[name] for name in names))
    actions, sigma = inputs["actions"], inputs["sigma"]
    weights, sigmas = jnp.ones(actions.shape[:2]), _sigmas(model.config)
    return {
        "denoised": model.denoise(context, actions, sigma),
        "loss": model.loss(context, actions, weights, sigma, inputs["noise"]),
        "sampled_actions": model.sample(context, inputs["initial_actions"], sigmas),
        "sigmas": sigmas,
    }


def _joint_policy(model: policy.Policy, inputs: Inputs) -> Outputs:
    """From the forward model's features on, with one camera or two."""
    features = jnp.stack([inputs[name] for name in _CAMERAS if name in inputs], axis=1)
    text = (inputs["text_features"], inputs["text_mask"] > 0)
    context = model.context(channels_last(features), *text, inputs["goal"])
    actions, sigmas = inputs["actions"], _sigmas(model.denoiser.config)
    weights = jnp.ones(actions.shape[:2])
    loss = model.loss(context, actions, weights, inputs["sigma"], inputs["noise"])
    return {
        "video_tokens": context.video_tokens,
        "latent_action_indices": context.latent_action.vq.indices,
        "latent_action_tokens": context.latent_action.tokens,
        "sampled_actions": model.denoiser.sample(
            context.denoiser, inputs["initial_actions"], sigmas
        ),
        "action_loss": loss.act_loss,
        "codebook_mse": loss.codebook_loss,
    }


def _policy_config(given: Mapping[str, Any]) -> policy.PolicyConfig:
    """From {video_former, denoiser, gidm, condition_frames}; the mask order is in gidm or on top.

    Raises:
        UserError: a part is missing, no object, or does not fit.
    """
    fields = dict(given)
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


def _sigmas(config: action_denoiser.ActionDenoiserConfig) -> jax.Array:
    return jnp.asarray(
        schedules.exponential(config.sampling_steps, config.sigma_min, config.sigma_max)
    )


_ALL = (
    runner.Kind(
        name="svd_unet",
        part=sources.UNET,
        forward=_svd_unet,
        inputs={
            "sample": "B T in_channels H W",
            "timestep": "B",
            "encoder_hidden_states": "B L cross_attention_dim",
            "added_time_ids": "B I",
        },
    ),
    runner.Kind(
        name="svd_vae",
        part=sources.VAE,
        forward=_svd_vae,
        inputs={"pixels": "B in_channels H W"},
    ),
    runner.Kind(
        name="clip_text",
        part=sources.CLIP,
        forward=_clip_text,
        inputs={"input_ids": "int B L"},
    ),
    runner.Kind(
        name="t5_encoder",
        part=sources.T5,
        forward=_t5_encoder,
        inputs={"input_ids": "int B L", "attention_mask": "B L"},
    ),
    runner.Kind(
        name="dinov2_registers",
        part=sources.DINOV2,
        forward=_dinov2,
        inputs={"pixel_values": "B 3 H W"},
    ),
    runner.Kind(
        name="gidm",
        part=sources.GIDM,
        forward=_gidm,
        inputs={
            "frame_features": "B 2 N feature_dim",
            "text_features": "B L text_dim",
            "text_mask": "B L",
        },
        make_config=_gidm_config,
    ),
    runner.Kind(
        name="video_former",
        part=sources.Part(
            module=video_former.VideoFormer,
            config=video_former.PRESETS["full"],
            table=policy_table.video_former_entries,
        ),
        forward=lambda model, inputs: {"tokens": model(inputs["features"])},
        inputs={"features": "B num_frames N condition_dim"},
    ),
    runner.Kind(
        name="action_denoiser",
        part=sources.Part(
            module=action_denoiser.ActionDenoiser,
            config=action_denoiser.PRESETS["full"],
            table=policy_table.denoiser_entries,
            dropped=policy_table.DENOISER_DROPPED,
        ),
        forward=_action_denoiser,
        inputs={
            "latent_action_tokens": "B K latent_action_dim",
            "video_tokens": "B N observation_dim",
            "goal": "B 1 goal_dim",
            **_ACTIONS,
        },
    ),
    runner.Kind(
        name="joint_policy",
        part=sources.POLICY,
        forward=_joint_policy,
        inputs={
            "|".join(_CAMERAS): "B video_former.num_frames video_former.condition_dim h w",
            "text_features": "B L gidm.text_dim",
            "text_mask": "B L",
            "goal": "B ...",
            **_ACTIONS,
        },
        make_config=_policy_config,
    ),
)
KINDS = {kind.name: kind for kind in _ALL}
