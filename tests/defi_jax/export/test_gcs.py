"""Bundles in a bucket: gcsfs and a server of the GCS JSON API, by `make test-gcs`."""

import socket

import pytest
import real_policies
from defi_rollout import bundle, errors, main, policy

from defi_jax.export import writer

pytest.importorskip("gcsfs", reason="run by `make test-gcs`")
gcs_server = pytest.importorskip("gcp_storage_emulator.server", reason="run by `make test-gcs`")
import fsspec.config  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    with real_policies.compiled_once(tmp_path_factory):
        yield


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The URL of an empty bucket on this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = gcs_server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for protocol in ("gs", "gcs"):
        monkeypatch.setitem(fsspec.config.conf, protocol, {"token": "anon"})
    yield "gs://bucket"
    server.stop()


def test_a_bundle_goes_to_a_bucket_and_comes_back(bucket, tmp_path_factory, tmp_path, capsys):
    old = real_policies.shared_run(tmp_path_factory) / "bundle"
    report = writer.rebuild_bundle(old, f"{bucket}/run/bundle")
    there = policy.Policy.load(f"{bucket}/run/bundle")
    assert there.digest == report.digest
    assert there.run_example() <= writer.PARITY_TOLERANCE
    with pytest.raises(errors.UserError, match="output exists"):
        writer.rebuild_bundle(old, f"{bucket}/run/bundle")
    back = writer.rebuild_bundle(f"{bucket}/run/bundle", tmp_path / "back")
    kept = bundle.read_bundle(tmp_path / "back").spec
    assert kept.provenance["rebuilt_from"] == report.digest and back.rel_l2 <= 1e-4
    assert main.main(["inspect", f"{bucket}/run/none"]) == 2
    assert "gs://bucket/run/none/bundle.json" in capsys.readouterr().err
