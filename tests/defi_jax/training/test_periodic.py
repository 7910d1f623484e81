import contextlib
import itertools
import types

import jax
import pytest
import toy_run

from defi_jax.training import device_batches, ledger, periodic, sharding, step


def evaluate(tmp_path, stop_after):
    """Evaluates at step 3; returns whether the run's facts say so."""
    config, objective = toy_run.config(), toy_run.ToyObjective(hidden=8)
    state = step.init_state(jax.random.key(0), objective=objective, config=config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    spec = objective.batch_spec(2)
    held_out = device_batches.HeldOut(toy_run.ToyLoader(spec), 4, spec, mesh)
    asked, saved = itertools.count(), []
    watch = types.SimpleNamespace(
        phase=lambda name: contextlib.nullcontext(),
        stop_requested=lambda: next(asked) >= stop_after,
        ledger=ledger.Ledger(),
    )
    checkpoints = types.SimpleNamespace(
        save=lambda state, metadata, data_state: saved.append(metadata)
    )
    facts = {"step": 3, "last_eval_step": -1}
    run = periodic.Duties(config, objective, tmp_path, watch, checkpoints, facts, held_out)
    run.evaluate(3, state)
    run.save(3, state, {})
    return saved[0]["last_eval_step"] == 3


def test_results_are_written(tmp_path):
    assert evaluate(tmp_path, stop_after=99)
    assert '"split": "eval"' in (tmp_path / "metrics.jsonl").read_text()
    assert len(list((tmp_path / "media").iterdir())) == 3


def test_a_request_to_stop_cuts_it_short_and_writes_nothing(tmp_path):
    assert not evaluate(tmp_path, stop_after=2)
    assert '"split": "eval"' not in (tmp_path / "metrics.jsonl").read_text()
    assert not (tmp_path / "media").exists()


@pytest.mark.parametrize(
    ("now", "every", "steps", "left"),
    [(0, 2, 4, 2), (0, 2, 5, 3), (2, 2, 5, 2), (0, 0, 5, 1), (5, 2, 5, 0)],
)
def test_saves_that_are_left(now, every, steps, left):
    config = toy_run.config(steps=steps, save_every=every)
    assert periodic.saves_left(now, config) == left
