import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from defi_jax.models.layers import conv


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_temporal_convolution_equals_xlas():
    layer = conv.TemporalConv(6, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.bias[...] = _normal(0, 4)
    x = _normal(1, 2, 5, 3, 6)
    want = jax.lax.conv_general_dilated(
        x,
        layer.kernel[...][:, None],
        (1, 1),
        ((1, 1), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(layer(x), want + layer.bias[...], rtol=1e-5, atol=1e-5)
    one_frame = layer(x[:, :1])
    np.testing.assert_allclose(one_frame, x[:, :1] @ layer.kernel[1] + layer.bias[...], rtol=1e-5)
