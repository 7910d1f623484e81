"""How a run starts: compilation cache, data, the state to go on from, and what is logged of it."""

import importlib.metadata
import json
import logging
import os
from typing import Any

import flax.traverse_util
import jax
from etils import epath

from defi_jax import batch as batch_lib
from defi_jax import errors, processes
from defi_jax.checkpoints import format as checkpoint_format
from defi_jax.checkpoints import manager
from defi_jax.checkpoints.train_state import TrainState
from defi_jax.models import params as params_lib
from defi_jax.objectives import base
from defi_jax.training import metrics, sharding, step, warm_start, workdir_lock
from defi_jax.training.caches import features as feature_cache

CONFIG_FILE = "config.json"

# All that a run writes, and so all that --overwrite deletes.
_OWN_NAMES = (
    CONFIG_FILE,
    metrics.FILE,
    metrics.MEDIA,
    manager.DIRECTORY,
    feature_cache.DIRECTORY,
    "logs",
)
# Parts of the config that a run keeps for life, most telling first.
_OF_A_RUN = ("objective", "encoders", "model")
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
    path = checkpoint_format.absolute(workdir)
    workdir_lock.reach(path)
    if path.exists() and not path.is_dir():
        raise errors.UserError("the workdir is a file", str(path), "give a directory")
    if path.exists() and not (path / CONFIG_FILE).exists() and _holds_files(path):
        raise errors.UserError(
            f"the workdir holds files, but no run's {CONFIG_FILE}", str(path), "name another one"
        )
    if overwrite:
        processes.barrier("the workdir is looked at")
        if path.exists():
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


def check_same_run(config: Any, workdir: epath.Path) -> None:
    """Raises UserError where the workdir has checkpoints of another objective or model."""
    path = workdir / CONFIG_FILE
    if not path.exists() or not manager.committed_steps(workdir):
        return
    ours = _of_a_run(json.loads(json.dumps(config.to_dict())))
    what, kinds = "the run's config cannot be read", (ValueError, KeyError, TypeError)
    fix = "restore it from a copy, name another --workdir, or give --overwrite"
    with errors.DataError.instead_of(kinds, what, path, fix):
        theirs = _of_a_run(json.loads(path.read_text()))
    changed = [
        f"{key} {theirs.get(key)}, not {ours.get(key)}"
        for key in {**ours, **theirs}
        if theirs.get(key) != ours.get(key)
    ]
    if changed:
        raise errors.UserError(
            f"the workdir holds a run of another config ({errors.listed(changed, 3)})",
            str(workdir),
            "name another --workdir, or give --overwrite to delete that run",
        )


def _of_a_run(config: Any) -> dict[str, Any]:
    """What a run keeps of its config, by dotted key."""
    kept = {name: config[name] for name in _OF_A_RUN}
    return flax.traverse_util.flatten_dict(kept, sep=".")


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


def write_config(config: Any, workdir: epath.Path, *, replace: bool = True) -> None:
    """Writes the resolved config to the workdir; one that is there stays without `replace`."""
    if processes.is_primary() and (replace or not (workdir / CONFIG_FILE).exists()):
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def facts(
    config: Any, objective: base.Objective, mesh: jax.sharding.Mesh, loader: batch_lib.Loader
) -> dict[str, Any]:
    """Metadata of the run's checkpoints, at step 0."""
    return {
        "step": 0,
        "last_eval_step": -1,
        "objective": objective.name,
        "description": objective.describe(),
        "config": config.to_dict(),
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
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
    facts: dict[str, Any],
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state to go on from and its facts; puts the loader where the state left it.

    Raises:
        UserError: the checkpoints or the warm start are of another model or pipeline.
        DataError: no checkpoint verifies.
    """
    # 1. Resume this run.
    restored = checkpoints.restore(abstract)
    if restored is not None:
        loader.restore(restored.data_state)
        kept = {name: restored.metadata[name] for name in ("step", "last_eval_step")}
        return restored.state, {**facts, **kept}
    # 2. Warm start from earlier stages, and 3. imported weights: both replace, array by array,
    # 4. what is made from scratch.
    state = step.initialize(config, objective, abstract)
    return warm_start.apply(state, objective.warm_starts()), facts


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
