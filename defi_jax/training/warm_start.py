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
from defi_jax.checkpoints import digests, manager, storage, train_state
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
# Of a checkpoint's metadata, what those that are made from it keep.
_FACTS = ("step", "weights", "made_from")


Origin = dict[str, dict[str, Any]]


def apply(
    state: train_state.TrainState, starts: Sequence[base.WarmStart]
) -> tuple[train_state.TrainState, Origin]:
    """Returns a fresh state with the parameters named by `starts` read from their sources.

    The moving average starts at the same values. Errors are those of `replace`.

    Returns:
        The state, and what each start read, by its flag: "source", its absolute path; "digest" of
        the parameters; of a run's checkpoint also its "step", "weights" ("raw" or "ema") and own
        "made_from".
    """
    trained, frozen = params_lib.flatten(state.params), params_lib.flatten(state.frozen)
    flat, facts = _replace(trained | frozen, starts)
    average = {
        path: leaf if flat[path] is trained[path] else jnp.copy(flat[path])
        for path, leaf in params_lib.flatten(state.ema_params or {}).items()
    }
    new = dataclasses.replace(
        state,
        params=params_lib.unflatten({path: flat[path] for path in trained}),
        frozen=params_lib.unflatten({path: flat[path] for path in frozen}),
        ema_params=None if state.ema_params is None else params_lib.unflatten(average),
    )
    origin = {
        start.flag: {
            "source": str(storage.absolute(start.source)),
            "digest": _digest(flat, start),
            **facts[start.flag],
        }
        for start in starts
    }
    return new, origin


def replace(
    leaves: Mapping[str, jax.Array], starts: Sequence[base.WarmStart]
) -> dict[str, jax.Array]:
    """Returns parameters by path, those named by `starts` read from their sources.

    Raises:
        UserError: if a source is missing, lacks or adds a parameter, has another shape, or was
            imported with another config.
        DataError: if it is damaged.
    """
    return _replace(leaves, starts)[0]


def check_origin(
    leaves: Mapping[str, Any],
    starts: Sequence[base.WarmStart],
    kept: Mapping[str, Mapping[str, Any]],
    workdir: epath.Path,
) -> None:
    """Checks that a run which goes on would start from the files that it was made from.

    The same path may hold more by now, such as a run's later steps. Another path is the same where
    it holds the same parameters: files may move.

    Args:
        leaves: the abstract parameters by path, with their shardings.
        starts: what the config names.
        kept: what `apply` returned when the run began.
        workdir: the run's, for messages.

    Raises:
        UserError: it names others, or what was moved cannot be read.
    """
    named = {start.flag: start for start in starts}
    for flag in sorted({*named, *kept}):
        known, start = kept.get(flag, {}), named.get(flag)
        old, new = known.get("source", "none"), start.source if start else "none"
        if start and known and _is_same_source(leaves, start, known):
            continue
        at = f" at step {known['step']}" if "step" in known else ""
        raise errors.UserError(
            f"the run was made from other files ({flag}: {old}{at} -> {new})",
            str(workdir),
            f"give --config.{flag}={old}, name another --workdir, or give --overwrite",
        )


def _is_same_source(
    leaves: Mapping[str, Any], start: base.WarmStart, known: Mapping[str, Any]
) -> bool:
    if storage.absolute(start.source) == storage.absolute(known["source"]):
        return True
    if "digest" not in known:  # begun by an older version
        return False
    try:
        return _digest(_replace(leaves, [start])[0], start) == known["digest"]
    except errors.UserError:  # nothing is there, or something else
        return False


def _replace(
    leaves: Mapping[str, Any], starts: Sequence[base.WarmStart]
) -> tuple[dict[str, jax.Array], dict[str, dict[str, Any]]]:
    """As `replace`, and what is known of each source, by the start's flag."""
    replaced, facts = dict(leaves), {}
    for start in starts:
        arrays, names, facts[start.flag] = _read(start)
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
    return replaced, facts


def _digest(leaves: Mapping[str, jax.Array], start: base.WarmStart) -> str:
    """Digest of the parameters of a start, by their names below it: a source may serve two."""
    below = {p.removeprefix(start.ours): leaves[p] for p in leaves if _is_below(p, start.ours)}
    return digests.json_digest(digests.leaf_digests(below))


def _open(source: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Opens a directory of imported weights, or reads a run's latest checkpoint; with its facts."""
    path = epath.Path(source) / WEIGHTS_FILE
    if not path.exists():
        params, metadata = manager.load_params(source)
        facts = {name: metadata[name] for name in _FACTS if name in metadata}
        return params_lib.flatten(params), facts
    local = pathlib.Path(os.fspath(path))
    if local.is_file():
        return tensor_files.SafetensorsFiles(local), {}
    return safetensors.numpy.load(path.read_bytes()), {}  # a bucket's file has no slices


def _read(start: base.WarmStart) -> tuple[Mapping[str, Any], dict[str, str], dict[str, Any]]:
    """Returns a source's arrays, read on demand, their names by our paths, and its facts."""
    if not epath.Path(start.source).is_dir():
        raise errors.UserError(
            f"no such directory for {start.flag}",
            start.source,
            "give a run's workdir, a checkpoint or a directory of imported weights",
        )
    _check_config(start)
    arrays, facts = _open(start.source)
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
    return arrays, names, facts


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
