"""What must not depend on the number of devices, measured in a process with 8 fake ones."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import toy_run

from defi_jax.checkpoints import manager
from defi_jax.training import loop

REPO = pathlib.Path(__file__).parents[3]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("devices")
    flags = "--xla_force_host_platform_device_count=8"
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": f"{REPO}:{REPO / 'rollout'}",
    }
    script = pathlib.Path(__file__).parent / "toy_devices.py"
    done = subprocess.run(
        [sys.executable, str(script), str(workdir)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), workdir


def test_large_kernels_are_split(measured):
    report, _ = measured
    assert report["devices"] == 8
    assert "'fsdp'" in report["spec"]["fsdp"] and "'tensor'" in report["spec"]["all"]


def test_imported_weights_are_read_in_the_devices_slices(measured):
    assert measured[0]["warm_start_reads"] == [[64, 128]] * 8


@pytest.mark.parametrize("mesh", ["fsdp", "replica", "all", "accumulated"])
def test_loss_and_every_gradient_leaf_equal_one_devices(measured, mesh):
    assert measured[0]["gradient"][mesh] < 1e-5


@pytest.mark.parametrize("where", ["same", "other", "two"])
def test_a_checkpoint_restores_bit_equal_on_another_mesh(measured, where):
    assert measured[0]["restored"][where]


def test_parameters_load_without_the_mesh(measured):
    _, workdir = measured
    state = np.load(workdir / "state.npz")
    params, facts = manager.load_params(workdir)
    assert facts["mesh"] == {"replica": 1, "fsdp": 8, "tensor": 1}
    want = state[".ema_params['net']['fc1']['kernel']"]
    np.testing.assert_array_equal(params["net"]["fc1"]["kernel"], want)


def test_a_run_goes_on_with_fewer_devices(measured):
    _, workdir = measured
    objective = toy_run.ToyObjective()
    state = loop.train(toy_run.config(steps=4), objective, toy_run.make_loader(), workdir)
    assert int(state.step) == 4 and int(state.skipped_steps) == 0
