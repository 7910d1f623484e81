"""Memory of the loader over minutes, with all its processes; by hand.

    python -m benchmarks.memory --config=configs/gidm.py:small --config.data.root=DATA/stores \
        --config.data.mixture=bridge_dataset --config.data.workers=0 --seconds=660

Reads batches as fast as they come and every second adds up the memory of this process and its
worker processes (RSS; not PSS, which rises when strangers that share a library end). Prints the
median of each minute, and of the last as a multiple of the second's: while the first lasts, threads
start and buffers fill. Exit code 1 where the last minute has 5 % more than the second.

DATA/stores/NAME is an episode store, or an RLDS directory, which is streamed;
`python -m benchmarks.make_rlds` makes one. Results stand in docs/benchmarks.md.
"""

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable

import psutil
from absl import app, flags
from ml_collections import config_flags

from defi_jax import objectives
from tools.data import commands

MINUTE = 60  # seconds
MAX_GROWTH = 1.05

_F = flags.FLAGS


def main(_) -> None:
    """Prints the memory of each minute."""
    config = _CONFIG.value
    batches = commands.open_loader(config, objectives.make(config))
    seen, num_batches = measure(lambda: next(batches), _F.seconds)
    batches.close()
    minutes = [
        statistics.median(mib for second, mib in seen if start <= second < start + MINUTE)
        for start in range(0, int(_F.seconds) - MINUTE + 1, MINUTE)
    ]
    growth = minutes[-1] / minutes[1]
    result = {
        "batches": num_batches,
        "mib_by_minute": [round(value) for value in minutes],
        "largest_mib": round(max(mib for _, mib in seen)),
        "last_to_second_minute": round(growth, 3),
    }
    print(json.dumps(result))
    sys.exit(0 if growth <= MAX_GROWTH else 1)


def measure(step: Callable[[], object], seconds: float) -> tuple[list[tuple[float, float]], int]:
    """Calls `step` again and again; returns (second, MiB) about each second and how many calls."""
    seen: list[tuple[float, float]] = []
    done = threading.Event()
    start = time.monotonic()

    def watch() -> None:
        while not done.wait(1):
            seen.append((time.monotonic() - start, tree_mib()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    count = 0
    try:
        while time.monotonic() < start + seconds:
            step()
            count += 1
    finally:
        done.set()
        watcher.join()
    return seen, count


def tree_mib() -> float:
    """Returns the resident memory of this process and all below it."""
    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended meanwhile
            continue
    return total / 2**20


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment whose batches to read.")
    flags.DEFINE_float("seconds", 660, "Of reading.", 3 * MINUTE)
    app.run(main)
