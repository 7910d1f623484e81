"""FLOPs of a function as the mathematics has them: matrix products and convolutions, traced.

A multiplication and its addition are two. Loops count every pass (XLA's own analysis counts a
loop's body once), convolutions count taps on padding (XLA does not), and everything elementwise is
left out.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax


class Flops(NamedTuple):
    """FLOPs of a function, and what they were if each loop ran once, as XLA counts them."""

    total: int
    loops_once: int


def count(fn: Callable[..., Any], *args: Any) -> Flops:
    """FLOPs of `fn(*args)`; arguments may be shapes."""
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> Flops:
    counts = [_of_equation(equation) for equation in jaxpr.eqns]
    return Flops(sum(found.total for found in counts), sum(found.loops_once for found in counts))


def _of_equation(equation: Any) -> Flops:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return _once(
            2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        )
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return _once(2 * equation.outvars[0].aval.size * kernel.size // outputs)
    if name == "pallas_call":  # stands in a `cond` beside what it computes in plain operations
        return _once(0)
    inner = [_of_jaxpr(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inner)
    passes = params["length"] if name == "scan" else 1
    return Flops(
        passes * sum(found.total for found in inner), sum(found.loops_once for found in inner)
    )


def _once(operations: int) -> Flops:
    return Flops(operations, operations)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Every jaxpr among an equation's parameters, singly or in a sequence."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
