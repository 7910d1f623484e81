import pytest

from data_pipelines import files


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a").write_bytes(b"other"),
        lambda root: (root / "a").write_bytes(b"0" * 9999 + b"1"),  # of the same size
        lambda root: (root / "a").rename(root / "c"),
        lambda root: (root / "b\udcff").unlink(),
    ],
)
def test_files_count_by_name_size_and_last_bytes(tmp_path, change):
    root = tmp_path / "set"
    root.mkdir()
    (root / "a").write_bytes(b"0" * 10_000)
    (root / "b\udcff").write_bytes(b"x")

    def digest(root):
        return files.digest_files(root, [root / "b\udcff", *root.iterdir()])

    before = digest(root)
    moved = root.rename(tmp_path / "moved")
    assert digest(moved) == before
    change(moved)
    assert digest(moved) != before
