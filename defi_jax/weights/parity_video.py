"""Parity runners of the video models: official weights and inputs in, outputs in official layouts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax.models import params as params_lib
from defi_jax.models import svd_unet
from defi_jax.weights import svd_unet_table, table

Arrays = Mapping[str, np.ndarray]


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
    model_config = svd_unet.SVDUNetConfig.from_reference(config)

    def make(rngs):
        return svd_unet.SVDUNet(model_config, rngs=rngs)

    ours = table.import_params(
        svd_unet_table.entries(model_config),
        params,
        dropped=svd_unet_table.DROPPED,
        expected=params_lib.abstract_params(make),
        where="svd_unet",
    )

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


KINDS = {"svd_unet": run_svd_unet}
