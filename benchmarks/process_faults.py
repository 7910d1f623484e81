"""Does harm to one of several processes of a run, starts them again, and compares with one run.

    python -m benchmarks.process_faults --folder=DIR --processes=2 --trials=5 --seed=0

One run of `launch/train.py` in so many processes over loopback, each with its own copy of the data
as a host has, is ended --trials times by each fault, in an order, at moments and on processes that
--seed draws, and started again each time with the same command. Checked is each time that all have
left within 30 s with the design's codes, and at the end that every checkpoint equals, leaf by leaf
and bit by bit, the one of a run that nothing happened to. Exit code 1 where something differs.

Results stand in docs/benchmarks.md.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import make_rlds
from defi_jax import local_processes
from defi_jax.checkpoints import manager

ROOT = pathlib.Path(__file__).parents[1]
DEADLINE_SECONDS = 30.0
SAVE_EVERY = 4
MOST_STEPS = 6  # between two faults

# What is done -> exit codes of the process that it is done to, and of the others.
FAULTS = {
    "kill": (-signal.SIGKILL, 77),
    "sigterm": (75, 75),
    "damage": (65, 77),  # an exception: the host's data cannot be read any more
    "stop": (77, 77),  # a hang; the process itself can only leave when it goes on
    "end": (65, 77),  # of the data, early
}
_START_SECONDS = 600.0
_CONFIG = {
    "global_batch": 8,
    "save_every": SAVE_EVERY,
    "keep_checkpoints": 1000,
    "eval_every": 0,
    "eval_batches": 0,
    "log_every": 1,
    "data.mixture": make_rlds.NAME,
    "data.image_size": 16,
    "data.max_bad_fraction": 0.0,
    "encoders.text_length": 12,
    "encoders.text_dim": 16,
    "optimizer.name": "adamw",
    "optimizer.schedule_steps": 100,
    "optimizer.ema_decay": 0.9,
    "restart_every": 3,
    "model.model_dim": 16,
    "model.num_heads": 2,
    "model.latent_dim": 8,
    "model.encoder_blocks": 1,
    "model.decoder_blocks": 1,
}
# No loader of ours ends: this one does, once a file says so. On CPUs jax's key of a program that it
# keeps holds the process, and only process 0 keeps any: the others would compile at every start.
# The rest is launch/train.py as it is.
_TRAIN = """
import os, runpy, sys
from jax._src import cache_key
from data_pipelines.loading import loader

cache_key._hash_accelerator_config = cache_key._hash_devices

class Ending(loader.Loader):
    def __next__(self):
        if os.path.exists(os.environ["FAULTS_END_OF_DATA"]):
            raise StopIteration
        return super().__next__()

loader.Loader = Ending
del sys.argv[0]  # what follows is the command
runpy.run_path(sys.argv[0], run_name="__main__")
"""

_F = flags.FLAGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run is, and how its processes are started.

    Attributes:
        folder: with `data/<process>` and the run's files.
        count: number of processes.
        steps: of the run.
        environments: of each process; None for processes of this machine's loopback.
        prefixes: words before the command of each process.
    """

    folder: pathlib.Path
    count: int
    steps: int
    environments: Sequence[Mapping[str, str]] | None = None
    prefixes: Sequence[Sequence[str]] | None = None


