import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from tests.fixtures import seeded

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fixture_file(tmp_path_factory):
    fixture = seeded.load(ROOT / "tests/fixtures/parity/t5_encoder.safetensors")
    tensors = {f"param/{name}": value for name, value in fixture["params"].items()}
    tensors |= {f"in/{name}": value for name, value in fixture["inputs"].items()}
    tensors |= {f"out/{name}": value for name, value in fixture["outputs"].items()}
    path = tmp_path_factory.mktemp("parity") / "t5.safetensors"
    metadata = {"kind": "t5_encoder", "config": json.dumps(fixture["config"])}
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    return path


def _run(*arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch/check_parity.py"), *map(str, arguments)],
        capture_output=True, text=True, env=env, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_rows_and_exit_codes(fixture_file, tmp_path):
    good = _run(fixture_file)
    kind, output, max_abs, rel_l2, verdict = good.stdout.split()
    assert (kind, output, verdict, good.returncode) == (
        "t5_encoder", "last_hidden_state", "PASS", 0,
    )  # fmt: skip
    assert 0 <= float(rel_l2) <= 1e-4
    assert float(max_abs) < 1e-3

    tensors = dict(safetensors.numpy.load_file(fixture_file))
    tensors["out/last_hidden_state"] = np.zeros_like(tensors["out/last_hidden_state"])
    config = seeded.load(ROOT / "tests/fixtures/parity/t5_encoder.safetensors")["config"]
    metadata = {"kind": "t5_encoder", "config": json.dumps(config)}
    wrong = tmp_path / "wrong.safetensors"
    safetensors.numpy.save_file(tensors, wrong, metadata=metadata)
    failed = _run(wrong)
    assert failed.returncode == 1
    assert failed.stdout.strip().endswith("FAIL")
    assert failed.stderr.strip().splitlines()[-1].startswith("error: 1 of 1 outputs")

    unknown = tmp_path / "unknown.safetensors"
    safetensors.numpy.save_file(tensors, unknown, metadata=metadata | {"kind": "t6"})
    refused = _run(unknown, "--json")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.strip().splitlines()[-1].startswith("error: unknown kind 't6'")
