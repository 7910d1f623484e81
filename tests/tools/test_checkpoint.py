import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import toy_run

from defi_jax import errors
from defi_jax.checkpoints import manager
from defi_jax.training import same_run, step
from tools import checkpoint

REPO = pathlib.Path(__file__).parents[2]
CONFIG = {
    "preset": "tiny",
    "steps": 9,
    "seed": 3,
    "init": {"gfdm": "runs/gfdm", "gidm": ""},
    "weights": {"svd_vae": "W/vae"},
}
FACTS = {
    "objective": "toy",
    "mesh": {"fsdp": 8},
    "trained_on": [{"name": "a"}],
    "config": CONFIG,
    "config_history": [{"step": 1, "key": "steps", "old": 5, "new": 9}],
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run with checkpoints 1 and 2, not to be changed."""
    workdir = tmp_path_factory.mktemp("original") / "run"
    config, objective = toy_run.config(), toy_run.ToyObjective(hidden=8)
    state = step.init_state(jax.random.key(0), objective=objective, config=config)
    with manager.Checkpointer(workdir, keep=3) as checkpoints:
        later = {}  # step 1 is as of an older version
        for number in (1, 2):
            state = state.replace(step=jnp.int32(number))
            checkpoints.save(state, metadata=FACTS | later, data_state={})
            later = {"made_from": {"init.gfdm": {"source": "runs/gfdm", "step": 7}}}
    (workdir / same_run.CONFIG_FILE).write_text(json.dumps(CONFIG))
    return workdir


@pytest.fixture
def workdir(original, tmp_path):
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def test_inspect_says_what_the_run_is_and_what_its_parts_are(original):
    result, text = checkpoint.inspect(str(original), None)
    assert [one["step"] for one in result["steps"]] == [1, 2]
    assert all(one["bytes"] > 1000 and one["has_file_digests"] for one in result["steps"])
    newest = result["newest"]
    assert (newest["objective"], newest["config"]["preset"]) == ("toy", "tiny")
    assert newest["origins"] == {"init.gfdm": "runs/gfdm"}
    older, _ = checkpoint.inspect(str(original), 1)
    named = {"init.gfdm": "runs/gfdm", "weights.svd_vae": "W/vae"}
    assert older["newest"]["origins"] == named
    assert newest["parts"]["params/net"] == {"leaves": 3, "numbers": 548, "bytes": 2192}
    assert newest["parts"]["params/codebook"]["leaves"] == 1
    assert "params/net: 3 leaves" in text and 'trained on: "a"' in text
    assert 'changed at step 1: steps: "5 -> 9"' in text


@pytest.mark.parametrize("below", ["", "checkpoints", "checkpoints/2"])
def test_a_workdir_its_checkpoints_or_one_step_may_be_given(original, below):
    result, _ = checkpoint.inspect(str(original / below), None)
    assert [one["step"] for one in result["steps"]] == ([2] if below.endswith("2") else [1, 2])
    with pytest.raises(errors.UserError, match="no checkpoint of step 7"):
        checkpoint.inspect(str(original), 7)


def test_what_is_no_checkpoint_is_named(tmp_path):
    for command in (checkpoint.inspect, checkpoint.verify):
        with pytest.raises(errors.UserError, match=r"no checkpoint: .*nowhere"):
            command(str(tmp_path / "nowhere"), None)


def test_copy_makes_a_workdir_and_refuses_that_of_another_run(original, tmp_path):
    result, _ = checkpoint.copy(str(original), None, str(tmp_path / "new"))
    assert result["files_copied"].keys() == {"1", "2"}
    assert (tmp_path / "new" / same_run.CONFIG_FILE).read_text() == json.dumps(CONFIG)
    assert checkpoint.verify(str(tmp_path / "new"), None)[0]["damage"] == {}
    again, text = checkpoint.copy(str(original), 2, str(tmp_path / "new"))
    assert again["files_copied"] == {"2": 0} and text == "step 2: was there"
    # Of the same run at another time: the newer config counts. Of another run: refused.
    (tmp_path / "new" / same_run.CONFIG_FILE).write_text(json.dumps(CONFIG | {"steps": 5}))
    checkpoint.copy(str(original), 2, str(tmp_path / "new"))
    assert (tmp_path / "new" / same_run.CONFIG_FILE).read_text() == json.dumps(CONFIG)
    (tmp_path / "new" / same_run.CONFIG_FILE).write_text(json.dumps(CONFIG | {"seed": 4}))
    with pytest.raises(errors.UserError, match="holds another run"):
        checkpoint.copy(str(original), None, str(tmp_path / "new"))


def test_a_copy_that_storage_stops_ends_with_74(original, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StorageError, match="the copy was stopped") as caught:
        checkpoint.copy(str(original), None, str(tmp_path / "file/below"))
    assert caught.value.exit_code == 74


@pytest.mark.slow
def test_verify_ends_with_65_and_prints_one_object(workdir):
    (workdir / "checkpoints/1/data/metadata").write_text("{}")
    done = subprocess.run(
        [sys.executable, "launch/checkpoint.py", "verify", str(workdir), "--json"],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": f"{REPO}:{REPO / 'rollout'}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 65, done.stderr
    damage = json.loads(done.stdout)["damage"]
    assert damage == {"1": ["data/metadata has changed"]}
    assert done.stderr.splitlines()[-1].startswith("error: damaged checkpoints: 1: ")
