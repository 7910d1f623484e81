import errno
import json
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run

from benchmarks import bit_flips
from defi_jax import errors
from defi_jax.checkpoints import format as checkpoint_format
from defi_jax.checkpoints import manager as manager_lib
from defi_jax.checkpoints import storage
from defi_jax.training import sharding, step


@pytest.fixture(scope="module")
def run():
    """(abstract state, state) of a small toy model on one device."""
    config, objective = toy_run.config(), toy_run.ToyObjective()
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    abstract, _ = step.abstract_state(config, objective, mesh)
    return abstract, step.initialize(config, objective, abstract)


def at(state, number):
    """The state with another step number, and a parameter that tells which."""
    params = {**state.params, "codebook": jnp.full((5, 4), float(number))}
    return state.replace(step=jnp.int32(number), params=params)


def save(workdir, state, steps=(1, 2), keep=3):
    with manager_lib.Checkpointer(workdir, keep=keep) as checkpoints:
        for number in steps:
            facts = {"note": f"step {number}"}
            assert checkpoints.save(at(state, number), metadata=facts, data_state={"n": number})


def restore(workdir, abstract):
    with manager_lib.Checkpointer(workdir, keep=3) as checkpoints:
        return checkpoints.restore(abstract)


def biggest_file(folder):
    return max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


@pytest.fixture
def saved(tmp_path, run):
    save(tmp_path, run[1])
    return tmp_path


def test_restore_gives_back_every_leaf_and_document(saved, run):
    abstract, state = run
    restored = restore(saved, abstract)
    want = toy_run.leaves(at(state, 2))
    got = toy_run.leaves(restored.state)
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(got[path], want[path], err_msg=path)
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert restored.metadata == {"note": "step 2", "step": 2, "schema_version": 1}
    assert restored.data_state == {"n": 2}


def test_nothing_to_restore_is_none(tmp_path, run):
    assert restore(tmp_path, run[0]) is None
    assert manager_lib.latest_verified_step(tmp_path) is None
    with pytest.raises(errors.UserError, match="no checkpoint"):
        manager_lib.load_params(tmp_path)


def _damage(workdir, number):
    return checkpoint_format.damage(storage.absolute(workdir) / f"checkpoints/{number}")


def _flip_arrays(folder):
    path = biggest_file(folder / "train")
    flip_bit(path)
    return path.name


def _flip_arrays_undigested(folder):
    flip_bit(biggest_file(folder / "params"))
    (folder.parent / f"{folder.name}.sha256.json").unlink()
    return "params"


def _truncate(folder):
    path = biggest_file(folder)
    path.write_bytes(path.read_bytes()[:-7])
    return path.name


def _truncate_undigested(folder):
    for path in (folder / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder.parent / f"{folder.name}.sha256.json").unlink()
    return "not readable"


def _remove_manifest(folder):
    (folder / "train/manifest.ocdbt").unlink()
    return "train/manifest.ocdbt is missing"


def _remove_marker_and_flip(folder):
    (folder / "commit_success.txt").unlink()
    return _flip_arrays(folder)


def _remove_marker_and_flip_undigested(folder):
    (folder / "commit_success.txt").unlink()
    return _flip_arrays_undigested(folder)


def _empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    return "_CHECKPOINT_METADATA is missing"


def _change_metadata_undigested(folder):
    path = folder / "metadata/metadata"
    path.write_text(path.read_text().replace("step 2", "step 7"))
    (folder.parent / f"{folder.name}.sha256.json").unlink()
    return "metadata/metadata has changed"


def _garble_integrity_undigested(folder):
    (folder / "integrity/metadata").write_text("[]")
    (folder.parent / f"{folder.name}.sha256.json").unlink()
    return "integrity/metadata is not readable"


def _garble_file_digests(folder):
    (folder.parent / f"{folder.name}.sha256.json").write_text("{")
    return "2.sha256.json is not readable"


@pytest.mark.parametrize(
    "harm",
    [
        _flip_arrays,
        _flip_arrays_undigested,
        _truncate,
        _truncate_undigested,
        _remove_manifest,
        _remove_marker_and_flip,
        _remove_marker_and_flip_undigested,
        _empty,
        _change_metadata_undigested,
        _garble_integrity_undigested,
        _garble_file_digests,
    ],
)
def test_damaged_step_is_named_and_the_one_before_restored(saved, run, harm, caplog):
    named = harm(saved / "checkpoints/2")
    with caplog.at_level(logging.WARNING):
        assert manager_lib.latest_verified_step(saved) == 1
        restored = restore(saved, run[0])
    assert int(restored.state.step) == 1 and restored.data_state == {"n": 1}
    warning = next(r.getMessage() for r in caplog.records if "damaged checkpoint" in r.getMessage())
    assert named in warning and "checkpoints/2" in warning
    # The damaged step is out of the way: the run writes it again.
    save(saved, run[1], steps=[2])
    assert manager_lib.latest_verified_step(saved) == 2


