"""Simulators, each in an environment of its own: a simulator's Python and numpy need not be ours.

    directory("calvin")/venv          made by `python -m defi_rollout setup calvin-abcd-360`
    directory("calvin")/calvin_env    a checkout that the user makes, where no package index has it

A child process of that Python runs this very code: `start_child`. A simulator whose packages are
installed here needs no environment of its own.
"""

import dataclasses
import glob
import importlib.metadata
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import defi_rollout
from defi_rollout import errors, files
from defi_rollout.benchmarks import child_errors

# What the player itself needs beside the simulator.
_OWN_PACKAGES = ("numpy", "msgpack>=1.0.3", "websockets>=13", "pillow>=10", "av>=14")

# Runs a module of this package in a Python that has not installed it. The directory around the
# package stays off the path: it may hold another Python's packages.
_BOOT = """
import importlib.util, sys
folder, module, *sys.argv[1:] = sys.argv[1:]
spec = importlib.util.spec_from_file_location(
    "defi_rollout", folder + "/__init__.py", submodule_search_locations=[folder])
package = sys.modules["defi_rollout"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
sys.exit(importlib.import_module(module).main(sys.argv[1:]))
"""
_MARKER = "setup.json"
_PROBE_SECONDS = 600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A git checkout of what is on no package index.

    Attributes:
        name: of its folder in the simulator's directory.
        url: to clone it from.
        commit: the one that the protocol is frozen at.
    """

    name: str
    url: str
    commit: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulator:
    """What a benchmark needs in order to be played.

    Attributes:
        name: of its directory.
        module: of this package, with functions for the simulator's Python: `versions()` returns
            {"name", "version", "commit"}; `draw_one()` draws a picture, checks that it shows
            something, and returns which renderer drew it; `check_files()` compares all files that
            the simulator reads with their digests and returns how many there are.
        pythons: minor versions that it runs on, the best first.
        packages: requirements for pip.
        sources: checkouts.
        variables: makes environment variables that its process must start with.
    """

    name: str
    module: str
    pythons: tuple[str, ...]
    packages: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    variables: Callable[[], dict[str, str]] = dict


def directory(name: str) -> pathlib.Path:
    """Where the simulator `name` is set up: below $DEFI_SIMULATORS, or in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    default = pathlib.Path(cache, "defi-rollout", "simulators")
    return pathlib.Path(os.environ.get("DEFI_SIMULATORS") or default, name)


def python_of(simulator: Simulator) -> str:
    """The Python that runs it: of its own environment, or this one where all is installed.

    Raises:
        UserError: neither; names the command that sets it up.
    """
    marker = directory(simulator.name) / _MARKER
    if marker.exists() and json.loads(marker.read_text()) == _wanted(simulator):
        return str(directory(simulator.name) / "venv/bin/python")
    if _is_installed_here(simulator.packages):
        return sys.executable
    raise errors.UserError(
        "the simulator is not installed",
        simulator.name,
        "python -m defi_rollout setup BENCHMARK",
    )


def start_child(
    simulator: Simulator, module: str, arguments: Iterable[str], **options: Any
) -> subprocess.Popen:
    """Starts `module`.main(arguments) of this package in the simulator's Python.

    Args:
        options: of subprocess.Popen; "env" adds to the variables.
    """
    folder = str(pathlib.Path(defi_rollout.__file__).parent)
    variables = {**os.environ, **simulator.variables(), **options.pop("env", {})}
    command = [python_of(simulator), "-c", _BOOT, folder, module, *arguments]
    return subprocess.Popen(command, env=variables, **options)


