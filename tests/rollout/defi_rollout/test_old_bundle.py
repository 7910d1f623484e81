"""A bundle of an older jax (tests/fixtures/make_old_bundle.py)."""

import pathlib
import zipfile

import jax
import pytest
from defi_rollout import bundle, errors, policy

from defi_jax.export import writer

ARCHIVE = pathlib.Path(__file__).parents[2] / "fixtures" / "old_bundle.zip"
OLD_JAX = "0.8.1"


@pytest.mark.slow
def test_it_runs_or_is_refused_with_the_command_that_works(tmp_path):
    old = tmp_path / "old"
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(old)
    provenance = bundle.read_bundle(old).spec.provenance
    assert provenance["exported_with"] == {"jax": OLD_JAX} != {"jax": jax.__version__}
    try:
        loaded = policy.Policy.load(old, warm_up=False)
    except errors.BundleError as error:
        command = f"launch/export.py --from_bundle={old} --output=NEW"
        assert f"jax {jax.__version__} refuses it" in str(error) and command in str(error)
        writer.rebuild_bundle(old, tmp_path / "new")
        loaded = policy.Policy.load(tmp_path / "new", warm_up=False)
    assert loaded.run_example() <= writer.PARITY_TOLERANCE
