"""Estimates from shapes: FLOPs as counted, arrays that live, collectives of each mesh axis."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs import gidm
from defi_jax.training import hardware, progress
from tools.plan import estimate

CHIP = hardware.CHIPS["v5e"]


@pytest.fixture(scope="module")
def config():
    found: Any = gidm.get_config("tiny")
    found.data.mixture = "synthetic"
    found.global_batch = 2
    return found


@pytest.fixture(scope="module")
def model(config):
    return estimate.Model(config, progress.model_flops(config).total)


def _flops(trace):
    return sum(2 * p.times * p.rows * p.depth * p.columns for p in trace.products)


def test_products_of_a_trace_are_the_flops_of_the_step(config, model):
    assert _flops(model._traces[1]) == pytest.approx(progress.model_flops(config).total, rel=1e-6)


def _walked(fn, *shapes):
    trace = estimate.Trace()
    arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    trace.live_bytes = estimate._walk(jax.make_jaxpr(fn)(*arguments).jaxpr, trace, 1, {})
    return trace


def test_what_a_backward_pass_reads_lives_until_then_and_fused_work_does_not():
    def loss(x, w):
        for _ in range(20):
            x = jnp.tanh(x @ w)
        return x.sum()

    one = 64 * 64 * 4
    forward = _walked(loss, (64, 64), (64, 64))
    backward = _walked(jax.grad(loss), (64, 64), (64, 64))
    assert forward.live_bytes <= 3 * one
    assert 20 * one <= backward.live_bytes <= 40 * one
    assert _flops(backward) == 2 * _flops(forward) == 2 * 20 * 2 * 64**3


def test_loops_count_every_pass():
    def loop(x, w):
        return jax.lax.scan(lambda y, _: (y @ w, None), x, length=7)[0]

    assert _flops(_walked(loop, (8, 16), (16, 16))) == 7 * 2 * 8 * 16 * 16


def _mesh(replica, fsdp, tensor=1):
    return {"replica": replica, "fsdp": fsdp, "tensor": tensor}


def test_memory_falls_with_fsdp_and_rises_with_examples(model):
    memory = [model.estimate(CHIP, _mesh(8 // n, n), 4).hbm_bytes for n in (1, 2, 8)]
    assert memory == sorted(memory, reverse=True) and memory[0] > memory[-1]
    assert model.estimate(CHIP, _mesh(1, 8), 8).hbm_bytes > memory[-1]


def test_one_device_exchanges_nothing_and_slices_exchange_slowly(model):
    assert model.estimate(CHIP, _mesh(1, 1), 4).exchange_seconds == 0
    near = model.estimate(CHIP, _mesh(2, 8), 4)
    far = model.estimate(CHIP, _mesh(2, 8), 4, num_slices=2)
    assert far.exchange_seconds > near.exchange_seconds > 0
    assert far.mfu < near.mfu


def test_products_over_the_axis_that_is_split_are_summed():
    def loss(x, into, back):
        return jnp.sum((x @ into) @ back)

    trace = estimate.Trace()
    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((5, 8), (8, 32), (32, 8))]
    traced = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*shapes)
    estimate._walk(traced.jaxpr, trace, 1, {(8, 32): -1, (32, 8): -2})
    # Forwards what comes back, backwards what goes in: [5, 8] each.
    assert sum(p.sums for p in trace.products) == 2 * 5 * 8 * 4
    assert all(p.splits for p in trace.products)


def test_a_tensor_axis_divides_computing_and_sums_activations(model):
    alone = model.estimate(CHIP, _mesh(1, 4), 4)
    split = model.estimate(CHIP, _mesh(1, 4, 2), 4)
    assert split.computing_seconds < alone.computing_seconds
    assert split.exchange_seconds > alone.exchange_seconds
