"""Imports point one way, and nothing that can run code from data is called."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("defi_jax", "data_pipelines", "tools", "configs", "launch", "rollout")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Each layer may import those before it.
LAYERS = (
    "array_typing",
    "batch",
    "diffusion",
    "models",
    "objectives",
    "checkpoints",
    "training",
)
FOREIGN_TO_ROLLOUT = {
    "defi_jax",
    "data_pipelines",
    "configs",
    "flax",
    "optax",
    "orbax",
    "tensorflow",
    "torch",
}
RISKY = re.compile(
    r"\b(pickle\.loads?|torch\.load|allow_pickle=True|yaml\.load\(|eval\(|exec\(|shell=True"
    r"|extractall|cloudpickle|marshal\.)"
)


def _imports(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _below(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    names = _imports(path)
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    forbidden = _below(names, "torch") | _below(names, "flax.linen")
    if package == "rollout":
        forbidden |= {n for n in names if n.split(".")[0] in FOREIGN_TO_ROLLOUT}
    if package == "defi_jax":
        for other in ("configs", "data_pipelines", "tools", "launch"):
            forbidden |= _below(names, other)
        if rest[0] in LAYERS:
            for layer in LAYERS[LAYERS.index(rest[0]) + 1 :]:
                forbidden |= _below(names, f"defi_jax.{layer}")
    if package == "data_pipelines":
        for other in ("models", "objectives", "checkpoints", "training", "diffusion"):
            forbidden |= _below(names, f"defi_jax.{other}")
        forbidden |= _below(names, "tools") | _below(names, "launch")
    assert not forbidden


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_call_runs_code_from_data(path):
    assert not RISKY.findall(path.read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda p: p.name)
def test_launch_scripts_stay_short(path):
    assert len(path.read_text().splitlines()) < 130
