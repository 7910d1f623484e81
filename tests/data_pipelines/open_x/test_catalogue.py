"""Every registered dataset, from ArrayRecord files with its published layout."""

import pytest

from data_pipelines.open_x import registry
from tests.data_pipelines.open_x import catalogue, layout_checks


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_registered_dataset_has_a_layout():
    assert set(catalogue.layouts()) == set(registry.standards(""))
    for name, layout in catalogue.layouts().items():
        assert layout.source and isinstance(layout.verified, bool), name
    unverified = {name for name, layout in catalogue.layouts().items() if not layout.verified}
    families = ("libero_", "tdroid_", "ego4d_split_", "rh20t", "droid")
    assert all(name.startswith(families) for name in unverified)


@pytest.mark.parametrize("name", catalogue.layouts())
def test_published_layout_is_converted_and_streamed(tmp_path, name):
    layout_checks.assert_read(tmp_path, name, "array_record")
