"""The kernel for TPUs, interpreted, equals plain attention; so does what other machines run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax import partition
from defi_jax.models.layers import fused_attention


def _random(*shape):
    return [jax.random.normal(jax.random.key(seed), shape) for seed in range(4)]


def test_the_kernel_and_its_gradients_equal_plain_attention():
    query, key, value, weight = _random(1, 2, fused_attention.MIN_TOKENS, 2, 64)

    def value_and_gradients(attend):
        def loss(*args):
            y = attend(*args)
            return jnp.sum(y * weight), y

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(query, key, value)

    def kernel(*args):
        return fused_attention._kernel(*args, interpret=True)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        value_and_gradients(kernel),
        value_and_gradients(fused_attention.plain),
    )


def test_many_tokens_lower_to_the_kernel_on_tpus_and_to_plain_attention_elsewhere():
    def text(platform, tokens):
        args = _random(1, 2, tokens, 2, 64)[:3]
        traced = jax.jit(fused_attention.attend).trace(*args)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "tpu_custom_call" in text("tpu", 256)
    for platform, tokens in (("cpu", 256), ("tpu", 64), ("tpu", 200), ("tpu", 320)):
        assert "tpu_custom_call" not in text(platform, tokens), (platform, tokens)


@pytest.mark.parametrize("sizes", [(1, 4, 1), (2, 2, 1), (1, 2, 2)])
def test_the_kernel_lowers_for_a_mesh_of_several_devices(sizes):
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    mesh = jax.sharding.AbstractMesh(sizes, partition.AXES, axis_types=auto)
    where = jax.sharding.NamedSharding(mesh, partition.BATCH_SPEC)
    args = [jax.ShapeDtypeStruct((4, 1, 256, 2, 64), "float32", sharding=where)] * 3
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(fused_attention.attend).trace(*args).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()
