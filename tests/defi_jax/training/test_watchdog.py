import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from defi_jax import errors, local_processes, processes
from defi_jax.training import watchdog

REPO = pathlib.Path(__file__).parents[3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noticed_and_the_old_handler_restored(tmp_path, number):
    before = signal.getsignal(number)
    with watchdog.Supervisor(str(tmp_path)) as watch:
        assert not watch.should_stop(0)
        os.kill(os.getpid(), number)
        assert watch.should_stop(1) and watch.stop_requested()
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with watchdog.Supervisor(str(tmp_path)) as watch:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not watch.stop_requested()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_the_second_signal_leaves_at_once():
    script = """
import os, signal, sys, time
from defi_jax.training import stop_signals

def run(asked):
    with stop_signals.StopSignals() as signals:
        os.write(asked, b"in")
        while not signals.asked():
            time.sleep(0.01)
        time.sleep(0.5)  # two signals within a moment are one request
        os.write(asked, b"asked")
        time.sleep(60)

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    reads, writes = os.pipe()
    child = os.fork()  # a process each, imported once
    if not child:
        run(writes)
    for _ in range(2):
        os.read(reads, 9)
        os.kill(child, number)
        os.kill(child, number)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{REPO}:{REPO / 'rollout'}"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["143", "130", "129"], done.stderr
    assert "Traceback" not in done.stderr


def test_a_phase_ends_where_it_began(tmp_path):
    deadlines = watchdog.Deadlines(step=60)
    with watchdog.Supervisor(str(tmp_path), deadlines) as watch:
        watch.enter("step")
        with pytest.raises(KeyError), watch.phase("eval"):
            raise KeyError
        assert watch._phase == "step"


def test_a_steps_deadline_follows_from_measured_steps(tmp_path, monkeypatch):
    clock = [0.0]
    deadlines = watchdog.Deadlines(least_step=3.0)
    watch = watchdog.Supervisor(str(tmp_path), deadlines)  # not entered: no thread looks
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])

    def steps(seconds, saving=0.0):
        for _ in range(6):
            watch.enter("step")
            clock[0] += seconds
            with watch.phase("data"):
                clock[0] += seconds
            with watch.phase("save"):
                clock[0] += saving

    assert watch.deadline("step") == watch.deadline("data") == 900
    steps(0.1, saving=50.0)
    assert watch.deadline("step") == watch.deadline("data") == 3
    steps(2.0)
    assert watch.deadline("step") == pytest.approx(40)
    assert watch.deadline("save") == 3600


def test_the_watchdog_thread_ends_with_the_run(tmp_path):
    with watchdog.Supervisor(str(tmp_path), watchdog.Deadlines(step=0.1)):
        assert any(thread.name == "watchdog" for thread in threading.enumerate())
    time.sleep(0.3)
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


@pytest.mark.slow
@pytest.mark.parametrize("is_local", [True, False])
def test_a_hung_step_ends_the_process_with_124_and_stacks(tmp_path, is_local):
    log_dir = str(tmp_path) if is_local else "gs://bucket/logs"
    code = f"""
import time
from defi_jax.training import watchdog
def a_step_that_hangs():
    time.sleep(60)
with watchdog.Supervisor({log_dir!r}, watchdog.Deadlines(step=0.4)) as watch:
    watch.enter("step")
    a_step_that_hangs()
"""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{REPO}:{REPO / 'rollout'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 124, done.stderr
    assert "error: no progress: phase 'step'" in done.stderr
    assert "a_step_that_hangs" in done.stderr
    written = {path.name: path for path in tmp_path.iterdir()}
    assert set(written) == ({"hang_0.txt"} if is_local else set())
    assert not is_local or "a_step_that_hangs" in written["hang_0.txt"].read_text()


def test_one_process_joins_nobody():
    processes.initialize({"TPU_WORKER_HOSTNAMES": "localhost"})


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize is called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    for module in (sys, threading):  # the hooks come back after the test
        monkeypatch.setattr(module, "excepthook", module.excepthook)
    return calls


def test_the_environment_says_which_process_this_is(joined):
    numbers = {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    processes.initialize({"JAX_COORDINATOR_ADDRESS": "host:1", **numbers})
    assert (joined[0]["num_processes"], joined[0]["process_id"]) == (4, 3)


def test_a_known_cluster_says_it_itself(joined):
    processes.initialize({"TPU_WORKER_HOSTNAMES": "a,b"})
    assert (joined[0]["num_processes"], joined[0]["process_id"]) == (None, None)


@pytest.mark.parametrize(("hosts", "calls"), [("10.0.0.2,10.0.0.3", 1), ("10.0.0.2", 0)])
def test_a_tpu_vm_asks_its_metadata_whether_there_are_others(joined, monkeypatch, hosts, calls):
    # No TPU VM is at hand: what its metadata server says, as jax reads it.
    metadata = {"agent-worker-number": "1", "worker-network-endpoints": hosts, "tpu-env": ""}
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (metadata[key], 200))
    processes.initialize({})
    assert len(joined) == calls


@pytest.mark.parametrize("number", [{}, {"JAX_PROCESS_ID": "first"}])
def test_half_a_place_among_processes_is_refused(joined, number):
    environ = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", **number}
    with pytest.raises(errors.UserError, match="JAX_PROCESS_ID"):
        processes.initialize(environ)
    assert not joined


def test_the_heartbeat_may_be_longer(joined):
    environ = {"TPU_WORKER_HOSTNAMES": "a,b", "DEFI_HEARTBEAT_SECONDS": "90"}
    processes.initialize(environ)
    assert joined[0]["heartbeat_timeout_seconds"] == 3 * 90
    for text in ("0", "soon", ""):
        with pytest.raises(errors.UserError, match="DEFI_HEARTBEAT_SECONDS"):
            processes.initialize(environ | {"DEFI_HEARTBEAT_SECONDS": text})
    assert len(joined) == 1


def test_ctrl_c_before_the_loop_listens_has_its_code():
    assert processes.exit_code(KeyboardInterrupt()) == 130


def test_an_error_of_one_process_alone_passes_through():
    with pytest.raises(errors.DataError, match="damaged"), processes.joined({}):
        raise errors.DataError("damaged")


@pytest.mark.slow
def test_an_expected_error_in_one_process_ends_all_of_them():
    code = """
import jax
from defi_jax import cli, errors
from defi_jax import processes
def main(argv):
    with processes.joined():
        if jax.process_index() == 1:
            raise errors.DataError("no data here")
        processes.barrier("waits for the other")
cli.run(main)
"""
    shared = {"PYTHONPATH": f"{REPO}:{REPO / 'rollout'}", "DEFI_HEARTBEAT_SECONDS": "60"}
    waiting, failing = (
        subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True)
        for env in local_processes.environments(2, os.environ | shared)
    )
    try:
        assert "error: no data here" in failing.communicate(timeout=120)[1]
        assert failing.returncode == 65
        said = waiting.communicate(timeout=120)[1]
        assert waiting.returncode == 77 and "error: process 1 ended with 65 (no data here" in said
    finally:
        waiting.kill()


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (ValueError(), 1), (errors.NumericsError("x"), 76), (errors.DataError("x"), 65)],
)
def test_exit_codes(error, code):
    assert processes.exit_code(error) == code
