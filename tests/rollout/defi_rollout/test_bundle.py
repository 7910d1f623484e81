import json
import os

import pytest
from defi_rollout import bundle, errors

from benchmarks import bit_flips

FILES = (bundle.PARAMS, bundle.STABLEHLO, bundle.EXAMPLE, bundle.MANIFEST)


def test_read_bundle_gives_back_what_was_written(tiny_bundle):
    source = bundle.read_bundle(tiny_bundle)
    assert type(source.spec).from_json(source.spec.to_json()) == source.spec
    assert source.spec.cameras[0].name == "static"
    assert source.spec.noise == {"video": (1, 2, 4, 4, 48), "actions": (5, 4)}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.37, 0.8, 1.0])
def test_one_flipped_bit_is_found_and_named(tiny_bundle, name, place):
    path = tiny_bundle / name
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.BundleError, match=name):
        bundle.read_bundle(tiny_bundle)


def test_flipped_bits_all_over_the_manifest_are_found(tiny_bundle):
    path = tiny_bundle / bundle.MANIFEST
    original = path.read_bytes()
    for position in range(0, len(original), 7):
        content = bytearray(original)
        content[position] ^= 1 << (position % 8)
        path.write_bytes(content)
        with pytest.raises(errors.BundleError, match=bundle.MANIFEST):
            bundle.read_bundle(tiny_bundle)


def test_flipped_bits_all_over_the_bundle_are_found(tiny_bundle):
    def read():
        bundle.read_bundle(tiny_bundle)

    assert not bit_flips.flip(tiny_bundle, read, count=40, seed=0)
    read()


@pytest.mark.parametrize("name", FILES)
def test_truncated_and_empty_files_are_named(tiny_bundle, name):
    path = tiny_bundle / name
    for length in (len(path.read_bytes()) - 1, 0):
        os.truncate(path, length)
        with pytest.raises(errors.BundleError, match=name):
            bundle.read_bundle(tiny_bundle)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(tiny_bundle, name):
    (tiny_bundle / name).unlink()
    with pytest.raises(errors.BundleError, match=f"missing file.*{name}") as caught:
        bundle.read_bundle(tiny_bundle)
    assert caught.value.exit_code == 65


def test_extra_file_is_refused(tiny_bundle):
    (tiny_bundle / "notes.txt").write_text("hello")
    with pytest.raises(errors.BundleError, match=r"unknown file.*notes\.txt"):
        bundle.read_bundle(tiny_bundle)


@pytest.mark.parametrize("name", FILES)
def test_links_are_refused(tiny_bundle, tmp_path, name):
    (tiny_bundle / name).rename(tmp_path / "elsewhere")
    (tiny_bundle / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.BundleError, match=name):
        bundle.read_bundle(tiny_bundle)


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "", "bundle.json"])
def test_names_that_are_not_plain_are_refused(tiny_bundle, name):
    document = json.loads((tiny_bundle / bundle.MANIFEST).read_bytes())
    del document["digest"]
    document["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (tiny_bundle / bundle.MANIFEST).write_bytes(bundle.render_manifest(document))
    with pytest.raises(errors.BundleError, match="refused file name"):
        bundle.read_bundle(tiny_bundle)


def test_no_directory_is_a_usage_error(tmp_path):
    with pytest.raises(errors.UserError) as caught:
        bundle.read_bundle(tmp_path / "nowhere")
    assert caught.value.exit_code == 2


def test_file_changed_after_the_check_is_refused(tiny_bundle):
    source = bundle.read_bundle(tiny_bundle)
    (tiny_bundle / bundle.EXAMPLE).write_bytes(b"changed")
    with pytest.raises(errors.BundleError, match="changed while"):
        source.read(bundle.EXAMPLE)
