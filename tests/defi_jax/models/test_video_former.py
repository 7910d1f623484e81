import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax.models import params as params_lib
from defi_jax.models import video_former

CONFIG = video_former.VideoFormerConfig(
    condition_dim=10, dim=16, depth=2, dim_head=4, heads=2, num_latents=6, num_frames=3
)


def _make(config=CONFIG):
    return lambda rngs: video_former.VideoFormer(config, rngs=rngs)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda rng: params_lib.init_params(_make(), rng))(jax.random.key(0))


@functools.cache
def _jitted(config):
    return jax.jit(lambda params, x: params_lib.bind(_make(config), params)(x))


def _features():
    return jax.random.normal(jax.random.key(1), (2, 3, 5, 10))


def test_order_of_tokens_within_a_frame_does_not_matter(params):
    model = functools.partial(_jitted(CONFIG), params)
    shuffled = _features()[:, :, jnp.array([3, 0, 4, 1, 2])]
    np.testing.assert_allclose(model(_features()), model(shuffled), rtol=1e-4, atol=1e-5)


def test_order_of_frames_matters_and_tokens_are_frame_major(params):
    model = functools.partial(_jitted(CONFIG), params)
    tokens = model(_features())
    assert tokens.shape == (2, 6, 16)
    assert np.abs(tokens - model(_features()[:, ::-1])).max() > 1e-2
    # Without temporal mixing, tokens 2t and 2t + 1 depend on frame t alone.
    alone = {**params, "layers": {**params["layers"]}}
    alone["layers"]["temporal_attn"] = jax.tree.map(
        jnp.zeros_like, params["layers"]["temporal_attn"]
    )
    gradient = jax.grad(lambda x: jnp.square(_jitted(CONFIG)(alone, x)[:, 2:4]).sum())(_features())
    moved = np.abs(gradient).max(axis=(0, 2, 3))
    assert moved[1] > 0
    assert (moved[[0, 2]] == 0).all()


def test_unrolling_and_remat_leave_the_output(params):
    reference = _jitted(CONFIG)(params, _features())
    changed = dataclasses.replace(CONFIG, scan_unroll=2, remat="elementwise")
    output = _jitted(changed)(params, _features())
    np.testing.assert_allclose(output, reference, rtol=1e-5, atol=1e-6)


def test_full_size_count_is_the_official_one():
    params = params_lib.abstract_params(_make(video_former.PRESETS["full"]))
    assert params_lib.count(params) == 17_713_536


def test_config_refuses_latents_that_do_not_divide():
    with pytest.raises(ValueError, match="num_latents 7"):
        dataclasses.replace(CONFIG, num_latents=7)


def test_token_positions_tell_tokens_apart(params):
    assert "token_pos_emb" not in params
    make = _make(dataclasses.replace(CONFIG, token_positions=5))
    own = params_lib.init_params(make, jax.random.key(0))
    assert own["token_pos_emb"].shape == (1, 5, 16)
    assert 0.8 < np.std(own["token_pos_emb"]) < 1.2
    model = params_lib.bind(make, own)
    shuffled = _features()[:, :, jnp.array([3, 0, 4, 1, 2])]
    assert np.abs(model(_features()) - model(shuffled)).max() > 1e-2
    none = {**own, "token_pos_emb": jnp.zeros((1, 5, 16))}
    without = {name: leaf for name, leaf in own.items() if name != "token_pos_emb"}
    np.testing.assert_allclose(
        params_lib.bind(make, none)(_features()),
        params_lib.bind(_make(), without)(_features()),
        rtol=1e-6,
        atol=1e-6,
    )


def test_query_key_gain_scales_the_first_queries_and_keys_alone(params):
    config = dataclasses.replace(CONFIG, query_key_gain=3.0)
    sharper = params_lib.init_params(_make(config), jax.random.key(0))
    first, second = params_lib.flatten(params), params_lib.flatten(sharper)
    for path in first:
        is_scaled = "temporal_attn" not in path and path.endswith(("to_q/kernel", "to_k/kernel"))
        gain = 3.0 if is_scaled else 1.0
        np.testing.assert_allclose(second[path], gain * first[path], rtol=1e-5, err_msg=path)
