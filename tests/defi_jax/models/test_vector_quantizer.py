import jax
import jax.numpy as jnp
import numpy as np

from defi_jax.models import params as params_lib
from defi_jax.models import vector_quantizer as vq

CODEBOOK = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], np.float32)


def _quantize(z_e, codebook=CODEBOOK):
    model = params_lib.bind(
        lambda rngs: vq.VectorQuantizer(*codebook.shape, rngs=rngs),
        {"codebook": jnp.asarray(codebook)},
    )
    return model(z_e)


def test_quantize_takes_the_nearest_code():
    z_e = jnp.array([[[0.1, 0.2], [0.9, -0.1]], [[0.3, 1.5], [0.6, 0.0]]])
    output = _quantize(z_e)
    np.testing.assert_array_equal(output.indices, [[0, 1], [2, 1]])
    np.testing.assert_allclose(output.z_q, CODEBOOK[output.indices], atol=1e-6)
    assert output.indices.dtype == jnp.int32


def test_straight_through_passes_the_gradient_to_the_encoder_only():
    z_e = jnp.array([[[0.1, 0.2], [0.9, -0.1]]])
    weights = jnp.array([[[2.0, -1.0], [0.5, 3.0]]])
    to_z, to_codes = jax.grad(lambda z, c: (weights * _quantize(z, c).z_q).sum(), argnums=(0, 1))(
        z_e, jnp.asarray(CODEBOOK)
    )
    np.testing.assert_array_equal(to_z, weights)
    assert (np.asarray(to_codes) == 0).all()


def test_each_loss_moves_one_side():
    z_e = jnp.array([[[0.1, 0.2], [0.9, -0.1]]])

    def gradients(name):
        return jax.grad(lambda z, c: getattr(_quantize(z, c), name), argnums=(0, 1))(
            z_e, jnp.asarray(CODEBOOK)
        )

    to_z, to_codes = gradients("codebook_loss")
    assert (np.asarray(to_z) == 0).all()
    assert np.abs(to_codes).max() > 0
    to_z, to_codes = gradients("commitment_loss")
    assert np.abs(to_z).max() > 0
    assert (np.asarray(to_codes) == 0).all()


def test_usage_counts_a_code_once_per_row():
    indices = jnp.array([[0, 0, 2, 0], [2, 1, 1, 2]])
    np.testing.assert_array_equal(vq.usage_increment(indices, 4), [1, 1, 2, 0])


def test_restart_keeps_live_codes_and_reseeds_dead_ones_from_distinct_samples():
    codebook = jax.random.normal(jax.random.key(0), (6, 3))
    usage = jnp.array([3.0, 0, 0, 1, 0, 7])
    z_e = 10 + jax.random.normal(jax.random.key(1), (9, 3))
    new = np.asarray(vq.restart_dead_codes(codebook, usage, z_e, jax.random.key(2)))
    np.testing.assert_array_equal(new[[0, 3, 5]], np.asarray(codebook)[[0, 3, 5]])
    rows = [int(np.flatnonzero((np.asarray(z_e) == code).all(1))[0]) for code in new[[1, 2, 4]]]
    assert len(set(rows)) == 3


def test_restart_with_fewer_samples_than_codes_still_reseeds_all():
    codebook = jnp.zeros((6, 3))
    z_e = 1 + jnp.arange(6.0).reshape(2, 3)
    new = np.asarray(vq.restart_dead_codes(codebook, jnp.zeros(6), z_e, jax.random.key(0)))
    assert (np.abs(new).sum(1) > 0).all()


def test_official_restart_copies_codes_of_a_random_order():
    codebook = jnp.arange(8.0)[:, None]
    usage = jnp.array([1.0, 0, 1, 0, 1, 1, 0, 1])
    rng = jax.random.key(3)
    new = vq.restart_dead_codes(codebook, usage, jnp.full((9, 1), 99.0), rng, copy_codes=True)
    expected = np.asarray(codebook).copy()
    expected[[1, 3, 6]] = np.asarray(codebook)[np.asarray(jax.random.permutation(rng, 8))[:3]]
    np.testing.assert_array_equal(new, expected)


def test_restart_is_the_same_for_the_same_key():
    arguments = (jnp.zeros((4, 2)), jnp.zeros(4), jax.random.normal(jax.random.key(0), (9, 2)))
    first = vq.restart_dead_codes(*arguments, jax.random.key(1))
    np.testing.assert_array_equal(first, vq.restart_dead_codes(*arguments, jax.random.key(1)))
