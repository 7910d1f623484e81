"""Attention is the softmax written out; so are the TPU's kernel, interpreted, and other forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from defi_jax import partition
from defi_jax.models.layers import attention


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _random(*shape):
    return [jax.random.normal(jax.random.key(seed), shape) for seed in range(4)]


@pytest.mark.parametrize(("tokens", "is_masked"), [(256, False), (292, False), (292, True)])
def test_the_kernel_and_its_gradients_equal_plain_attention(tokens, is_masked):
    query, key, value, weight = _random(1, 2, tokens, 2, 64)
    keys = jax.random.bernoulli(jax.random.key(9), 0.7, (1, 2, tokens)) if is_masked else None
    mask = None if keys is None else keys[:, :, None, None]

    def value_and_gradients(attend):
        def loss(*args):
            y = attend(*args)
            return jnp.sum(y * weight), y

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(query, key, value)

    def kernel(*args):
        return attention._kernel(*args, keys, interpret=True)

    def plain(*args):
        return attention.attention(*args, mask=mask)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        value_and_gradients(kernel),
        value_and_gradients(plain),
    )


def test_many_tokens_lower_to_the_kernel_on_tpus_and_to_plain_attention_elsewhere():
    def text(platform, tokens):
        args = _random(1, 2, tokens, 2, 64)[:3]
        traced = jax.jit(attention.over_tokens).trace(*args)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    for tokens in (256, 292):
        assert "tpu_custom_call" in text("tpu", tokens), tokens
    for platform, tokens in (("cpu", 256), ("tpu", 64), ("tpu", 200)):
        assert "tpu_custom_call" not in text(platform, tokens), (platform, tokens)


@pytest.mark.parametrize("sizes", [(1, 4, 1), (2, 2, 1), (1, 2, 2)])
def test_the_kernel_lowers_for_a_mesh_of_several_devices(sizes):
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    mesh = jax.sharding.AbstractMesh(sizes, partition.AXES, axis_types=auto)
    where = jax.sharding.NamedSharding(mesh, partition.BATCH_SPEC)
    args = [jax.ShapeDtypeStruct((4, 1, 256, 2, 64), "float32", sharding=where)] * 3
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(attention.over_tokens).trace(*args).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()


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
    np.testing.assert_allclose(attention.attention(*_qkv()), expected, rtol=1e-5, atol=1e-6)


def test_attention_gives_masked_keys_no_weight_and_no_gradient():
    q, k, v = _qkv()
    mask = np.array([True, False, True, True, False])
    kept = attention.attention(q, k[:, mask], v[:, mask])
    np.testing.assert_allclose(attention.attention(q, k, v, mask), kept, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda k: attention.attention(q, k, v, mask).sum())(k)
    assert (np.asarray(gradient[:, ~mask]) == 0).all()


def test_attention_gradient_equals_that_of_plain_softmax():
    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * DH**-0.5, axis=-1)
        return jnp.square(jnp.einsum("bhqk,bkhd->bqhd", weights, v)).sum()

    ours = jax.grad(lambda *x: jnp.square(attention.attention(*x)).sum(), argnums=(0, 1, 2))(
        *_qkv()
    )
    theirs = jax.grad(plain, argnums=(0, 1, 2))(*_qkv())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_attention_dropout_keeps_the_mean():
    q, k, v = _qkv()
    rngs = jax.random.split(jax.random.key(1), 2000)
    dropped = jax.vmap(lambda rng: attention.attention(q, k, v, dropout_rate=0.5, dropout_rng=rng))(
        rngs
    )
    np.testing.assert_allclose(dropped.mean(0), attention.attention(q, k, v), atol=0.1)
    assert np.asarray(dropped).std(0).min() > 0


def test_dropout_without_key_is_identity_and_with_key_scales():
    x = jnp.ones((1000,))
    assert attention.dropout(x, 0.5, None) is x
    dropped = np.asarray(attention.dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(dropped).round(5)) == {0.0, np.float32(1 / 0.75).round(5)}


@pytest.mark.parametrize("num_tokens", [3, 8])
def test_attention_to_text_equals_projecting_every_row(num_tokens):
    layer = attention.TextAttention(
        16, 2, context_dim=12, qkv_bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    layer.to_out.bias[...] = _normal(1, 16)
    x, text = _normal(2, 2, 5, 16), _normal(3, 2, num_tokens, 12)
    heads = [
        y.reshape(*y.shape[:-1], 2, 8) for y in (layer.to_q(x), layer.to_k(text), layer.to_v(text))
    ]
    want = layer.to_out(attention.attention(*heads).reshape(x.shape))
    np.testing.assert_allclose(layer(x, text), want, rtol=1e-5, atol=1e-5)


def test_attention_over_frames_and_positions_equal_it_on_regrouped_rows():
    query, key, value = _random(2, 3, 5, 2, 4)[:3]

    def grouped(x, is_temporal):
        x = jnp.swapaxes(x, 1, 2) if is_temporal else x
        return x.reshape(-1, *x.shape[2:])

    for is_temporal, ours in (
        (True, attention.over_frames),
        (False, attention.over_tokens),
    ):
        want = attention.attention(*(grouped(x, is_temporal) for x in (query, key, value)))
        np.testing.assert_allclose(
            grouped(ours(query, key, value), is_temporal), want, rtol=1e-5, atol=1e-6
        )
