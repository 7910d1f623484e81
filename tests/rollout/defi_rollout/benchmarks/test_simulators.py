import dataclasses
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import simulators, wheels


def _simulator(**changes):
    fields = {
        "name": "toy",
        "module": "toy_simulator",
        "pythons": ("{}.{}".format(*sys.version_info),),
        "packages": (),
    }
    return simulators.Simulator(**{**fields, **changes})


@pytest.fixture
def place(monkeypatch, tmp_path):
    """The directory of the simulator "toy", whose module is importable."""
    monkeypatch.setenv("DEFI_SIMULATORS", str(tmp_path / "sims"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "toy_simulator.py").write_text(
        "import os\n"
        "from defi_rollout import errors\n"
        "def versions(): print('chatter'); return {'name': os.environ['TOY']}\n"
        "def check_files(): raise errors.CheckFailed('bad', 'cup.obj', 'fetch it')\n"
        "def draw_one(): os._exit(3)\n"
    )
    return simulators.directory("toy")


def test_answers_come_from_the_simulators_process(place):
    simulator = _simulator(variables=lambda: {"TOY": "toy 1"})
    assert simulators.ask(simulator, "versions") == {"versions": {"name": "toy 1"}}
    with pytest.raises(errors.UserError, match=r"bad: cup\.obj; fetch it") as raised:
        simulators.ask(simulator, "check_files")
    assert raised.value.exit_code == 1
    with pytest.raises(errors.CheckFailed, match="ended with code 3"):
        simulators.ask(simulator, "draw_one")


def test_what_is_not_installed_names_the_command(place):
    with pytest.raises(errors.UserError, match="python -m defi_rollout setup"):
        simulators.python_of(_simulator(packages=("no-such-package==1.0",)))
    assert simulators.python_of(_simulator(packages=("numpy>=1",))) == sys.executable
    with pytest.raises(errors.UserError, match="setup"):
        simulators.python_of(_simulator(packages=("numpy==0.1",)))


@pytest.fixture
def toy_source(place, tmp_path):
    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    origin = tmp_path / "origin"
    git("init", "--quiet", str(origin))
    (origin / "plates").mkdir()
    (origin / "plates" / "white.obj").write_text("mesh")
    (origin / "cup with handle.obj").write_text("mesh")
    git("-C", str(origin), "add", ".")
    git("-C", str(origin), "commit", "--quiet", "-m", "one")
    commit = git("-C", str(origin), "rev-parse", "HEAD")
    return simulators.Source(name="toy_env", url=str(origin), commit=commit)


def test_checkout_is_compared_file_by_file(place, toy_source):
    with pytest.raises(errors.CheckFailed, match="is absent") as raised:
        simulators.check_source("toy", toy_source)
    subprocess.run(raised.value.fix, shell=True, check=True, capture_output=True)
    assert simulators.check_source("toy", toy_source) == 2
    mesh = place / "toy_env" / "cup with handle.obj"
    mesh.write_text("mash")  # of the same size
    with pytest.raises(errors.CheckFailed, match=r"cup with handle\.obj"):
        simulators.check_source("toy", toy_source)
    mesh.unlink()
    with pytest.raises(errors.CheckFailed, match=r"cup with handle\.obj"):
        simulators.check_source("toy", toy_source)
    assert simulators.check_source("toy", toy_source, ["plates/"]) == 1
    with pytest.raises(errors.CheckFailed, match="spoons/"):
        simulators.check_source("toy", toy_source, ["plates/", "spoons/"])
    with pytest.raises(errors.CheckFailed, match="at commit"):
        simulators.ask(
            _simulator(sources=(dataclasses.replace(toy_source, commit="0"),)), "versions"
        )


@pytest.mark.slow
def test_setup_makes_an_environment_once(place, monkeypatch):
    monkeypatch.setattr(simulators, "_OWN_PACKAGES", ())
    simulator = _simulator(packages=("six==1.16.0",))
    try:
        simulators.set_up(simulator, "toy")
    except errors.UserError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    python = simulators.python_of(simulator)
    assert pathlib.Path(python).is_relative_to(place)
    monkeypatch.setattr(simulators, "_run", lambda *_: pytest.fail("made again"))
    simulators.set_up(simulator, "toy")
    with pytest.raises(errors.UserError, match="setup"):  # a newer protocol wants other packages
        simulators.python_of(_simulator(packages=("six==1.17.0", "no-such-package")))


def test_a_missing_python_is_named(place, tmp_path, monkeypatch):
    monkeypatch.setenv("PYENV_ROOT", str(place))
    script = tmp_path / "python3.5"  # as pyenv leaves it for a version that is not chosen
    script.write_text("#!/bin/sh\nexit 127\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(errors.UserError, match=r"no Python 3\.5 on this machine"):
        simulators.set_up(_simulator(pythons=("3.5",), packages=("no-such-package",)), "toy")


def test_files_of_a_wheel_are_compared_with_its_record(tmp_path, monkeypatch):
    packages = pathlib.Path(str(importlib.metadata.distribution("msgpack").locate_file("")))
    for found in packages.glob("msgpack*"):
        shutil.copytree(found, tmp_path / found.name)
    monkeypatch.syspath_prepend(str(tmp_path))
    whole = wheels.check_files("msgpack")
    assert int(whole.split()[0]) > 3
    file = tmp_path / "msgpack" / "fallback.py"
    file.write_text(file.read_text().replace("a", "b", 1))
    with pytest.raises(errors.CheckFailed, match=r"fallback\.py"):
        wheels.check_files("msgpack")
    with pytest.raises(errors.UserError, match="not installed"):
        wheels.check_files("no-such-package")


def test_this_python_needs_no_environment_of_its_own(place):
    marker = place / "setup.json"
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps({"packages": ["old"]}))
    assert simulators.python_of(_simulator()) == sys.executable
