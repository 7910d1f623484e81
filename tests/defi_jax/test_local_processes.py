"""Several processes on this machine: their places, their log, how they end together."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from defi_jax import errors, local_processes

REPO = pathlib.Path(__file__).parents[2]
SHOW = """
import os
for name in ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES", "JAX_PLATFORMS", "XLA_FLAGS"):
    print(name, os.environ[name])
print(os.environ["JAX_COORDINATOR_ADDRESS"] == os.environ["JAX_COORDINATOR_BIND_ADDRESS"])
"""
LISTEN = """
import signal, sys, time
heard = []
for name in ("SIGINT", "SIGTERM"):
    signal.signal(getattr(signal, name), lambda number, frame: heard.append(number))
print("ready", flush=True)
while not heard:
    time.sleep(0.05)
time.sleep(0.5)
print("heard", heard, flush=True)
sys.exit(75)
"""


def run(code, count=2, grace_seconds=30.0, **environ):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    clean["XLA_FLAGS"] = ""
    command = [sys.executable, "-c", code]
    return local_processes.run(command, count, clean | environ, grace_seconds)


def test_each_process_has_its_place_and_its_share_of_the_devices(capfd):
    flags = "--xla_other=1 --xla_force_host_platform_device_count=8"
    assert run(SHOW, XLA_FLAGS=flags) == 0
    log = capfd.readouterr().err.splitlines()
    for index in range(2):
        lines = [line[4:] for line in log if line.startswith(f"[{index}] ")]
        assert lines == [
            f"JAX_PROCESS_ID {index}",
            "JAX_NUM_PROCESSES 2",
            "JAX_PLATFORMS cpu",
            "XLA_FLAGS --xla_other=1 --xla_force_host_platform_device_count=4",
            "True",
        ]


@pytest.mark.parametrize(
    ("count", "environ", "words"),
    [
        (0, {}, "0 processes: --num_processes"),
        (2, {"JAX_PROCESS_ID": "0"}, "one of several already"),
        (2, {"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS=cuda: --num_processes=2"),
        (3, {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, "a multiple of 3"),
    ],
)
def test_what_cannot_be_shared_is_refused(count, environ, words):
    with pytest.raises(errors.UserError, match=words) as caught:
        run(SHOW, count, **environ)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ((0, 0), 0),
        ((0, 75), 75),  # asked to stop just as the others were done
        ((77, 75), 77),
        ((77, 137, 77), 137),  # the lost one, not those that noticed
        ((76, 76), 76),
        ((75, 1), 1),  # saved, and then something went wrong
        ((1, 134), 1),  # the first is the reason
    ],
)
def test_the_worst_code_is_that_of_the_one_that_failed(codes, worst):
    assert local_processes.worst_code(codes) == worst


def test_a_failure_ends_those_that_do_not_leave(caplog):
    code = """
import os, signal, time
if os.environ["JAX_PROCESS_ID"] == "1":
    os.kill(os.getpid(), signal.SIGSEGV)
time.sleep(30)
"""
    assert run(code, grace_seconds=0.5) == 128 + signal.SIGSEGV
    assert "process 0 did not leave: killed" in caplog.text


def test_one_that_hangs_is_not_waited_for_once_another_has_left_because_of_it(caplog, monkeypatch):
    monkeypatch.setattr(local_processes, "_SHORT_GRACE_SECONDS", 0.5)
    code = """
import os, sys, time
if os.environ["JAX_PROCESS_ID"] == "0":
    sys.exit(77)
time.sleep(20)
"""
    assert run(code) == 77
    assert "process 1 did not leave: killed" in caplog.text


def test_ctrl_c_of_a_terminal_reaches_each_process_once():
    code = f"""
import logging, sys
from defi_jax import local_processes
sys.exit(local_processes.run([sys.executable, "-c", {LISTEN!r}], 2))
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    env["PYTHONPATH"] = f"{REPO}:{REPO / 'rollout'}"
    launcher = subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the group of a terminal's foreground
    )
    try:
        assert launcher.stderr is not None
        first = {launcher.stderr.readline().strip() for _ in range(2)}
        assert first == {"[0] ready", "[1] ready"}
        os.killpg(launcher.pid, signal.SIGINT)
        _, log = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode == 75, log
    assert "[0] heard [2]" in log and "[1] heard [2]" in log
