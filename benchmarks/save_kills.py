"""Kills a run at random moments of its saves, on disk and in a bucket, and restarts it.

    python -m benchmarks.save_kills --folder=DIR --kills=20
    .venv-gcs/bin/python -m benchmarks.save_kills --bucket --kills=20

Each time the run goes on from its last checkpoint, begins a save, and is killed (SIGKILL) after a
part, drawn by --seed, of what saves usually take. Then its newest committed step must be whole;
what the last process ends with must be what one run without a kill ends with, by the digest of
every leaf. Exit code 1 otherwise. The bucket is a server on this machine (requirements-gcs.txt).

Results stand in docs/benchmarks.md.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import app, flags

from defi_jax.checkpoints import format as checkpoint_format
from defi_jax.checkpoints import manager, storage

ROOT = pathlib.Path(__file__).parents[1]
RUN = ROOT / "tests/defi_jax/training/toy_run.py"
POLL_SECONDS = 0.01

_F = flags.FLAGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kill:
    """One of them.

    Attributes:
        after: seconds since the save began.
        newest: step that was committed last.
        unfinished: a step without its marker that the kill left, or None.
        problem: what is wrong with `newest`, "" if nothing is.
    """

    after: float
    newest: int | None
    unfinished: int | None
    problem: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it.

    Attributes:
        kills: in order.
        is_same: whether the run that was killed ended as the one that was not.
        save_seconds: what a save took, in the middle.
    """

    kills: list[Kill]
    is_same: bool
    save_seconds: float


def main(_) -> None:
    """Prints what came of it."""
    with contextlib.ExitStack() as stack:
        folder = _F.folder
        if _F.bucket:
            from tests.fixtures import buckets

            folder = stack.enter_context(buckets.serve()).url
        result = run(folder, kills=_F.kills, seed=_F.seed, hidden=_F.hidden)
    for kill in result.kills:
        left = f"step {kill.unfinished} unfinished" if kill.unfinished is not None else "no rest"
        state = kill.problem or "whole"
        print(f"killed {kill.after:.2f} s into a save: {left}; step {kill.newest} is {state}")
    unfinished = sum(kill.unfinished is not None for kill in result.kills)
    print(
        f"seed {_F.seed}: {len(result.kills)} kills, {unfinished} within a save, of "
        f"{result.save_seconds:.2f} s; {'all leaves equal' if result.is_same else 'NOT EQUAL'}"
    )
    is_well = result.is_same and not any(kill.problem for kill in result.kills)
    sys.exit(0 if is_well and unfinished else 1)


def run(folder: str, *, kills: int, seed: int, hidden: int) -> Result:
    """Trains in `folder`/straight and, with kills, in `folder`/resumed.

    Args:
        folder: without runs of these names; local or a bucket.
        kills: number of times.
        seed: seed of the moments.
        hidden: width of the model; a checkpoint has 1,100 times as many bytes.
    """
    options = {"steps": 2 * kills + 2, "optimizer.schedule_steps": 2 * kills + 2, "save_every": 1}
    options |= {"objective": {"hidden": hidden}, "loader": {"seconds": 0.02}}
    straight, resumed = (storage.absolute(f"{folder}/{name}") for name in ("straight", "resumed"))
    usual = _save_seconds(straight, options | {"steps": 4})
    finish(start(straight, options | {"save_every": options["steps"]}))
    rng = random.Random(seed)
    done: list[Kill] = []
    while len(done) < kills:
        process = start(resumed, options)
        newest, after = manager.committed_steps(resumed), rng.uniform(0, 1.5 * usual)
        for is_saving in (False, True):  # what the last process announced goes first
            while process.poll() is None and _is_saving(resumed) != is_saving:
                time.sleep(POLL_SECONDS)
        time.sleep(after)
        process.kill()
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError(f"{process.args} ended with {process.returncode} before its kill")
        done.append(_look(resumed, after, max(newest, default=None)))
    finish(start(resumed, options))
    is_same = leaves(straight, options["steps"]) == leaves(resumed, options["steps"])
    return Result(kills=done, is_same=is_same, save_seconds=usual)


def leaves(workdir: Any, step: int) -> dict[str, Any]:
    """Digest of every leaf of a checkpoint, by its name."""
    path = workdir / manager.DIRECTORY / str(step)
    return checkpoint_format.verified_documents(path)["integrity"]["leaves"]


def _look(workdir: Any, after: float, before: int | None) -> Kill:
    """What a kill has left; `before` is the newest step that its process found."""
    root = workdir / manager.DIRECTORY
    committed = manager.committed_steps(workdir)
    newest = max(committed, default=None)
    open_steps = sorted({int(n) for n in storage.names(root) if n.isdigit()} - {*committed})
    problem = "" if newest is None else checkpoint_format.damage(root / str(newest))
    if before is not None and (newest is None or newest < before):
        problem = f"older than {before}, which is gone"
    return Kill(
        after=after,
        newest=newest,
        unfinished=open_steps[-1] if open_steps else None,
        problem=problem,
    )


def _is_saving(workdir: Any) -> bool:
    """Whether a save is announced."""
    names = storage.names(workdir / manager.DIRECTORY)
    return any(name.endswith(".saving") for name in names)


def start(workdir: Any, options: dict[str, Any]) -> subprocess.Popen:
    """Starts a small run."""
    return subprocess.Popen(
        [sys.executable, str(RUN), os.fspath(workdir), json.dumps(options)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'rollout'}", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finish(process: subprocess.Popen) -> None:
    """Waits for its end; RuntimeError where that is no good one."""
    if process.wait():
        raise RuntimeError(f"{process.args} ended with {process.returncode}")


def _save_seconds(workdir: Any, options: dict[str, Any]) -> float:
    """Trains, and returns what a save takes from its announcement to its end."""
    process = start(workdir, options)
    seconds: list[float] = []
    while process.poll() is None:
        while process.poll() is None and not _is_saving(workdir):
            time.sleep(POLL_SECONDS)
        began = time.monotonic()
        while _is_saving(workdir):
            time.sleep(POLL_SECONDS)
        seconds.append(time.monotonic() - began)
    finish(process)
    return statistics.median(seconds)


if __name__ == "__main__":
    flags.DEFINE_string("folder", None, "Empty directory to work in, unless --bucket is given.")
    flags.DEFINE_bool("bucket", False, "In a bucket on this machine.")
    flags.DEFINE_integer("kills", 20, "Number of times.", 1)
    flags.DEFINE_integer("hidden", 16384, "Width of the model: 1.1 kB of checkpoint each.", 1)
    flags.DEFINE_integer("seed", 0, "Of the moments.")
    app.run(main)
