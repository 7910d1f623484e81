import json
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from tests.fixtures import seeded

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow


class _Calls:
    def __reduce__(self):
        return os.system, ("touch witness",)


def _run(directory, *arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'rollout'}"}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch/import_weights.py"), *arguments],
        capture_output=True,
        text=True,
        env=env,
        check=False,
        cwd=directory,
    )


def _write_t5(directory) -> dict[str, np.ndarray]:
    """A small T5 release by the official names."""
    fixture = seeded.load(ROOT / "tests/fixtures/parity/t5_encoder.safetensors")
    directory.mkdir()
    safetensors.numpy.save_file(fixture["params"], directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(fixture["config"]))
    return fixture["params"]


def test_import_and_reverse_by_command(tmp_path):
    tensors = _write_t5(tmp_path / "t5")
    done = _run(tmp_path, "--source=t5", "--input=t5", "--output=ours")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "dropped: 0 names, kept in passthrough.safetensors"
    back = _run(tmp_path, "--reverse", "--input=ours", "--output=theirs", "--json")
    assert json.loads(back.stdout) == {
        "written": ["theirs/model.safetensors"],
        "absent": {},
    }
    theirs = safetensors.numpy.load_file(tmp_path / "theirs" / "model.safetensors")
    assert theirs.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(theirs[name], value)


def test_every_misfit_is_listed_and_nothing_is_left(tmp_path):
    tensors = _write_t5(tmp_path / "t5")
    del tensors["encoder.final_layer_norm.weight"]
    prefix = "encoder.block.1.layer.0.SelfAttention"
    tensors[f"{prefix}.extra"] = tensors.pop(f"{prefix}.q.weight")
    tensors[f"{prefix}.v.weight"] = np.zeros((3, 3), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "t5" / "model.safetensors")
    done = _run(tmp_path, "--source=t5", "--input=t5", "--output=ours")
    assert done.returncode == 65
    (line,) = done.stderr.splitlines()[-1:]
    for text in (
        "missing name encoder.final_layer_norm.weight",
        f"missing name {prefix}.q.weight",
        f"unknown name {prefix}.extra",
        f"misshapen {prefix}.v.weight: (3, 3)",
    ):
        assert text in line
    assert [path.name for path in tmp_path.iterdir()] == ["t5"]


def test_a_malicious_pickle_is_refused_by_name_and_runs_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"weight": _Calls()}, 2))
    done = _run(tmp_path, "--source=dinov2", "--input=bad.pth", "--output=ours")
    assert done.returncode == 65
    assert "error: pickle names posix.system, which is not on the list" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source=t6", "--input=a", "--output=b"], "should be one of"),
        (["--source=t5", "--input=a", "--output=b"], "no such file: a"),
        (["--input=a", "--output=b"], "--source is missing"),
        (["--source=t5", "--output=b"], "--input is missing"),
        (["--reverse", "--source=t5", "--input=.", "--output=b"], "finds the source by itself"),
        (["--reverse", "--input=.", "--output=b"], "neither import.json nor checkpoints/"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, arguments, message):
    done = _run(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
