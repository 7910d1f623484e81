"""Trains a real stage in a process of its own, to be killed or to end. Prints JSON.

python real_run.py killed STAGE DIR    dies in step 4, after checkpoint 2
python real_run.py resumed STAGE DIR   ends that run
python real_run.py finished STAGE DIR  ends that run, and does the same in one go beside it
"""

import json
import logging
import os
import pathlib
import signal
import sys
import time

import ml_collections
import real_stages
import toy_run

from defi_jax.checkpoints import manager
from defi_jax.training import loop

SAVED, LAST_READ = 2, 3


class KillingLoader:
    """A loader that kills its process when batch LAST_READ + 1 is asked for."""

    def __init__(self, loader, workdir):
        self._loader, self._workdir, self._count = loader, workdir, 0

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __iter__(self):
        return self

    def __next__(self):
        if self._count == LAST_READ:
            while manager.committed_steps(self._workdir) != [SAVED]:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        self._count += 1
        return next(self._loader)


def train(name, workdir, wrap=lambda loader, workdir: loader):
    config = ml_collections.ConfigDict(real_stages.get_config(name))
    config.compilation_cache_dir = toy_run.PROGRAMS
    objective, make_loader = real_stages.make(config)
    loop.train(
        config,
        objective,
        lambda *args, **kwargs: wrap(make_loader(*args, **kwargs), workdir),
        workdir,
    )


def main(mode, name, directory):
    directory = pathlib.Path(directory)
    if mode == "killed":
        train(name, directory / "killed", KillingLoader)  # does not return
    compiled = {}
    for run in ("killed", "straight") if mode == "finished" else ("killed",):
        with toy_run.compilations() as programs:
            train(name, directory / run)
        compiled[run] = sum("train_step" in program for program in programs)
    print(json.dumps(compiled))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    main(*sys.argv[1:])
