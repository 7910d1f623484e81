import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from defi_jax import errors
from defi_jax.training import supervisor

REPO = pathlib.Path(__file__).parents[3]


def test_sigterm_is_noticed_and_the_old_handler_restored(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with supervisor.Supervisor(str(tmp_path)) as watch:
        assert not watch.should_stop(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.should_stop(1) and watch.stop_requested()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_phase_ends_where_it_began(tmp_path):
    deadlines = supervisor.Deadlines(step=60)
    with supervisor.Supervisor(str(tmp_path), deadlines) as watch:
        watch.enter("step")
        with pytest.raises(KeyError), watch.phase("eval"):
            raise KeyError
        assert watch._phase == "step"


def test_the_watchdog_thread_ends_with_the_run(tmp_path):
    with supervisor.Supervisor(str(tmp_path), supervisor.Deadlines(step=0.1)):
        assert any(thread.name == "watchdog" for thread in threading.enumerate())
    time.sleep(0.3)
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


@pytest.mark.slow
def test_a_hung_step_ends_the_process_with_124_and_stacks(tmp_path):
    code = f"""
import time
from defi_jax.training import supervisor
def a_step_that_hangs():
    time.sleep(60)
with supervisor.Supervisor({str(tmp_path)!r}, supervisor.Deadlines(step=0.4)) as watch:
    watch.enter("step")
    a_step_that_hangs()
"""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 124, done.stderr
    assert "error: no progress: phase 'step'" in done.stderr
    assert "a_step_that_hangs" in (tmp_path / "hang_0.txt").read_text()


def test_one_process_joins_nobody():
    supervisor.initialize_processes({"TPU_WORKER_HOSTNAMES": "localhost"})


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (ValueError(), 1), (errors.NumericsError("x"), 76), (errors.DataError("x"), 65)],
)
def test_exit_codes(error, code):
    assert supervisor.exit_code(error) == code