def ask(simulator: Simulator, *questions: str) -> dict[str, Any]:
    """Answers of functions of the simulator's module, by their names.

    Raises:
        UserError: the simulator is absent, or a function raises it; or the process dies.
    """
    for source in simulator.sources:
        _check_commit(simulator.name, source)
    child = start_child(
        simulator,
        "defi_rollout.benchmarks.probe",
        (simulator.module, *questions),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        printed, _ = child.communicate(timeout=_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        printed = ""
    answer = json.loads(printed.splitlines()[-1]) if printed.strip() else None
    if answer is None:
        raise errors.CheckFailed(
            f"the simulator's process ended with code {child.wait()}",
            simulator.name,
            "see the messages above",
        )
    if "error" in answer:
        raise child_errors.decode(answer["error"])
    return answer


def set_up(simulator: Simulator, benchmark: str) -> None:
    """Makes the simulator's environment, or leaves it where it is complete.

    Raises:
        UserError: no Python that it runs on, or pip fails.
        CheckFailed: a checkout is absent or changed; names the command that makes it.
    """
    place = directory(simulator.name)
    marker, wanted = place / _MARKER, _wanted(simulator)
    if not marker.exists() or json.loads(marker.read_text()) != wanted:
        python = _find_python(simulator)
        logging.info("%s: environment of %s in %s", benchmark, python, place)
        shutil.rmtree(place / "venv", ignore_errors=True)
        marker.unlink(missing_ok=True)
        _run([python, "-m", "venv", str(place / "venv")], place)
        pip = [str(place / "venv/bin/python"), "-m", "pip", "install", "--quiet"]
        _run([*pip, *wanted["packages"]], place)
        files.write(marker, json.dumps(wanted, indent=1))
    for source in simulator.sources:
        check_source(simulator.name, source)


def check_source(name: str, source: Source, paths: Sequence[str] = ()) -> int:
    """Compares the files of a checkout with its commit; returns how many were compared.

    Args:
        name: of the simulator.
        paths: files, and folders with a slash, to compare; all where none is given.

    Raises:
        CheckFailed: it is absent, at another commit, or a file is missing or changed.
    """
    place = _check_commit(name, source)
    listing = _git(place, "ls-tree", "-r", "-z", "HEAD", "--", *paths).split("\0")
    entries = [line.split(None, 3) for line in listing if line]
    wanted = {path: digest for _, kind, digest, path in entries if kind == "blob"}
    present = [path for path in wanted if (place / path).is_file()]
    digests = _git(place, "hash-object", "--stdin-paths", text="\n".join(present)).split()
    bad = [path for path in paths if not any(file.startswith(path) for file in wanted)]
    bad += sorted(wanted.keys() - set(present))
    bad += [p for p, digest in zip(present, digests, strict=True) if digest != wanted[p]]
    if bad:
        raise errors.CheckFailed(
            f"{len(bad)} files of {source.name} are missing or changed ({errors.listed(bad, 3)})",
            place,
            f"git -C {place} checkout --force {source.commit}",
        )
    return len(wanted)


def _check_commit(name: str, source: Source) -> pathlib.Path:
    place = directory(name) / source.name
    head = _git(place, "rev-parse", "HEAD").strip() if place.is_dir() else ""
    if head != source.commit:
        what = f"at commit {head[:12]}, not {source.commit[:12]}" if head else "absent"
        clone = f"git clone {source.url} {place} && git -C {place} checkout --quiet {source.commit}"
        raise errors.CheckFailed(f"the checkout of {source.name} is {what}", place, clone)
    return place


def _git(place: pathlib.Path, *arguments: str, text: str = "") -> str:
    command = ["git", "-C", str(place), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def _run(command: list[str], place: pathlib.Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise errors.UserError(
            f"{' '.join(command[1:4])} failed ({errors.listed(lines[-2:], 2)})", place, "try again"
        )


def _wanted(simulator: Simulator) -> dict[str, Any]:
    return {"packages": [*_OWN_PACKAGES, *simulator.packages]}


def _is_installed_here(packages: Iterable[str]) -> bool:
    for requirement in packages:
        name, exact = re.split(r"[\[<>=!~ ]", requirement)[0], re.search("==([^,]+)", requirement)
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
        if exact and exact.group(1) != found:
            return False
    return True


def _runs(python: str) -> bool:
    done = subprocess.run([python, "-c", "import ensurepip"], capture_output=True, check=False)
    return done.returncode == 0


def _find_python(simulator: Simulator) -> str:
    root = os.environ.get("PYENV_ROOT") or pathlib.Path.home() / ".pyenv"
    for version in simulator.pythons:
        own = sys.executable if version == "{}.{}".format(*sys.version_info) else None
        installed = sorted(glob.glob(f"{root}/versions/{version}.*/bin/python"))
        for path in (own, shutil.which(f"python{version}"), *installed):
            # pyenv leaves scripts of that name which only say how to choose a version.
            if path and _runs(path):
                return path
    raise errors.UserError(
        f"no Python {' or '.join(simulator.pythons)} on this machine",
        simulator.name,
        f"install one, so that python{simulator.pythons[0]} is on the PATH",
    )
