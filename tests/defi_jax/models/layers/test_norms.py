import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax.models.layers import norms


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _plain_group_norm(x, scale, bias):
    grouped = x.reshape(x.shape[0], -1, 4, x.shape[-1] // 4)
    mean = jnp.mean(grouped, (1, 3), keepdims=True)
    variance = jnp.mean((grouped - mean) ** 2, (1, 3), keepdims=True)
    return ((grouped - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape) * scale + bias


@pytest.mark.parametrize("shape", [(3, 4, 5, 16), (2, 7, 8)])
def test_group_norm_and_its_gradient_equal_the_definition(shape):
    x, weight = 2 * _normal(0, *shape) + 1, _normal(1, *shape)
    scale, bias = _normal(2, shape[-1]), _normal(3, shape[-1])

    def loss(norm):
        return lambda *args: jnp.sum(norm(*args) * weight)

    ours = jax.value_and_grad(
        loss(lambda *args: norms._group_norm(*args, 4, 1e-5)), argnums=(0, 1, 2)
    )(x, scale, bias)
    want = jax.value_and_grad(loss(_plain_group_norm), argnums=(0, 1, 2))(x, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, want)
