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
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'rollout'}"}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch/check_parity.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )


@pytest.mark.slow
def test_rows_and_exit_codes(fixture_file, tmp_path):
    good = _run(fixture_file)
    kind, output, max_abs, rel_l2, verdict = good.stdout.split()
    assert (kind, output, verdict, good.returncode) == (
        "t5_encoder",
        "last_hidden_state",
        "PASS",
        0,
    )
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
    del tensors["out/last_hidden_state"]
    tensors["out/other"] = np.zeros(3, np.float32)
    lacking = tmp_path / "lacking.safetensors"
    safetensors.numpy.save_file(tensors, lacking, metadata=metadata)
    refused = _run(fixture_file, unknown, tmp_path / "absent.safetensors", lacking, "--json")
    assert refused.returncode == 2
    document = json.loads(refused.stdout, parse_constant=lambda text: pytest.fail(text))
    assert [(row["output"], row["passed"]) for row in document["outputs"]] == [
        ("last_hidden_state", True),
        ("other", False),
    ]
    assert document["outputs"][1]["rel_l2"] is None
    assert document["errors"][0].startswith(f"unknown kind 't6': fixture in {unknown}")
    lines = [line for line in refused.stderr.splitlines() if line.startswith("error")]
    assert lines == [f"error: {text}" for text in document["errors"]]
    assert len(lines) == 2
