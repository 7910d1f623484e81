"""A standardisation outside of the package: the example of docs/open_x.md, and faulty files."""

import pathlib
import re

import numpy as np
import pytest

from data_pipelines.open_x import registry
from data_pipelines.sources import rlds, rlds_directory
from defi_jax import errors
from tests.data_pipelines.open_x import example_dataset

DOCS = pathlib.Path(__file__).parents[3] / "docs" / "open_x.md"


@pytest.fixture(autouse=True)
def _no_own_files(monkeypatch):
    monkeypatch.setattr(registry, "_own_files", {})


def test_the_documented_example_reads_the_example_builders_layout(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    path = tmp_path / "example_dataset.py"
    path.write_text(block)
    options = rlds_directory.RldsOptions(standardization=str(path))
    (found,) = rlds.RldsSource(example_dataset.write(tmp_path), options).read()
    np.testing.assert_allclose(found.actions[:, 0], [0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(found.actions[:, 6], [1, 0.9, 0.8, 0.7])
    assert found.states.shape == (4, 10) and set(found.frames) == {"static", "gripper"}
    assert registry.convention_of(_meta(found)).action_names[-1] == "gripper"


def _meta(episode):
    return type("Meta", (), {"source": episode.source, "embodiment": episode.embodiment})


def test_another_text_of_the_file_is_another_recipe(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    directory, path = example_dataset.write(tmp_path), tmp_path / "example_dataset.py"
    recipes = []
    for text in (block, block, block.replace("gripper.invert", "gripper.clip")):
        monkeypatch.setattr(registry, "_own_files", {})  # as in another process
        path.write_text(text)
        options = rlds_directory.RldsOptions(standardization=str(path))
        recipes.append(rlds.RldsSource(directory, options).recipe)
    assert recipes[0] == recipes[1] != recipes[2]


def test_a_file_of_ones_own_goes_before_the_package(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from data_pipelines.open_x import registry\n"
        "STANDARDS = {'bridge_dataset': registry.standards()['viola']}\n"
    )
    assert registry.standards(str(path))["bridge_dataset"] is registry.find("viola")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such standardisation file"),
        ("import nothing_like_it", r"cannot be run \(ModuleNotFoundError"),
        ("def f(:", r"cannot be run \(SyntaxError"),
        ("x = 1", "has no STANDARDS"),
        ("STANDARDS = {'a': 3}", "STANDARDS of a are no Standard"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error(tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(errors.UserError, match=message):
        registry.standards(str(path))
