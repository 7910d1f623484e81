import json
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run
from etils import epath

from defi_jax import errors
from defi_jax.checkpoints import copying, manager
from defi_jax.checkpoints import format as checkpoint_format
from defi_jax.training import step


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The checkpoints 1 and 2 of a small toy model, not to be changed."""
    workdir = tmp_path_factory.mktemp("run")
    config, objective = toy_run.config(), toy_run.ToyObjective(hidden=8)
    state = step.init_state(jax.random.key(0), objective=objective, config=config)
    with manager.Checkpointer(workdir, keep=3) as checkpoints:
        for number in (1, 2):
            state = state.replace(step=jnp.int32(number))
            checkpoints.save(state, metadata={"note": "mine"}, data_state={"n": number})
    return workdir / "checkpoints"


@pytest.fixture
def saved(original, tmp_path):
    """A copy of them, by the file system."""
    shutil.copytree(original, tmp_path / "checkpoints")
    return epath.Path(tmp_path / "checkpoints")


def files(root):
    """Bytes of all files by their path."""
    root = pathlib.Path(root)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_each_of_200_flipped_bits_over_all_files_is_noticed_and_none_restored(saved):
    rng = np.random.default_rng(0)
    every = [name for name, data in files(saved).items() if data and name.startswith("2")]
    assert len(every) > 30
    for count in range(200):
        name = every[count % len(every)]
        path, own = saved / name, saved / "2"
        whole = path.read_bytes()
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(data))
        assert copying.damage(own), name
        if count % 8 == 0:  # what every restore asks first, and it asks the same
            with pytest.raises(errors.DataError):
                checkpoint_format.verified_documents(own)
        path.write_bytes(whole)
    assert copying.damage(saved / "2") == []


def test_damage_names_what_no_digest_covers_and_what_is_not_committed(saved):
    (saved / "2/params/stray").write_bytes(b"1")
    assert copying.damage(saved / "2") == ["params/stray has no digest"]
    (saved / "1/commit_success.txt").unlink()
    (saved / "1.sha256.json").unlink()
    assert copying.damage(saved / "1") == ["commit_success.txt is missing"]


def test_arrays_that_were_harmed_before_their_files_had_digests_are_named(saved):
    (saved / "2.sha256.json").unlink()
    data, name = max(
        (len(data), data, name) for name, data in files(saved).items() if "2/params/d/" in name
    )[1:]
    (saved / name).write_bytes(data[:-9] + bytes([data[-9] ^ 8]) + data[-8:])
    (found,) = copying.damage(saved / "2")
    assert "damaged checkpoint: " in found and "params" in found


def test_a_copy_is_the_same_and_a_second_time_copies_nothing(saved, tmp_path):
    target = epath.Path(tmp_path / "other/checkpoints/2")
    assert copying.copy_step(saved / "2", target) > 20
    ours = {name: data for name, data in files(saved).items() if name.startswith("2")}
    assert files(target.parent) == ours
    assert copying.copy_step(saved / "2", target) == 0


def test_an_interrupted_copy_does_not_exist_and_is_continued(saved, tmp_path, monkeypatch):
    target, copied = epath.Path(tmp_path / "other/2"), []
    copy = type(saved).copy

    def stopping(source, *args, **options):
        if len(copied) == 9:
            raise OSError("no space left")
        copied.append(copy(source, *args, **options))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(type(saved), "copy", stopping)
        copying.copy_step(saved / "2", target)
    assert manager.committed_steps(tmp_path / "other") == []
    copied[-1].write_bytes(b"torn")
    total = len(json.loads((saved / "2.sha256.json").read_text()))
    assert copying.copy_step(saved / "2", target) == total - 8
    assert copying.damage(target) == []


def test_another_destination_and_a_damaged_source_are_refused(saved, tmp_path):
    with pytest.raises(errors.UserError, match="holds another checkpoint"):
        copying.copy_step(saved / "2", saved / "1")
    (tmp_path / "full/2").mkdir(parents=True)
    with pytest.raises(errors.UserError, match="holds another checkpoint"):
        copying.copy_step(saved / "2", epath.Path(tmp_path / "full/2"))
    (saved / "2/metadata/metadata").write_text("{}")
    with pytest.raises(errors.DataError, match="metadata/metadata has changed"):
        copying.copy_step(saved / "2", epath.Path(tmp_path / "other/2"))
    assert not (tmp_path / "other").exists()


def test_a_copy_that_changed_on_its_way_is_not_committed(saved, tmp_path, monkeypatch):
    copy = type(saved).copy

    def harming(source, target, **options):
        copy(source, target, **options)
        if target.name == "metadata":
            target.write_bytes(b"{}")

    monkeypatch.setattr(type(saved), "copy", harming)
    with pytest.raises(errors.DataError, match="metadata/metadata has changed"):
        copying.copy_step(saved / "2", epath.Path(tmp_path / "other/2"))
    assert manager.committed_steps(tmp_path / "other") == []


def test_a_copied_run_is_restored(saved, tmp_path, caplog):
    for number in (1, 2):
        copying.copy_step(saved / str(number), epath.Path(tmp_path / f"b/checkpoints/{number}"))
    with caplog.at_level(logging.WARNING):
        params, facts = manager.load_params(tmp_path / "b")
    assert facts["step"] == 2 and params["codebook"].shape == (5, 4)
    assert not caplog.records
