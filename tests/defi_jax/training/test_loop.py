import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import toy_run

from defi_jax import errors
from defi_jax.checkpoints import manager
from defi_jax.training import device_batches, loop, step

REPO = pathlib.Path(__file__).parents[3]
SCRIPT = pathlib.Path(__file__).parent / "toy_run.py"


class Killed(Exception):
    """Stands for the sudden end of a process."""


def train(workdir, *, objective=None, loader=None, **changes):
    objective = objective or toy_run.ToyObjective()
    make_loader = toy_run.make_loader(**(loader or {}))
    return loop.train(toy_run.config(**changes), objective, make_loader, workdir)


def test_actions_are_checked_against_the_robot_that_the_objective_learns(tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(toy_run.ToyObjective, "robot", "mine")
    monkeypatch.setattr(
        toy_run.ToyLoader, "check_robot", lambda own, robot: checked.append(robot), raising=False
    )
    train(tmp_path, steps=1)
    assert checked == ["mine"]


def killed_at(batch):
    def on_batch(position):
        if position > batch:
            raise Killed

    return {"on_batch": on_batch}


def assert_equal(left, right):
    left, right = toy_run.leaves(left), toy_run.leaves(right)
    assert left.keys() == right.keys()
    for path, leaf in left.items():
        np.testing.assert_array_equal(leaf, right[path], err_msg=path)


def rows(workdir, split):
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def spawn(workdir, options):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{REPO}:{REPO / 'rollout'}"}
    command = [sys.executable, str(SCRIPT), str(workdir), json.dumps(options)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def wait_for_line(process, text):
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"the process ended without {text!r}")


def test_resume_after_a_crash_equals_an_uninterrupted_run_bit_for_bit(tmp_path):
    straight = train(tmp_path / "straight")
    with pytest.raises(Killed):
        train(tmp_path / "killed", loader=killed_at(3))
    assert manager.committed_steps(tmp_path / "killed") == [2]
    resumed = train(tmp_path / "killed")
    assert_equal(straight, resumed)
    assert int(resumed.step) == 4
    data = [
        json.loads((tmp_path / name / "checkpoints/4/data/metadata").read_text())
        for name in ("straight", "killed")
    ]
    assert data[0] == data[1] == {"state": {"next": 4}}


def test_replaced_samples_are_in_the_metrics_by_their_reason(tmp_path, monkeypatch):
    counts = {"bad_samples": 1, "still_pairs": 5}
    monkeypatch.setattr(device_batches.DeviceBatches, "replaced", counts)
    train(tmp_path)
    for row in rows(tmp_path, "train"):
        assert {name: row[name] for name in counts} == counts


def test_resume_drops_the_lines_of_lost_steps_and_keeps_the_rest(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, loader=killed_at(6), steps=8, save_every=3)  # has reported step 4
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 4, "torn')
    train(tmp_path, steps=8, save_every=3)
    assert [row["step"] for row in rows(tmp_path, "train")] == [*range(1, 9)]
    ledger = rows(tmp_path, "run")
    assert [row["step"] for row in ledger] == sorted(row["step"] for row in ledger)
    assert ledger[0]["seconds/lost"] == 0 < ledger[-1]["seconds/lost"]  # steps done again
    assert ledger[-1]["seconds/startup"] > ledger[0]["seconds/startup"] > 0  # of both starts
    assert 0 < ledger[-1]["goodput"] < 1


def test_losses_of_a_resumed_run_are_those_of_the_straight_one(tmp_path):
    train(tmp_path / "straight")
    with pytest.raises(Killed):
        train(tmp_path / "killed", loader=killed_at(3))
    train(tmp_path / "killed")
    straight, killed = (rows(tmp_path / name, "train") for name in ("straight", "killed"))
    assert [row["loss"] for row in straight] == [row["loss"] for row in killed]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_step_is_compiled_exactly_once(tmp_path, accumulation):
    changes = {
        "optimizer.accumulation_steps": accumulation,
        "eval_every": 1,
        "eval_batches": 1,
        "save_every": 1,
        "steps": 5,
    }
    with toy_run.compilations() as names, pytest.raises(Killed):
        train(tmp_path, loader=killed_at(3), **changes)
    assert sum("train_step" in name for name in names) == 1
    with toy_run.compilations() as names:
        train(tmp_path, **changes)
    assert sum("train_step" in name for name in names) == 1


def test_a_complete_run_comes_back_without_compiling(tmp_path):
    first = train(tmp_path)
    with toy_run.compilations() as names:
        again = train(tmp_path)
    assert not [name for name in names if "train_step" in name]
    assert_equal(first, again)


def test_training_goes_on_after_a_bad_step(tmp_path):
    state = train(tmp_path, loader={"nan_at": [1]}, steps=4)
    assert int(state.skipped_steps) == 1 and int(state.bad_steps) == 0
    assert all(np.isfinite(leaf).all() for leaf in toy_run.leaves(state).values())
    losses = [row["loss"] for row in rows(tmp_path, "train")]
    assert losses[1] is None and None not in losses[2:]


def test_consecutive_bad_steps_stop_the_run_and_leave_the_checkpoint(tmp_path):
    with pytest.raises(errors.NumericsError, match=r"3 consecutive .*steps 4 to 6") as caught:
        train(tmp_path, loader={"nan_at": range(3, 99)}, steps=20)
    assert caught.value.exit_code == 76
    assert "the last good checkpoint is of step 2" in str(caught.value)
    assert manager.committed_steps(tmp_path) == [2]  # step 4 was within


def test_a_run_does_not_end_well_within_bad_steps(tmp_path):
    with pytest.raises(errors.NumericsError, match=r"1 consecutive .*checkpoint, of step 3, led"):
        train(tmp_path, loader={"nan_at": [3]}, save_every=3)
    assert manager.committed_steps(tmp_path) == [3]  # the only one stays


def test_a_ruinous_learning_rate_leaves_a_checkpoint_that_a_sane_one_goes_on_from(tmp_path):
    changes = {"steps": 9, "save_every": 1, "optimizer.schedule": "constant"}
    with pytest.raises(Killed):
        train(tmp_path / "run", loader=killed_at(3), **changes)
    with pytest.raises(errors.NumericsError, match=r"last good checkpoint is of step 2: .*/run"):
        train(tmp_path / "run", **{**changes, "optimizer.learning_rate": 1e9})
    # The parameters of step 3 were finite, and ruined.
    assert (tmp_path / "run/checkpoints/3.distrusted").exists()
    assert manager.committed_steps(tmp_path / "run") == [1, 2]
    assert_equal(train(tmp_path / "run", **changes), train(tmp_path / "straight", **changes))


def test_frozen_parameters_stay_and_every_trained_one_moves(tmp_path):
    config, objective = toy_run.config(), toy_run.ToyObjective()
    first = step.init_state(jax.random.key(config.seed), objective=objective, config=config)
    last = train(tmp_path)
    assert_equal(first.frozen, last.frozen)
    for path, leaf in toy_run.leaves(first.params).items():
        assert not np.array_equal(leaf, toy_run.leaves(last.params)[path]), path
    assert int(last.extra["usage"][0]) == 4 * 16


def test_the_objective_may_change_parameters_after_a_step(tmp_path):
    codes = train(tmp_path, steps=3).params["codebook"]
    assert np.std(codes) > 0.5  # all ones, but for the restart at step 3


def test_evaluation_is_written_and_not_repeated_on_resume(tmp_path):
    objective = toy_run.ToyObjective()
    changes = {"eval_every": 2, "eval_batches": 3, "save_every": 2}
    with pytest.raises(Killed):
        train(tmp_path, objective=objective, loader=killed_at(3), **changes)
    # The save at step 2 came after the evaluation at step 2, and knows of it.
    train(tmp_path, objective=objective, **changes)
    assert [row["step"] for row in rows(tmp_path, "eval")] == [2, 4]
    assert objective.evaluations == [3, 3]
    media = sorted(path.name for path in (tmp_path / "media").iterdir())
    assert media[:2] == ["eval_moving_00000002.gif", "eval_moving_00000002.mp4"]
    assert "eval_still_00000004.png" in media


def test_data_that_ends_is_named(tmp_path):
    with pytest.raises(errors.DataError, match="came to an end"):
        train(tmp_path, loader={"num_batches": 2})


def test_batch_that_does_not_divide_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(errors.UserError, match="use a multiple of 3"):
        train(tmp_path / "run", **{"optimizer.accumulation_steps": 3})
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_model_is_refused_by_leaf(tmp_path):
    train(tmp_path, steps=2)
    with pytest.raises(errors.UserError, match=r"params/net/fc1/kernel is float32\[64, 1024\]"):
        train(tmp_path, objective=toy_run.ToyObjective(hidden=32), steps=4)


def test_metadata_holds_what_export_needs(tmp_path):
    train(tmp_path, steps=2)
    facts = manager.load_metadata(tmp_path)
    assert facts["step"] == 2 and facts["objective"] == "toy"
    assert facts["config"]["optimizer"]["b1"] == 0.9
    assert facts["normalizer"] == {"kind": "none"} and facts["pipeline_fingerprint"] == "toy"
    assert facts["description"] == {"objective": "toy", "width": 64}
    assert json.loads((tmp_path / "config.json").read_text()) == facts["config"]


@pytest.mark.slow
def test_a_lost_terminal_saves_exits_75_and_resumes_bit_exactly(tmp_path):
    options = {"steps": 40, "save_every": 1000, "loader": {"seconds": 0.1}}
    process = spawn(tmp_path / "stopped", options)
    wait_for_line(process, "step 5/40")
    process.send_signal(signal.SIGHUP)
    stderr = process.stderr.read()
    assert process.wait() == 75, stderr
    assert "error: stopped on request" in stderr
    (saved,) = manager.committed_steps(tmp_path / "stopped")
    assert 5 <= saved < 40
    straight = train(tmp_path / "straight", steps=40, save_every=0)
    resumed = train(tmp_path / "stopped", steps=40, save_every=0)
    assert_equal(straight, resumed)


@pytest.mark.slow
def test_sigkill_leaves_a_checkpoint_to_go_on_from(tmp_path):
    process = spawn(tmp_path, {"steps": 40, "save_every": 1, "loader": {"seconds": 0.1}})
    wait_for_line(process, "step 9/40")
    with pytest.raises(errors.UserError, match=f"another run is in .*process {process.pid} on"):
        train(tmp_path, steps=40, save_every=0)
    process.kill()
    process.communicate()
    assert manager.latest_verified_step(tmp_path) >= 7
    state = train(tmp_path, steps=40, save_every=0)
    assert_equal(state, train(tmp_path / "straight", steps=40, save_every=0))


@pytest.mark.slow
def test_exit_right_after_the_last_save_leaves_it_committed(tmp_path):
    process = spawn(tmp_path, {"steps": 3, "save_every": 0})
    assert process.wait() == 0, process.communicate()
    assert manager.latest_verified_step(tmp_path) == 3
    assert (tmp_path / "checkpoints/3.sha256.json").exists()


@pytest.mark.slow
def test_numerics_guard_exit_code(tmp_path):
    process = spawn(tmp_path, {"steps": 9, "loader": {"nan_at": list(range(9))}})
    _, stderr = process.communicate()
    assert process.returncode == 76
    assert stderr.strip().splitlines()[-1].startswith("error: 3 consecutive steps")
