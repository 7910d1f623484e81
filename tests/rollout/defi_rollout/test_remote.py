"""Bundles in a bucket; fsspec's file system in memory stands for one, which lets itself be spoilt.

tests/defi_jax/export/test_gcs.py has a server of the GCS JSON API.
"""

import fsspec
import pytest
from defi_rollout import bundle, errors, main, policy

URL = "memory://bucket/run/bundle"


@pytest.fixture
def bucket(tiny_bundle, tmp_path, monkeypatch):
    """The file system that holds a bundle at `URL`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.put(f"{tiny_bundle}/", "/bucket/run/bundle", recursive=True)
    yield files
    files.rm("/bucket", recursive=True)


def _copies(tmp_path):
    found = tmp_path / "cache" / "defi_rollout" / "bundles"
    return sorted(found.iterdir()) if found.exists() else []


def test_a_bundle_in_a_bucket_acts_as_on_disk(bucket, tiny_bundle, obs, tmp_path, capsys):
    here, there = policy.Policy.load(tiny_bundle), policy.Policy.load(URL)
    assert there.digest == here.digest
    assert (there.infer(obs)["actions"] == here.infer(obs)["actions"]).all()
    assert main.main(["inspect", URL]) == 0
    assert here.digest in capsys.readouterr().out
    assert len(_copies(tmp_path)) == 1


def test_it_is_copied_once(bucket, monkeypatch):
    first = bundle.read_bundle(URL + "/")
    monkeypatch.setattr(bucket, "get_file", None)
    assert bundle.read_bundle(URL).directory == first.directory


def test_a_spoilt_copy_is_copied_again(bucket):
    path = bundle.read_bundle(URL).path(bundle.PARAMS)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert bundle.read_bundle(URL).path(bundle.PARAMS).read_bytes()[-1:] != b"?"


@pytest.mark.parametrize("name", [bundle.PARAMS, bundle.STABLEHLO, bundle.MANIFEST])
@pytest.mark.parametrize("length", ["shorter", "equal", "longer"])
def test_damage_is_named_and_leaves_no_copy(bucket, tmp_path, name, length):
    content = bucket.cat_file(f"/bucket/run/bundle/{name}")
    spoilt = {"shorter": content[:-1], "equal": content[:-1] + b"?", "longer": content + b"?"}
    bucket.pipe_file(f"/bucket/run/bundle/{name}", spoilt[length])
    with pytest.raises(errors.BundleError, match=name):
        bundle.read_bundle(URL)
    assert _copies(tmp_path) == []


def test_a_file_too_many_is_refused_before_it_is_copied(bucket, tmp_path):
    bucket.pipe_file("/bucket/run/bundle/more.bin", b"x")
    with pytest.raises(errors.BundleError, match=r"unknown file: memory://.*/more\.bin"):
        bundle.read_bundle(URL)
    bucket.rm_file("/bucket/run/bundle/more.bin")
    bucket.rm_file(f"/bucket/run/bundle/{bundle.PARAMS}")
    with pytest.raises(errors.BundleError, match=r"missing file: memory://.*/params"):
        bundle.read_bundle(URL)
    assert _copies(tmp_path) == []


@pytest.mark.parametrize("url", ["memory://bucket/none", "nonsense://bucket/bundle"])
def test_no_bundle_or_kind_of_url_is_a_usage_error(bucket, url):
    with pytest.raises(errors.UserError, match=url) as caught:
        bundle.read_bundle(url)
    assert caught.value.exit_code == 2


def test_simulators_play_it(bucket, tmp_path):
    arguments = ["evaluate", URL, "--benchmark=metaworld", f"--output={tmp_path / 'out'}"]
    # Refused once the bundle has been read, before a simulator starts.
    assert main.main([*arguments, "--tasks=drawer-open-v3", "--execute_horizon=99"]) == 2
    assert len(_copies(tmp_path)) == 1
