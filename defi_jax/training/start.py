"""How a run starts: compilation cache, data, the state to go on from, and what is logged of it."""

import importlib.metadata
import logging
import os
from typing import Any

import jax
from etils import epath

from defi_jax import batch as batch_lib
from defi_jax import config_keys, errors, processes
from defi_jax.checkpoints import manager, storage
from defi_jax.checkpoints.train_state import TrainState
from defi_jax.models import params as params_lib
from defi_jax.objectives import base, setup
from defi_jax.training import metrics, same_run, sharding, step, warm_start, workdir_lock
from defi_jax.training.caches import features as feature_cache

# All that a run writes, and so all that --overwrite deletes.
_OWN_NAMES = (
    same_run.CONFIG_FILE,
    same_run.HISTORY_FILE,
    metrics.FILE,
    metrics.MEDIA,
    manager.DIRECTORY,
    feature_cache.DIRECTORY,
    metrics.LOGS,
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


def claim_workdir(workdir: str | None, *, overwrite: bool) -> epath.Path:
    """Returns the run's directory as an absolute path; makes nothing.

    `overwrite` deletes what an earlier run wrote there; other files stay.

    Raises:
        UserError: no directory is given, it is a file, it holds files but no run's, its storage
            does not answer, or another run is there.
    """
    if not workdir:
        raise errors.UserError(
            "no workdir", "--workdir", "say where the run keeps its files: --workdir=runs/NAME"
        )
    path = storage.absolute(workdir)
    workdir_lock.reach(path)
    if path.exists() and not path.is_dir():
        raise errors.UserError("the workdir is a file", str(path), "give a directory")
    name = same_run.CONFIG_FILE
    if path.exists() and not (path / name).exists() and _holds_files(path):
        raise errors.UserError(
            f"the workdir holds files, but no run's {name}", str(path), "name another one"
        )
    if overwrite:
        exists = path.exists()  # before another process, done with this, makes it
        processes.barrier("the workdir is looked at")
        if exists:
            with workdir_lock.WorkdirLock(path):
                if processes.is_primary():
                    _delete_run(path)
                processes.barrier("the workdir is cleared")
    return path


def _holds_files(path: epath.Path) -> bool:
    return any(child.name != workdir_lock.FILE for child in path.iterdir())


def _delete_run(path: epath.Path) -> None:
    for name in _OWN_NAMES:
        child = path / name
        if child.is_dir():
            child.rmtree()
        else:
            child.unlink(missing_ok=True)


def check(config: Any) -> jax.sharding.Mesh:
    """Returns the mesh, after checking what can be told before the workdir is touched.

    Raises:
        UserError: a package is missing, or mesh, devices and batch do not fit each other.
    """
    metrics.check_packages(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.global_batch, config.optimizer.accumulation_steps, mesh)
    return mesh


def enable_compilation_cache(directory: str) -> None:
    """Keeps compiled programs on disk: in `directory`, or ("") below the user's cache directory.

    A directory set through JAX_COMPILATION_CACHE_DIR wins over "".
    """
    known = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if not directory and known is None:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        directory = os.path.join(home, "defi_jax", "xla")
    if directory:
        jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def open_loaders(
    config: Any, objective: base.Objective, make_loader: batch_lib.MakeLoader
) -> tuple[batch_lib.Loader, batch_lib.Loader | None]:
    """Opens the splits for this process: training, and held out (None without eval_batches)."""
    options = {
        "seed": config.seed,
        "global_batch": config.global_batch,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    loader = make_loader(objective.batch_spec(config.global_batch), split="train", **options)
    if objective.robot:
        loader.check_robot(objective.robot)
    if not config.eval_batches:
        return loader, None
    spec = objective.pixel_batch_spec(config.global_batch)
    return loader, make_loader(spec, split="eval", **options)


def _facts(
    objective: base.Objective, abstract: TrainState, loader: batch_lib.Loader
) -> dict[str, Any]:
    """Metadata of the run's checkpoints as far as this start decides it."""
    return {
        "objective": objective.name,
        "description": objective.describe(),
        "mesh": {axis: int(size) for axis, size in jax.sharding.get_abstract_mesh().shape.items()},
        "pipeline_fingerprint": loader.fingerprint,
        "normalizer": loader.normalizer.to_json(),
        "trained_on": loader.describe(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def start(
    config: Any,
    objective: base.Objective,
    checkpoints: manager.Checkpointer,
    abstract: TrainState,
    loader: batch_lib.Loader,
) -> tuple[Any, TrainState, dict[str, Any]]:
    """Returns the config in force, the state to go on from and its facts.

    The loader is put where the state left it.

    Raises:
        UserError: the checkpoints or the warm start are of another model or pipeline, or of a run
            that was made from other files or with other numbers that it keeps for life.
        DataError: no checkpoint verifies.
    """
    facts = _facts(objective, abstract, loader)
    # 1. Resume this run.
    restored = checkpoints.restore(abstract)
    if restored is not None:
        metadata = restored.metadata
        config, history = same_run.go_on(config, metadata, checkpoints.directory.parent)
        origin = _check_origin(objective, abstract, metadata, checkpoints.directory.parent)
        loader.restore(restored.data_state)
        kept = {name: metadata[name] for name in ("step", "last_eval_step")}
        return config, restored.state, {**facts, **kept, **_life(config, origin, history)}
    # 2. Warm start from earlier stages, and 3. imported weights: both replace, array by array,
    # 4. what is made from scratch.
    config = same_run.begin(config)
    state = step.initialize(config, objective, abstract)
    state, origin = warm_start.apply(state, objective.warm_starts())
    return config, state, {**facts, "step": 0, "last_eval_step": -1, **_life(config, origin, [])}


def _life(config: Any, origin: warm_start.Origin, history: list[Any]) -> dict[str, Any]:
    """What a run keeps of itself: the config in force, how it came about, what it started from."""
    return {"config": config.to_dict(), "config_history": history, "made_from": origin}


def _check_origin(
    objective: base.Objective, abstract: TrainState, metadata: Any, workdir: epath.Path
) -> warm_start.Origin:
    """Returns what the run was made from, after checking that the config still names it."""
    origin = metadata.get("made_from")
    if origin is None:  # begun by an older version, which kept the names alone
        used = [start.flag for start in objective.warm_starts()]
        origin = {
            key: {"source": value}
            for key, value in config_keys.flatten(metadata["config"]).items()
            if (key in used or key.startswith("init.")) and value not in ("", setup.SCRATCH)
        }
    leaves = params_lib.flatten(abstract.params) | params_lib.flatten(abstract.frozen)
    warm_start.check_origin(leaves, objective.warm_starts(), origin, workdir)
    return origin


def log_facts(
    objective: base.Objective,
    mesh: jax.sharding.Mesh,
    abstract: TrainState,
    placement: sharding.Placement,
) -> None:
    """One line each: devices, parameters, placement."""
    kind = jax.devices()[0].device_kind
    logging.info("%d devices (%s), mesh %s", jax.device_count(), kind, dict(mesh.shape))
    trained, frozen = params_lib.count(abstract.params), params_lib.count(abstract.frozen)
    logging.info(
        "%s: %.2f M parameters trained, %.2f M frozen", objective.name, trained / 1e6, frozen / 1e6
    )
    path, size = placement.largest_replicated
    logging.info(
        "train state: %.1f MiB per device; largest replicated leaf %s (%.2f MiB)",
        placement.bytes_per_device / 2**20,
        path or "none",
        size / 2**20,
    )
