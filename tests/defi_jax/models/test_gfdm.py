import dataclasses

import jax
import jax.numpy as jnp
import pytest

from defi_jax.models import gfdm, svd_unet
from defi_jax.models import params as params_lib

TINY = svd_unet.PRESETS["tiny"]
UNET = svd_unet.SVDUNetConfig(
    in_channels=4,
    out_channels=2,
    num_frames=2,
    block_out_channels=(4, 8),
    down_block_types=(TINY.down_block_types[0], TINY.down_block_types[-1]),
    up_block_types=(TINY.up_block_types[0], TINY.up_block_types[-1]),
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=12,
    layers_per_block=1,
    cross_attention_dim=6,
    num_attention_heads=(1, 1),
    norm_num_groups=2,
)


def test_feature_shape_is_that_of_the_features():
    config = gfdm.GFDMConfig(unet=UNET, num_frames=2, text_copies=1)
    params = params_lib.abstract_params(lambda rngs: gfdm.GFDM(config, rngs=rngs))
    for block in (0, 1):
        changed = dataclasses.replace(config, feature_block=block)

        def features(params, config=changed):
            model = params_lib.bind(lambda rngs: gfdm.GFDM(config, rngs=rngs), params)
            noise, condition = jnp.zeros((1, 2, 8, 8, 2)), jnp.zeros((1, 8, 8, 2))
            return model.features(noise, condition, jnp.zeros((1, 3, 6)))

        assert changed.feature_shape(8) == jax.eval_shape(features, params).shape[1:]


def test_feature_shapes_of_the_presets():
    # Latents of 64, 128 and 256 px; the official features are 16 frames of 16 x 16 x 2560.
    tiny, small, full = (
        gfdm.GFDMConfig(unet=svd_unet.PRESETS[name], num_frames=svd_unet.PRESETS[name].num_frames)
        for name in ("tiny", "small", "full")
    )
    assert tiny.feature_shape(8)[1:3] == (8, 8)
    assert small.feature_shape(16)[1:] == (8, 8, 768)
    assert full.feature_shape(32)[1:] == (16, 16, 2560)


def test_feature_block_must_exist():
    config = gfdm.GFDMConfig(unet=UNET)
    with pytest.raises(ValueError, match="feature_block 2"):
        dataclasses.replace(config, feature_block=2)
