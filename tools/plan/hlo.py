"""The text of a compiled program (optimised HLO): computations, operations, how often they run."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# The head of a computation: "%name (arguments) -> result {", the main one after "ENTRY".
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$", re.M)
_OPERATION = re.compile(
    r"^  (?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<result>\(.*?\)|\S+) (?P<kind>[\w-]+)"
    r"\((?P<operands>[^)]*)\)(?P<rest>.*)$",
    re.M,
)
# e.g. "bf16[2,16]{1,0:T(8,128)S(1)}"; arrays with an S are kept near the cores.
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation|branch_computations|"
    r"called_computations)=(\{[^}]*\}|%?[\w.-]+)"
)
# These run the computations that they call as a sequence; others make one operation of them.
_SEQUENCES = ("while", "conditional", "call", "async-start")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
# In the condition of a loop that counts from 0.
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


class Array(NamedTuple):
    """One array of an operation's result: on the chip's own memory (`is_near`), or in HBM."""

    dtype: str
    shape: tuple[int, ...]
    is_near: bool

    @property
    def num_bytes(self) -> int:
        """Bytes, without padding to tiles."""
        bits = 8 if self.dtype == "pred" else int(re.match(r"\D+(\d+)", self.dtype)[1])  # type: ignore[index]
        return math.prod(self.shape) * bits // 8


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a computation.

    Attributes:
        kind: as "fusion", "all-gather-start".
        results: its arrays; several for a tuple.
        operands: names of the operations it reads; of a parameter its number, as text.
        rest: the attributes, as text.
    """

    name: str
    kind: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def called(self) -> list[str]:
        """Names of the computations that it runs, a loop's condition left out."""
        return re.findall(r"[\w.-]+", " ".join(_CALLED.findall(self.rest)))


class Computation(NamedTuple):
    """Operations by name, in the order in which they run, and the text."""

    operations: dict[str, Operation]
    text: str


class Program:
    """A module: its computations, and how often each runs in one call.

    Attributes:
        computations: by name.
        passes: of those that run as sequences, not as parts of one operation; loops that count to
            no constant count once.
    """

    def __init__(self, text: str):
        heads = list(_COMPUTATION.finditer(text))
        ends = [head.start() for head in heads[1:]] + [len(text)]
        self.computations = {
            head[2]: _computation(text[head.end() : end])
            for head, end in zip(heads, ends, strict=True)
        }
        self._entry = next(head[2] for head in heads if head[1])
        self.passes = self._passes()

    def _passes(self) -> dict[str, int]:
        passes = {self._entry: 1}
        # A computation stands before those that call it.
        for name in reversed(self.computations):
            for operation in self.computations[name].operations.values() if name in passes else ():
                times = passes[name] * self._trips(operation)
                for called in operation.called() if operation.kind in _SEQUENCES else ():
                    passes[called] = passes.get(called, 0) + times
        return {name: times for name, times in passes.items() if name in self.computations}

    def _trips(self, operation: Operation) -> int:
        condition = _CONDITION.search(operation.rest)
        limits = _LIMIT.findall(self.computations[condition[1]].text) if condition else ()
        return int(limits[0]) if len(limits) == 1 else 1


def _computation(text: str) -> Computation:
    operations = {}
    for found in _OPERATION.finditer(_COMMENT.sub("", text)):
        operations[found["name"]] = Operation(
            name=found["name"],
            kind=found["kind"],
            results=tuple(arrays(found["result"])),
            operands=tuple(re.findall(r"%([\w.-]+)", found["operands"]) or [found["operands"]]),
            rest=found["rest"],
            is_root=bool(found["root"]),
        )
    return Computation(operations, text)


def arrays(text: str) -> Iterator[Array]:
    """The arrays named in a type, as "(f32[2]{0}, s32[])"."""
    for dtype, shape, layout in _ARRAY.findall(text):
        yield Array(dtype, tuple(int(n) for n in shape.split(",") if n), "S(" in layout)
