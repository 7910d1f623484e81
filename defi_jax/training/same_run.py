"""What a run may become when it goes on: its config against the one that its state was made with.

What each key may do is its kind in `config_keys`. Changes that are allowed and could matter are
logged and kept for life: in `config_history.jsonl` and in the metadata of later checkpoints, one
entry `{"step", "time", "key", "old", "new"}` each, `time` in seconds since 1970. A checkpoint's
history is what its parameters went through: changes whose steps were lost are not in it.

The learning rate's schedule spans `optimizer.schedule_steps`; 0 stands for the `steps` that the run
began with, and becomes that number in the config in force. So a run that is given more steps goes
on at the rate where its schedule ended. It neither jumps back up a cosine that was nearly over, nor
falls at once because fewer steps are left: either would be another schedule, which nobody asked
for. Who wants it stretched gives the key.
"""

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from etils import epath

from defi_jax import config_keys, errors, processes
from defi_jax.checkpoints import digests, manager
from defi_jax.training import optimizer

CONFIG_FILE = "config.json"
HISTORY_FILE = "config_history.jsonl"

Changes = dict[str, tuple[Any, Any]]


def check(config: Any, workdir: epath.Path) -> None:
    """Refuses what `go_on` would refuse, as far as the config in the workdir tells.

    Raises:
        UserError: the workdir has checkpoints of another run, or of a later step.
        DataError: its config cannot be read.
    """
    path, steps = workdir / CONFIG_FILE, manager.committed_steps(workdir)
    if not path.exists() or not steps:
        return
    what, kinds = "the run's config cannot be read", (ValueError, KeyError, TypeError)
    fix = "restore it from a copy, name another --workdir, or give --overwrite"
    with errors.DataError.instead_of(kinds, what, path, fix):
        theirs = dict(json.loads(path.read_text()))
    _refuse(_changes(theirs, config), config.steps, steps[-1], workdir)


def begin(config: Any) -> Any:
    """Returns the config in force of a run that begins, locked."""
    return _with_schedule_steps(config, config.steps)


def go_on(
    config: Any, metadata: Mapping[str, Any], workdir: epath.Path
) -> tuple[Any, list[dict[str, Any]]]:
    """Returns the config in force of a run that goes on, locked, and its history; logs changes.

    Args:
        config: what was asked for.
        metadata: of the checkpoint; `config` is the one in force when it was saved.
        workdir: for messages.

    Raises:
        UserError: an identity key has changed, or the state contradicts the config.
    """
    step, theirs = metadata["step"], metadata["config"]
    # Checkpoints of older versions have no such key; a run that began with 0 steps had no schedule.
    began_with = theirs["optimizer"].get("schedule_steps") or theirs["steps"] or config.steps
    numbers = {**theirs["optimizer"], "schedule_steps": began_with}
    config = _with_schedule_steps(config, began_with)
    changes = _changes({**theirs, "optimizer": numbers}, config)
    _refuse(changes, config.steps, step, workdir)
    # Checkpoints of older versions have no history.
    history = list(metadata.get("config_history", []))
    for key, (old, new) in changes.items():
        if _kind(key) is config_keys.Kind.SCHEDULE:
            logging.warning("%s: %s -> %s (from step %d on)", key, old, new, step)
            entry = {"step": step, "time": round(time.time(), 3), "key": key}
            history.append(entry | {"old": old, "new": new})
        else:
            logging.debug("%s: %s -> %s", key, old, new)
    _log_rate(numbers, config, step)
    return config, history


def claim(config: Any, workdir: epath.Path) -> None:
    """Makes the workdir a run's, unless it is one."""
    if not (workdir / CONFIG_FILE).exists():
        write(config, [], workdir)


def write(config: Any, history: Iterable[Mapping[str, Any]], workdir: epath.Path) -> None:
    """Writes the config in force, and how it came about where it has changed."""
    if not processes.is_primary():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(entry) + "\n" for entry in history]
    if lines or (workdir / HISTORY_FILE).exists():
        digests.write_whole(workdir / HISTORY_FILE, "".join(lines))
    digests.write_whole(workdir / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")


def _with_schedule_steps(config: Any, steps: int) -> Any:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.optimizer.schedule_steps = config.optimizer.schedule_steps or steps
    return config.lock()


def _flat(config: Any) -> dict[str, Any]:
    """Returns the values by dotted key, as JSON has them."""
    return json.loads(json.dumps(config_keys.flatten(config)))


def _kind(key: str) -> config_keys.Kind | None:
    known = config_keys.find(key)
    return known and known.kind


def _changes(theirs: Mapping[str, Any], config: Any) -> Changes:
    """Returns old and new values that differ, the most telling first; not origins.

    Keys of older versions that have no kind any more say nothing.
    """
    old, new = _flat(theirs), _flat(config)
    found = {}
    for key in sorted({*new, *old}, key=lambda key: (key != "objective", key)):
        known = config_keys.find(key)
        if known is None or known.kind is config_keys.Kind.ORIGIN:
            continue
        pair = (old.get(key, known.before), new.get(key, known.before))
        if pair[0] != pair[1]:
            found[key] = pair
    return found


def _refuse(changes: Changes, steps: int, step: int, workdir: epath.Path) -> None:
    """Raises UserError for changes that a run cannot go through."""
    fix = "give the old values, name another --workdir, or give --overwrite to delete that run"
    identity = [
        f"{key}: {old} -> {new}"
        for key, (old, new) in changes.items()
        if _kind(key) is config_keys.Kind.IDENTITY
    ]
    if identity:
        what = f"the workdir holds a run of another config ({errors.listed(identity, 10)})"
        raise errors.UserError(what, str(workdir), fix)
    switched = [
        f"{key}: {old} -> {new}"
        for key, (old, new) in changes.items()
        if (known := config_keys.find(key)) and known.is_switch and bool(old) != bool(new)
    ]
    if switched:
        what = f"the saved state was made with or without this ({errors.listed(switched, 10)})"
        raise errors.UserError(what, str(workdir), fix)
    if steps < step:
        raise errors.UserError(
            f"the run is at step {step} already, past --config.steps={steps}",
            str(workdir),
            f"give --config.steps={step} or more, or another --workdir",
        )


def _log_rate(before: Mapping[str, Any], config: Any, step: int) -> None:
    """Says how the learning rate changes at this step, and where its schedule has ended."""
    old, new = ml_collections.ConfigDict(before), config.optimizer
    rates: list[Any] = [optimizer.make_schedule(numbers, 0)(step) for numbers in (old, new)]
    if not math.isclose(*rates, rel_tol=1e-6):
        logging.warning("learning rate at step %d: %.3g -> %.3g", step, *rates)
    if config.steps > new.schedule_steps and new.schedule != "constant":
        logging.warning(
            "the learning rate's schedule ends at step %d of %d; "
            "--config.optimizer.schedule_steps=%d stretches it over all",
            *(new.schedule_steps, config.steps, config.steps),
        )
