"""Collectives in the text of a compiled program (optimised HLO), each pass of a loop counted."""

import math
import re

from tools.plan import hlo

NAMES = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_reduce": "all-reduce",
    "all_to_all": "all-to-all",
    "permute": "collective-permute",
}
# Those whose asynchronous form returns its operands before its results.
_RETURN_OPERANDS = ("all_gather", "permute")
_KINDS = {name: kind for kind, name in NAMES.items()}
# An exchange may be spread over several fusions; it counts with the first of them.
_LATER_PARTS = re.compile(r"async-collective-done|async_collective_fusion")


def count(program: hlo.Program, num_devices: int) -> tuple[dict[str, int], dict[str, int]]:
    """Counts the collectives of a step and the bytes a device receives in them.

    Args:
        program: compiled for `num_devices`.
        num_devices: devices of the program.

    Returns:
        Operations and bytes by kind, as `of_operation` has them.
    """
    counts, sizes = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0)
    for name, passes in program.passes.items():
        for operation in program.computations[name].operations.values():
            for kind, size in of_operation(program, operation, num_devices):
                counts[kind] += passes
                sizes[kind] += passes * size
    return counts, sizes


def of_operation(
    program: hlo.Program, operation: hlo.Operation, num_devices: int
) -> list[tuple[str, int]]:
    """Kind and bytes received of each collective that an operation is or has inside.

    An all-reduce of n bytes counts 2 n (it scatters, then gathers), a reduce-scatter its whole
    input. Later parts of a collective that takes several operations count nothing.
    """
    if operation.kind == "fusion":
        called = operation.called()[0]
        if _LATER_PARTS.match(operation.name) or _LATER_PARTS.match(called):
            return []
        inner = program.computations[called].operations.values()
        found = [each for part in inner for each in of_operation(program, part, num_devices)]
        if "all-reduce-scatter" in operation.name:  # an all-reduce of which a part is kept
            return [("reduce_scatter", size // 2) for _, size in found]
        return found
    kind = _KINDS.get(operation.kind.removesuffix("-start"))
    if kind is None:
        return []
    sizes = [array.num_bytes for array in operation.results]
    if operation.kind.endswith("-start") and kind in _RETURN_OPERANDS:
        if kind == "permute":
            sizes = sizes[:2]  # its two counters follow
        sizes = sizes[len(sizes) // 2 :]
    factor = {"all_reduce": 2, "reduce_scatter": _group_size(operation.rest, num_devices)}
    return [(kind, sum(sizes) * factor.get(kind, 1))]


def _group_size(attributes: str, num_devices: int) -> int:
    """Devices that exchange with each other: of `{{0,1,..},..}` or `[groups,size]<=[...]`."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return listed[1].count(",") + 1
    sizes = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if sizes:
        return int(sizes[1])
    mesh = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes)
    if not mesh:
        return num_devices
    axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return math.prod(int(axes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
