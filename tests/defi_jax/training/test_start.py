import os
import pathlib

import jax
import pytest
import toy_run

from defi_jax import errors, processes
from defi_jax.checkpoints import manager
from defi_jax.training import loop, start


@pytest.fixture
def cache_config():
    """Leaves the process's compilation cache as it was."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(tmp_path):
    for name in ("checkpoints/3", "media", "logs", "mine"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert pathlib.Path(start.claim_workdir(str(tmp_path), overwrite=False)) == tmp_path
    assert len(list(tmp_path.iterdir())) == 7
    start.claim_workdir(str(tmp_path), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "notes.txt"]


def test_somebody_elses_folder_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for overwrite in (False, True):
        with pytest.raises(errors.UserError, match=r"no run's config.json"):
            start.claim_workdir(str(tmp_path), overwrite=overwrite)
    assert (tmp_path / "checkpoints").exists()


def test_a_workdir_that_another_process_makes_meanwhile_is_left_alone(tmp_path, monkeypatch):
    waits = []

    def barrier(name):  # stands for the other process, which goes on at once
        waits.append(name)
        (tmp_path / "new").mkdir(exist_ok=True)

    monkeypatch.setattr(processes, "barrier", barrier)
    start.claim_workdir(str(tmp_path / "new"), overwrite=True)
    assert waits == ["the workdir is looked at"]  # the other would never come to a second


def test_claiming_makes_nothing(tmp_path):
    path = start.claim_workdir(str(tmp_path / "new"), overwrite=True)
    assert path.is_absolute() and not path.exists()


@pytest.mark.parametrize("workdir", ["", None])
def test_no_workdir_is_a_clear_error(workdir):
    with pytest.raises(errors.UserError, match="no workdir: --workdir"):
        start.claim_workdir(workdir, overwrite=False)


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match="is a file"):
        start.claim_workdir(str(tmp_path / "file"), overwrite=False)


def test_a_relative_workdir_works_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = toy_run.config(steps=1)
    loop.train(config, toy_run.ToyObjective(hidden=8), toy_run.make_loader(), "runs/a")
    assert manager.load_params("runs/a")[1]["step"] == 1
    assert manager.latest_verified_step(os.path.join("runs", "a")) == 1


def test_compilation_cache_defaults_to_the_users_cache(tmp_path, monkeypatch, cache_config):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    start.enable_compilation_cache("")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "defi_jax/xla")
    start.enable_compilation_cache(str(tmp_path / "mine"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    start.enable_compilation_cache("")  # what is set already stays
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_a_run_that_is_refused_keeps_its_config(tmp_path):
    toy_run.main(tmp_path / "run", {"steps": 1})
    before = (tmp_path / "run/config.json").read_text()
    with pytest.raises(errors.UserError, match="another model"):
        toy_run.main(tmp_path / "run", {"steps": 9, "objective": {"hidden": 16}})
    assert (tmp_path / "run/config.json").read_text() == before
