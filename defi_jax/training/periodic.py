"""What a run does beside stepping: evaluate, save, report, and refuse numbers that went wrong."""

import collections
import logging
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from defi_jax import errors
from defi_jax.checkpoints import manager
from defi_jax.checkpoints.train_state import TrainState
from defi_jax.objectives import base
from defi_jax.training import device_batches, ledger, metrics, profiling, progress, watchdog

# A loss this many times its running median above it was computed from ruined parameters.
_FAR = 100.0
_MEDIAN_OVER = 100  # steps


def is_due(now: int, every: int) -> bool:
    """Whether something done every `every` steps (0: never) is due after `now` steps."""
    return every > 0 and now > 0 and now % every == 0


def saves_left(now: int, config: Any) -> int:
    """How many checkpoints a run writes after `now` steps, the last step's included."""
    if now >= config.steps:
        return 0
    return sum(is_due(step, config.save_every) for step in range(now + 1, config.steps)) + 1


class _StopRequested(Exception):
    """Carries a request to stop out of an objective's evaluation."""


class Duties:
    """The periodic work of one run; close it at its end."""

    def __init__(
        self,
        config: Any,
        objective: base.Objective,
        workdir: epath.Path,
        watch: watchdog.Supervisor,
        checkpoints: manager.Checkpointer,
        facts: dict[str, Any],
        held_out: device_batches.HeldOut,
    ):
        self._config, self._objective, self._workdir = config, objective, workdir
        self._watch, self._checkpoints, self._held_out = watch, checkpoints, held_out
        self._facts = facts
        self._writer = metrics.MetricWriter(workdir, config, facts["step"])
        work = progress.Work.of(config, objective)
        self._progress = progress.Progress(facts["step"], config.steps, work, watch.ledger)
        self._before = ledger.carried(*self._writer.run_rows, watch.ledger.began)
        self._report_run(facts["step"])
        self._pending: tuple[int, Any, Mapping[str, int]] | None = None
        directory = workdir / metrics.LOGS / profiling.DIRECTORY
        self._profile = profiling.Window(directory, config.profile_start, config.profile_steps)
        self._losses: collections.deque[float] = collections.deque(maxlen=_MEDIAN_OVER)
        # Steps after which the parameters are known to be good, by the loss that they gave.
        self._good_after, self._cuts = facts["step"] - 1, 0

    def close(self) -> None:
        """Flushes what was reported."""
        self._profile.close()
        self._writer.close()

    def evaluate(self, now: int, state: TrainState) -> None:
        """Evaluates, unless that was done at this step before the run was interrupted.

        A request to stop cuts it short between two batches; nothing is written then.
        """
        self.report_pending()
        if now == self._facts["last_eval_step"] or not self._held_out:
            return
        rng = jax.random.key(self._config.seed)  # always the same, so that results can be compared
        try:
            with self._watch.phase("eval"):
                output = self._objective.evaluate(state.all_params(), self._watched_batches(), rng)
                self._writer.scalars(now, "eval", output.scalars)
                self._writer.media(now, "eval", output.images, output.videos)
        except _StopRequested:
            logging.info("evaluation at step %d cut short: asked to stop", now)
        else:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in output.scalars.items())
            logging.info("eval at step %d  %s", now, shown)
            self._facts = {**self._facts, "last_eval_step": now}

    def _watched_batches(self) -> Iterator[Any]:
        for batch in self._held_out:
            if self._watch.stop_requested():
                raise _StopRequested
            yield batch

    def save(self, now: int, state: TrainState, data_state: Any, *, is_end: bool = False) -> None:
        """Starts a checkpoint; the Checkpointer waits for the last one when it closes.

        Nothing is saved after a bad step, lest good checkpoints make room for it, unless the run
        ends here.
        """
        self.report_pending()  # a state that the numerics guard refuses is not saved
        if self._good_after < now - 1 and not is_end:
            logging.warning("step %d is not saved: it was not a good one", now)
            return
        self._facts = {**self._facts, "step": now}
        with self._watch.phase("save"):
            self._checkpoints.save(state, metadata=self._facts, data_state=data_state)
            self._report_run(now)  # what is lost with the steps after this one is told from here

    def profile(self, now: int) -> None:
        """Begins or ends a window of traced steps, where one is due; before each step."""
        if self._profile.is_due(now, self._watch.profile_asked()):
            with self._watch.phase("save"):  # of a trace, at a window's end
                self._profile.turn(now, self._pending and self._pending[1])

    def report_late(
        self,
        now: int,
        scalars: Mapping[str, jax.Array],
        replaced: Mapping[str, int],
    ) -> None:
        """Reports the step before this one: its numbers are ready, so nothing waits for them.

        Args:
            now: steps taken, this one included.
            scalars: what the step returned, on the devices.
            replaced: see `DeviceBatches.replaced`.
        """
        self.report_pending()
        self._pending = (now, scalars, replaced)

    def report_pending(self) -> None:
        """Reads the numbers of the step in hand; logs when due.

        Raises:
            NumericsError: too many steps in a row were not finite.
        """
        if self._pending is None:
            return
        (now, scalars, replaced), self._pending = self._pending, None
        values = jax.device_get(scalars)
        self._progress.add(values)
        if is_due(now, self._config.log_every) or now == self._config.steps:
            means = self._progress.report(now)
            with self._watch.phase("save"):  # a bucket may be slow
                self._writer.scalars(now, "train", {**means, **replaced})
                self._report_run(now)
        self._check_numbers(now, values)

    def _report_run(self, now: int) -> None:
        self._writer.scalars(now, "run", ledger.line(self._before, self._watch.ledger.seconds()))

    def preempted(self, now: int) -> errors.Preempted:
        """Waits for the save and returns the error that ends a run that was asked to stop."""
        with self._watch.phase("save"):
            self._checkpoints.wait()
        return errors.Preempted(
            f"stopped on request, step {now} is saved",
            str(self._workdir),
            "the same command goes on from there",
        )

    def _check_numbers(self, now: int, values: Mapping[str, Any]) -> None:
        """Judges the parameters before step `now` by its loss, and the run by its bad steps."""
        bad, loss, numbers = int(values["bad_steps"]), float(values["loss"]), self._config.optimizer
        if bad:
            logging.warning("step %d was not finite and is skipped (%d in a row)", now, bad)
            if bad >= self._config.max_consecutive_bad_steps or now == self._config.steps:
                what = f"{bad} consecutive steps were not finite (steps {now - bad + 1} to {now})"
                raise self._refusal(what, now - bad + 1)
            return
        median = statistics.median(self._losses or [loss])
        if loss - median <= _FAR * abs(median):
            self._good_after = now - 1
        self._losses.append(loss)
        cuts = int(values.get("rate_cuts", 0))
        if cuts > self._cuts:
            logging.warning("after the spike at step %d: cut %d of the learning rate", now, cuts)
        if cuts > numbers.spike_cuts:
            times = f"{numbers.spike_factor:g} times their median"
            raise self._refusal(
                f"loss or gradient rose above {times} again after {cuts - 1} cuts of the rate", now
            )
        self._cuts = cuts

    def _refusal(self, what: str, step: int) -> errors.NumericsError:
        """Sets ruined checkpoints aside; returns the error that ends the run, for `step`."""
        with self._watch.phase("save"):
            left = self._checkpoints.distrust(self._good_after + 1)
        look = f"launch/data.py preview --workdir={self._workdir} --step={step} --output=FILE.png"
        fix = f"lower optimizer.learning_rate or look at the data (`{look}`), then start again"
        good = f"the last good checkpoint is of step {left}"
        if left is None:
            good = "no checkpoint was saved before"
        elif left > self._good_after:
            good = f"the only checkpoint, of step {left}, led there"
            fix += "; if that ends here again, from scratch with --overwrite"
        return errors.NumericsError(f"{what}; {good}", str(self._workdir), fix)
