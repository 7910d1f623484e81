"""What a run reports of its speed: examples, frames and FLOPs a second, and where the time went."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from defi_jax import objectives
from defi_jax.objectives import base
from defi_jax.training import flops, hardware, ledger, metrics, step, stragglers

_SHOWN = ("data_wait", "dispatch", "device", "checkpoint", "evaluation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one step is.

    Attributes:
        examples: clips, frame pairs or observations.
        frames: pictures in them; 0 for none.
        peak_share: FLOPs of the step over what all devices could do in a second; None where the
            devices' peak is not known.
    """

    examples: int
    frames: int
    peak_share: float | None

    @classmethod
    def of(cls, config: Any, objective: base.Objective) -> "Work":
        """The work of a run's step; where the peak is known its gradient is traced to count it."""
        leaves = jax.tree.leaves(objective.pixel_batch_spec(config.global_batch))
        pictures = [x.shape for x in leaves if x.dtype == jnp.uint8 and len(x.shape) == 5]
        peak = hardware.peak_flops(jax.devices()[0].device_kind)
        share = None
        if peak is not None:
            share = model_flops(config).total / (peak * jax.device_count())
        frames = sum(shape[0] * shape[1] for shape in pictures)
        return cls(examples=config.global_batch, frames=frames, peak_share=share)

    def rates(self, steps_per_second: float) -> dict[str, float]:
        """What is reported of it."""
        rates = {
            "steps_per_second": steps_per_second,
            "examples_per_second": self.examples * steps_per_second,
        }
        if self.frames:
            rates["frames_per_second"] = self.frames * steps_per_second
        if self.peak_share is not None:
            rates["mfu"] = self.peak_share * steps_per_second
        return rates


def model_flops(config: Any) -> flops.Flops:
    """FLOPs of a step over all devices, nothing computed twice."""
    config = config.copy_and_resolve_references()
    _store_everything(config.model)
    objective = objectives.make(config)

    def gradient(state: Any, batch: Any) -> Any:
        return step.compute_gradient(state, batch, state.rng, objective=objective, config=config)

    state = step.abstract_values(config, objective)
    return flops.count(gradient, state, objective.batch_spec(config.global_batch))


def _store_everything(section: Any) -> None:
    """Turns rematerialisation off in every part of a model's config."""
    for name, value in section.items():
        if name == "remat":
            section.remat = "none"
        elif hasattr(value, "items"):
            _store_everything(value)


class Progress:
    """Means over the steps since the last report, with speed, time left and where time went."""

    def __init__(self, first_step: int, total_steps: int, work: Work, spent: ledger.Ledger):
        self._total, self._work, self._ledger = total_steps, work, spent
        self._stragglers = stragglers.Stragglers()
        self._restart(first_step)

    def add(self, values: Mapping[str, Any]) -> None:
        """Takes a step's metrics."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(float(value))

    def report(self, now: int) -> dict[str, float]:
        """Returns the means, of the finite values where there are any, and logs one line."""
        spent = ledger.since(self._ledger.seconds(), self._before)
        in_steps = max(sum(spent[kind] for kind in ledger.STEP_KINDS), 1e-9)
        means = {name: _finite_mean(values) for name, values in self._values.items()}
        speed = (now - self._first) / in_steps
        means |= self._work.rates(speed) | device_memory()
        means |= {f"seconds/{kind}": spent[kind] for kind in _SHOWN} | self._stragglers.report()
        logging.info(
            "step %d/%d %3.0f%%  loss %.4g  %.3g s/step  left %s  data wait %.0f%%",
            now,
            self._total,
            100 * now / self._total,
            means["loss"],
            1 / speed if speed else math.inf,
            metrics.format_seconds((self._total - now) / speed if speed else math.inf),
            100 * spent["data_wait"] / in_steps,
        )
        self._restart(now)
        return means

    def _restart(self, now: int) -> None:
        self._first, self._before = now, self._ledger.seconds()
        self._values: dict[str, list[float]] = {}


def device_memory() -> dict[str, float]:
    """Bytes in use, now and at most so far, on this process's fullest device; {} if not told."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    names = {"memory/in_use_bytes": "bytes_in_use", "memory/peak_bytes": "peak_bytes_in_use"}
    return {
        ours: float(max(one[theirs] for one in stats))
        for ours, theirs in names.items()
        if all(theirs in one for one in stats)
    }


def _finite_mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
