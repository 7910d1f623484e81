"""What `launch/watch.py` shows of a run: read from its workdir, to which nothing is written.

`workdir` is local or in a bucket.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from defi_jax import errors
from defi_jax.checkpoints import manager, storage
from defi_jax.training import metrics, same_run, workdir_lock

_CLEAR = "\033[H\033[2J"
_ABOUT = ("objective", "preset", "steps", "global_batch")
_NOT_SHOWN = ("step", "time", "split")
_RATES = ("steps_per_second", "examples_per_second", "frames_per_second", "mfu")


def look(workdir: str) -> dict[str, Any]:
    """Returns what the workdir says of its run, JSON-able; None and {} for what is not there yet.

    Raises:
        UserError: the workdir is not there, or holds no run.
        DataError: its config cannot be read.
    """
    path = storage.absolute(workdir)
    workdir_lock.reach(path)
    config = path / same_run.CONFIG_FILE
    if not config.exists():
        what = "no run is here" if path.exists() else "no such directory"
        raise errors.UserError(what, str(path), "give the --workdir of launch/train.py")
    with errors.DataError.instead_of((ValueError, TypeError), "not a config", config, "see it"):
        about = dict(json.loads(config.read_text()))
    rows = metrics.read(path / metrics.FILE)
    train, evaluation, run = (metrics.last(rows, split) for split in ("train", "eval", "run"))
    checkpoints, now = manager.committed_steps(path), time.time()
    step = max(int(row.get("step", 0)) for row in (train, run))
    return {
        "workdir": str(path),
        **{name: about.get(name) for name in _ABOUT},
        "step": step,
        "loss": train.get("loss"),
        "seconds_left": _seconds_left(about["steps"], step, train),
        "seconds_since_report": now - train["time"] if train else None,
        "rates": {name: train[name] for name in _RATES if name in train},
        "interval_seconds": _by_kind(train),
        "straggler": _straggler(rows),
        "memory": {k.partition("/")[2]: v for k, v in train.items() if k.startswith("memory/")},
        "goodput": run.get("goodput"),
        "run_seconds": _by_kind(run),
        "evaluation": evaluation,
        "checkpoint": checkpoints[-1] if checkpoints else None,
        "lock": _lock(path, now),
        "config_changes": metrics.read(path / same_run.HISTORY_FILE),
    }


def live(workdir: str, every: float) -> None:
    """Shows the run every so many seconds, until it is interrupted."""
    try:
        while True:
            shown = text(look(workdir))
            print(_CLEAR * sys.stdout.isatty() + shown, flush=True)
            time.sleep(every)
    except KeyboardInterrupt:
        return


def text(seen: Mapping[str, Any]) -> str:
    """What `look` found, for people."""
    step, steps, left = seen["step"], seen["steps"], seen["seconds_left"]
    share = f"{100 * step / steps:.0f}%" if steps else ""
    age = seen["seconds_since_report"]
    lines = [
        f"{seen['workdir']}: {seen['objective']} {seen['preset']}",
        f"step       {step}/{steps} {share}  loss {_number(seen['loss'])}"
        + (f"  left {metrics.format_seconds(left)}" if left is not None else "")
        + (f"  reported {metrics.format_seconds(age)} ago" if age is not None else ""),
        f"speed      {_listed(seen['rates'])}",
        f"interval   {_shares(seen['interval_seconds'])}",
        f"goodput    {_number(seen['goodput'])}  of {_shares(seen['run_seconds'])}",
    ]
    slow = seen["straggler"]
    if slow:
        lines.append(
            f"straggler  process {slow['process']} at step {slow['step']}: {slow['kind']} "
            f"{slow['seconds']:.1f} s more than the others"
        )
    if seen["memory"]:
        lines.append(f"memory     {_listed(seen['memory'])}")
    evaluation = dict(seen["evaluation"])
    if evaluation:
        numbers = {k: v for k, v in evaluation.items() if k not in _NOT_SHOWN}
        lines.append(f"evaluated  at step {evaluation['step']}: {_listed(numbers)}")
    lines.append(f"saved      {_or_none(seen['checkpoint'], 'step ')}")
    lock = seen["lock"]
    lines.append(f"held by    {lock['text'] if lock else 'nobody'}")
    if lock and lock["is_stale"]:
        lines.append(f"           no beat for {lock['seconds_since_beat']:.0f} s: it is gone")
    lines += [
        f"changed    at step {one['step']}: {one['key']}: {one['old']} -> {one['new']}"
        for one in seen["config_changes"]
    ]
    return "\n".join(lines)


def _lock(path: epath.Path, now: float) -> dict[str, Any] | None:
    owner = workdir_lock.owner(path)
    if owner is None:
        return None
    silent = now - owner.beat
    return {
        "text": str(owner),
        "host": owner.host,
        "pid": owner.pid,
        "seconds_since_beat": silent,
        "is_stale": silent > workdir_lock.STALE_SECONDS,
    }


def _straggler(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last process that the others had to wait for, with what it did meanwhile."""
    for row in reversed(rows):
        numbers = {k.partition("/")[2]: v for k, v in row.items() if k.startswith("straggler/")}
        if numbers:
            process = int(numbers.pop("process"))
            ((kind, seconds),) = numbers.items()
            return {"process": process, "step": row["step"], "kind": kind, "seconds": seconds}
    return None


def _seconds_left(steps: int, step: int, train: Mapping[str, Any]) -> float | None:
    speed = train.get("steps_per_second")
    return (steps - step) / speed if speed else None


def _by_kind(row: Mapping[str, Any]) -> dict[str, float]:
    return {k.partition("/")[2]: v for k, v in row.items() if k.startswith("seconds/")}


def _shares(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    parts = [f"{k} {100 * v / total:.0f}%" for k, v in seconds.items() if v >= 0.005 * total > 0]
    return f"{metrics.format_seconds(total)}: {', '.join(parts)}" if parts else "-"


def _listed(numbers: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {_number(value)}" for name, value in numbers.items()) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _or_none(value: Any, before: str) -> str:
    return "-" if value is None else f"{before}{value}"
