"""Parameters that start from files: an earlier run, one checkpoint, or imported weights."""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath

from defi_jax import errors, tensor_files
from defi_jax.checkpoints import manager, train_state
from defi_jax.models import params as params_lib
from defi_jax.objectives import base

# What an import (weights.importers) writes: parameters, and the configs they were made with.
WEIGHTS_FILE = "params.safetensors"
RECORD_FILE = "import.json"

# Fields of a module's config that leave its numbers as they are: sizes it is meant for, how it is
# computed, and the end token, which the tokenizer is checked against (old releases of CLIP say 2).
_WITHOUT_EFFECT = (
    *("sample_size", "num_frames", "force_upcast"),
    *("remat", "scan_unroll"),
    "eos_token_id",
)


def apply(
    state: train_state.TrainState, starts: Sequence[base.WarmStart]
) -> train_state.TrainState:
    """Returns a fresh state with the parameters named by `starts` read from their sources.

    The moving average starts at the same values. Errors are those of `replace`.
    """
    trained, frozen = params_lib.flatten(state.params), params_lib.flatten(state.frozen)
    flat = replace(trained | frozen, starts)
    average = {
        path: leaf if flat[path] is trained[path] else jnp.copy(flat[path])
        for path, leaf in params_lib.flatten(state.ema_params or {}).items()
    }
    return dataclasses.replace(
        state,
        params=params_lib.unflatten({path: flat[path] for path in trained}),
        frozen=params_lib.unflatten({path: flat[path] for path in frozen}),
        ema_params=None if state.ema_params is None else params_lib.unflatten(average),
    )


def replace(
    leaves: Mapping[str, jax.Array], starts: Sequence[base.WarmStart]
) -> dict[str, jax.Array]:
    """Returns parameters by path, those named by `starts` read from their sources.

    Raises:
        UserError: if a source is missing, lacks or adds a parameter, has another shape, or was
            imported with another config.
        DataError: if it is damaged.
    """
    replaced = dict(leaves)
    for start in starts:
        arrays, names = _read(start)
        wanted = {p: leaf.shape for p, leaf in leaves.items() if _is_below(p, start.ours)}
        found = {p: tensor_files.spec_of(arrays, name).shape for p, name in names.items()}
        problems = tensor_files.differences(found, wanted)
        if problems:
            raise errors.UserError(
                f"{start.flag} does not fit the config ({errors.listed(problems, 10)})",
                start.source,
                "use the model section it was made with",
            )
        replaced |= {path: _put(arrays, name, leaves[path]) for path, name in names.items()}
        logging.info(
            "%s: %d arrays of %s from %s", start.flag, len(found), start.ours, start.source
        )
    return replaced


def _open(source: str) -> Mapping[str, Any]:
    """Opens a directory of imported weights, or reads a run's latest checkpoint."""
    path = epath.Path(source) / WEIGHTS_FILE
    if not path.exists():
        return params_lib.flatten(manager.load_params(source)[0])
    local = pathlib.Path(os.fspath(path))
    if local.is_file():
        return tensor_files.SafetensorsFiles(local)
    return safetensors.numpy.load(path.read_bytes())  # a bucket's file has no slices


def _read(start: base.WarmStart) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Returns the arrays of a source, read on demand, and their names there by our paths."""
    if not epath.Path(start.source).is_dir():
        raise errors.UserError(
            f"no such directory for {start.flag}",
            start.source,
            "give a run's workdir, a checkpoint or a directory of imported weights",
        )
    _check_config(start)
    arrays = _open(start.source)
    names = {}
    for path in arrays:
        if _is_below(path, start.theirs):
            rest = path[len(start.theirs) :].strip("/")
            names["/".join(part for part in (start.ours, rest) if part)] = path
    if not names:
        raise errors.UserError(
            f"{start.flag} holds nothing below '{start.theirs}'",
            start.source,
            f"it holds {', '.join(sorted({path.split('/')[0] for path in arrays}))}",
        )
    return arrays, names


def _check_config(start: base.WarmStart) -> None:
    """Raises UserError for an import made with other numbers than its module will have here.

    Most would show as other shapes; heads, activations or scales would train on with wrong maths.
    """
    theirs = _recorded_config(start.source)
    if theirs is None or start.config is None:
        return
    ours = dataclasses.asdict(start.config)
    problems = [
        f"{name} is {theirs[name]}, the config wants {ours[name]}"
        for name in sorted((ours.keys() & theirs.keys()) - {*_WITHOUT_EFFECT})
        if not _is_same(theirs[name], ours[name])
    ]
    if problems:
        raise errors.UserError(
            f"{start.flag} was imported with another config ({'; '.join(problems)})",
            start.source,
            "import the release that the config's preset is made for",
        )


def _recorded_config(source: str) -> Mapping[str, Any] | None:
    """Returns the config of the module in a directory of imported weights, None for others."""
    path = epath.Path(source)
    # A release of one part lies beside its record, each of several in a folder below.
    for record, part in ((path / RECORD_FILE, ""), (path.parent / RECORD_FILE, path.name)):
        if not record.exists():
            continue
        kinds, fix = (ValueError, KeyError, TypeError, RecursionError), "import the release again"
        with errors.DataError.instead_of(kinds, "damaged record", record, fix):
            parts = json.loads(record.read_text())["parts"]
            if part in parts:
                return dict(parts[part]["config"])
    return None


def _is_same(left: Any, right: Any) -> bool:
    """Whether two fields agree; JSON's lists are tuples, one number stands for all levels."""
    if isinstance(right, list | tuple):
        left, right = right, left
    if not isinstance(left, list | tuple):
        return left == right
    levels = right if isinstance(right, list | tuple) else [right] * len(left)
    return list(left) == list(levels)


def _put(arrays: Mapping[str, Any], name: str, like: jax.Array) -> jax.Array:
    """Places an array as `like`, in its dtype; each process reads only its own shards."""
    read: dict[str, np.ndarray] = {}

    def shard(index: Any) -> np.ndarray:
        # Devices that hold the same part share one read.
        key = str(index)
        if key not in read:
            value = tensor_files.read_slice(arrays, name, index or ...)
            read[key] = np.asarray(value, like.dtype)
        return read[key]

    return jax.make_array_from_callback(like.shape, like.sharding, shard)


def _is_below(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(f"{prefix}/")
