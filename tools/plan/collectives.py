"""Collectives in the text of a compiled program (optimised HLO), each pass of a loop counted."""

import math
import re
from collections.abc import Iterator

NAMES = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_reduce": "all-reduce",
    "all_to_all": "all-to-all",
    "permute": "collective-permute",
}
# Those whose asynchronous form returns its operands before its results.
_RETURN_OPERANDS = ("all_gather", "permute")
# e.g. "bf16[2,16]".
_SHAPE = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
# The head of a computation: "%name (arguments) -> result {", the main one after "ENTRY".
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$", re.M)
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation|branch_computations|"
    r"called_computations)=(\{[^}]*\}|%?[\w.-]+)"
)
_CONDITION = re.compile(r" while\(.*condition=%?([\w.-]+)")
# In the condition of a loop that counts from 0.
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


def count(text: str, num_devices: int) -> tuple[dict[str, int], dict[str, int]]:
    """Counts the collectives of a step and the bytes a device receives in them.

    Args:
        text: text of the program. Loops that count to no constant count once.
        num_devices: devices of the program.

    Returns:
        Operations and bytes by kind. An all-reduce of n bytes counts 2 n (it scatters, then
        gathers), a reduce-scatter its whole input.
    """
    counts, received = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0)
    bodies, entry = _computations(text)
    for name, passes in _passes(bodies, entry).items():
        for kind, size in _of_computation(bodies[name], num_devices):
            counts[kind] += passes
            received[kind] += passes * size
    return counts, received


def _of_computation(body: str, num_devices: int) -> Iterator[tuple[str, int]]:
    """Kind and bytes of every collective."""
    for kind, name in NAMES.items():
        for line in re.finditer(rf"= (.+?) {name}(-start)?\((.*)", body):
            sizes = [_num_bytes(*shape) for shape in _SHAPE.findall(line[1])]
            if line[2] and kind in _RETURN_OPERANDS:
                if kind == "permute":
                    sizes = sizes[:2]  # its two counters follow
                sizes = sizes[len(sizes) // 2 :]
            factor = {"all_reduce": 2, "reduce_scatter": _group_size(line[3], num_devices)}
            yield kind, sum(sizes) * factor.get(kind, 1)


def _computations(text: str) -> tuple[dict[str, str], str]:
    """The text of each computation by name, and the name of the main one."""
    heads = list(_COMPUTATION.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    bodies = {head[2]: text[head.end() : end] for head, end in zip(heads, ends, strict=True)}
    return bodies, next(head[2] for head in heads if head[1])


def _passes(bodies: dict[str, str], entry: str) -> dict[str, int]:
    """How often each computation runs in a step."""
    passes = {entry: 1}
    # A computation stands before those that call it.
    for name in reversed(bodies):
        for line in bodies[name].splitlines() if name in passes else ():
            condition = _CONDITION.search(line)
            limits = _LIMIT.findall(bodies[condition[1]]) if condition else ()
            times = passes[name] * (int(limits[0]) if len(limits) == 1 else 1)
            for called in re.findall(r"[\w.-]+", " ".join(_CALLED.findall(line))):
                passes[called] = passes.get(called, 0) + times
    return {name: times for name, times in passes.items() if name in bodies}


def _num_bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype) or 0)
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8


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
