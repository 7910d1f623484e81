"""Parity runners of the frozen encoders: official weights and inputs in, official outputs out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax import errors
from defi_jax.models import clip_text, dinov2, t5_encoder
from defi_jax.models import params as params_lib
from defi_jax.weights import fields
from defi_jax.weights.parity import runner as parity_runner
from defi_jax.weights.tables import clip_text as clip_text_table
from defi_jax.weights.tables import dinov2 as dinov2_table
from defi_jax.weights.tables import t5_encoder as t5_encoder_table

Arrays = parity_runner.Arrays


def run_clip_text(
    config: Mapping[str, Any], params: Arrays, inputs: Arrays
) -> dict[str, np.ndarray]:
    """Runs the CLIP text tower.

    Args:
        config: fields of `CLIPTextConfig`.
        params: state dict of transformers' `CLIPTextModelWithProjection`.
        inputs: input_ids [B, L]; no mask is given.

    Returns:
        last_hidden_state [B, L, D], text_embeds [B, Dp].

    Raises:
        UserError: config fields that do not fit.
        DataError: names or shapes that do not fit the config.
    """
    model_config = fields.make_config(clip_text.CLIPTextConfig, config, "clip_text")
    parity_runner.check_inputs(inputs, {"input_ids": "int B L"}, model_config, "clip_text")

    def make(rngs):
        return clip_text.CLIPText(model_config, rngs=rngs)

    ours = parity_runner.import_params(
        make, clip_text_table.entries(model_config), params, clip_text_table.DROPPED, "clip_text"
    )
    run = jax.jit(lambda ours, ids: params_lib.bind(make, ours)(ids))
    output = run(ours, jnp.asarray(inputs["input_ids"], jnp.int32))
    return {
        "last_hidden_state": np.asarray(output.last_hidden_state),
        "text_embeds": np.asarray(output.text_embeds),
    }


def run_t5_encoder(
    config: Mapping[str, Any], params: Arrays, inputs: Arrays
) -> dict[str, np.ndarray]:
    """Runs the T5 encoder.

    Args:
        config: fields of `T5EncoderConfig`.
        params: state dict of transformers' `T5EncoderModel`.
        inputs: input_ids and attention_mask [B, L].

    Returns:
        last_hidden_state [B, L, D].

    Raises:
        UserError: config fields that do not fit.
        DataError: names or shapes that do not fit the config.
    """
    model_config = fields.make_config(t5_encoder.T5EncoderConfig, config, "t5_encoder")
    parity_runner.check_inputs(
        inputs,
        {"input_ids": "int B L", "attention_mask": "B L"},
        model_config,
        "t5_encoder",
    )

    def make(rngs):
        return t5_encoder.T5Encoder(model_config, rngs=rngs)

    ours = parity_runner.import_params(
        make, t5_encoder_table.entries(model_config), params, t5_encoder_table.DROPPED, "t5_encoder"
    )
    run = jax.jit(lambda ours, ids, mask: params_lib.bind(make, ours)(ids, mask))
    ids = jnp.asarray(inputs["input_ids"], jnp.int32)
    mask = jnp.asarray(inputs["attention_mask"]) > 0
    return {"last_hidden_state": np.asarray(run(ours, ids, mask))}


def run_dinov2_registers(
    config: Mapping[str, Any], params: Arrays, inputs: Arrays
) -> dict[str, np.ndarray]:
    """Runs DINOv2 with registers.

    Args:
        config: fields of `DINOv2Config`.
        params: state dict of transformers' `Dinov2WithRegistersModel` or of the hub's model.
        inputs: pixel_values [B, 3, H, W], normalised; rows and columns that fill no patch are cut
            off, as the reference's convolution does.

    Returns:
        last_hidden_state [B, 1 + R + N, D], patch_tokens [B, N, D].

    Raises:
        UserError: config fields that do not fit.
        DataError: names or shapes that do not fit the config.
    """
    model_config = fields.make_config(dinov2.DINOv2Config, config, "dinov2_registers")
    parity_runner.check_inputs(
        inputs,
        {"pixel_values": "B 3 H W"},
        model_config,
        "dinov2_registers",
    )

    def make(rngs):
        return dinov2.DINOv2(model_config, rngs=rngs)

    ours = parity_runner.import_params(
        make,
        dinov2_table.entries(model_config, dinov2_table.release(params.keys())),
        params,
        dinov2_table.DROPPED,
        "dinov2_registers",
    )
    run = jax.jit(lambda ours, pixels: params_lib.bind(make, ours)(pixels))
    pixels = jnp.asarray(inputs["pixel_values"]).transpose(0, 2, 3, 1)
    height, width = (side - side % model_config.patch_size for side in pixels.shape[1:3])
    if not height or not width:
        raise errors.UserError(
            "images smaller than a patch", "dinov2_registers", "record larger ones"
        )
    output = run(ours, pixels[:, :height, :width])
    return {
        "last_hidden_state": np.asarray(output.last_hidden_state),
        "patch_tokens": np.asarray(output.patch_tokens),
    }


KINDS = {
    "clip_text": run_clip_text,
    "t5_encoder": run_t5_encoder,
    "dinov2_registers": run_dinov2_registers,
}
