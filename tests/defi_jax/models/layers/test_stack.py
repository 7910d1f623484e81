import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from defi_jax.models import params as params_lib
from defi_jax.models.layers import linear as linear_lib
from defi_jax.models.layers import stack


def _mlp(rngs):
    torch_linear = linear_lib.torch_linear
    return linear_lib.MLP(4, 8, 4, linear=torch_linear, dtype=jnp.float32, rngs=rngs)


class _Stack(nnx.Module):
    def __init__(self, rngs):
        self.blocks = stack.stack_blocks(
            lambda r: linear_lib.MLP(
                4, 8, 4, linear=linear_lib.torch_linear, dtype=jnp.float32, rngs=r
            ),
            3,
            rngs,
        )


def _loss(params, x, **options):
    model = params_lib.bind(_Stack, params)
    y, _ = stack.scan_blocks(model.blocks, lambda block, x, _: (x + block(x), None), x, **options)
    return jnp.square(y).sum()


def _loop_loss(params, x):
    for index in range(3):
        block = params_lib.bind(
            lambda r: linear_lib.MLP(
                4, 8, 4, linear=linear_lib.torch_linear, dtype=jnp.float32, rngs=r
            ),
            jax.tree.map(lambda leaf, i=index: leaf[i], params["blocks"]),
        )
        x = x + block(x)
    return jnp.square(x).sum()


@pytest.mark.parametrize(
    "options", [{}, {"unroll": 3}, {"remat": "blocks"}, {"remat": "elementwise"}]
)
def test_scan_equals_loop_in_value_and_gradient(options):
    params = params_lib.init_params(_Stack, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 4))
    loop = jax.value_and_grad(_loop_loss)(params, x)
    scan = jax.value_and_grad(lambda p: _loss(p, x, **options))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), scan, loop)


def test_stacked_blocks_start_different():
    kernel = params_lib.init_params(_Stack, jax.random.key(0))["blocks"]["fc1"]["kernel"]
    assert kernel.shape == (3, 4, 8)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01
    assert np.abs(kernel).max() <= 4**-0.5