class Processes:
    """One start of a run's processes; use as a context manager, which kills those that are left.

    Attributes:
        started: the processes, by number.
        logs: what each of them prints.
    """

    def __init__(self, place: Place, workdir: str):
        self._place, self._folder = place, place.folder
        self.started: list[subprocess.Popen] = []
        self.logs = [place.folder / f"{workdir}_{index}.log" for index in range(place.count)]
        self._workdir = place.folder / workdir

    def __enter__(self) -> "Processes":
        place, options = self._place, {**_CONFIG, "steps": self._place.steps}
        shared = {"PYTHONPATH": f"{ROOT}:{ROOT / 'rollout'}", "XLA_FLAGS": ""}
        shared["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # compiling is most of a short start
        plain = {name: text for name, text in os.environ.items() if not name.startswith("JAX_")}
        places = place.environments or local_processes.environments(place.count, plain | shared)
        for index, variables in enumerate(places):
            data = self._folder / "data" / str(index)
            numbers = {**options, "data.root": data, "compilation_cache_dir": self._folder / "xla"}
            command = [sys.executable, "-c", _TRAIN, str(ROOT / "launch/train.py")]
            command += ["--config=configs/gidm.py:tiny", f"--workdir={self._workdir}"]
            command += [f"--config.{name}={value}" for name, value in numbers.items()]
            process = subprocess.Popen(
                [*(place.prefixes[index] if place.prefixes else ()), *command],
                cwd=ROOT,
                env={**variables, "FAULTS_END_OF_DATA": str(data / "END")},
                stdin=subprocess.DEVNULL,
                stderr=self.logs[index].open("w"),
            )
            self.started.append(process)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        for process in self.started:
            process.kill()
            process.wait()

    def step(self) -> int:
        """The last step that process 0 has told of; 0 for none."""
        told = re.findall(r"\] step (\d+)/", self.logs[0].read_text())
        return int(told[-1]) if told else 0

    def wait_for_steps(self, count: int) -> int:
        """Waits until so many steps were told of; returns the last one."""
        until, first = time.monotonic() + _START_SECONDS, 0
        while not (now := self.step()) or now < (first := first or now) + count - 1:
            if time.monotonic() > until or any(one.poll() is not None for one in self.started):
                raise RuntimeError(f"the run did not go on: see {self.logs}")
            time.sleep(0.02)
        return now

    def wait(self, indices: Iterable[int], seconds: float) -> dict[int, float]:
        """Waits so long for processes to end; returns when each did, in seconds from now."""
        start, left, ended = time.monotonic(), set(indices), {}
        while left and time.monotonic() - start < seconds:
            for index in list(left):
                if self.started[index].poll() is not None:
                    ended[index] = time.monotonic() - start
                    left.remove(index)
            time.sleep(0.02)
        return ended

    def codes(self) -> list[int | None]:
        """Exit codes; None for those that run."""
        return [process.poll() for process in self.started]

    def errors(self) -> list[str]:
        """The error line of each process."""
        lines = [log.read_text().splitlines() for log in self.logs]
        return [next((one for one in own if one.startswith("error:")), "-") for own in lines]


def main(_) -> None:
    """Prints what came of each fault and of the run."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends them, too
    rng = np.random.default_rng(_F.seed)
    faults = [str(kind) for kind in rng.permutation(_F.faults * _F.trials)]
    steps = SAVE_EVERY * 2 + MOST_STEPS * len(faults)
    place = Place(folder=pathlib.Path(_F.folder).absolute(), count=_F.processes, steps=steps)
    make_data(place)
    print(f"{_F.processes} processes, {len(faults)} faults, {steps} steps, seed {_F.seed}")
    finish(place, "straight")
    good = [strike(place, "struck", kind, rng) for kind in faults]
    finish(place, "struck")
    same = compare(place)
    print(f"{sum(good)} of {len(good)} faults ended as they should", flush=True)
    sys.exit(0 if all(good) and same else 1)


def make_data(place: Place) -> None:
    """Makes a small store, and a copy of it for each process."""
    made, store = place.folder / "rlds", place.folder / "store" / make_rlds.NAME
    make_rlds.write(made, size_mib=0.5, image_size=32, seed=0)
    command = [sys.executable, "launch/data.py", "convert", "--source=rlds"]
    command += [f"--input={made / make_rlds.NAME}", f"--output={store}"]
    variables = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'rollout'}", "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, cwd=ROOT, env=variables, check=True, capture_output=True)
    for index in range(place.count):
        _copy_data(place, index)


def finish(place: Place, workdir: str) -> None:
    """Starts a run, or goes on with it, to its end."""
    start = time.monotonic()
    with Processes(place, workdir) as run:
        run.wait(range(place.count), 3600.0)
        if any(run.codes()):
            raise RuntimeError(f"{workdir} ended with {run.codes()}: see {run.logs}")
    print(f"{workdir}: through after {time.monotonic() - start:.0f} s", flush=True)


def strike(place: Place, workdir: str, kind: str, rng: np.random.Generator) -> bool:
    """Starts the run, does harm to a process, and says whether all left as they should."""
    steps, delay = int(rng.integers(1, MOST_STEPS + 1)), float(rng.uniform(0, 0.5))
    victim = int(rng.integers(place.count))
    others = [index for index in range(place.count) if index != victim]
    with Processes(place, workdir) as run:
        step = run.wait_for_steps(steps)
        time.sleep(delay)
        _do_harm(kind, run.started[victim], place.folder / "data" / str(victim))
        ended = run.wait(others if kind == "stop" else range(place.count), 2 * DEADLINE_SECONDS)
        late = ""
        if kind == "stop":
            run.started[victim].send_signal(signal.SIGCONT)
            later = run.wait([victim], DEADLINE_SECONDS)
            late = f"; it, when it goes on, after {later.get(victim, np.inf):.1f} s"
        codes, said = run.codes(), run.errors()
    _copy_data(place, victim)
    own, theirs = FAULTS[kind]
    expected = [own if index == victim else theirs for index in range(place.count)]
    took = max(ended.values()) if len(ended) >= len(others) else np.inf
    good = codes == expected and took <= DEADLINE_SECONDS
    print(
        f"{'ok ' if good else 'BAD'} {kind} at step {step} + {delay:.2f} s on process {victim}: "
        f"{took:.1f} s, codes {codes}{late}",
        flush=True,
    )
    if not good:
        print(f"    expected {expected}; they said {said}", flush=True)
        kept = place.folder / f"bad_{kind}_{step}"
        kept.mkdir(exist_ok=True)
        for log in run.logs:
            shutil.copy(log, kept)
    return good


def compare(place: Place, straight: str = "straight", struck: str = "struck") -> bool:
    """Says whether the checkpoints of both runs are equal, every leaf, where both have one."""
    first, second = place.folder / straight, place.folder / struck
    kept = [{*manager.committed_steps(str(workdir))} for workdir in (first, second)]
    shared = sorted(kept[0] & kept[1])
    differ = [step for step in shared if _leaves(first, step) != _leaves(second, step)]
    whole = manager.latest_verified_step(str(second)) == place.steps and place.steps in shared
    print(f"{len(shared)} checkpoints: {f'NOT EQUAL {differ}' if differ else 'all bits equal'}")
    return whole and not differ


def _leaves(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    return json.loads((workdir / f"checkpoints/{step}/integrity/metadata").read_text())["leaves"]


def _do_harm(kind: str, process: subprocess.Popen, data: pathlib.Path) -> None:
    if kind == "damage":
        for path in data.rglob("*.array_record"):
            os.truncate(path, path.stat().st_size // 2)
    elif kind == "end":
        (data / "END").touch()
    else:
        signals = {"kill": signal.SIGKILL, "sigterm": signal.SIGTERM, "stop": signal.SIGSTOP}
        process.send_signal(signals[kind])


def _copy_data(place: Place, index: int) -> None:
    data = place.folder / "data" / str(index)
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(place.folder / "store", data)


if __name__ == "__main__":
    flags.DEFINE_string("folder", None, "Empty directory to work in.", required=True)
    flags.DEFINE_integer("processes", 2, "Number of them.", 2)
    flags.DEFINE_integer("trials", 5, "Number of times for each fault.", 1)
    flags.DEFINE_multi_enum("faults", list(FAULTS), list(FAULTS), "Which; all by default.")
    flags.DEFINE_integer("seed", 0, "Of order, moments and processes.")
    app.run(main)
