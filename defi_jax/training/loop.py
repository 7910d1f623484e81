"""The one training loop of all stages; a stage is an objective and a config.

Order, fixed: devices and mesh; data; shapes and shardings; start-up by precedence; features that an
objective wants computed once; one compilation of the step; then for every step: evaluate, save
(state, iterator state, statistics, config), stop if asked, take a batch, step, report one step
late. Evaluation and save come before the step, so that checkpoint n is the state after n steps and
what was evaluated at n is written before it.

Config keys read: steps, global_batch, seed, mesh, eval_every, eval_batches (0: no evaluation),
save_every, log_every (0: never; the last step is always evaluated and saved), keep_checkpoints,
max_failed_saves, storage_timeout, step_timeout, max_consecutive_bad_steps, compilation_cache_dir,
profile_start, profile_steps, logging, and those of `optimizer`.
"""

import contextlib
import os
from typing import Any

import jax

from defi_jax import batch as batch_lib
from defi_jax.checkpoints import manager, storage
from defi_jax.checkpoints.train_state import TrainState
from defi_jax.objectives import base
from defi_jax.training import device_batches, same_run, step, watchdog, workdir_lock
from defi_jax.training import periodic as periodic_lib
from defi_jax.training import start as start_lib
from defi_jax.training.caches import features as feature_cache
from defi_jax.training.caches import latents as latent_cache


def train(
    config: Any,
    objective: base.Objective,
    make_loader: batch_lib.MakeLoader,
    workdir: str | os.PathLike,
) -> TrainState:
    """Trains to `config.steps`, from wherever `workdir` stands, and returns the final state.

    `config` is a locked ConfigDict; `workdir` is local or in a bucket.

    Raises:
        Preempted: asked to stop, after saving.
        NumericsError: too many consecutive steps were not finite.
        DataError: the data ended, or no checkpoint verifies.
        UserError: the config does not fit the devices, the data or the checkpoints, or another run
            is in the workdir.
        StorageError: the workdir is full, or does not answer.
    """
    workdir = storage.absolute(workdir)
    same_run.check(config, workdir)
    start_lib.enable_compilation_cache(config.compilation_cache_dir)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        deadlines = watchdog.Deadlines(least_step=config.step_timeout)
        watch = enter(watchdog.Supervisor(str(workdir / "logs"), deadlines))
        lock = enter(workdir_lock.WorkdirLock(workdir, patience=config.storage_timeout))

        # Devices and mesh; data, so that its problems show before anything is compiled.
        mesh = start_lib.check(config)
        loader, held_out = start_lib.open_loaders(config, objective, make_loader)
        stack.callback(loader.close)
        same_run.claim(config, workdir)

        # Shapes and shardings; the state to go on from; features computed once.
        enter(jax.set_mesh(mesh))
        keep, max_failed = config.keep_checkpoints, config.max_failed_saves
        checkpoints = enter(manager.Checkpointer(workdir, keep=keep, max_failed=max_failed))
        lock.last_good = checkpoints.last_good
        abstract, placement = step.abstract_state(config, objective, mesh)
        start_lib.log_facts(objective, mesh, abstract, placement)
        config, state, facts = start_lib.start(config, objective, checkpoints, abstract, loader)
        checkpoints.check_space(abstract, periodic_lib.saves_left(int(state.step), config))
        latent_cache.check(config, objective, state.frozen, loader)
        same_run.write(config, facts["config_history"], workdir)  # known to fit what is there
        held_out, eval_spec = feature_cache.prepare(
            config, objective, state.frozen, loader, held_out, mesh, workdir, watch
        )

        # One compilation, after the first batch; none where no step is left.
        spec = objective.batch_spec(config.global_batch)
        batches = device_batches.DeviceBatches(loader, spec, mesh)
        train_step = None
        if int(state.step) < config.steps:
            batches.prefetch()
            with watch.ledger.during("compile"):
                train_step = step.compile_step(config, objective, mesh, abstract)
        held_out = device_batches.HeldOut(held_out, config.eval_batches, eval_spec, mesh)
        run = periodic_lib.Duties(config, objective, workdir, watch, checkpoints, facts, held_out)
        stack.callback(run.close)
        return _loop(config, watch, lock, run, state, batches, train_step)


def _loop(
    config: Any,
    watch: watchdog.Supervisor,
    lock: workdir_lock.WorkdirLock,
    run: periodic_lib.Duties,
    state: TrainState,
    batches: device_batches.DeviceBatches,
    train_step: jax.stages.Compiled | None,
) -> TrainState:
    """Runs the steps that are left; the state of a run that is complete comes back as it is."""
    now = int(state.step)
    while True:
        watch.enter("step")
        is_last, stopping = now >= config.steps, watch.should_stop(now)
        if (is_last or periodic_lib.is_due(now, config.eval_every)) and not stopping:
            run.evaluate(now, state)
        if is_last or stopping or periodic_lib.is_due(now, config.save_every):
            with watch.phase("save"):
                lock.check()
            run.save(now, state, batches.state(), is_end=is_last or stopping)
        if is_last:
            return state
        if stopping:
            raise run.preempted(now)

        run.profile(now)
        assert train_step is not None
        batch = batches.take()
        with watch.ledger.during("dispatch"), jax.transfer_guard("disallow"):
            state, scalars = train_step(state, batch)
        now += 1
        # While the devices work: read the next batch, then the numbers of the step before.
        with watch.phase("data"):
            batches.prefetch()
        if scalars["loss"].is_ready():  # the devices may have waited for that batch
            watch.ledger.move(batches.read_seconds, "device", "data_wait")
        run.report_late(now, scalars, batches.replaced)
