"""FLOPs of a function as the mathematics has them: matrix products and convolutions, traced.

A multiplication and its addition are two. Loops count every pass (XLA's own analysis counts a
loop's body once), convolutions count taps on padding (XLA does not), and everything elementwise is
left out.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count(fn: Callable[..., Any], *args: Any, loops_once: bool = False) -> int:
    """FLOPs of `fn(*args)`; arguments may be shapes.

    `loops_once` counts one pass of each loop, to compare with XLA.
    """
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr, loops_once)


def _of_jaxpr(jaxpr: Any, loops_once: bool) -> int:
    return sum(_of_equation(equation, loops_once) for equation in jaxpr.eqns)


def _of_equation(equation: Any, loops_once: bool) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * kernel.size // outputs
    if name == "pallas_call":  # stands in a `cond` beside what it computes in plain operations
        return 0
    inner = [_of_jaxpr(jaxpr, loops_once) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" and not loops_once else 1)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Every jaxpr among an equation's parameters, singly or in a sequence."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
