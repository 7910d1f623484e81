import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from defi_jax.models.layers import linear as linear_lib


def test_gelu_is_exact_also_in_bf16():
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(linear_lib.gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    rounded = x.astype(jnp.bfloat16)
    expected = jax.nn.gelu(rounded.astype(jnp.float32), approximate=False).astype(jnp.bfloat16)
    assert linear_lib.gelu(rounded).dtype == jnp.bfloat16
    np.testing.assert_allclose(
        linear_lib.gelu(rounded).astype(jnp.float32),
        expected.astype(jnp.float32),
        rtol=1e-2,
        atol=1e-6,
    )


def test_linear_layers_multiply_the_last_axis_only():
    layer = linear_lib.torch_linear(4, 6, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 3, 5, 4))
    expected = np.einsum("abci,io->abco", x, layer.kernel[...]) + layer.bias[...]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
