"""What the operations of a compiled program cost a chip: FLOPs, memory traffic, exchanges.

Every operation counts as often as its loop runs. Arrays that the compiler keeps near the cores do
not count to the traffic; of an array that a fusion only slices, the slice counts.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from defi_jax.training import hardware
from tools.plan import collectives, hlo

# They move or compute nothing by themselves.
_FREE = re.compile(
    "parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call|after-all"
    "|partition-id|replica-id|iota|opt-barrier"
)
_BEGINS = re.compile(r"(async-collective|all-\w+|reduce-scatter|collective-permute)-start")
_ENDS = re.compile(r"(async-collective|all-\w+|reduce-scatter|collective-permute)-done")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


@dataclasses.dataclass
class Costs:
    """Of one call, on one device.

    Attributes:
        flops: of products and convolutions, taps on padding left out.
        traffic_bytes: read from and written to HBM.
        operation_seconds: sum over operations of the longer of computing and traffic.
        exchange_bytes, exchange_seconds: of all collectives.
        exposed_bytes, exposed_seconds: of them, what no other operation hides.
    """

    flops: float = 0.0
    traffic_bytes: float = 0.0
    operation_seconds: float = 0.0
    exchange_bytes: float = 0.0
    exchange_seconds: float = 0.0
    exposed_bytes: float = 0.0
    exposed_seconds: float = 0.0


def costs(program: hlo.Program, chip: hardware.Chip, num_devices: int) -> Costs:
    """Adds up a program."""
    total = Costs()
    for name, passes in program.passes.items():
        _add_computation(total, program, name, passes, chip, num_devices)
    return total


def _add_computation(
    total: Costs,
    program: hlo.Program,
    name: str,
    passes: int,
    chip: hardware.Chip,
    num_devices: int,
) -> None:
    """Adds one sequence of operations, which run one after the other beside the exchanges."""
    operations = program.computations[name].operations
    clock, under_way = 0.0, {}
    for operation in operations.values():
        exchanged = sum(n for _, n in collectives.of_operation(program, operation, num_devices))
        if _ENDS.match(operation.name):
            begun = _beginning(operation, operations, under_way)
            if begun is not None:
                size, since = under_way.pop(begun)
                _add_exchange(total, passes, size, clock - since, chip)
        elif exchanged and _BEGINS.match(operation.name):
            under_way[operation.name] = exchanged, clock
        elif exchanged:
            _add_exchange(total, passes, exchanged, 0.0, chip)
        elif not _FREE.fullmatch(operation.kind) and "AllocateBuffer" not in operation.rest:
            products = list(_products(program, operation, operations))
            traffic = _traffic(program, operation, operations)
            computing = sum(chip.product_seconds(*product) for product in products)
            seconds = max(computing, traffic / chip.hbm_bandwidth)
            clock += seconds
            total.flops += passes * sum(2.0 * math.prod(product) for product in products)
            total.traffic_bytes += passes * traffic
            total.operation_seconds += passes * seconds


def _beginning(
    end: hlo.Operation, operations: dict[str, hlo.Operation], under_way: dict[str, Any]
) -> str | None:
    """Name of the operation that began an exchange, by the first operands from its end on."""
    name = end.operands[0]
    while name in operations and name not in under_way:
        name = operations[name].operands[0] if operations[name].operands else ""
    return name if name in under_way else None


def _add_exchange(
    total: Costs, passes: int, size: int, hidden_seconds: float, chip: hardware.Chip
) -> None:
    seconds = size / chip.link_bandwidth
    exposed = max(seconds - hidden_seconds, 0.0)
    total.exchange_bytes += passes * size
    total.exchange_seconds += passes * seconds
    total.exposed_seconds += passes * exposed
    total.exposed_bytes += passes * size * exposed / seconds


def _traffic(
    program: hlo.Program, operation: hlo.Operation, operations: dict[str, hlo.Operation]
) -> int:
    """Bytes that an operation reads from HBM and writes to it."""
    if operation.kind in ("dynamic-slice", "slice", "gather"):
        return 2 * _far(operation.results)
    if operation.kind == "dynamic-update-slice":
        return 2 * _far(operations[operation.operands[1]].results)
    read = [operations[name].results for name in operation.operands if name in operations]
    if operation.kind != "fusion":
        return _far(operation.results) + sum(map(_far, read))
    inner = program.computations[operation.called()[0]].operations
    total = _written(operation, inner)
    for name, results in zip(_parameters(inner), read, strict=False):
        total += min(_far(results), _used(program, name, inner)) if _far(results) else 0
    return total


def _parameters(operations: dict[str, hlo.Operation]) -> list[str]:
    """Names of a computation's parameters, in order."""
    found = [(int(o.operands[0]), o.name) for o in operations.values() if o.kind == "parameter"]
    return [name for _, name in sorted(found)]


def _written(fusion: hlo.Operation, inner: dict[str, hlo.Operation]) -> int:
    """Bytes written by a fusion: of a result updated in place, the update."""
    root = next(o for o in inner.values() if o.is_root)
    parts = [inner[name] for name in root.operands] if root.kind == "tuple" else [root]
    total = 0
    for part, result in zip(parts, fusion.results, strict=False):
        while part.kind in ("bitcast", "copy") and part.operands and part.operands[0] in inner:
            part = inner[part.operands[0]]
        if part.kind == "dynamic-update-slice" and not result.is_near:
            total += sum(a.num_bytes for a in inner[part.operands[1]].results)
        else:
            total += _far([result])
    return total


