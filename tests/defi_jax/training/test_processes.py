"""launch/train.py in two processes on this machine equals the same in one."""

import json
import pathlib
import subprocess
import sys

import pytest
import real_stages
import toy_run

from defi_jax.checkpoints import manager

EVALUATED = {
    "gidm": {"reconstruction", "reconstruction_copy", "code_usage", "code_perplexity"},
    "joint": {"action_mse", "action_mae", "action_mae/dim0"},
}
# Three processes compile each stage, and what is tested does not depend on the UNet's height. The
# video model alone would add no way for processes to differ: it is a part of joint.
CHANGES = {
    "gidm": {},
    "joint": real_stages.below("model.gfdm", real_stages.ONE_FLOOR),
}
pytestmark = pytest.mark.slow


def train(name, workdir, *flags):
    env = real_stages.environment(
        devices=2,
        CHANGES=json.dumps(CHANGES[name]),
        DEFI_HEARTBEAT_SECONDS="300",  # other tests take the cores
    )
    command = [
        sys.executable,
        str(real_stages.REPO / "launch/train.py"),
        f"--config={real_stages.HERE / 'real_stages.py'}:{name}",
        f"--workdir={workdir}",
        f"--config.compilation_cache_dir={toy_run.PROGRAMS}",
        "--config.steps=2",
        "--config.eval_batches=1",
        "--overwrite",
        *flags,
    ]
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def numbers(workdir):
    """What was measured, by (split, step, name), but for speed and time."""
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return {
        (row["split"], row["step"], name): value
        for row in map(json.loads, lines)
        for name, value in row.items()
        if row["split"] != "run"
        and name not in ("split", "step", "time")
        and not name.startswith("seconds/")
        and not name.endswith("per_second")
    }


@pytest.mark.parametrize("name", ["gidm", "joint"])
def test_two_processes_measure_what_one_does(tmp_path, name):
    train(name, tmp_path / "one")
    log = train(name, tmp_path / "two", "--num_processes=2")
    assert all(f"[{index}] " in log for index in range(2))
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert {("train", 2, "loss")} | {("eval", 2, value) for value in EVALUATED[name]} <= one.keys()
    assert two == pytest.approx(one, rel=1e-5)
    assert manager.latest_verified_step(tmp_path / "two") == 2
    metadata = manager.load_metadata(tmp_path / "two")
    assert metadata["mesh"] == {"replica": 1, "fsdp": 2, "tensor": 1}
