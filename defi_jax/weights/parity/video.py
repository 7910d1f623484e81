"""Parity runners of the video models: official weights and inputs in, official outputs out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax.models import params as params_lib
from defi_jax.models import svd_unet, svd_vae
from defi_jax.weights import fields
from defi_jax.weights.parity import runner as parity_runner
from defi_jax.weights.tables import diffusers_names

Arrays = parity_runner.Arrays


def run_svd_unet(
    config: Mapping[str, Any], params: Arrays, inputs: Arrays
) -> dict[str, np.ndarray]:
    """Runs the UNet of a `svd_unet` fixture in full, and again as far as its taps.

    Args:
        config: fields of diffusers' `UNetSpatioTemporalConditionModel`.
        params: its state dict.
        inputs: sample [B, T, C, H, W], timestep [B], encoder_hidden_states [B, L, Dc],
            added_time_ids [B, 3].

    Returns:
        sample [B, T, C, H, W] and up_features [B, T, C0 + C1, h, w], the latter of the early exit.

    Raises:
        UserError: unknown config field. DataError: names or shapes that do not fit the config.
    """
    model_config = _read_config(svd_unet.SVDUNetConfig, config, "svd_unet")
    parity_runner.check_inputs(
        inputs,
        {
            "sample": "B T in_channels H W",
            "timestep": "B",
            "encoder_hidden_states": "B L cross_attention_dim",
            "added_time_ids": "B I",
        },
        model_config,
        "svd_unet",
    )

    def make(rngs):
        return svd_unet.SVDUNet(model_config, rngs=rngs)

    ours = parity_runner.import_params(make, diffusers_names.entries(make), params, (), "svd_unet")

    @jax.jit
    def forward(ours, sample, timestep, text, ids):
        model = params_lib.bind(make, ours)
        full = model(sample, timestep, text, ids)
        truncated = model(sample, timestep, text, ids, stop_after_up_block=1)
        return full.sample, svd_unet.up_features(truncated)

    sample, features = forward(
        ours,
        jnp.asarray(inputs["sample"]).transpose(0, 1, 3, 4, 2),
        jnp.asarray(inputs["timestep"]),
        jnp.asarray(inputs["encoder_hidden_states"]),
        jnp.asarray(inputs["added_time_ids"]),
    )
    return {
        "sample": np.asarray(sample).transpose(0, 1, 4, 2, 3),
        "up_features": np.asarray(features).transpose(0, 1, 4, 2, 3),
    }


def run_svd_vae(config: Mapping[str, Any], params: Arrays, inputs: Arrays) -> dict[str, np.ndarray]:
    """Encodes the images of a `svd_vae` fixture and decodes the mode as one video.

    Args:
        config: fields of diffusers' `AutoencoderKLTemporalDecoder`.
        params: its state dict.
        inputs: pixels [B, 3, H, W] in [-1, 1].

    Returns:
        latent_mode [B, Cz, h, w] (not scaled) and reconstruction [B, 3, H, W].

    Raises:
        UserError: unknown config field. DataError: names or shapes that do not fit the config.
    """
    model_config = _read_config(svd_vae.SVDVAEConfig, config, "svd_vae")
    parity_runner.check_inputs(inputs, {"pixels": "B in_channels H W"}, model_config, "svd_vae")

    def make(rngs):
        return svd_vae.SVDVAE(model_config, rngs=rngs)

    ours = parity_runner.import_params(make, diffusers_names.entries(make), params, (), "svd_vae")

    @jax.jit
    def forward(ours, pixels):
        model = params_lib.bind(make, ours)
        mode, _ = model.encode(pixels)
        return mode, model.decode(mode[None])[0]

    outputs = forward(ours, jnp.asarray(inputs["pixels"]).transpose(0, 2, 3, 1))
    mode, reconstruction = (np.asarray(output).transpose(0, 3, 1, 2) for output in outputs)
    return {"latent_mode": mode, "reconstruction": reconstruction}


def _read_config(config_type: type, config: Mapping[str, Any], where: str) -> Any:
    """Reads a diffusers config; names that start with "_" are its own bookkeeping."""
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    return fields.make_config(config_type, given, where)


KINDS = {"svd_unet": run_svd_unet, "svd_vae": run_svd_vae}
