"""Plans: what is read from compiled programs, and what is refused."""

import ctypes
import json
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import pytest

from configs import gidm as gidm_config
from configs import joint as joint_config
from defi_jax import errors
from tools.plan import collectives, planner

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("v5q:2x2", "unknown topology 'v5q:2x2'"),
        ("v5p", "unknown topology 'v5p'"),
        ("v5p:2x", "unknown topology 'v5p:2x'"),
        ("cpu:many", "cpu:many on"),
        ("cpu:4096", "cpu:4096 on"),
    ],
)
def test_unknown_topologies_are_refused(topology, words):
    with pytest.raises(errors.UserError, match=words):
        planner.find_devices(topology)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library")
def test_freed_memory_goes_back_to_the_system():
    libc, chunk = ctypes.CDLL(None), 16 * 1024
    libc.malloc.restype = ctypes.c_void_p

    def resident():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    pointers = [libc.malloc(chunk) for _ in range(8000)]
    for pointer in pointers:
        ctypes.memset(ctypes.c_void_p(pointer), 1, chunk)
    for pointer in pointers[:-1]:  # the last one keeps the heap from shrinking
        libc.free(ctypes.c_void_p(pointer))
    before = resident()
    with planner.returned_memory(seconds=0.01):
        time.sleep(0.5)
    assert before - resident() > 8000 * chunk / 2


def _empty_plan():
    return planner.Plan(
        objective="gfdm",
        preset="full",
        topology="v5e:2x2",
        mesh={"fsdp": 4},
        global_batch=4,
        remat="none",
        params_total=1,
        params_trainable=1,
        parameter_bytes=1,
        optimizer_bytes=1,
        flops_per_step=0,
        hbm_bytes_available=16 * 2**30,
    )


def test_a_program_too_large_for_the_compiler_does_not_fit():
    error = RuntimeError(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    )
    found = planner._out_of_memory(_empty_plan(), error)
    assert found.fits is False
    assert found.hbm_bytes_per_device == int(20.5 * 2**30)
    assert found.hbm_bytes_available == int(15.75 * 2**30)


def test_other_compiler_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="INTERNAL"):
        planner._out_of_memory(_empty_plan(), RuntimeError("INTERNAL: something else"))


def test_a_policy_is_planned_for_one_device(monkeypatch):
    config: Any = joint_config.get_config("tiny")
    config.data.mixture = "synthetic"
    with monkeypatch.context() as patch, pytest.raises(errors.UserError, match="2 devices"):
        # Stands in for a machine of two devices, which other tests' processes start jax with.
        patch.setattr(planner, "find_devices", lambda _: (None, jax.devices()[:1] * 2))
        planner.make_policy_plan(config, "cpu:2")
    found = planner.make_policy_plan(config, "cpu:1")
    assert found.objective == "policy" and found.global_batch == 1 and found.fits
    assert found.flops_per_step > 1e7 and found.parameter_bytes > 4 * found.params_total * 0.9
    forward: Any = gidm_config.get_config("tiny")
    forward.data.mixture = "synthetic"
    with pytest.raises(errors.UserError, match="has no policy"):
        planner.make_policy_plan(forward, "cpu:1")


@pytest.mark.slow
def test_the_command_prints_one_object_with_every_key_of_the_contract():
    done = subprocess.run(
        [
            sys.executable,
            "launch/plan.py",
            "--config=configs/gidm.py:tiny",
            "--topology=cpu:2",
            "--json",
            "--config.optimizer.name=adamw",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mesh"] == {"replica": 1, "fsdp": 2, "tensor": 1}
    assert found["objective"] == "gidm" and found["fits"] is True and found["remat"] == "none"
    assert found["hbm_bytes_available"] is None and found["predicted_mfu"] is None
    assert found["flops_per_step"] > 1e9 and found["collectives"]["all_to_all"] == 0
    assert found["compile_seconds"] > 0 and found["peak_compile_gib"] > 0
    assert set(found["collective_bytes"]) == set(collectives.NAMES)
