import itertools

import jax
import toy_run

from defi_jax.training import evaluation, metrics, step


def run(tmp_path, stop_after):
    config, objective = toy_run.config(), toy_run.ToyObjective(hidden=8)
    state = step.init_state(jax.random.key(0), objective=objective, config=config)
    loader = toy_run.ToyLoader(objective.batch_spec(2))
    asked = itertools.count()
    writer = metrics.MetricWriter(tmp_path, config, 0)
    return evaluation.run(
        objective,
        state,
        loader.first(4),
        rng=jax.random.key(0),
        writer=writer,
        stop_requested=lambda: next(asked) >= stop_after,
    )


def test_results_are_written(tmp_path):
    assert run(tmp_path, stop_after=99)
    assert '"split": "eval"' in (tmp_path / "metrics.jsonl").read_text()
    assert len(list((tmp_path / "media").iterdir())) == 3


def test_a_request_to_stop_cuts_it_short_and_writes_nothing(tmp_path):
    assert not run(tmp_path, stop_after=2)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert not (tmp_path / "media").exists()
