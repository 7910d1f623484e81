"""Layers whose arithmetic is written out equal their plain definitions, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from defi_jax.models.layers import fused_attention
from defi_jax.models.layers import video as video_layers


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
        loss(lambda *args: video_layers._group_norm(*args, 4, 1e-5)), argnums=(0, 1, 2)
    )(x, scale, bias)
    want = jax.value_and_grad(loss(_plain_group_norm), argnums=(0, 1, 2))(x, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, want)


@pytest.mark.parametrize("num_tokens", [3, 8])
def test_attention_to_text_equals_projecting_every_row(num_tokens):
    layer = video_layers.TextAttention(16, 2, 12, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.to_out[0].bias[...] = _normal(1, 16)
    x, text = _normal(2, 2, 5, 16), _normal(3, 2, num_tokens, 12)
    heads = [
        y.reshape(*y.shape[:-1], 2, 8) for y in (layer.to_q(x), layer.to_k(text), layer.to_v(text))
    ]
    want = layer.to_out[0](fused_attention.plain(*heads).reshape(x.shape))
    np.testing.assert_allclose(layer(x, text), want, rtol=1e-5, atol=1e-5)


def test_attention_over_frames_and_positions_equal_it_on_regrouped_rows():
    query, key, value = (_normal(seed, 2, 3, 5, 2, 4) for seed in range(3))

    def grouped(x, is_temporal):
        x = jnp.swapaxes(x, 1, 2) if is_temporal else x
        return x.reshape(-1, *x.shape[2:])

    for is_temporal, ours in (
        (True, video_layers.attend_over_frames),
        (False, fused_attention.attend),
    ):
        want = fused_attention.plain(*(grouped(x, is_temporal) for x in (query, key, value)))
        np.testing.assert_allclose(
            grouped(ours(query, key, value), is_temporal), want, rtol=1e-5, atol=1e-6
        )


def test_sinusoids_are_cosines_then_sines_then_a_zero():
    values = jnp.asarray([0.0, 3.0])
    even, odd = video_layers.sinusoid(values, 4), video_layers.sinusoid(values, 5)
    want = [np.cos(3.0), np.cos(0.03), np.sin(3.0), np.sin(0.03)]
    np.testing.assert_allclose(even[1], want, rtol=1e-5)
    np.testing.assert_allclose(odd, np.pad(even, ((0, 0), (0, 1))), rtol=1e-6)


def test_halves_are_the_halves_of_the_product():
    layer = video_layers.Linear(6, 8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.bias[...] = _normal(0, 8)
    x = _normal(1, 3, 6)
    np.testing.assert_allclose(jnp.concatenate(layer.halves(x), -1), layer(x), rtol=1e-6, atol=1e-6)


def test_temporal_convolution_equals_xlas():
    layer = video_layers.TemporalConv(6, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
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
