import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from etils import epath

from defi_jax import errors
from defi_jax.training import ledger, workdir_lock
from tools import watch

REPO = pathlib.Path(__file__).parents[2]
CONFIG = {"objective": "gidm", "preset": "tiny", "steps": 200, "global_batch": 8}


@pytest.fixture
def workdir(tmp_path):
    """A run at step 50 of 200, whose last process was killed."""
    spent = ledger.line({}, {"startup": 25.0, "device": 75.0})
    split = {f"seconds/{kind}": n for kind, n in (("data_wait", 1.0), ("device", 3.0))}
    slow = {"straggler/process": 3, "straggler/data_wait": 12.25}
    rows = [
        {"step": 0, "split": "run", "time": 1.0, "goodput": 0.0},
        {"step": 30, "split": "train", "time": 1.0, "loss": 0.7, **slow},
        {"step": 40, "split": "eval", "time": 2.0, "reconstruction": 0.125},
        {"step": 50, "split": "train", "time": time.time(), "loss": 0.5, "steps_per_second": 2.0}
        | split,
        {"step": 50, "split": "run", "time": 3.0, **spent},
    ]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 60, "spl')  # being written
    change = {"step": 40, "time": 2.0, "key": "compute_dtype", "old": "float32", "new": "bfloat16"}
    (tmp_path / "config_history.jsonl").write_text(json.dumps(change) + "\n")
    for step, is_whole in ((40, True), (50, False)):
        (tmp_path / f"checkpoints/{step}").mkdir(parents=True)
        if is_whole:
            (tmp_path / f"checkpoints/{step}/commit_success.txt").touch()
    owner = {"token": "a", "host": "pod-3", "pid": 7, "machine": "", "started": 0.0, "beat": 0.0}
    (tmp_path / workdir_lock.FILE).write_text(json.dumps(owner))
    return tmp_path


def files(root):
    return {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


def test_what_a_run_says_of_itself(workdir):
    before = files(workdir)
    seen = json.loads(json.dumps(watch.look(str(workdir))))
    assert files(workdir) == before  # nothing is written
    assert (seen["step"], seen["steps"], seen["loss"]) == (50, 200, 0.5)
    assert seen["seconds_left"] == 75 and seen["goodput"] == 0.75
    assert seen["interval_seconds"] == {"data_wait": 1, "device": 3}
    assert seen["evaluation"]["reconstruction"] == 0.125
    assert seen["checkpoint"] == 40
    assert seen["lock"]["host"] == "pod-3" and seen["lock"]["is_stale"]
    assert seen["config_changes"][0]["new"] == "bfloat16"
    text = watch.text(seen)
    assert "step       50/200 25%  loss 0.5  left 1:15" in text
    assert "data_wait 25%, device 75%" in text and "goodput    0.75" in text
    assert "straggler  process 3 at step 30: data_wait 12.2 s more than the others" in text
    assert "at step 40: compute_dtype: float32 -> bfloat16" in text


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with workdir_lock.WorkdirLock(epath.Path(tmp_path)):
        seen = watch.look(str(tmp_path))
    assert (seen["step"], seen["loss"], seen["seconds_left"]) == (0, None, None)
    assert seen["lock"]["pid"] == os.getpid() and not seen["lock"]["is_stale"]
    assert f"process {os.getpid()}" in watch.text(seen)
    assert "straggler" not in watch.text(seen)
    assert "held by    nobody" in watch.text(watch.look(str(tmp_path)))


def test_live_looks_again_until_interrupted(workdir, monkeypatch, capsys):
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", nap)
    watch.live(str(workdir), 3.0)
    assert naps == [3.0, 3.0] and capsys.readouterr().out.count("step       50/200") == 2


@pytest.mark.parametrize(("name", "said"), [("", "no run is here"), ("a", "no such directory")])
def test_no_run(tmp_path, name, said):
    with pytest.raises(errors.UserError, match=said):
        watch.look(str(tmp_path / name))


@pytest.mark.slow
def test_the_command(workdir):
    def run(*arguments):
        env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{REPO}:{REPO / 'rollout'}"}
        command = [sys.executable, str(REPO / "launch/watch.py"), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    assert json.loads(run(str(workdir), "--json").stdout)["step"] == 50
    for arguments in ([], [f"{workdir}/absent", "--once"]):
        done = run(*arguments)
        assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
        assert len(done.stderr.splitlines()) == 1 and not done.stdout
