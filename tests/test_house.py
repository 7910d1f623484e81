"""No file over 450 lines, no function over 60; the client stays small."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("benchmarks", "configs", "data_pipelines", "defi_jax", "launch", "rollout", "tools")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FUNCTIONS):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_the_client_is_small():
    """What a robot's computer installs, without the benchmarks."""
    files = sorted((ROOT / "rollout" / "defi_rollout").glob("*.py"))
    assert "client.py" in {path.name for path in files}
    assert sum(path.read_text().count("\n") for path in files) < 2500
