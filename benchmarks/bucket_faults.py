"""Trains into a bucket that fails, at random or for a while, and compares with a run on disk.

    .venv-gcs/bin/python -m benchmarks.bucket_faults --folder=DIR --rate=0.1
    .venv-gcs/bin/python -m benchmarks.bucket_faults --folder=DIR --burst=90

The bucket is a server on this machine behind a proxy (tests/fixtures/buckets.py), which answers a
share --rate of the requests with 503 or 429, cuts connections before or within the answer, or is
slow; a burst is so many seconds in which every request gets 503, from the second save on. Exit
code 1 where a leaf of the last checkpoint differs, or one of those that are kept is damaged.

Results stand in docs/benchmarks.md.
"""

import sys
import time

from absl import app, flags

from benchmarks import save_kills
from defi_jax.checkpoints import format as checkpoint_format
from defi_jax.checkpoints import manager, storage
from tests.fixtures import buckets

STEPS = 16

_F = flags.FLAGS


def main(_) -> None:
    """Prints what came of it."""
    options = {"steps": STEPS, "optimizer.schedule_steps": STEPS, "save_every": 2}
    options["loader"] = {"seconds": 0.5}
    disk = storage.absolute(f"{_F.folder}/disk")
    save_kills.finish(save_kills.start(disk, options))
    with buckets.serve(seed=_F.seed) as bucket:
        there = storage.absolute(f"{bucket.url}/run")
        begin = time.monotonic()
        with bucket.proxy.failing(_F.rate):
            process = save_kills.start(there, options)
            while _F.burst and not manager.committed_steps(there):
                time.sleep(0.1)
            if _F.burst:
                with bucket.proxy.failing(1.0, ("503",)):
                    time.sleep(_F.burst)
            save_kills.finish(process)
        seconds = time.monotonic() - begin
        kept = manager.committed_steps(there)
        root = there / manager.DIRECTORY
        damage = [text for step in kept if (text := checkpoint_format.damage(root / str(step)))]
        is_same = save_kills.leaves(there, STEPS) == save_kills.leaves(disk, STEPS)
        failed = {kind: count for kind, count in bucket.proxy.failed.items() if count}
    print(
        f"seed {_F.seed}: {bucket.proxy.served} requests, failed {failed}, in {seconds:.0f} s; "
        f"steps {kept}, {damage or 'all whole'}; {'all leaves equal' if is_same else 'NOT EQUAL'}"
    )
    sys.exit(0 if is_same and not damage else 1)


if __name__ == "__main__":
    flags.DEFINE_string("folder", None, "Empty directory for the run on disk.", required=True)
    flags.DEFINE_float("rate", 0.0, "Share of the requests that fail.", 0, 1)
    flags.DEFINE_float("burst", 0.0, "Seconds in which all fail.", 0)
    flags.DEFINE_integer("seed", 0, "Of the faults.")
    app.run(main)