@pytest.mark.parametrize("digested", [True, False])
def test_a_copy_that_lost_its_markers_is_whole(saved, run, digested, tmp_path, caplog):
    for number in (1, 2):
        for marker in (saved / f"checkpoints/{number}").rglob("commit_success.txt"):
            marker.unlink()
        if not digested:
            (saved / f"checkpoints/{number}.sha256.json").unlink()
    with pytest.raises(errors.DataError, match=r"lost their commit marker.*start the run there"):
        manager_lib.load_params(saved)
    assert int(restore(saved, run[0]).state.step) == 2
    assert caplog.text.count("its lost commit marker is restored") == 2
    assert manager_lib.committed_steps(saved) == [1, 2]
    assert not _damage(saved, 1) and not _damage(saved, 2)


@pytest.mark.parametrize("marked", [True, False])
def test_a_run_never_starts_over_beside_steps_of_which_none_is_whole(saved, run, marked):
    for number in (1, 2):
        folder = saved / f"checkpoints/{number}"
        flip_bit(biggest_file(folder / "params"))
        if not marked:
            (folder / "commit_success.txt").unlink()
    for _ in range(3):  # nor at the second start, or the third
        with pytest.raises(errors.DataError, match=r"no checkpoint verifies.*copy, or .*overwrite"):
            restore(saved, run[0])
    names = {path.name.split(".")[0] for path in (saved / "checkpoints").iterdir() if path.is_dir()}
    assert names == {"1", "2"}


def test_an_unfinished_first_save_never_was_a_step(saved, run, caplog):
    root = saved / "checkpoints"
    shutil.rmtree(root / "1")
    (root / "2/commit_success.txt").unlink()
    (root / "2/train/manifest.ocdbt").unlink()
    (root / "2.saving").write_text("")  # as a save that was killed leaves it
    assert restore(saved, run[0]) is None
    assert "an unfinished save is removed" in caplog.text and not (root / "2").exists()


def test_a_flipped_bit_is_detected_or_without_effect_even_without_file_digests(saved):
    (saved / "checkpoints/2.sha256.json").unlink()
    want, _ = manager_lib.load_params(saved, step=2, ema=False)
    rng, detected = np.random.default_rng(0), 0
    for target in sorted(p for p in (saved / "checkpoints/2/params").rglob("*") if p.is_file()):
        original = target.read_bytes()
        for position in rng.integers(0, len(original), 3 if original else 0):
            data = bytearray(original)
            data[position] ^= 1 << rng.integers(8)
            target.write_bytes(data)
            try:
                got, _ = manager_lib.load_params(saved, step=2, ema=False)
            except errors.DataError:
                detected += 1
                continue
            jax.tree.map(np.testing.assert_array_equal, want, got)
        target.write_bytes(original)
    assert detected >= 6
    assert not _damage(saved, 2)


def test_keep_policy_and_file_digests_of_deleted_steps(tmp_path, run):
    save(tmp_path, run[1], steps=range(1, 6), keep=2)
    assert manager_lib.committed_steps(tmp_path) == [4, 5]
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.json"))
    assert names == ["4.sha256.json", "5.sha256.json"]


def test_saving_a_step_twice_is_refused(saved, run):
    with manager_lib.Checkpointer(saved, keep=3) as checkpoints:
        assert not checkpoints.save(at(run[1], 2), metadata={}, data_state={})


def test_buffers_may_be_donated_right_after_save(tmp_path, run):
    state = jax.tree.map(jnp.copy, at(run[1], 1))
    with manager_lib.Checkpointer(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, metadata={}, data_state={})
        for leaf in jax.tree.leaves(state):
            leaf.delete()
    assert not _damage(tmp_path, 1)


def test_an_exception_after_save_leaves_it_committed(tmp_path, run):
    with pytest.raises(KeyError), manager_lib.Checkpointer(tmp_path, keep=1) as checkpoints:
        checkpoints.save(at(run[1], 1), metadata={}, data_state={})
        raise KeyError
    assert manager_lib.latest_verified_step(tmp_path) == 1


