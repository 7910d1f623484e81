import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from defi_jax.models import params as params_lib
from defi_jax.models.layers import transformer

Q, M, HEADS, DH = 3, 5, 2, 4


def _qkv():
    rngs = jax.random.split(jax.random.key(0), 3)
    shapes = ((2, Q, HEADS, DH), (2, M, HEADS, DH), (2, M, HEADS, DH))
    return [jax.random.normal(rng, shape) for rng, shape in zip(rngs, shapes, strict=True)]


def test_attention_equals_softmax_written_out():
    q, k, v = (np.asarray(x, np.float64) for x in _qkv())
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(DH)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, v)
    np.testing.assert_allclose(transformer.attention(*_qkv()), expected, rtol=1e-5, atol=1e-6)


def test_attention_gives_masked_keys_no_weight_and_no_gradient():
    q, k, v = _qkv()
    mask = np.array([True, False, True, True, False])
    kept = transformer.attention(q, k[:, mask], v[:, mask])
    np.testing.assert_allclose(transformer.attention(q, k, v, mask), kept, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda k: transformer.attention(q, k, v, mask).sum())(k)
    assert (np.asarray(gradient[:, ~mask]) == 0).all()


def test_attention_gradient_equals_that_of_plain_softmax():
    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * DH**-0.5, axis=-1)
        return jnp.square(jnp.einsum("bhqk,bkhd->bqhd", weights, v)).sum()

    ours = jax.grad(lambda *x: jnp.square(transformer.attention(*x)).sum(), argnums=(0, 1, 2))(
        *_qkv()
    )
    theirs = jax.grad(plain, argnums=(0, 1, 2))(*_qkv())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_attention_dropout_keeps_the_mean():
    q, k, v = _qkv()
    rngs = jax.random.split(jax.random.key(1), 2000)
    dropped = jax.vmap(
        lambda rng: transformer.attention(q, k, v, dropout_rate=0.5, dropout_rng=rng)
    )(rngs)
    np.testing.assert_allclose(dropped.mean(0), transformer.attention(q, k, v), atol=0.1)
    assert np.asarray(dropped).std(0).min() > 0


def test_gelu_is_exact_also_in_bf16():
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(transformer.gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    rounded = x.astype(jnp.bfloat16)
    expected = jax.nn.gelu(rounded.astype(jnp.float32), approximate=False).astype(jnp.bfloat16)
    assert transformer.gelu(rounded).dtype == jnp.bfloat16
    np.testing.assert_allclose(
        transformer.gelu(rounded).astype(jnp.float32),
        expected.astype(jnp.float32),
        rtol=1e-2,
        atol=1e-6,
    )


def test_dropout_without_key_is_identity_and_with_key_scales():
    x = jnp.ones((1000,))
    assert transformer.dropout(x, 0.5, None) is x
    dropped = np.asarray(transformer.dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(dropped).round(5)) == {0.0, np.float32(1 / 0.75).round(5)}


class _Stack(nnx.Module):
    def __init__(self, rngs):
        self.blocks = transformer.stack_blocks(
            lambda r: transformer.MLP(4, 8, 4, dtype=jnp.float32, rngs=r), 3, rngs
        )


def _loss(params, x, **options):
    model = params_lib.bind(_Stack, params)
    y, _ = transformer.scan_blocks(
        model.blocks, lambda block, x, _: (x + block(x), None), x, **options
    )
    return jnp.square(y).sum()


def _loop_loss(params, x):
    for index in range(3):
        block = params_lib.bind(
            lambda r: transformer.MLP(4, 8, 4, dtype=jnp.float32, rngs=r),
            jax.tree.map(lambda leaf, i=index: leaf[i], params["blocks"]),
        )
        x = x + block(x)
    return jnp.square(x).sum()


@pytest.mark.parametrize("options", [{}, {"unroll": 3}, {"remat": True}])
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


def test_linear_layers_multiply_the_last_axis_only():
    layer = transformer.torch_linear(4, 6, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 3, 5, 4))
    expected = np.einsum("abci,io->abco", x, layer.kernel[...]) + layer.bias[...]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
