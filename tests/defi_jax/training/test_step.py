import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run

from defi_jax.training import sharding, step


def one_step(accumulation, *, noise=0.0):
    """State after one step from the same start, and the scalars."""
    config = toy_run.config(**{"optimizer.accumulation_steps": accumulation})
    objective = toy_run.ToyObjective(noise=noise, hidden=16)
    state = step.init_state(jax.random.key(0), objective=objective, config=config)
    batch = toy_run.ToyLoader(objective.batch_spec(16)).batch(0)
    return jax.jit(functools.partial(step.train_step, objective=objective, config=config))(
        state, batch
    )


def test_accumulation_equals_the_big_batch():
    big, big_scalars = one_step(1)
    for num in (2, 16):
        small, scalars = one_step(num)
        for path, leaf in toy_run.leaves(big).items():
            got = toy_run.leaves(small)[path]
            np.testing.assert_allclose(got, leaf, rtol=1e-4, atol=1e-6, err_msg=path)
        for name in ("loss", "grad_norm", "output"):
            np.testing.assert_allclose(scalars[name], big_scalars[name], rtol=1e-5)


@pytest.mark.usefixtures("as_users_compile")
def test_the_quickly_compiled_first_state_has_the_values_of_the_optimized_program():
    config, objective = toy_run.config(), toy_run.ToyObjective(hidden=16)
    mesh = sharding.make_mesh(config.mesh)
    abstract, _ = step.abstract_state(config, objective, mesh)
    found = toy_run.leaves(step.initialize(config, objective, abstract))
    init = functools.partial(step.init_state, objective=objective, config=config)
    want = toy_run.leaves(jax.jit(init)(jax.random.key(config.seed)))
    assert found.keys() == want.keys()
    for path, leaf in want.items():  # fused multiply-adds round differently
        np.testing.assert_allclose(found[path], leaf, rtol=1e-6, atol=1e-7, err_msg=path)


def test_noise_differs_from_step_to_step_and_is_the_same_for_the_same_step():
    objective, config = toy_run.ToyObjective(noise=1.0, hidden=16), toy_run.config()
    state = step.init_state(jax.random.key(0), objective=objective, config=config)
    batch = toy_run.ToyLoader(objective.batch_spec(16)).batch(0)
    run = jax.jit(functools.partial(step.train_step, objective=objective, config=config))
    losses = [float(run(state.replace(step=jnp.int32(n)), batch)[1]["loss"]) for n in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_average_follows_the_parameters_with_a_warm_up():
    state, _ = one_step(1)
    config = toy_run.config()
    first = step.init_state(
        jax.random.key(0), objective=toy_run.ToyObjective(hidden=16), config=config
    )
    before, after = first.params["net"]["fc1"]["kernel"], state.params["net"]["fc1"]["kernel"]
    want = before + 0.9 * (after - before)  # decay (1 + 0) / (10 + 0) at the first update
    np.testing.assert_allclose(state.ema_params["net"]["fc1"]["kernel"], want, rtol=1e-5, atol=1e-7)


def test_no_average_without_a_decay():
    config = toy_run.config(**{"optimizer.ema_decay": 0.0})
    objective = toy_run.ToyObjective(hidden=16)
    state = step.init_state(jax.random.key(0), objective=objective, config=config)
    assert state.ema_params is None
    np.testing.assert_array_equal(state.all_params()["codebook"], state.params["codebook"])
    assert set(state.all_params()) == {"net", "codebook", "encoder"}


def test_infinite_gradient_of_a_finite_loss_is_skipped_too():
    class Steep(toy_run.ToyObjective):
        def loss_fn(self, params, extra, batch, rng):
            loss, output = super().loss_fn(params, extra, batch, rng)
            bias = params["net"]["fc2"]["bias"]  # zeros: the square root's slope is infinite
            return loss + jnp.sqrt(bias).sum(), output

    config, objective = toy_run.config(), Steep(hidden=16)
    state = step.init_state(jax.random.key(0), objective=objective, config=config)
    batch = toy_run.ToyLoader(objective.batch_spec(16)).batch(0)
    run = jax.jit(functools.partial(step.train_step, objective=objective, config=config))
    after, scalars = run(state, batch)
    assert np.isfinite(scalars["loss"]) and not np.isfinite(scalars["grad_norm"])
    for part in ("params", "ema_params", "opt_state", "extra"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(after, part))
    assert int(after.step) == 1 and int(after.bad_steps) == 1
