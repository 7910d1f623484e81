"""Kills `launch/data.py convert` at random moments, restarts it and compares with one run.

    python -m benchmarks.kill_convert --folder=DIR --size_mib=1024 --kills=5

Writes synthetic RLDS (`make_rlds`) to DIR, converts it once, and once more killed (SIGKILL) each
time the store has grown to a size drawn by --seed. Exit code 1 where a byte of the stores differs.

Results stand in docs/benchmarks.md.
"""

import dataclasses
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

from benchmarks import make_rlds

ROOT = pathlib.Path(__file__).parents[1]
POLL_SECONDS = 0.002

_F = flags.FLAGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it.

    Attributes:
        straight: file -> sha256 of the store of one run.
        resumed: file -> sha256 of the other.
        store_bytes: size of all files of the first.
        killed_at: bytes of the store at each kill.
        published_at: finished shards at each kill.
        seconds: seconds of the run without a kill, and of all the others together.
    """

    straight: dict[str, str]
    resumed: dict[str, str]
    store_bytes: int
    killed_at: list[int]
    published_at: list[int]
    seconds: tuple[float, float]


def main(_) -> None:
    """Prints what came of it."""
    folder = pathlib.Path(_F.folder)
    made = make_rlds.write(folder / "rlds", size_mib=_F.size_mib, image_size=256, seed=_F.seed)
    print(f"{made['episodes']} episodes, {made['bytes'] >> 20} MiB", flush=True)
    result = run(pathlib.Path(made["directory"]), folder, kills=_F.kills, seed=_F.seed)
    for size, published in zip(result.killed_at, result.published_at, strict=True):
        print(f"killed at {size >> 20} MiB of {result.store_bytes >> 20}, {published} shards whole")
    print(f"one run {result.seconds[0]:.1f} s, killed and restarted {result.seconds[1]:.1f} s")
    is_same = result.straight == result.resumed
    print(f"{len(result.straight)} files, {'all bytes equal' if is_same else 'NOT EQUAL'}")
    sys.exit(0 if is_same else 1)


def run(dataset: pathlib.Path, folder: pathlib.Path, *, kills: int, seed: int) -> Result:
    """Converts a dataset into `folder`/straight and, with kills, into `folder`/resumed.

    Args:
        dataset: RLDS directory.
        folder: without stores of these names.
        kills: number of times.
        seed: seed of the moments.
    """
    straight, resumed = folder / "straight", folder / "resumed"
    start = time.monotonic()
    _finish(_start(dataset, straight))
    middle = time.monotonic()
    total = _size(straight)
    killed_at, published_at = [], []
    for size in sorted(np.random.default_rng(seed).integers(1, total, kills)):
        process = _start(dataset, resumed)
        while process.poll() is None and _size(resumed) < size:
            time.sleep(POLL_SECONDS)
        process.kill()
        if process.wait() == -signal.SIGKILL:  # otherwise it was through before
            killed_at.append(_size(resumed))
            published_at.append(len(list(resumed.glob("episodes-*.index.jsonl"))))
    _finish(_start(dataset, resumed))
    return Result(
        straight=_digests(straight),
        resumed=_digests(resumed),
        store_bytes=total,
        killed_at=killed_at,
        published_at=published_at,
        seconds=(middle - start, time.monotonic() - middle),
    )


def _start(dataset: pathlib.Path, output: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, "launch/data.py", "convert", "--source=rlds"]
    return subprocess.Popen(
        [*command, f"--input={dataset}", f"--output={output}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'rollout'}", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _finish(process: subprocess.Popen) -> None:
    if process.wait():
        raise RuntimeError(f"{process.args} ended with {process.returncode}")


def _size(store: pathlib.Path) -> int:
    """Bytes of a store's files, unfinished ones included."""
    size = 0
    for path in store.glob("*") if store.exists() else ():
        try:
            size += path.stat().st_size
        except FileNotFoundError:  # renamed meanwhile
            continue
    return size


def _digests(store: pathlib.Path) -> dict[str, str]:
    """File -> sha256 of its bytes."""
    digests = {}
    for path in sorted(store.glob("[!.]*")):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


if __name__ == "__main__":
    flags.DEFINE_string("folder", None, "Empty directory to work in.", required=True)
    flags.DEFINE_float("size_mib", 1024, "Of the RLDS files.", 0.01)
    flags.DEFINE_integer("kills", 5, "Number of times.", 1)
    flags.DEFINE_integer("seed", 0, "Of data and moments.")
    app.run(main)
