"""Two evaluations of the same benchmark, compared episode by episode."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from defi_rollout import errors
from defi_rollout.benchmarks import base

_FIX = "give two directories that `evaluate --output` wrote, or their results.json"


def compare(first: pathlib.Path, second: pathlib.Path) -> dict[str, Any]:
    """Pairs the standard episodes of two results and tests whether one policy is better.

    Args:
        first: results.json of an evaluation, or the directory that holds it.
        second: the other one, of the same protocol.

    Returns:
        "differs": what else differs and may explain a difference, such as the renderer;
        "unpaired": episodes that only one of both has; "all" and, by task, "tasks": `pairs`, both
        success rates as `first` and `second`, `only_first` and `only_second` (episodes that one
        alone solved) and `p_value`.

    Raises:
        UserError: a file is absent or no results, the protocols differ, or no episode is common.
    """
    one, other = _read(first), _read(second)
    if one["protocol"] != other["protocol"]:
        raise errors.UserError(
            f"protocols {_named(one)} and {_named(other)} cannot be compared", second, _FIX
        )
    rows, others = _by_start(one), _by_start(other)
    common = [(rows[key], others[key]) for key in rows if key in others]
    if not common:
        raise errors.UserError(
            "no episode in common", second, "evaluate both with the same --seed and --tasks"
        )
    tasks = sorted({row["task"] for row, _ in common})
    return {
        "protocol": one["protocol"],
        "differs": [
            key
            for key in ("simulator", "renderer", "execute_horizon")
            if one.get(key) != other.get(key)
        ],
        "unpaired": len(rows) + len(others) - 2 * len(common),
        "all": _paired(common),
        "tasks": {
            task: _paired([pair for pair in common if pair[0]["task"] == task]) for task in tasks
        },
    }


def p_value(only_first: int, only_second: int) -> float:
    """Two-sided exact probability of such a split of the pairs that differ (McNemar's test).

    0 and 8 give 2 / 2**8 = 0.0078: a difference; 3 and 5 give 0.73: chance.
    """
    count = only_first + only_second
    tail = sum(math.comb(count, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**count)


def _read(path: pathlib.Path) -> dict[str, Any]:
    file = path / base.RESULTS if path.is_dir() else path
    with errors.UserError.instead_of(
        (OSError, ValueError, KeyError, TypeError), "no results", file, _FIX
    ):
        document = json.loads(file.read_text())
        for row in document["episodes"]:
            _ = row["id"], row["task"], row["seed"], row["success"], row["start_digest"]
        _ = document["protocol"]["name"], document["protocol"]["version"]
        return document


def _named(document: Mapping[str, Any]) -> str:
    protocol = document["protocol"]
    return f"{protocol['name']} {protocol['version']} ({str(protocol.get('sha256'))[:8]})"


def _by_start(document: Mapping[str, Any]) -> dict[tuple, Mapping[str, Any]]:
    """Rows by what makes two episodes the same: their id, seed and start."""
    return {(r["id"], r["seed"], r["start_digest"]): r for r in document["episodes"]}


def _paired(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    only_first = sum(a["success"] and not b["success"] for a, b in pairs)
    only_second = sum(b["success"] and not a["success"] for a, b in pairs)
    return {
        "pairs": len(pairs),
        "first": sum(a["success"] for a, _ in pairs) / len(pairs),
        "second": sum(b["success"] for _, b in pairs) / len(pairs),
        "only_first": only_first,
        "only_second": only_second,
        "p_value": p_value(only_first, only_second),
    }
