"""Which process of a run keeps the others waiting, and with what.

All wait for the slowest in every step, so its own work is compared: the time that the others then
have left counts as `device` with them. A slow device is the same for all of them and does not show.
"""

import logging
import statistics
from collections.abc import Mapping

import jax

from defi_jax import processes
from defi_jax.training import ledger

OWN_KINDS = ("data_wait", "dispatch", "checkpoint", "evaluation")
_LEAST_WINDOW = 10.0  # seconds compared at once: what is known of the others is up to 2 s old
_CLEAR_SECONDS, _CLEAR_SHARE = 2.0, 0.1

Spent = Mapping[int, Mapping[str, float]]  # by process, seconds by kind


class Stragglers:
    """Compares what the time of all processes went into since the last time; process 0 does."""

    def __init__(self) -> None:
        self._before: Spent = {}

    def report(self) -> dict[str, float]:
        """The slowest process and its seconds, as metrics; {} where none is clearly slower.

        Logs it, too. Where the last report was a moment ago, it says nothing and the next one
        compares all the time since then.
        """
        others = processes.others()
        if others is None or not processes.is_primary():
            return {}
        now = {index: spent for index, spent in others.spent_by_all().items() if spent}
        if len(self._before) < jax.process_count():
            self._before = now
            return {}
        grown = {index: ledger.since(now[index], self._before[index]) for index in now}
        window = statistics.median(sum(kinds.values()) for kinds in grown.values())
        if window < _LEAST_WINDOW:
            return {}
        self._before = now
        found = slowest(grown, max(_CLEAR_SECONDS, _CLEAR_SHARE * window))
        if found is None:
            return {}
        index, kind, seconds = found
        logging.warning(
            "process %d is the slowest: %s took %.1f s more than with the others, of %.0f s",
            index,
            kind,
            seconds,
            window,
        )
        return {"straggler/process": index, f"straggler/{kind}": seconds}


def slowest(grown: Spent, least: float) -> tuple[int, str, float] | None:
    """The process, the kind and the seconds by which it took longest, beyond the others' median.

    Args:
        grown: seconds by kind of each process, of the same time.
        least: seconds below which it is None.
    """
    excess = []
    for kind in OWN_KINDS:
        for index in grown:
            rest = [kinds[kind] for other, kinds in grown.items() if other != index]
            excess.append((grown[index][kind] - statistics.median(rest), index, kind))
    seconds, index, kind = max(excess)
    return (index, kind, seconds) if seconds >= least else None
