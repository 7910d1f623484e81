"""From rows of episodes to the numbers of a summary."""

import collections
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from defi_rollout.benchmarks import base

Row = dict[str, Any]

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a success rate (Wilson 1927)."""
    if trials == 0:
        return 0.0, 1.0
    rate, z2 = successes / trials, _Z95**2
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2))
    half = _Z95 / (1 + z2 / trials) * spread
    return max(0.0, centre - half), min(1.0, centre + half)


def rate(rows: Sequence[Row]) -> dict[str, Any]:
    """How many episodes, how many of them succeeded, the share, and its 95 % interval."""
    successes = sum(row["success"] for row in rows)
    return {
        "episodes": len(rows),
        "successes": successes,
        "success_rate": successes / max(len(rows), 1),
        "ci95": list(wilson_interval(successes, len(rows))),
    }


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Success rates over the standard rows, and the language table over those it needs."""
    standard = [row for row in rows if row["condition"] == base.STANDARD]
    by_task = {
        task: rate([row for row in attempts if row["task"] == task])
        for attempts in [_attempts(standard)]
        for task in dict.fromkeys(row["task"] for row in attempts)
    }
    latencies = [row["infer_ms_p50"] for row in rows if row["infer_ms_p50"] is not None]
    return {
        **rate(standard),
        "success_by_task": {task: found["success_rate"] for task, found in by_task.items()},
        "by_task": by_task,
        "chains": _chains(standard),
        "success_by_start": _rate_by(standard, lambda row: row["start"]),
        "statuses": dict(collections.Counter(row["status"] for row in rows)),
        "seen_starts": sum(row["start_unseen"] is False for row in rows),
        "policy_latency_ms_p50": statistics.median(latencies) if latencies else None,
        "language": _language(rows),
    }


def _attempts(rows: Sequence[Row]) -> list[Row]:
    """A row for each task that was tried: of a chain those up to the first failure."""
    return [
        {"task": task, "success": index < completed(row) if row["stages"] else row["success"]}
        for row in rows
        for index, task in enumerate(row["stages"][: completed(row) + 1] or [row["task"]])
    ]


def completed(row: Row) -> int:
    """How many tasks of a chain succeeded, one after the other."""
    done = [row["first_success"].get(task) is not None for task in row["stages"]]
    return done.index(False) if False in done else len(done)


def _chains(rows: Sequence[Row]) -> dict[str, Any] | None:
    """CALVIN's numbers: by position the share of chains that got so far, and their mean length."""
    lengths = [completed(row) for row in rows if row["stages"]]
    if not lengths:
        return None
    positions = range(1, max(len(row["stages"]) for row in rows) + 1)
    reached = [sum(length >= position for length in lengths) for position in positions]
    mean = statistics.fmean(lengths)
    spread = statistics.stdev(lengths) if len(lengths) > 1 else float(len(positions))
    half = _Z95 * spread / math.sqrt(len(lengths))
    return {
        "chains": len(lengths),
        "success_rates": [count / len(lengths) for count in reached],
        "ci95": [list(wilson_interval(count, len(lengths))) for count in reached],
        "average_length": mean,
        "average_length_ci95": [max(0.0, mean - half), min(float(len(positions)), mean + half)],
    }


def _language(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The language table: which of two opposite tasks came first, by instruction.

    Half-way starts of a pair of tasks leave open what to do. Each was played with its task's
    instruction ("right"), the opposite one and none; a row counts for the task that succeeded
    first, so that waving to and fro does not count twice.

    Returns:
        None without language rows; else "conditions": {condition: {episodes, task_first,
        opposite_first, task_success, opposite_success}}, the shares of episodes in which the
        start's task or its opposite came first, or succeeded at all before the episode ended;
        "table": the same by task; "instructed": the share in which the instructed task came
        first; "instructed_success": in which it succeeded at all.
    """
    varied = [row for row in rows if row["condition"] != base.STANDARD]
    if not varied:
        return None
    seeds = {(row["task"], row["seed"]) for row in varied}
    played = [row for row in rows if (row["task"], row["seed"]) in seeds]
    conditions = [base.STANDARD, base.OPPOSITE, base.EMPTY]
    table = [
        {"task": task, **_language_cell([r for r in played if r["task"] == task], condition)}
        for task in sorted({row["task"] for row in played})
        for condition in conditions
    ]
    instructed = [row for row in played if row["condition"] != base.EMPTY]
    hits = [_first_task(row) == row["scored_task"] for row in instructed]
    return {
        "instructed": sum(hits) / len(hits),
        "instructed_success": rate(instructed)["success_rate"],
        "instructed_episodes": len(hits),
        "conditions": {_named(c): _language_cell(played, c) for c in conditions},
        "table": table,
    }


def _language_cell(rows: Iterable[Row], condition: str) -> dict[str, Any]:
    chosen = [row for row in rows if row["condition"] == condition]
    firsts = [(_first_task(row), row["task"]) for row in chosen]
    reached = [(_reached(row).keys(), row["task"]) for row in chosen]
    count = max(len(chosen), 1)
    return {
        "instruction": _named(condition),
        "episodes": len(chosen),
        "task_first": sum(first == task for first, task in firsts) / count,
        "opposite_first": sum(first not in (None, task) for first, task in firsts) / count,
        "task_success": sum(task in tasks for tasks, task in reached) / count,
        "opposite_success": sum(bool(tasks - {task}) for tasks, task in reached) / count,
    }


def _named(condition: str) -> str:
    return "right" if condition == base.STANDARD else condition


def _first_task(row: Row) -> str | None:
    """The task that succeeded first, None when none did."""
    reached = _reached(row)
    return min(reached, key=reached.__getitem__) if reached else None


def _reached(row: Row) -> dict[str, int]:
    """The tasks that succeeded before the episode ended, with the step."""
    return {task: step for task, step in row["first_success"].items() if step is not None}


def _rate_by(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, float]:
    groups = collections.defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return {name: rate(group)["success_rate"] for name, group in groups.items()}
