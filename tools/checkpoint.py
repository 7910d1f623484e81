"""What `launch/checkpoint.py` does: each function returns a JSON-able result and a text for people.

`path` is a run's workdir, its checkpoint directory or one step's directory; local or in a bucket.
"""

import collections
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from defi_jax import config_keys, errors
from defi_jax.checkpoints import copying, digests, manager, storage
from defi_jax.checkpoints import format as checkpoint_format
from defi_jax.training import same_run

Result = tuple[dict[str, Any], str]

# Of the metadata, what says which run this is.
_FACTS = ("objective", "mesh", "last_eval_step", "versions")
_CONFIG = ("preset", "steps", "global_batch", "compute_dtype", "seed")


def inspect(path: str, step: int | None) -> Result:
    """Says what the checkpoints are; reads their documents, not their arrays."""
    root, steps = _find(path, step)
    described = []
    for number in steps:
        step_path = root / str(number)
        sizes = [(step_path / name).stat().length for name in digests.file_names(step_path)]
        described.append(
            {
                "step": number,
                "files": len(sizes),
                "bytes": sum(sizes),
                "has_file_digests": digests.digests_path(step_path).exists(),
            }
        )
    newest = root / str(steps[-1])
    documents = checkpoint_format.read_documents(newest)
    metadata, leaves = documents["metadata"], documents["integrity"]["leaves"]
    config = metadata.get("config", {})
    result = {
        "path": str(root),
        "steps": described,
        "newest": {
            "step": steps[-1],
            **{name: metadata.get(name) for name in _FACTS},
            "config": {name: config.get(name) for name in _CONFIG},
            "origins": _origins(metadata),
            "config_changes": metadata.get("config_history", []),
            "trained_on": [one["name"] for one in metadata.get("trained_on", [])],
            "parts": _by_part(leaves),
        },
    }
    return result, _text(result)


def verify(path: str, step: int | None) -> Result:
    """Checks every digest; "damage" of the result names what is wrong, by step."""
    root, steps = _find(path, step, committed=False)
    damage = {str(number): copying.damage(root / str(number)) for number in steps}
    lines = [
        f"step {number}: {'damaged: ' + '; '.join(found) if found else 'whole'}"
        for number, found in damage.items()
    ]
    damaged = {number: found for number, found in damage.items() if found}
    return {"path": str(root), "steps": steps, "damage": damaged}, "\n".join(lines)


def copy(path: str, step: int | None, destination: str) -> Result:
    """Copies the checkpoints below `destination`, and the run's config where there is one."""
    root, steps = _find(path, step)
    target = storage.absolute(destination)
    copied = {}
    again = "when it can be reached again, the same command goes on from there"
    with errors.StorageError.instead_of(OSError, "the copy was stopped", target, again):
        _copy_config(root.parent, target)
        for number in steps:
            there = target / manager.DIRECTORY / str(number)
            copied[str(number)] = copying.copy_step(root / str(number), there)
            logging.info("step %d: %d files copied to %s", number, copied[str(number)], there)
    result = {"path": str(root), "destination": str(target), "files_copied": copied}
    lines = [
        f"step {number}: {f'{count} files copied and verified' if count else 'was there'}"
        for number, count in copied.items()
    ]
    return result, "\n".join(lines)


def _find(path: str, step: int | None, *, committed: bool = True) -> tuple[epath.Path, list[int]]:
    """Returns the directory of the steps and their numbers, ascending; at least one.

    Raises:
        UserError: there is none.
    """
    given = storage.absolute(path)
    if given.name.isdigit() and (given / "metadata").is_dir():
        root, step = given.parent, int(given.name)
    else:
        below = given / manager.DIRECTORY
        root = below if below.is_dir() else given
    names = [child.name for child in root.iterdir()] if root.is_dir() else []
    steps = sorted(int(name) for name in names if name.isdigit() and (root / name).is_dir())
    if committed:
        steps = manager.committed_steps(root)
    if step is not None:
        steps = [number for number in steps if number == step]
    if not steps:
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise errors.UserError(what, str(root), "give a run's workdir, or one step's directory")
    return root, steps


def _origins(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What a run's parameters started from, by config key."""
    if "made_from" in metadata:
        return {flag: own["source"] for flag, own in metadata["made_from"].items()}
    config = metadata.get("config", {})  # of an older version
    named = {f"init.{name}": source for name, source in config.get("init", {}).items()}
    named |= {f"weights.{name}": source for name, source in config.get("weights", {}).items()}
    return {key: source for key, source in named.items() if source}


def _by_part(leaves: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Number of leaves, numbers and bytes below "item/part"."""
    parts: dict[str, collections.Counter] = {}
    for path, facts in leaves.items():
        count = math.prod(facts["shape"])
        own = parts.setdefault("/".join(path.split("/")[:2]), collections.Counter())
        own.update(leaves=1, numbers=count, bytes=count * _item_size(facts["dtype"]))
    return {name: dict(own) for name, own in sorted(parts.items())}


def _item_size(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _copy_config(source: epath.Path, target: epath.Path) -> None:
    """Copies config and history of a run, over older ones of the same run."""
    if not (source / same_run.CONFIG_FILE).exists():
        return
    if (target / same_run.CONFIG_FILE).exists() and _identity(source) != _identity(target):
        raise errors.UserError(
            "the destination holds another run", str(target), "name another destination"
        )
    target.mkdir(parents=True, exist_ok=True)
    for name in (same_run.HISTORY_FILE, same_run.CONFIG_FILE):
        if (source / name).exists():
            (source / name).copy(target / name, overwrite=True)


def _identity(workdir: epath.Path) -> dict[str, Any]:
    """The keys of a run's config that never change."""
    path, kinds = workdir / same_run.CONFIG_FILE, (ValueError, AttributeError)
    with errors.DataError.instead_of(kinds, "damaged config", path, "restore it from a copy"):
        values = config_keys.flatten(json.loads(path.read_text()))
    known = {key: config_keys.find(key) for key in values}
    identity = config_keys.Kind.IDENTITY
    return {key: values[key] for key, one in known.items() if one and one.kind is identity}


def _text(result: Mapping[str, Any]) -> str:
    newest, lines = result["newest"], [result["path"]]
    for one in result["steps"]:
        seal = "" if one["has_file_digests"] else ", without digests of files"
        size = one["bytes"] / 2**20
        lines.append(f"step {one['step']}: {one['files']} files, {size:.1f} MiB{seal}")
    facts = {name: newest[name] for name in _FACTS} | newest["config"]
    facts |= newest["origins"] | {"trained on": ", ".join(newest["trained_on"])}
    facts |= {
        f"changed at step {one['step']}: {one['key']}": f"{one['old']} -> {one['new']}"
        for one in newest["config_changes"]
    }
    lines += [f"newest, step {newest['step']}:"]
    lines += [f"  {name}: {json.dumps(value)}" for name, value in facts.items()]
    lines += [
        f"  {name}: {own['leaves']} leaves, {own['numbers'] / 1e6:.3f} M numbers, "
        f"{own['bytes'] / 2**20:.2f} MiB"
        for name, own in newest["parts"].items()
    ]
    return "\n".join(lines)
