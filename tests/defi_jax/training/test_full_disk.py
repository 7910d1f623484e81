"""A disk that fills up during a run: a small file system in memory, where root may mount one."""

import json
import pathlib
import subprocess
import time

import pytest
import toy_run

from defi_jax import errors
from defi_jax.checkpoints import manager
from defi_jax.training import loop


@pytest.fixture
def disk(tmp_path):
    """A directory of 4 MB; a checkpoint of the toy needs 1.1 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def train(disk, on_batch=None, **changes):
    options = {"keep_checkpoints": 1, "save_every": 2, "steps": 14, **changes}
    make_loader = toy_run.make_loader(on_batch=on_batch)
    return loop.train(toy_run.config(**options), toy_run.ToyObjective(), make_loader, disk / "run")


def test_what_cannot_fit_is_refused_before_the_first_step(disk):
    batches = []
    with pytest.raises(errors.StorageError, match=r"need 4.3 MiB more, 1.1 each, and 4.0 MiB"):
        train(disk, on_batch=batches.append, keep_checkpoints=3)
    assert not batches


@pytest.mark.parametrize("frees", [True, False])
def test_a_full_disk_costs_the_saves_it_hits(disk, frees, caplog, capfd):
    filler = disk / "filler"

    def on_batch(position):
        if position == 6:  # read beside step 5
            while manager.committed_steps(disk / "run") != [4]:
                time.sleep(0.01)
            with pytest.raises(OSError, match="No space"), filler.open("wb") as file:
                while True:
                    file.write(bytes(4096))
        if position == 9 and frees:
            filler.unlink()

    if frees:
        train(disk, on_batch)
        assert manager.latest_verified_step(disk / "run") == 14
        rows = map(json.loads, (disk / "run/metrics.jsonl").read_text().splitlines())
        assert [row["step"] for row in rows if row["split"] == "train"] == [*range(1, 15)]
    else:
        with pytest.raises(errors.StorageError, match=r"3 saves in a row .*step 4 is the last"):
            train(disk, on_batch)
        assert manager.latest_verified_step(disk / "run") == 4
        # No part of a failed step is left.
        names = {path.name for path in pathlib.Path(disk / "run/checkpoints").iterdir()}
        assert names - {"4.sha256.json"} == {"4"}
    assert "saving step 6 failed (1 of at most 3 in a row): " in caplog.text
    assert "Traceback" not in capfd.readouterr().err + caplog.text
