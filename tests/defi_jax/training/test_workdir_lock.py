import dataclasses
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from defi_jax import errors
from defi_jax.training import start, workdir_lock

REPO = pathlib.Path(__file__).parents[3]


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A new run's directory, where beats are quick."""
    monkeypatch.setattr(workdir_lock, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(workdir_lock, "SETTLE_SECONDS", 0.0)
    return epath.Path(tmp_path) / "run"


def left_by(workdir, **changes):
    """Leaves the lock of another run, which stands for one that no longer beats."""
    me = workdir_lock._myself()
    owner = dataclasses.replace(me, token="another", **changes)
    workdir.mkdir()
    (workdir / workdir_lock.FILE).write_text(workdir_lock._record(owner))


def test_a_second_run_is_refused_by_name_and_touches_nothing(workdir):
    with workdir_lock.WorkdirLock(workdir):
        (workdir / "config.json").write_text("{}")
        for enter in (
            workdir_lock.WorkdirLock(workdir).__enter__,
            lambda: start.claim_workdir(str(workdir), overwrite=True),
        ):
            with pytest.raises(errors.UserError, match=rf"process {os.getpid()} on .*last beat 20"):
                enter()
        assert (workdir / "config.json").read_text() == "{}"
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_a_run_that_leaves_nothing_leaves_no_folder(workdir):
    with workdir_lock.WorkdirLock(workdir):
        assert workdir.exists()
    assert not workdir.exists()


def test_a_dead_process_is_succeeded_at_once(workdir, caplog):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left_by(workdir, pid=ended.pid)
    with workdir_lock.WorkdirLock(workdir):
        assert "taken over from a run that is gone" in caplog.text
        with pytest.raises(errors.UserError, match="another run"):
            workdir_lock.WorkdirLock(workdir).__enter__()


def test_the_number_of_a_dead_process_may_be_in_use_again(workdir):
    left_by(workdir, started=workdir_lock._myself().started - 3600)
    with workdir_lock.WorkdirLock(workdir):
        pass


@pytest.mark.parametrize("content", [None, "", "torn {"])
def test_an_old_lock_is_succeeded_if_nothing_beats(workdir, content):
    left_by(workdir, machine="elsewhere", beat=time.time() - 121)
    if content is not None:
        (workdir / workdir_lock.FILE).write_text(content)
    with workdir_lock.WorkdirLock(workdir):
        pass


def test_a_young_lock_of_another_machine_is_respected(workdir):
    left_by(workdir, machine="elsewhere", beat=time.time() - 60)
    with pytest.raises(errors.UserError, match="another run"):
        workdir_lock.WorkdirLock(workdir).__enter__()


def test_a_clock_that_is_wrong_kills_no_run(workdir):
    left_by(workdir, machine="elsewhere", beat=5.0)
    beating = workdir_lock.WorkdirLock(workdir)
    beating._me = dataclasses.replace(beating._me, machine="elsewhere")

    def beat():
        for _ in range(100):
            beating._write()
            time.sleep(0.01)

    workdir_lock.BEAT_SECONDS = 0.1  # put back by the fixture
    threading.Thread(target=beat, daemon=True).start()
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(errors.UserError, match="another run"),
    ):
        patch.setattr(workdir_lock, "STALE_SECONDS", -1.0)  # every beat looks old
        workdir_lock.WorkdirLock(workdir).__enter__()


def test_what_is_no_place_to_write_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match=r"cannot be used \(Not a directory\)"):
        workdir_lock.WorkdirLock(epath.Path(tmp_path) / "file/run").__enter__()
    with pytest.raises(errors.UserError, match=r"gcsfs: gs://bucket/run; pip install"):
        start.claim_workdir("gs://bucket/run", overwrite=False)


ENDS = [
    ("write_text(workdir_lock._record(other))", 2, "another run has taken over"),
    ("unlink()", 2, "the lock is gone"),
    # A directory in its place can be neither read nor written, as a bucket that is down.
    ("unlink(); lock.mkdir()", 74, "not be written for 1 s; step 7 is the last good one"),
]


@pytest.mark.slow
def test_a_run_without_its_lock_ends_at_once_with_one_line(tmp_path):
    script = f"""
import dataclasses, os, time
from etils import epath
from defi_jax.training import workdir_lock
workdir_lock.BEAT_SECONDS = 0.1
other = dataclasses.replace(workdir_lock._myself(), token="other")

def run(harm):
    workdir = epath.Path({str(tmp_path)!r}) / str(len(harm))
    with workdir_lock.WorkdirLock(workdir, patience=1) as held:
        held.last_good = lambda: "step 7 is the last good one"
        lock = held._path
        exec(f"lock.{{harm}}")
        time.sleep(60)

for harm in {[harm for harm, *_ in ENDS]}:
    child = os.fork()  # a process each, imported once
    if not child:
        run(harm)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # once
"""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{REPO}:{REPO / 'rollout'}"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stdout.split() == [str(code) for _, code, _ in ENDS], done.stderr
    assert len(lines) == len(ENDS) and "Traceback" not in done.stderr
    for line, (_, _, said) in zip(lines, ENDS, strict=True):
        assert said in line
