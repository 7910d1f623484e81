import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax.models import latent_action
from defi_jax.models import params as params_lib

B, N, L = 3, 5, 4
CONFIG = latent_action.LatentActionConfig(
    feature_dim=12,
    text_dim=10,
    model_dim=16,
    num_heads=2,
    latent_dim=6,
    codebook_size=8,
    num_codes=2,
    encoder_blocks=2,
)


def _make(config=CONFIG):
    return lambda rngs: latent_action.LatentActionModel(config, rngs=rngs)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda rng: params_lib.init_params(_make(), rng))(jax.random.key(0))


def _inputs():
    features_rng, text_rng = jax.random.split(jax.random.key(1))
    return (
        jax.random.normal(features_rng, (B, 2, N, CONFIG.feature_dim)),
        jax.random.normal(text_rng, (B, L, CONFIG.text_dim)),
    )


@functools.cache
def _jitted(config):
    return jax.jit(lambda params, *inputs: params_lib.bind(_make(config), params)(*inputs))


def _run(params, features, text, mask, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return _jitted(config)(params, features, text, jnp.asarray(mask))


UNEQUAL = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)


def test_aligned_padding_content_and_length_do_not_matter(params):
    features, text = _inputs()
    reference = _run(params, features, text, UNEQUAL).z_e
    other = jnp.where(UNEQUAL[..., None], text, 7.0)
    np.testing.assert_array_equal(_run(params, features, other, UNEQUAL).z_e, reference)
    longer = jnp.pad(text, ((0, 0), (0, 3), (0, 0)), constant_values=5.0)
    mask = np.pad(UNEQUAL, ((0, 0), (0, 3)))
    np.testing.assert_allclose(
        _run(params, features, longer, mask).z_e, reference, rtol=1e-5, atol=1e-6
    )


def test_mask_orders_differ_only_when_lengths_differ(params):
    features, text = _inputs()
    for mask, is_equal in ((np.ones((B, L), bool), True), (UNEQUAL, False)):
        aligned = _run(params, features, text, mask, mask_order="aligned").z_e
        tiled = _run(params, features, text, mask, mask_order="tiled").z_e
        assert np.array_equal(aligned, tiled) == is_equal


def test_mask_rows_by_hand():
    mask = np.array([[1, 0], [1, 1], [0, 0]], bool)
    a, b, c = mask
    tiled = latent_action.mask_rows(mask, 2, "tiled")
    np.testing.assert_array_equal(tiled, [[a, b], [c, a], [b, c]])
    aligned = latent_action.mask_rows(mask, 2, "aligned")
    np.testing.assert_array_equal(aligned, [[a, a], [b, b], [c, c]])


def test_first_frame_never_sees_the_second():
    config = latent_action.TransformerConfig(model_dim=8, num_heads=2)

    def make(rngs):
        return latent_action.Transformer(config, 6, 2, is_temporal=True, rngs=rngs)

    params = jax.jit(lambda rng: params_lib.init_params(make, rng))(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 2, 3, 6))

    @jax.jit
    def gradient(weights):
        def output(x):
            return (weights[:, None, None] * params_lib.bind(make, params)(x) ** 2).sum()

        return jax.grad(output)(x)

    of_first, of_second = gradient(jnp.array([1.0, 0.0])), gradient(jnp.array([0.0, 1.0]))
    assert (np.asarray(of_first[:, 1]) == 0).all()
    assert np.abs(of_first[:, 0]).max() > 0
    assert np.abs(of_second[:, 0]).max() > 0


@pytest.mark.parametrize(
    "changes", [{"scan_unroll": 2}, {"remat": "blocks"}, {"remat": "elementwise"}]
)
def test_unrolling_and_remat_leave_value_and_gradient(params, changes):
    features, text = _inputs()

    def loss(params, **changes):
        output = _run(params, features, text, UNEQUAL, **changes)
        return jnp.square(output.tokens).sum() + output.vq.commitment_loss

    plain = jax.jit(jax.value_and_grad(loss))(params)
    changed = jax.jit(jax.value_and_grad(lambda p: loss(p, **changes)))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, changed
    )


def test_continuous_latent_actions_have_no_codebook_and_pass_through(params):
    features, text = _inputs()
    config = dataclasses.replace(CONFIG, quantizer="continuous")
    continuous = {name: value for name, value in params.items() if name != "vq"}
    output = _run(continuous, features, text, UNEQUAL, quantizer="continuous")
    np.testing.assert_array_equal(output.vq.z_q, output.z_e)
    assert output.vq.indices is None
    assert output.vq.codebook_loss == 0
    assert "vq" not in params_lib.abstract_params(_make(config))


def test_positions_follow_the_closed_form():
    table = latent_action.sinusoidal_positions(4, 6)
    assert table.shape == (4, 6)
    assert table[3, 2] == pytest.approx(np.sin(3 * 1e4 ** (-2 / 6)))
    assert table[3, 5] == pytest.approx(np.cos(3 * 1e4 ** (-4 / 6)))


def test_bf16_stays_near_fp32_and_distances_are_fp32(params):
    features, text = _inputs()

    @jax.jit
    def run(params):
        def make(rngs):
            return latent_action.LatentActionModel(CONFIG, dtype=jnp.bfloat16, rngs=rngs)

        return params_lib.bind(make, params)(features, text, jnp.asarray(UNEQUAL))

    output = run(params)
    reference = _run(params, features, text, UNEQUAL)
    assert output.z_e.dtype == jnp.float32
    error = np.linalg.norm(output.z_e - reference.z_e) / np.linalg.norm(reference.z_e)
    assert error < 0.05


@pytest.mark.parametrize(
    "changes", [{"num_heads": 3}, {"quantizer": "vqq"}, {"mask_order": "tile"}]
)
def test_config_refuses_contradictions(changes):
    with pytest.raises(ValueError, match=r"heads|quantizer|mask_order"):
        dataclasses.replace(CONFIG, **changes)
