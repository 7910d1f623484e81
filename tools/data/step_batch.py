"""The batch that a step of a run received, rebuilt from its number: what made it go wrong?"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from defi_jax import batch as batch_lib
from defi_jax import errors, objectives
from defi_jax.checkpoints import storage
from defi_jax.training import same_run


def rebuild(
    workdir: str, step: int | None, open_loader: Callable[[Any, Any], Any]
) -> tuple[batch_lib.Batch, dict[str, Any]]:
    """Returns the batch of a step, from 1, with pixels, and what is known of its samples.

    Args:
        workdir: the run's; local or in a bucket.
        step: whose batch.
        open_loader: (config, objective) -> loader.

    Raises:
        UserError: no run or step is given, or its data are streamed.
        DataError: the run's config is damaged.
    """
    if not workdir or step is None:
        raise errors.UserError("one of two is missing", "--workdir, --step", "give both")
    path = storage.absolute(workdir) / same_run.CONFIG_FILE
    if not path.exists():
        raise errors.UserError("no run", workdir, "give the --workdir of a run")
    with errors.DataError.instead_of(ValueError, "damaged config", path, "restore it from a copy"):
        config: Any = ml_collections.ConfigDict(json.loads(path.read_text()))
    config.data.latents = ""  # the same clips, in pixels
    objective = objectives.rebuild(config)
    spec = objective.pixel_batch_spec(config.global_batch)
    batch, samples, damaged = open_loader(config, objective).numbered(step - 1, spec)
    leaves = [leaf for leaf in jax.tree.leaves(batch) if np.issubdtype(leaf.dtype, np.floating)]
    good = [np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves]
    bad = np.flatnonzero(~np.all(good, axis=0)) if good else []
    not_finite = [samples[row] for row in bad]
    facts = {"step": step, "samples": samples, "damaged": damaged, "not_finite": not_finite}
    return batch, facts
