"""Two processes on this machine, one of which comes to harm: what each says and ends with."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from defi_jax import local_processes
from defi_jax.checkpoints import manager
from tools import watch

REPO = pathlib.Path(__file__).parents[3]
SCRIPT = pathlib.Path(__file__).parent / "toy_run.py"
HARMED_AT = 13
# Gathers on the host, as a save does, when the other process has gone: another error than a step's.
GATHER = """
import os, signal, time
import numpy as np
from jax.experimental import multihost_utils
from defi_jax import processes
with processes.joined():
    multihost_utils.process_allgather(np.zeros(2))
    if os.environ["JAX_PROCESS_ID"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    multihost_utils.process_allgather(np.zeros(2))
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def start(tmp_path):
    """Starts two processes of one run, of which one has harm done at a batch; ends them.

    The harm "slow" is one that reads slowly. A `program` runs instead of the toy.
    """
    started = []

    def start(harmed, harm, program="", **options):
        shared = {
            "PYTHONPATH": f"{REPO}:{REPO / 'rollout'}",
            "DEFI_HEARTBEAT_SECONDS": "30",  # other tests take the cores for seconds
        }
        environments = local_processes.environments(2, os.environ | shared)
        for number, env in enumerate(environments):
            loader = {"seconds": 0.05, "harm": [HARMED_AT, harm] if number == harmed else None}
            if number == harmed and harm == "slow":
                loader = {"seconds": 1.0}
            options = {"steps": 400, "save_every": 5, **options, "loader": loader}
            command = [str(SCRIPT), str(tmp_path / "run"), json.dumps(options)]
            process = subprocess.Popen(
                [sys.executable, *(["-c", program] if program else command)],
                env=env,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
        return started

    yield start
    for process in started:
        process.kill()


def end_of(process):
    """(exit code, its error line), once it has ended, by itself."""
    _, log = process.communicate(timeout=240)
    lines = [line for line in log.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in log, log
    return process.returncode, lines[0]


@pytest.mark.parametrize(
    ("harmed", "harm", "said"),
    [
        (0, "SIGKILL", "the coordinator or another process was lost"),
        (1, "SIGSTOP", "process 1 gave no sign of life for 30 s"),
    ],
)
def test_a_lost_process_ends_the_others_with_77(start, tmp_path, harmed, harm, said):
    processes = start(harmed, harm, step_timeout=120.0)  # else the wait for it is a hang as well
    code, line = end_of(processes[1 - harmed])
    assert code == 77 and said in line
    assert manager.latest_verified_step(tmp_path / "run") in (5, 10)


def test_a_gather_of_the_host_with_a_lost_process_ends_with_77(start):
    first, _ = start(1, "SIGKILL", program=GATHER)
    code, line = end_of(first)
    assert code == 77 and "a process was lost" in line


def test_a_hang_ends_all_with_124_and_the_stacks_of_all(start, tmp_path):
    for process in start(1, "sleep", step_timeout=20.0):
        code, line = end_of(process)
        assert code == 124 and "no progress: phase" in line
    stacks = [(tmp_path / f"run/logs/hang_{number}.txt").read_text() for number in range(2)]
    assert "do_harm" in stacks[1] and "do_harm" not in stacks[0]


def test_the_slowest_process_is_named_with_what_it_did(start, tmp_path):
    first, second = start(1, "slow", steps=14)
    _, log = first.communicate(timeout=240)
    second.wait(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), log
    assert "process 1 is the slowest: data_wait took" in log
    seen = watch.look(str(tmp_path / "run"))["straggler"]
    assert (seen["process"], seen["kind"]) == (1, "data_wait") and 2 < seen["seconds"] < 14


def test_ctrl_c_at_one_process_saves_the_same_step_on_all(start, tmp_path):
    for process in start(1, signal.SIGINT.name):
        code, line = end_of(process)
        assert code == 75 and "is saved" in line
    assert manager.latest_verified_step(tmp_path / "run") >= HARMED_AT - 1
