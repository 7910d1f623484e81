"""The client as a robot installs it: old and new Pythons, three small packages, a real server."""

import glob
import itertools
import os
import pathlib
import shutil
import subprocess

import pytest
from policy_servers import Slow, serving

ROOT = pathlib.Path(__file__).parents[3]
MAX_BYTES = 3_000_000  # of the client and its dependencies but numpy

pytestmark = pytest.mark.slow

ACT = """
import json, sys
import numpy as np
import defi_rollout
from defi_rollout import executors
blocked = {"jax", "flax", "torch", "tensorflow", "safetensors"}
with defi_rollout.Client("ws://127.0.0.1:" + sys.argv[1]) as policy:
    robot = executors.EnsembleExecutor(policy)
    robot.reset()
    action = robot.next_action(lambda: {"x": np.float32(7), "image": np.zeros((8, 8, 3), np.uint8)})
print(json.dumps([action.tolist(), sorted(blocked & set(sys.modules))]))
"""


def interpreter(version):
    """The path of that Python; skips where it is not at hand."""
    folder = os.environ.get("PYENV_ROOT", str(pathlib.Path.home() / ".pyenv"))
    for path in (
        shutil.which(f"python{version}"),
        *sorted(glob.glob(f"{folder}/versions/{version}.*/bin/python")),
    ):
        if path and subprocess.run([path, "-c", "import ensurepip"], check=False).returncode == 0:
            return path
    pytest.skip(f"Python {version} is not on this machine")


@pytest.mark.parametrize("version", ["3.8", "3.13"])
def test_installs_with_three_packages_and_acts(version, tmp_path):
    source = shutil.copytree(
        ROOT / "rollout", tmp_path / "rollout", ignore=shutil.ignore_patterns("build", "*.egg-info")
    )
    subprocess.run([interpreter(version), "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    command = [python, "-m", "pip", "install", "--quiet", "--no-compile", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr or "Could not fetch" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    with serving(Slow()) as port:
        command = [python, "-B", "-c", ACT, str(port)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "[[0.0, 0.0, 0.0, 7.0], []]\n", done.stderr
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    names = {path.name.split("-")[0] for path in packages.iterdir()}
    names -= {"pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils", "numpy"}
    assert names == {"defi_rollout", "msgpack", "websockets", "numpy.libs"}
    ours = [packages.glob(f"{name}*/**/*") for name in ("defi_rollout", "msgpack", "websockets")]
    sizes = [path.stat().st_size for path in itertools.chain(*ours) if path.is_file()]
    assert sum(sizes) < MAX_BYTES
