"""The bundle of a real policy, shrunk, for the client and the benchmarks."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import real_policies
from defi_rollout import bundle, policy, spec


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    with real_policies.compiled_once(tmp_path_factory):
        yield


@pytest.fixture(scope="session")
def pristine_bundle(tmp_path_factory) -> pathlib.Path:
    return real_policies.shared_run(tmp_path_factory) / "bundle"


@pytest.fixture
def tiny_bundle(pristine_bundle, tmp_path) -> pathlib.Path:
    """A copy that the test may damage."""
    return shutil.copytree(pristine_bundle, tmp_path / "bundle")


def seal(directory: pathlib.Path) -> None:
    """Writes the bundle's list of files anew, for the files as they are."""
    names = [path.name for path in directory.iterdir() if path.name != bundle.MANIFEST]
    files = {name: bundle.hash_file(directory / name) for name in sorted(names)}
    document = json.loads((directory / bundle.MANIFEST).read_bytes())
    del document["digest"]
    changed = dataclasses.replace(spec.BundleSpec.from_json(document), files=files)
    (directory / bundle.MANIFEST).write_bytes(bundle.render_manifest(changed.to_json()))


@pytest.fixture
def reseal():
    return seal


@pytest.fixture(scope="module")
def tiny(pristine_bundle) -> policy.Policy:
    return policy.Policy.load(pristine_bundle)


@pytest.fixture
def obs():
    image = np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return {"observation/image": image, "prompt": "go left"}
