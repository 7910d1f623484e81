"""All standards as tables for docs/open_x.md: python -m data_pipelines.open_x.documentation"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from data_pipelines.open_x import base, columns, registry


def markdown() -> str:
    """Returns what is known of each dataset, and below it every doubt."""
    groups = _groups()
    return "\n".join([*_facts(groups), "", "## Doubts", "", *_doubts(groups), ""])


def _groups() -> list[tuple[str, base.Standard]]:
    """Returns (names, standard); names that share one are together."""
    named = sorted(registry.standards("").items(), key=lambda item: (id(item[1]), item[0]))
    grouped = itertools.groupby(named, key=lambda item: id(item[1]))
    groups = [list(members) for _, members in grouped]
    return sorted((", ".join(f"`{name}`" for name, _ in group), group[0][1]) for group in groups)


def _facts(groups: list[tuple[str, base.Standard]]) -> Iterator[str]:
    yield "| dataset | robot | Hz | views | A | P | motion | rotation | gripper |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for names, standard in groups:
        convention = standard.convention
        meaning = ("-",) * 3
        if convention is not None:
            meaning = (convention.motion, convention.rotation, convention.gripper)
        num_actions = "-" if convention is None else str(len(convention.action_names))
        widths = (num_actions, _width(standard.states))
        views = ", ".join(standard.cameras)
        cells = (names, standard.robot, f"{standard.control_hz:g}", views, *widths, *meaning)
        yield f"| {' | '.join(cells)} |"


def _width(parts: tuple[columns.Part, ...] | None) -> str:
    if parts is None:
        return "-"
    return str(sum(part.width for part in parts))


def _doubts(groups: list[tuple[str, base.Standard]]) -> Iterator[str]:
    yield "| dataset | doubt |"
    yield "|---|---|"
    for names, standard in groups:
        for doubt in standard.doubts:
            yield f"| {names} | {doubt} |"


if __name__ == "__main__":
    print(markdown(), end="")
