"""Parameters that start from files: an earlier run, one checkpoint, or imported weights."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from etils import epath

from defi_jax import errors
from defi_jax.array_typing import Params
from defi_jax.models import params as params_lib
from defi_jax.objectives import base
from defi_jax.training import checkpointing, train_state

WEIGHTS_FILE = "params.safetensors"


def apply(
    state: train_state.TrainState, starts: Sequence[base.WarmStart]
) -> train_state.TrainState:
    """Returns the state with the parameters named by `starts` read from their sources.

    The moving average starts at the same values. The optimizer's state is untouched: it is fresh.

    Raises:
        UserError: if a source is missing, or lacks or adds a parameter or has another shape.
        DataError: if it is damaged.
    """
    parts = {"params": state.params, "frozen": state.frozen, "ema_params": state.ema_params}
    flat = {name: params_lib.flatten(tree or {}) for name, tree in parts.items()}
    for start in starts:
        found = _read(start)
        ours = [p for p in (*flat["params"], *flat["frozen"]) if _is_below(p, start.ours)]
        leaves = flat["params"] | flat["frozen"]
        _check(start, found, {path: leaves[path] for path in ours})
        for path, value in found.items():
            for part in flat.values():
                if path in part:
                    part[path] = _put(value, part[path])
        logging.info(
            "%s: %d arrays of %s from %s", start.flag, len(found), start.ours, start.source
        )
    nested = {name: params_lib.unflatten(leaves) for name, leaves in flat.items()}
    return dataclasses.replace(
        state,
        params=nested["params"],
        frozen=nested["frozen"],
        ema_params=None if state.ema_params is None else nested["ema_params"],
    )


def load_source(source: str) -> Params:
    """Reads parameters from a directory of imported weights or from a run's latest checkpoint."""
    path = epath.Path(source)
    if (path / WEIGHTS_FILE).exists():
        return params_lib.unflatten(safetensors.numpy.load((path / WEIGHTS_FILE).read_bytes()))
    return checkpointing.load_params(path)[0]


def _read(start: base.WarmStart) -> dict[str, np.ndarray]:
    """Returns the arrays of a source by our paths."""
    if not epath.Path(start.source).is_dir():
        raise errors.UserError(
            f"no such directory for {start.flag}",
            start.source,
            "give a run's workdir, a checkpoint or a directory of imported weights",
        )
    flat = params_lib.flatten(load_source(start.source))
    found = {}
    for path, value in flat.items():
        if _is_below(path, start.theirs):
            rest = path[len(start.theirs) :].strip("/")
            found["/".join(part for part in (start.ours, rest) if part)] = value
    if not found:
        raise errors.UserError(
            f"{start.flag} holds nothing below '{start.theirs}'",
            start.source,
            f"it holds {', '.join(sorted({path.split('/')[0] for path in flat}))}",
        )
    return found


def _check(start: base.WarmStart, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    problems = [f"missing {path}" for path in sorted(wanted.keys() - found.keys())]
    problems += [f"unknown {path}" for path in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{path} is {tuple(found[path].shape)}, the config wants {tuple(wanted[path].shape)}"
        for path in sorted(wanted.keys() & found.keys())
        if found[path].shape != wanted[path].shape
    ]
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise errors.UserError(
            f"{start.flag} does not fit the config ({'; '.join(problems[:10])}{more})",
            start.source,
            "use the model section it was made with",
        )


def _put(value: np.ndarray, like: jax.Array) -> jax.Array:
    """Places a host array as `like`, in its dtype; each process uploads only its own shards."""
    value = np.asarray(value).astype(like.dtype)
    return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])


def _is_below(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(f"{prefix}/")
