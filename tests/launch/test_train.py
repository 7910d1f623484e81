"""What launch/train.py says of wrong input, in one line and with exit code 2."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config=configs/gfdm.py:tinny"], "did you mean tiny"),
        (["--config=configs/nope.py"], "no such config file: configs/nope.py"),
        (["--config", "configs/gfdm.py:tinny"], "did you mean tiny"),
        (
            ["--config=configs/gfdm.py:tiny", "--config.stepz=3"],
            "unknown config key 'stepz': --config.stepz; did you mean steps?",
        ),
        (
            ["--config=configs/gfdm.py:tiny", "--config.data.qqq.x=3"],
            "unknown config key 'qqq': --config.data.qqq.x; the keys are in configs/",
        ),
        ([], "a flag is missing: --config;"),
        (["--config=configs/gfdm.py"], "--config.data.root"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(flags, words, tmp_path):
    workdir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "launch/train.py", *flags, f"--workdir={workdir}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and words in lines[0] and "Traceback" not in done.stderr
    assert not workdir.exists()


def test_a_workdir_of_another_stage_is_refused_at_once(tmp_path):
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    (tmp_path / "checkpoints/1/commit_success.txt").write_text("")
    config = {"objective": "gidm", "encoders": {}, "model": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [
            sys.executable,
            "launch/train.py",
            "--config=configs/gfdm.py:tiny",
            "--config.data.mixture=synthetic",
            f"--workdir={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "a run of another config (objective: gidm -> gfdm; " in line
    assert json.loads((tmp_path / "config.json").read_text()) == config
