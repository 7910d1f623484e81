import json
import logging

import pytest
import toy_run

from defi_jax import errors
from defi_jax.checkpoints import manager
from defi_jax.training import loop, same_run

STEP = 2


def _metadata(config, **more):
    return {"step": STEP, "config": same_run.begin(config).to_dict()} | more


def _go_on(workdir, metadata, **changes):
    return same_run.go_on(toy_run.config(**changes), metadata, workdir)


def _train(workdir, **changes):
    return loop.train(
        toy_run.config(**changes), toy_run.ToyObjective(hidden=8), toy_run.make_loader(), workdir
    )


@pytest.fixture
def saved(tmp_path):
    """A workdir whose run has saved step 2, without having run."""
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    (tmp_path / "checkpoints/2/commit_success.txt").write_text("")
    config = same_run.begin(toy_run.config())
    same_run.write(config, [], tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, r"another config \(seed: 3 -> 4\)"),
        ({"global_batch": 8, "seed": 4}, r"\(global_batch: 16 -> 8; seed: 3 -> 4\)"),
        ({"optimizer.name": "muon"}, r"\(optimizer.name: adamw -> muon\)"),
        ({"optimizer.ema_decay": 0.0}, r"made with or without this \(optimizer.ema_decay: 0.9 -> "),
        ({"optimizer.grad_clip_norm": 0.0}, r"\(optimizer.grad_clip_norm: 1.0 -> 0.0\)"),
        ({"steps": 1}, r"at step 2 already, past --config.steps=1"),
    ],
)
def test_what_a_run_is_and_what_its_state_contradicts_cannot_change(saved, changes, message):
    before = (saved / "config.json").read_text()
    with pytest.raises(errors.UserError, match=message) as caught:
        same_run.check(toy_run.config(**changes), saved)
    assert caught.value.exit_code == 2
    with pytest.raises(errors.UserError, match=message):
        _go_on(saved, _metadata(toy_run.config()), **changes)
    assert (saved / "config.json").read_text() == before


def test_how_a_run_trains_may_change_and_each_change_is_kept(saved, caplog):
    changes = {"optimizer.learning_rate": 0.02, "optimizer.weight_decay": 0.0, "steps": 9}
    same_run.check(toy_run.config(**changes), saved)
    kept = {"step": 1, "time": 7.0, "key": "steps", "old": 3, "new": 4}
    config, history = _go_on(saved, _metadata(toy_run.config(), config_history=[kept]), **changes)
    assert history[0] == kept
    assert [(e["step"], e["key"], e["old"], e["new"]) for e in history[1:]] == [
        (2, "optimizer.learning_rate", 0.01, 0.02),
        (2, "optimizer.weight_decay", 0.01, 0.0),
        (2, "steps", 4, 9),
    ]
    assert all(entry["time"] > 1e9 for entry in history[1:])
    assert "optimizer.learning_rate: 0.01 -> 0.02 (from step 2 on)" in caplog.text
    same_run.write(config, history, saved)
    lines = (saved / "config_history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert json.loads((saved / "config.json").read_text())["optimizer"]["learning_rate"] == 0.02


def test_layout_and_cadence_change_without_a_word(saved, caplog):
    changes = {"mesh.fsdp": 1, "save_every": 1, "log_every": 7, "keep_checkpoints": 0}
    with caplog.at_level(logging.INFO):
        config, history = _go_on(saved, _metadata(toy_run.config()), **changes)
    assert history == [] and not caplog.records
    assert config.save_every == 1


def test_more_steps_go_on_at_the_rate_where_the_schedule_ended(saved, caplog):
    config, history = _go_on(saved, _metadata(toy_run.config(steps=4)), steps=8)
    assert config.optimizer.schedule_steps == 4
    assert [entry["key"] for entry in history] == ["steps"]
    assert "learning rate at step" not in caplog.text
    assert "ends at step 4 of 8; --config.optimizer.schedule_steps=8 stretches it" in caplog.text


def test_a_schedule_is_stretched_on_purpose_and_its_rates_are_said(saved, caplog):
    changes = {"steps": 8, "optimizer.schedule_steps": 8}
    metadata = _metadata(toy_run.config(steps=4)) | {"step": 3}
    config, history = _go_on(saved, metadata, **changes)
    assert config.optimizer.schedule_steps == 8
    assert [entry["key"] for entry in history] == ["optimizer.schedule_steps", "steps"]
    # Half way through the cosine of two steps from 1e-2 to 1e-3, a sixth of that of six.
    assert "learning rate at step 3: 0.0055 -> 0.0094" in caplog.text


def test_a_run_that_began_without_a_step_has_the_schedule_of_its_first(saved, caplog):
    metadata = _metadata(toy_run.config(steps=0)) | {"step": 0}
    config, _ = _go_on(saved, metadata, steps=8)
    assert config.optimizer.schedule_steps == 8 and "schedule" not in caplog.text


def test_a_run_of_an_older_version_keeps_its_schedule(saved):
    metadata = _metadata(toy_run.config(steps=4))
    del metadata["config"]["optimizer"]["schedule_steps"]
    config, history = _go_on(saved, metadata, steps=8)
    assert config.optimizer.schedule_steps == 4
    assert [entry["key"] for entry in history] == ["steps"]


def test_a_damaged_config_and_an_absent_one(saved, tmp_path):
    (saved / "config.json").write_text('{"objective": ')
    with pytest.raises(errors.DataError, match="config cannot be read"):
        same_run.check(toy_run.config(), saved)
    same_run.check(toy_run.config(), tmp_path / "new")


def test_a_run_says_what_it_went_through(tmp_path):
    _train(tmp_path, steps=2)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["optimizer"]["schedule_steps"] == 2
    assert not (tmp_path / "config_history.jsonl").exists()
    _train(tmp_path, steps=4, **{"optimizer.learning_rate": 5e-3})
    metadata = manager.load_metadata(tmp_path)
    rate, steps = metadata["config_history"]
    assert (steps["key"], steps["step"], steps["old"], steps["new"]) == ("steps", 2, 2, 4)
    assert (rate["key"], rate["old"], rate["new"]) == ("optimizer.learning_rate", 0.01, 0.005)
    assert json.loads((tmp_path / "config.json").read_text()) == metadata["config"]
    (last,) = [
        row
        for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        if row["step"] == 4 and row["split"] == "train"
    ]
    assert last["learning_rate"] == pytest.approx(5e-4)  # where the schedule of 2 steps ends
