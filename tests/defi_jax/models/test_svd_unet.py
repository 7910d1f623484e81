import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from defi_jax import errors
from defi_jax.models import params as params_lib
from defi_jax.models import svd_unet

# A reference config of two levels; the text width occurs nowhere else.
CONFIG = svd_unet.SVDUNetConfig(
    in_channels=6,
    out_channels=3,
    down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    block_out_channels=(8, 16),
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=12,
    layers_per_block=1,
    cross_attention_dim=11,
    num_attention_heads=(1, 2),
    norm_num_groups=4,
)
B, T, SIZE, L = 2, 3, 4, 5


def _make(config=CONFIG):
    return lambda rngs: svd_unet.SVDUNet(config, rngs=rngs)


def _filled(abstract):
    """Parameters without zeros, so that every branch counts."""
    flat = params_lib.flatten(abstract)
    rng = np.random.default_rng(0)
    fan_in = {path: np.prod(leaf.shape[:-1], initial=1.0) for path, leaf in flat.items()}
    return params_lib.unflatten(
        {
            path: (rng.standard_normal(leaf.shape) / np.sqrt(fan_in[path])).astype(np.float32)
            for path, leaf in flat.items()
        }
    )


def _inputs():
    rng = np.random.default_rng(1)
    return {
        "sample": rng.standard_normal((B, T, SIZE, SIZE, 6), np.float32),
        "timestep": np.float32([0.3, -1.0]),
        "text": rng.standard_normal((B, L, 11), np.float32),
        "added_time_ids": np.float32([[7, 127, 0], [4, 100, 0.02]]),
    }


@pytest.fixture(scope="module")
def params():
    return _filled(params_lib.abstract_params(_make()))


@pytest.fixture(scope="module")
def full():
    return jax.jit(lambda params, inputs: params_lib.bind(_make(), params)(**inputs))


@pytest.fixture(scope="module")
def output(full, params):
    return full(params, _inputs())


def test_shapes_of_sample_and_taps(output):
    assert output.sample.shape == (B, T, SIZE, SIZE, 3)
    assert [tap.shape[2:] for tap in output.up_features] == [(SIZE, SIZE, 16), (SIZE, SIZE, 8)]


def test_early_exit_equals_the_full_pass_and_ignores_what_it_skips(params, output):
    flat = params_lib.flatten(params)
    skipped = ("up_blocks/1", "conv_norm_out", "conv_out")
    poisoned = {
        path: np.full_like(leaf, np.nan) if path.startswith(skipped) else leaf
        for path, leaf in flat.items()
    }
    truncated = jax.jit(
        lambda params, inputs: params_lib.bind(_make(), params)(**inputs, stop_after_up_block=0)
    )(params_lib.unflatten(poisoned), _inputs())
    assert truncated.sample is None
    assert len(truncated.up_features) == 1
    np.testing.assert_allclose(truncated.up_features[0], output.up_features[0], atol=1e-5)


def test_text_of_one_element_changes_only_that_element(full, params, output):
    inputs = _inputs()
    inputs["text"][1] += 1.0
    changed = full(params, inputs)
    np.testing.assert_allclose(changed.sample[0], output.sample[0], atol=1e-6)
    # Every frame of the other element sees it.
    difference = np.abs(changed.sample[1] - output.sample[1]).max(axis=(1, 2, 3))
    assert difference.min() > 1e-3


def test_frames_see_each_other_and_their_order(full, params, output):
    inputs = _inputs()
    inputs["sample"][0, 0] += 1.0
    changed = full(params, inputs)
    assert np.abs(changed.sample[0, -1] - output.sample[0, -1]).max() > 1e-3
    np.testing.assert_allclose(changed.sample[1], output.sample[1], atol=1e-6)
    inputs = _inputs()
    inputs["sample"] = inputs["sample"][:, ::-1].copy()
    mirrored = full(params, inputs).sample[:, ::-1]
    assert np.abs(mirrored - output.sample).max() > 1e-3


@pytest.mark.parametrize("name", ["timestep", "added_time_ids"])
def test_conditions_reach_the_output(full, params, output, name):
    inputs = _inputs()
    inputs[name][0] += 1.0
    changed = full(params, inputs)
    assert np.abs(changed.sample[0] - output.sample[0]).max() > 1e-3
    np.testing.assert_allclose(changed.sample[1], output.sample[1], atol=1e-6)


def _matmul_rows(jaxpr, width):
    """Rows of each matmul that contracts an axis of `width`, in all nested jaxprs."""
    rows = []
    for eqn in jaxpr.eqns:
        shape = eqn.invars[0].aval.shape if eqn.primitive.name == "dot_general" else ()
        if shape and shape[-1] == width:
            rows.append(int(np.prod(shape[:-1])))
        for inner in jax.tree.leaves(eqn.params):
            inner = getattr(inner, "jaxpr", inner)  # of a closed one
            rows += _matmul_rows(inner, width) if hasattr(inner, "eqns") else []
    return rows


