"""The train state's birth and its one step, as pure functions, and their compilation.

Config keys read: steps, global_batch, `optimizer` (see optimizer.py).
"""

import dataclasses
import functools
import logging
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from defi_jax.array_typing import Params
from defi_jax.checkpoints.train_state import TrainState, merge_params, split_params
from defi_jax.objectives import base
from defi_jax.training import optimizer, sharding, spikes

# The program that makes the state runs once and has a random kernel for every parameter: XLA's
# optimizations for the CPU take longer than they save.
_INIT_OPTIONS = {"xla_backend_optimization_level": 0}


def init_state(rng: jax.Array, *, objective: base.Objective, config: Any) -> TrainState:
    """State at step 0, from scratch; traced for its shapes, jitted for its values."""
    init_rng, run_rng = jax.random.split(rng)
    params, frozen = split_params(objective.init_params(init_rng), objective.is_trainable)
    use_ema = config.optimizer.ema_decay > 0
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        ema_params=jax.tree.map(jnp.copy, params) if use_ema else None,
        opt_state=optimizer.make_optimizer(config.optimizer, config.steps).init(params),
        extra=objective.init_extra(),
        rng=run_rng,
        bad_steps=jnp.zeros((), jnp.int32),
        skipped_steps=jnp.zeros((), jnp.int32),
        spikes=spikes.init(config.optimizer),
    )


def train_step(
    state: TrainState, batch: Any, *, objective: base.Objective, config: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer update on one global batch.

    A step whose loss or gradient norm is not finite, or a spike (`spikes`), changes nothing but the
    counters.

    Returns:
        The next state, and scalars to log.
    """
    numbers = config.optimizer
    loss_rng, after_rng = jax.random.split(jax.random.fold_in(state.rng, state.step))
    loss, values, extra, grads = compute_gradient(
        state, batch, loss_rng, objective=objective, config=config
    )
    norms = optimizer.gradient_norms(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norms["grad_norm"])
    is_spike, history = spikes.judge(state.spikes, state.step, loss, norms["grad_norm"], numbers)
    is_good = is_finite & ~is_spike

    num_updates, rate = state.step - state.skipped_steps, spikes.rate(state.spikes)
    new = _updated(state, grads, extra, after_rng, objective, config, num_updates, rate)
    old = (state.params, state.ema_params, state.opt_state, state.extra)
    params, ema, opt_state, extra = jax.tree.map(functools.partial(jnp.where, is_good), new, old)
    next_state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        ema_params=ema,
        opt_state=opt_state,
        extra=extra,
        bad_steps=jnp.where(is_finite, 0, state.bad_steps + 1),
        skipped_steps=state.skipped_steps + jnp.where(is_good, 0, 1),
        spikes=history,
    )
    scalars = {
        **values,
        **norms,
        "loss": loss,
        "learning_rate": rate * optimizer.make_schedule(numbers, config.steps)(num_updates),
        "bad_steps": next_state.bad_steps,
        "skipped_steps": next_state.skipped_steps,
    }
    if history:
        scalars["rate_cuts"] = history["cuts"]
    return next_state, scalars


def _updated(
    state: TrainState,
    grads: Params,
    extra: Any,
    rng: jax.Array,
    objective: base.Objective,
    config: Any,
    num_updates: jax.Array,
    rate: jax.Array,
) -> tuple[Params, Params | None, Any, Any]:
    """Returns parameters, their average, optimizer state and extra after an update."""
    tx = optimizer.make_optimizer(config.optimizer, config.steps)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    if state.spikes:
        updates = jax.tree.map(lambda update: rate.astype(update.dtype) * update, updates)
    params = cast(Params, optax.apply_updates(state.params, updates))
    # The objective sees all parameters, but only trained ones may change.
    params, extra = objective.after_step(
        merge_params(params, state.frozen), extra, state.step + 1, rng
    )
    params, _ = split_params(params, objective.is_trainable)
    ema = state.ema_params
    if ema is not None:
        ema = optimizer.update_ema(ema, params, num_updates, config.optimizer.ema_decay)
    return params, ema, opt_state, extra


def compute_gradient(
    state: TrainState, batch: Any, rng: jax.Array, *, objective: base.Objective, config: Any
) -> tuple[jax.Array, dict[str, jax.Array], Any, Any]:
    """Returns loss, metrics, the objective's new arrays and the gradient of the trained params."""

    def loss_and_grad(extra: Any, batch: Any, rng: jax.Array) -> Any:
        def loss_fn(params: Any) -> Any:
            return objective.loss_fn(merge_params(params, state.frozen), extra, batch, rng)

        return jax.value_and_grad(loss_fn, has_aux=True)(state.params)

    num = config.optimizer.accumulation_steps
    return optimizer.accumulate(loss_and_grad, state.extra, objective.weigh(batch), rng, num)


def abstract_values(config: Any, objective: base.Objective) -> TrainState:
    """Shapes and dtypes of the state."""
    init = functools.partial(init_state, objective=objective, config=config)
    return jax.eval_shape(init, jax.random.key(0))


def abstract_state(
    config: Any, objective: base.Objective, mesh: jax.sharding.Mesh
) -> tuple[TrainState, sharding.Placement]:
    """Shapes, dtypes and shardings of the state, without computing or allocating it."""
    shapes = abstract_values(config, objective)
    placement = sharding.place(shapes, mesh)
    return jax.tree.map(_with_sharding, shapes, placement.shardings), placement


def initialize(config: Any, objective: base.Objective, abstract: TrainState) -> TrainState:
    """State at step 0, each array made where `abstract` wants it."""
    init = functools.partial(init_state, objective=objective, config=config)
    return jit_init(init, out_shardings=_shardings(abstract))(jax.random.key(config.seed))


def jit_init(init: Any, **options: Any) -> Any:
    """`jax.jit` of a program that runs once, to make parameters."""
    compiler = _INIT_OPTIONS if jax.default_backend() == "cpu" else None
    return jax.jit(init, compiler_options=compiler, **options)


def compile_step(
    config: Any, objective: base.Objective, mesh: jax.sharding.Mesh, abstract: TrainState
) -> jax.stages.Compiled:
    """The train step, compiled ahead of its first call: it can't compile a second time.

    The state's buffers are donated to the result.
    """
    on_batch = sharding.batch_sharding(mesh)
    shardings = _shardings(abstract)
    step = functools.partial(train_step, objective=objective, config=config)
    jitted = jax.jit(
        functools.update_wrapper(step, train_step),  # its name in profiles and logs
        in_shardings=(shardings, on_batch),
        out_shardings=(shardings, jax.sharding.NamedSharding(mesh, jax.P())),
        donate_argnums=0,
    )
    batch = objective.batch_spec(config.global_batch)
    batch = jax.tree.map(lambda leaf: _with_sharding(leaf, on_batch), batch)
    start = time.monotonic()
    compiled = jitted.lower(abstract, batch).compile()
    logging.info("compiled the step in %.1f s", time.monotonic() - start)
    return compiled


def _with_sharding(leaf: jax.ShapeDtypeStruct, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _shardings(abstract: TrainState) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