def test_load_params_takes_workdir_folder_or_step(saved, run):
    for path in (saved, saved / "checkpoints", saved / "checkpoints/2"):
        params, facts = manager_lib.load_params(path, ema=False)
        assert facts["step"] == 2 and facts["weights"] == "raw"
        assert isinstance(params["codebook"], np.ndarray) and (params["codebook"] == 2).all()
    params, _ = manager_lib.load_params(saved, step=1, ema=False)
    assert (params["codebook"] == 1).all()
    params, facts = manager_lib.load_params(saved)
    assert facts["weights"] == "ema"
    np.testing.assert_array_equal(params["codebook"], run[1].ema_params["codebook"])
    np.testing.assert_array_equal(params["encoder"]["scale"], run[1].frozen["encoder"]["scale"])
    with pytest.raises(errors.UserError, match=r"no checkpoint of step 9.*\[1, 2\]"):
        manager_lib.load_params(saved, step=9)


def test_missing_unknown_and_misshapen_leaves_are_all_listed(saved, run):
    abstract = run[0]
    params = dict(abstract.params)
    params["extra_head"] = params.pop("codebook")
    params["net"] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype, sharding=x.sharding), params["net"]
    )
    with pytest.raises(errors.UserError) as caught:
        restore(saved, abstract.replace(params=params))
    text = str(caught.value)
    assert "missing params/extra_head" in text and "unknown params/codebook" in text
    assert "params/net/fc2/bias is float32[4], the config wants float32[3, 4]" in text
    assert (saved / "checkpoints/2").exists()  # not mistaken for damage


def test_a_failed_save_is_reported_and_the_next_one_is_written(tmp_path, run, monkeypatch, caplog):
    with manager_lib.Checkpointer(tmp_path, keep=3, max_failed=3) as checkpoints:
        manager = checkpoints._manager

        def full_disk(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(manager, "save", full_disk)
            assert not checkpoints.save(at(run[1], 1), metadata={}, data_state={})
        assert checkpoints.save(at(run[1], 2), metadata={}, data_state={})
        with monkeypatch.context() as patch:
            patch.setattr(manager, "save", full_disk)
            checkpoints.save(at(run[1], 3), metadata={}, data_state={})
            checkpoints.save(at(run[1], 4), metadata={}, data_state={})
            with pytest.raises(errors.StorageError, match=r"3 saves in a row.*step 2 is the last"):
                checkpoints.save(at(run[1], 5), metadata={}, data_state={})
    assert "saving step 1 failed (1 of at most 3 in a row): [Errno 28] No space left" in caplog.text
    assert manager_lib.committed_steps(tmp_path) == [2]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "2.sha256.json"}


def test_stray_files_and_folders_are_ignored(saved, run):
    root = saved / "checkpoints"
    (root / "notes.txt").write_text("mine")
    (root / "old").mkdir()
    (root / "7").write_text("a file with a step's name")
    assert manager_lib.latest_verified_step(saved) == 2
    assert int(restore(saved, run[0]).state.step) == 2
    assert (root / "notes.txt").exists() and (root / "old").exists()


def test_a_newer_schema_is_refused(saved, run, monkeypatch):
    monkeypatch.setattr(manager_lib.checkpoint_format, "SCHEMA_VERSION", 2)
    with pytest.raises(errors.UserError, match="checkpoint schema 1, not 2"):
        restore(saved, run[0])


def test_file_digests_cover_every_file_of_the_step(saved):
    folder = pathlib.Path(saved / "checkpoints/2")
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert set(json.loads((saved / "checkpoints/2.sha256.json").read_text())) == files


def test_flipped_bits_all_over_a_checkpoint_are_found(tmp_path, run):
    save(tmp_path, run[1], steps=(2,))
    folder = tmp_path / "checkpoints"
    assert not bit_flips.flip(
        folder, lambda: manager_lib.load_params(folder / "2"), count=20, seed=0
    )


def test_a_deletion_that_was_cut_short_is_finished(tmp_path, run):
    save(tmp_path, run[1], steps=(1, 2, 3, 4), keep=0)
    folder = tmp_path / "checkpoints"
    for number in (1, 2):  # as the keep policy leaves it where it is killed on the way
        (folder / f"{number}/commit_success.txt").unlink()
        biggest_file(folder / f"{number}").unlink()
    (folder / "3/commit_success.txt").unlink()
    assert restore(tmp_path, run[0]).metadata["step"] == 4  # of three one would be 2 or 1
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert names == ["1.incomplete", "2.incomplete", "3", "4"]
    save(tmp_path, run[1], steps=(5,), keep=0)
    (folder / "2.incomplete").rename(folder / "2")
    assert restore(tmp_path, run[0]).metadata["step"] == 5
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert names == ["1.incomplete", "3", "4", "5"]
