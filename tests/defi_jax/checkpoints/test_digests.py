import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath

from defi_jax.checkpoints import digests

ARRAYS = {
    "float32": np.linspace(-1, 1, 60, dtype=np.float32).reshape(3, 4, 5),
    "bfloat16": np.arange(7).astype(ml_dtypes.bfloat16),
    "int32": np.arange(6, dtype=np.int32).reshape(2, 3),
    "bool": np.array([True, False, True]),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
}


def digest(array):
    return digests.leaf_digests({"a": array})["a"]


@pytest.mark.parametrize("name", ARRAYS)
def test_host_and_device_digests_agree(name):
    array = ARRAYS[name]
    assert digest(array) == digest(jnp.asarray(array))


def test_digest_does_not_depend_on_the_chunks(monkeypatch):
    array = np.arange(1000, dtype=np.float32).reshape(50, 20)
    whole = digest(array)
    monkeypatch.setattr(digests, "_CHUNK", 60)
    assert digest(array) == whole


def test_parts_add_up_to_the_whole():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    parts = [(slice(0, 2), slice(0, 3)), (slice(0, 2), slice(3, 6)), (slice(2, 4), slice(0, 6))]
    sums = sum(
        np.asarray(digests._part_sums(jnp.asarray(array[part]), *digests._places((4, 6), part)))
        for part in parts
    )
    assert "".join(f"{n:08x}" for n in sums) == digest(array)


def test_every_bit_and_every_exchange_changes_the_digest():
    array = np.linspace(1, 2, 12, dtype=np.float32)
    before = digest(array)
    for index in range(12):
        for bit in range(32):
            changed = array.copy()
            changed.view(np.uint32)[index] ^= np.uint32(1) << np.uint32(bit)
            assert digest(changed) != before
    assert digest(array[::-1].copy()) != before
    assert digest(array.reshape(3, 4)) == before  # the shape is recorded beside the digest


def test_json_digest_ignores_key_order_only():
    assert digests.json_digest({"a": 1, "b": [1, 2]}) == digests.json_digest({"b": [1, 2], "a": 1})
    assert digests.json_digest({"a": [1, 2]}) != digests.json_digest({"a": [2, 1]})


def test_file_damage_names_the_file(tmp_path):
    folder = epath.Path(tmp_path) / "5"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a").write_bytes(b"aaa")
    (folder / "b").write_bytes(b"")
    assert digests.file_damage(folder) == []  # no digests yet
    digests.write_file_digests(folder)
    assert digests.file_damage(folder) == []
    (folder / "sub/a").write_bytes(b"aab")
    (folder / "b").unlink()
    assert digests.file_damage(folder) == ["b is missing", "sub/a has changed"]


def test_host_arrays_of_several_processes_count_once(monkeypatch):
    leaves = {"a": np.arange(6, dtype=np.float32)}
    alone = digests.leaf_digests(leaves)
    monkeypatch.setattr(digests.jax, "process_count", lambda: 2)
    parts = []

    def gather(sums):
        parts.append(sums)
        return np.stack(parts)

    monkeypatch.setattr(digests.multihost_utils, "process_allgather", gather)
    for number in range(2):
        monkeypatch.setattr(digests.jax, "process_index", lambda number=number: number)
        found = digests.leaf_digests(leaves)
    assert found == alone
