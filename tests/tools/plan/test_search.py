"""A search ranks what fits, compiles the best, and goes on where it was interrupted."""

import importlib.util
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from configs import gidm
from defi_jax import errors
from defi_jax.training import hardware
from tools.plan import planner, search

ROOT = pathlib.Path(__file__).parents[3]


def test_candidates_are_all_meshes_that_slices_and_devices_allow():
    found = list(search.candidates("joint", 8, 2, [1, 4]))
    meshes = {tuple(one.mesh.values()) for one in found}
    assert meshes == {(8, 1, 1), (4, 2, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2), (2, 1, 4)}
    assert {one.global_batch for one in found if one.mesh["tensor"] == 1} == {8, 32}
    settings = [one.settings for one in search.candidates("gfdm", 1, 1, [1])]
    assert {"data.latents": "cached", "model.unet.remat": "blocks"} in settings
    assert len(settings) == 6


@pytest.fixture(name="four_chips")
def _four_chips(monkeypatch):
    # Stands in for the TPU compiler's description of a slice, of which a ranking reads the number
    # of devices: the compiler is 400 MB. The last test here takes it, where it is installed.
    monkeypatch.setattr(planner, "find_devices", lambda *_: (hardware.CHIPS["v5e"], range(4)))


def _config():
    config: Any = gidm.get_config("tiny")
    config.data.mixture = "synthetic"
    return config


@pytest.mark.usefixtures("four_chips")
def test_what_fits_comes_first_and_the_fastest_of_it_first():
    found = search.rank(_config(), "v5e:2x2", 1, [4, 2**20])
    assert found[0].fits and not found[-1].fits
    rates = [one.rate for one in found if one.fits]
    assert rates == sorted(rates, reverse=True)
    only = search.rank(_config(), "v5e:2x2", 1, [1, 2, 4], global_batch=8)
    assert {one.candidate.global_batch for one in only} == {8} and len(only) < len(found)
    with pytest.raises(errors.UserError, match="global batch of 7"):
        search.rank(_config(), "v5e:2x2", 1, [1, 2], global_batch=7)


@pytest.mark.usefixtures("four_chips")
def test_compiled_plans_are_kept_and_three_that_fit_are_enough(tmp_path, monkeypatch):
    calls = []

    # Stands in for minutes of compiling in a child process, which the last test here does.
    def plan(arguments):
        calls.append(arguments)
        seconds = 10.0 ** -len(calls)
        return {
            "fits": len(calls) != 2,
            "predicted_step_seconds": seconds,
            "predicted_mfu": 0.5,
            "hbm_bytes_per_device": 2**30,
        }

    monkeypatch.setattr(search, "_compile", plan)
    monkeypatch.setitem(search._SETTINGS, "gidm", {})  # one trace instead of three
    found = search.rank(_config(), "v5e:2x2", 1, [2, 4])
    path, what = tmp_path / "sub" / "results.jsonl", {"flags": ["--a"]}
    search.compile_best(found, search.Results(path, what), ["--a"], 3)
    assert len(calls) == 4 and calls[0][0] == "--a"
    assert search.best(found) is found[3]
    shown = search.table(found, hardware.CHIPS["v5e"], 2)
    assert shown.count("does not fit") == 1 and "50.0%" in shown

    # Again: the last line was cut while it was written.
    text = path.read_text()
    path.write_text(text[: text.rindex("{") - 20])
    search.compile_best(found, search.Results(path, what), ["--a"], 3)
    assert len(calls) == 5 and len(search.Results(path, what).compiled) == 4
    with pytest.raises(errors.UserError, match="another search"):
        search.Results(path, {"flags": ["--b"]})


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler, 400 MB"
)
def test_the_command_writes_the_flags_of_the_best(tmp_path):
    results = tmp_path / "found.jsonl"
    command = [
        *(sys.executable, "launch/plan.py", "--config=configs/gidm.py:tiny", "--search"),
        *("--topology", "v5e:2x2", "--examples_per_device=2", "--results", str(results)),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len([json.loads(line) for line in results.read_text().splitlines()]) == 4
    assert "--config.mesh.fsdp=" in results.with_suffix(".flags").read_text()
