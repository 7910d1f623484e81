import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from defi_jax.models.layers import linear as linear_lib
from defi_jax.models.layers import video_transformer


def test_sinusoids_are_cosines_then_sines_then_a_zero():
    values = jnp.asarray([0.0, 3.0])
    even, odd = video_transformer.sinusoid(values, 4), video_transformer.sinusoid(values, 5)
    want = [np.cos(3.0), np.cos(0.03), np.sin(3.0), np.sin(0.03)]
    np.testing.assert_allclose(even[1], want, rtol=1e-5)
    np.testing.assert_allclose(odd, np.pad(even, ((0, 0), (0, 1))), rtol=1e-6)


def test_the_feed_forward_is_the_value_times_gelu_of_the_gate():
    layer = video_transformer.FeedForward(6, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.proj.bias[...] = jax.random.normal(jax.random.key(0), (48,))
    x = jax.random.normal(jax.random.key(1), (3, 5, 6))
    value, gate = jnp.split(layer.proj(x), 2, axis=-1)
    want = layer.out(value * linear_lib.gelu(gate))
    np.testing.assert_allclose(layer(x), want, rtol=1e-5, atol=1e-6)
