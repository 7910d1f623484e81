"""Imports point one way, in no circle, and nothing that can run code from data is called."""

import ast
import functools
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OURS = ("defi_jax", "data_pipelines", "tools")
FILES = sorted(
    path for top in (*OURS, "configs", "launch", "rollout") for path in (ROOT / top).rglob("*.py")
)
RISKY = re.compile(
    r"\b(pickle\.loads?|torch\.load|allow_pickle=True|yaml\.load\(|eval\(|exec\(|shell=True"
    r"|extractall|cloudpickle|marshal\.)"
)
FOREIGN_TO_ROLLOUT = {*OURS, "configs", "launch", "flax", "optax", "orbax", "tensorflow", "torch"}

# The floors of each package, from the ground up: a room imports those below it. Rooms that share a
# floor do not know each other.
FLOORS = {
    "defi_jax": (
        "errors",
        "array_typing cli embodiment processes tensor_files",
        "batch partition diffusion",
        "models",
        "checkpoints objectives",
        "training export weights",
    ),
    "data_pipelines": (
        "episodes files formats",
        "transforms",
        "normalization open_x",
        "sources",
        "tfds_builders",
        "store",
        "collect latents",
        "loading",
        "streaming",
    ),
    "tools": ("data demo imagine plan", "report"),
}

# Of another package of ours, each may import these rooms; None stands for all.
DOORS = {
    "defi_jax": {},
    "data_pipelines": {"defi_jax": {"batch", "cli", "embodiment", "errors", "weights"}},
    "tools": {"defi_jax": None, "data_pipelines": None},
}


@functools.cache
def _imports(path: pathlib.Path) -> frozenset[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def _module(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in FILES if path.relative_to(ROOT).parts[0] in OURS}
ROOMS = sorted({".".join(name.split(".")[:2]) for name in MODULES if "." in name})


def _below(names: frozenset[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def _floor(room: str) -> int:
    package, name = room.split(".")
    return next(i for i, floor in enumerate(FLOORS[package]) if name in floor.split())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_foreign_is_imported(path):
    names = _imports(path)
    package = path.relative_to(ROOT).parts[0]
    forbidden = _below(names, "torch") | _below(names, "flax.linen")
    if package == "rollout":
        forbidden |= {name for name in names if name.split(".")[0] in FOREIGN_TO_ROLLOUT}
    if package in OURS:
        forbidden |= _below(names, "configs") | _below(names, "launch")
        others = {top: rooms for top, rooms in DOORS[package].items() if rooms is not None}
        closed = {*OURS} - {package} - DOORS[package].keys()
        forbidden |= {name for top in closed for name in _below(names, top)}
        for top, rooms in others.items():
            open_rooms = {name for room in rooms for name in _below(names, f"{top}.{room}")}
            forbidden |= _below(names, top) - open_rooms - {top}
    assert not forbidden


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_on_lower_floors(room):
    package = room.split(".")[0]
    inside = [name for name in MODULES if name == room or name.startswith(f"{room}.")]
    names = frozenset().union(*(_imports(MODULES[name]) for name in inside))
    used = {other for other in ROOMS if other.startswith(f"{package}.") and _below(names, other)}
    assert {other for other in used - {room} if _floor(other) >= _floor(room)} == set()


def test_no_circle():
    graph = {name: set() for name in MODULES}
    for name, path in MODULES.items():
        graph[name] = {other for other in _imports(path) & MODULES.keys() if other != name}
        graph[name] -= {".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_call_runs_code_from_data(path):
    assert not RISKY.findall(path.read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda p: p.name)
def test_launch_scripts_stay_short(path):
    assert len(path.read_text().splitlines()) < 80
