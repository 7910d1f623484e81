import dataclasses
import fnmatch
import functools

import jax
import numpy as np
import pytest

from defi_jax import errors
from defi_jax.models import gidm, policy
from defi_jax.weights import sources, table
from defi_jax.weights.tables import policy as policy_table

SMALL_GIDM = gidm.GIDMConfig(
    feature_dim=12,
    text_dim=10,
    model_dim=16,
    num_heads=2,
    latent_dim=6,
    codebook_size=8,
    num_codes=2,
    encoder_blocks=2,
    decoder_blocks=3,
)


def _random(abstract):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), abstract)


def _assert_round_trip(part, config):
    abstract = part.abstract_params(config)
    entries = part.table(abstract, config, ())
    params = _random(abstract)
    official = table.export_params(entries, params)
    back = table.import_params(entries, official, expected=abstract)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    return params, official


def test_gidm_round_trip_is_bit_equal_and_layers_keep_their_order():
    params, official = _assert_round_trip(sources.GIDM, SMALL_GIDM)
    kernels = params["decoder"]["transformer"]["transformer_blocks"]["ffn"]["fc1"]
    np.testing.assert_array_equal(
        official["decoder.transformer_blocks.2.ffn.0.weight"], kernels["kernel"][2].T
    )


def test_policy_round_trip_is_bit_equal():
    config = policy.PRESETS["small"]
    config = dataclasses.replace(
        config, gidm=dataclasses.replace(config.gidm, encoder_blocks=1, feature_dim=12)
    )
    _assert_round_trip(sources.POLICY, config)


@functools.cache
def _full_size_names(name):
    part = getattr(sources, name)
    return {row.theirs for row in part.table(part.abstract_params(part.config), part.config, ())}


def test_full_size_tables_have_the_official_number_of_names():
    # The checkpoints' 696 and 1121 names without frozen encoders and parameters never applied.
    gidm_names = _full_size_names("GIDM")
    policy_names = _full_size_names("POLICY")
    assert len(gidm_names) == 420
    assert len(policy_names) == 513
    assert "encoder.transformer_blocks.11.temporal_attn.to_out.0.bias" in gidm_names
    assert "lam.vq.codebook.weight" in policy_names
    assert "Video_Former.layers.5.2.3.weight" in policy_names
    assert "model.inner_model.decoder.blocks.3.adaLN_zero.modulation.1.weight" in policy_names


@pytest.mark.parametrize(
    "name",
    [
        "model.inner_model.pos_emb",
        "model.inner_model.goal_emb.2.bias",
        "model.inner_model.proprio_emb.0.weight",
        "lam.text_encoder.shared.weight",
        "language_goal.clip_rn50.visual.conv1.weight",
        "TVP_encoder.text_encoder.text_projection.weight",
    ],
)
def test_official_names_without_use_are_dropped_with_a_reason(name):
    assert table.drop_reason(name, policy_table.DROPPED)


def test_no_mapped_name_is_dropped():
    for part in ("POLICY", "GIDM"):
        dropped = getattr(sources, part).dropped
        for name in _full_size_names(part):
            assert not any(fnmatch.fnmatchcase(name, pattern) for pattern, _ in dropped)


def test_parts_that_are_ours_have_no_official_names():
    config = policy.PRESETS["tiny"]
    with pytest.raises(errors.UserError, match=r"denoiser.action_positions, denoiser.modulation"):
        policy_table.denoiser_entries({}, config.denoiser)
    with pytest.raises(errors.UserError, match=r"video_former\.token_positions"):
        policy_table.video_former_entries({}, config.video_former)
    with pytest.raises(errors.UserError, match=r"policy\.normalize_features"):
        policy_table.entries({}, config)
