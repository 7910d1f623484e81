"""FLOPs are those of the products, however the program is written."""

import jax
import jax.numpy as jnp
from jax import lax

from defi_jax.training import flops

_X, _W = jax.ShapeDtypeStruct((4, 8), "float32"), jax.ShapeDtypeStruct((8, 16), "float32")
_PRODUCT = 2 * 4 * 8 * 16


def test_a_product_and_its_gradient():
    assert flops.count(jnp.dot, _X, _W).total == _PRODUCT
    gradient = jax.grad(lambda x, w: jnp.sum(jnp.dot(x, w) ** 2), argnums=(0, 1))
    assert flops.count(gradient, _X, _W).total == 3 * _PRODUCT


def test_batched_product_counts_the_batch():
    batched = jax.ShapeDtypeStruct((5, 4, 8), "float32")
    found = flops.count(lambda x, w: jnp.einsum("bnc,cd->bnd", x, w), batched, _W)
    assert found.total == 5 * _PRODUCT


def test_convolution_counts_taps_and_groups():
    def convolve(x, w, groups):
        return lax.conv_general_dilated(
            x,
            w,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    x = jax.ShapeDtypeStruct((2, 6, 6, 8), "float32")
    for groups in (1, 4):
        w = jax.ShapeDtypeStruct((3, 3, 8 // groups, 16), "float32")
        want = 2 * (2 * 6 * 6 * 16) * (9 * 8 // groups)
        assert flops.count(lambda x, w, groups=groups: convolve(x, w, groups), x, w).total == want


def test_loops_count_every_pass_and_branches_the_dearest():
    def loop(x, w):
        return lax.scan(lambda y, _: (jnp.dot(y, w) @ w.T, None), x, length=7)[0]

    assert flops.count(loop, _X, _W) == (7 * 2 * _PRODUCT, 2 * _PRODUCT)

    def branch(x, w):
        dear, cheap = lambda: jnp.dot(x, w) @ w.T @ w, lambda: jnp.dot(x, w)
        return lax.cond(x[0, 0] > 0, dear, cheap)

    assert flops.count(branch, _X, _W).total == 3 * _PRODUCT


def test_recomputation_counts_again():
    def loss(w, x):
        return jnp.sum(jax.checkpoint(lambda w: jnp.sin(jnp.dot(x, w)))(w))

    assert flops.count(jax.grad(loss), _W, _X).total == 3 * _PRODUCT
