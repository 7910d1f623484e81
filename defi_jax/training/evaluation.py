"""Runs an objective's evaluation on held-out batches and writes what it returns."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from defi_jax.checkpoints import train_state
from defi_jax.objectives import base
from defi_jax.training import metrics

SPLIT = "eval"


class _StopRequested(Exception):
    """Carries a request to stop out of an objective's evaluation."""


def run(
    objective: base.Objective,
    state: train_state.TrainState,
    batches: Iterable[Any],
    *,
    rng: jax.Array,
    writer: metrics.MetricWriter,
    stop_requested: Callable[[], bool],
) -> bool:
    """Evaluates the averaged parameters (where there is an average) and writes the results.

    Args:
        objective: whose `evaluate` is called.
        state: the train state.
        batches: held-out device batches.
        rng: the same key at every evaluation, so that results can be compared over a run.
        writer: receives scalars and media.
        stop_requested: asked between batches; when it says so the evaluation is cut short.

    Returns:
        False if it was cut short; nothing is written then.
    """
    step = int(state.step)
    watched = _watched(batches, stop_requested)
    try:
        output = objective.evaluate(state.all_params(), watched, rng)
    except _StopRequested:
        logging.info("evaluation at step %d cut short: asked to stop", step)
        return False
    writer.scalars(step, SPLIT, output.scalars)
    writer.media(step, SPLIT, output.images, output.videos)
    shown = "  ".join(f"{name} {value:.4g}" for name, value in output.scalars.items())
    logging.info("eval at step %d  %s", step, shown)
    return True


def _watched(batches: Iterable[Any], stop_requested: Callable[[], bool]) -> Iterator[Any]:
    for batch in batches:
        if stop_requested():
            raise _StopRequested
        yield batch