def _used(program: hlo.Program, parameter: str, inner: dict[str, hlo.Operation]) -> int:
    """Bytes that a fusion reads of a parameter, at most the whole of it."""
    whole, used = sum(a.num_bytes for a in inner[parameter].results), 0
    names = [parameter]
    for operation in inner.values():
        if not set(names) & set(operation.operands):
            continue
        if operation.kind == "bitcast":
            names.append(operation.name)
        elif operation.kind in ("dynamic-slice", "slice", "gather"):
            used += sum(a.num_bytes for a in operation.results)
        elif operation.kind == "dynamic-update-slice" and operation.operands[0] in names:
            continue  # updated in place
        elif operation.kind == "fusion":
            parts = program.computations[operation.called()[0]].operations
            parameters = zip(_parameters(parts), operation.operands, strict=True)
            used += sum(_used(program, ours, parts) for ours, name in parameters if name in names)
        else:
            return whole
    return min(used, whole)


def _far(results: Iterable[hlo.Array]) -> int:
    return sum(array.num_bytes for array in results if not array.is_near)


def _products(
    program: hlo.Program, operation: hlo.Operation, operations: dict[str, hlo.Operation]
) -> Iterator[tuple[float, int, int]]:
    """Rows, contracted length and columns of each product of an operation, those of fusions too."""
    if operation.kind == "convolution":
        yield _convolution(operation, operations)
    elif operation.kind == "dot":
        yield _dot(operation, operations)
    elif operation.kind == "custom-call" and "splash_mha" in operation.name:
        yield from _attention(operation, operations)
    elif operation.kind == "fusion":
        for name in operation.called():
            inner = program.computations[name].operations
            for part in inner.values():
                yield from _products(program, part, inner)


def _attention(
    operation: hlo.Operation, operations: dict[str, hlo.Operation]
) -> Iterator[tuple[float, int, int]]:
    """Jax's attention kernel, whose program says no FLOPs: queries [..., N, Dh] come first."""
    read = [array for name in operation.operands for array in operations[name].results]
    *others, tokens, width = next(array.shape for array in read if array.dtype in ("bf16", "f32"))
    rows = math.prod(others) * tokens
    # Logits and values; backwards the logits again, and the gradients of all three.
    across, along = (1, 1) if "fwd" in operation.name else (2, 3)
    yield from [(float(rows), width, tokens)] * across
    yield from [(float(rows), tokens, width)] * along


def _dot(operation: hlo.Operation, operations: dict[str, hlo.Operation]) -> tuple[float, int, int]:
    left, right = (operations[name].results[0].shape for name in operation.operands)
    contracted = _numbers(operation.rest, "lhs_contracting_dims")
    depth = math.prod(left[axis] for axis in contracted)
    taken = {*_numbers(operation.rest, "rhs_contracting_dims")}
    taken |= {*_numbers(operation.rest, "rhs_batch_dims")}
    columns = math.prod(size for axis, size in enumerate(right) if axis not in taken)
    return math.prod(operation.results[0].shape) / columns, depth, columns


def _numbers(text: str, name: str) -> list[int]:
    found = re.search(rf"{name}=\{{([\d,]*)\}}", text)
    return [int(n) for n in found[1].split(",") if n] if found else []


def _convolution(
    operation: hlo.Operation, operations: dict[str, hlo.Operation]
) -> tuple[float, int, int]:
    """The compiler writes products as convolutions; batch axes are windows that meet once."""
    labels = _LABELS.search(operation.rest)
    assert labels is not None
    left, right = (operations[name].results[0].shape for name in operation.operands)
    out = operation.results[0].shape
    of_left, of_right, of_out = labels.groups()
    batch = left[of_left.index("b")]
    depth, columns = right[of_right.index("i")], right[of_right.index("o")]
    meetings = 1
    window = _window(operation.rest)
    for axis in range(sum(c.isdigit() for c in of_out)):
        sizes = left[of_left.index(str(axis))], out[of_out.index(str(axis))]
        meetings *= _meetings(*sizes, **{name: values[axis] for name, values in window.items()})
    groups = re.search(r"batch_group_count=(\d+)", operation.rest)
    rows = batch * meetings / (int(groups[1]) if groups else 1)
    outputs = math.prod(out) / columns
    taps = rows / outputs  # each output's products, those that add up to it
    return outputs, max(round(depth * taps), 1), columns


def _window(text: str) -> dict[str, list[int]]:
    found = _WINDOW.search(text)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}
    size = [int(n) for n in fields["size"].split("x")] if found else []
    ones = "x".join("1" * len(size))
    result = {
        name: [int(n) for n in fields.get(name, ones).split("x")] if size else []
        for name in ("stride", "lhs_dilate", "rhs_dilate")
    }
    pads = fields.get("pad", "x".join(["0_0"] * len(size))).split("x") if size else []
    return {**result, "size": size, "pad": [int(pad.split("_")[0]) for pad in pads]}


def _meetings(
    left: int, out: int, *, size: int, stride: int, lhs_dilate: int, rhs_dilate: int, pad: int
) -> int:
    """Pairs of an output position and a tap of the window that meet an element, not padding."""
    return sum(
        1
        for position in range(out)
        for tap in range(size)
        for place in (position * stride - pad + tap * rhs_dilate,)
        if place >= 0 and place % lhs_dilate == 0 and place // lhs_dilate < left
    )