def test_text_keys_and_values_are_computed_once_per_batch_element(params):
    jaxpr = jax.make_jaxpr(lambda inputs: params_lib.bind(_make(), params)(**inputs))(_inputs())
    rows = _matmul_rows(jaxpr.jaxpr, width=11)
    # Two projections in the spatial and the temporal block of four transformers.
    assert rows == [B * L] * 16


@pytest.mark.slow
def test_rematerialised_gradients_equal_the_stored_ones():
    config = dataclasses.replace(
        CONFIG,
        down_block_types=("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",),
        block_out_channels=(8,),
        num_attention_heads=1,
    )
    params = _filled(params_lib.abstract_params(_make(config)))

    def gradient(remat):
        make = _make(dataclasses.replace(config, remat=remat))

        def loss(params):
            return jnp.sum(jnp.square(params_lib.bind(make, params)(**_inputs()).sample))

        return jax.jit(jax.grad(loss))

    assert "remat" not in str(jax.make_jaxpr(gradient("none"))(params))
    expected = params_lib.flatten(gradient("none")(params))
    for remat in ("elementwise", "blocks"):
        assert "remat" in str(jax.make_jaxpr(gradient(remat))(params))
        for path, value in params_lib.flatten(gradient(remat)(params)).items():
            scale = np.abs(expected[path]).max()
            np.testing.assert_allclose(value, expected[path], atol=1e-4 * scale, err_msg=path)


def test_residual_branches_start_at_zero():
    params = jax.jit(lambda rng: params_lib.init_params(_make(), rng))(jax.random.key(0))
    flat = params_lib.flatten(params)
    assert not np.any(flat["conv_out/kernel"])
    assert not np.any(flat["mid_block/attentions/0/proj_out/kernel"])
    assert not np.any(flat["mid_block/resnets/0/spatial_res_block/conv2/kernel"])
    assert np.any(flat["mid_block/attentions/0/proj_in/kernel"])


def test_up_features_joins_taps_at_the_finer_size():
    coarse = jnp.arange(4.0).reshape(1, 1, 2, 2, 1)
    fine = jnp.full((1, 1, 4, 4, 2), 9.0)
    joined = svd_unet.up_features(svd_unet.UNetOutput(None, (coarse, fine)))
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(joined[0, 0, ..., 0], expected)
    np.testing.assert_array_equal(joined[..., 1:], fine)


@pytest.mark.parametrize(
    "preset", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("small", "full"))]
)
def test_presets_trace(preset):
    config = svd_unet.PRESETS[preset]
    size, frames = config.sample_size, config.num_frames

    def forward():
        return svd_unet.SVDUNet(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(
            jnp.zeros((1, frames, size, size, config.in_channels)),
            jnp.zeros((1,)),
            jnp.zeros((1, 7, config.cross_attention_dim)),
            jnp.zeros((1, 3)),
        )

    output = jax.eval_shape(forward)
    assert output.sample.shape == (1, frames, size, size, config.out_channels)
    assert output.sample.dtype == jnp.bfloat16


@pytest.mark.slow
def test_full_size_has_the_published_parameter_count():
    make = _make(svd_unet.PRESETS["full"])
    assert params_lib.count(params_lib.abstract_params(make)) == 1_524_623_082


def test_sizes_that_cannot_be_halved_are_refused(params):
    inputs = _inputs() | {"sample": np.zeros((B, T, 4, 5, 6), np.float32)}
    with pytest.raises(errors.UserError, match="4x5"):
        jax.eval_shape(lambda: params_lib.bind(_make(), params)(**inputs))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("up_block_types", ("UpBlockSpatioTemporal",), "one per level"),
        ("down_block_types", ("DownBlock2D", "DownBlockSpatioTemporal"), "unknown down block"),
        ("up_block_types", ("UpBlock2D", "UpBlockSpatioTemporal"), "unknown up block"),
        ("remat", "all", "unknown remat"),
        ("norm_num_groups", 3, "norm_num_groups"),
        ("addition_time_embed_dim", 5, "addition_time_embed_dim"),
        ("num_attention_heads", (3, 2), "heads"),
        ("num_attention_heads", (1, 2, 2), "3 values for 2 levels"),
        ("layers_per_block", (1,), "1 values for 2 levels"),
    ],
)
def test_contradictory_configs_are_refused(field, value, message):
    with pytest.raises(errors.UserError, match=message):
        dataclasses.replace(CONFIG, **{field: value})
