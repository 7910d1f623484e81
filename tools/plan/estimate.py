"""What a step costs a chip by the shapes of its traced gradient: nothing is compiled.

The formula is that of compiled programs (`hardware.step_seconds`), on what a trace shows:

- Products, convolutions and attention take the longer of computing and traffic. Of the rest, sums
  over an array are traffic; other elementwise work is taken to be fused into what reads it.
- Arrays live from the operation that makes them to the last that reads them. Elementwise results
  that are read before a few further products are taken to be fused away. Gradients are taken to be
  summed as they come, and frozen kernels to live while they are used only.
- A chip gathers each kernel once a step in the compute type and sums its gradient the same way;
  nothing hides that.
- With a `tensor` axis, the matrices of its rules divide, and each product back from them is summed
  over the axis.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from defi_jax import objectives, partition
from defi_jax.models import params as params_lib
from defi_jax.training import hardware, step

# An elementwise result that is first read after this many further products is stored.
_FUSED_WITHIN = 8
_REDUCTIONS = ("reduce_sum", "reduce_max", "argmin", "cumsum", "sort", "scatter-add", "gather")


class Product(NamedTuple):
    """Products of one shape.

    Attributes:
        rows, depth, columns: of one.
        bytes: read and written by one.
        times: how many a step has.
        splits: whether it is of a matrix that a `tensor` axis divides.
        sums: bytes of the result, where that axis must sum it; else 0.
    """

    rows: float
    depth: int
    columns: int
    bytes: float
    times: int
    splits: bool
    sums: float


@dataclasses.dataclass
class Trace:
    """A gradient at some number of examples.

    Attributes:
        products: all products.
        traffic_bytes: of sums and other passes over arrays.
        live_bytes: the most that lives at once, parameters left out.
    """

    products: list[Product] = dataclasses.field(default_factory=list)
    traffic_bytes: float = 0.0
    live_bytes: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one candidate, on one chip.

    Attributes:
        hbm_bytes: what is stored and the most that lives at once.
        computing_seconds: products, traffic and the optimizer.
        exchange_seconds: collectives.
        mfu: FLOPs of the mathematics over the peak.
    """

    hbm_bytes: float
    computing_seconds: float
    exchange_seconds: float
    mfu: float

    @property
    def step_seconds(self) -> float:
        """By the formula."""
        return hardware.step_seconds(
            operations=self.computing_seconds, exposed=self.exchange_seconds
        )


class Model:
    """A config's step, traced once for one and once for two examples a chip.

    All between is linear in the number of examples.
    """

    def __init__(self, config: Any, model_flops: int):
        objective = objectives.make(config)
        self._shapes = step.abstract_values(config, objective)
        self._flops_per_example = model_flops / config.global_batch
        self._dtype_bytes = jnp.dtype(config.compute_dtype).itemsize
        split = _split_shapes(self._shapes.params) | _split_shapes(self._shapes.frozen)
        self._traces = [_trace(config, objective, self._shapes, n, split) for n in (1, 2)]

    def estimate(
        self, chip: hardware.Chip, mesh: Mapping[str, int], examples: int, num_slices: int = 1
    ) -> Estimate:
        """Estimates the step.

        Args:
            chip: the device.
            mesh: size of each axis.
            examples: of each device.
            num_slices: slices that `replica` spans.
        """
        stored = sum(
            _stored_bytes(getattr(self._shapes, group), mesh)
            for group in ("params", "frozen", "ema_params", "opt_state", "extra")
        )
        whole = sum(
            _whole_bytes(tree, mesh, self._dtype_bytes)
            for tree in (self._shapes.params, self._shapes.frozen)
        )
        trained = _whole_bytes(self._shapes.params, mesh, self._dtype_bytes)
        seconds, live = [], []
        for trace in self._traces:
            seconds.append(_seconds(trace, chip, mesh["tensor"]))
            live.append(trace.live_bytes)
        computing = _line(seconds, examples) + 2 * stored / chip.hbm_bandwidth
        exchanges = self._exchange_seconds(chip, mesh, whole, trained, num_slices)
        sums = _line([_tensor_sums(t, mesh["tensor"]) for t in self._traces], examples)
        exchanges += sums / chip.link_bandwidth
        found = Estimate(
            hbm_bytes=stored + trained + _line(live, examples),
            computing_seconds=computing,
            exchange_seconds=exchanges,
            mfu=0.0,
        )
        per_chip = self._flops_per_example * examples / mesh["tensor"]
        return dataclasses.replace(found, mfu=per_chip / (found.step_seconds * chip.flops))

    def _exchange_seconds(
        self,
        chip: hardware.Chip,
        mesh: Mapping[str, int],
        whole: float,
        trained: float,
        num_slices: int,
    ) -> float:
        fsdp, replica = mesh["fsdp"], mesh["replica"]
        gathered = (whole + trained) * (fsdp - 1) / fsdp
        within, summed = replica // num_slices, 2 * trained / fsdp
        seconds = (gathered + summed * (within - 1) / within) / chip.link_bandwidth
        return seconds + summed * (num_slices - 1) / num_slices / chip.slice_bandwidth


def _line(values: list[float], examples: int) -> float:
    """The line through the values at one and two examples."""
    one, two = values
    return one + (examples - 1) * max(two - one, 0.0)


def _stored_bytes(tree: Any, mesh: Mapping[str, int]) -> float:
    """Of the part of a state that a device stores."""
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        spec = partition.param_spec(partition.path_string(path), leaf.shape, mesh)
        parts = math.prod(mesh[axis] for axis in spec if axis is not None)
        total += leaf.size * leaf.dtype.itemsize / parts
    return total


def _whole_bytes(tree: Any, mesh: Mapping[str, int], dtype_bytes: int) -> float:
    """Of all parameters as a device computes with them, kernels in the compute type."""
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        spec = partition.param_spec(partition.path_string(path), leaf.shape, mesh)
        parts = mesh["tensor"] if "tensor" in spec else 1
        total += leaf.size * min(leaf.dtype.itemsize, dtype_bytes) / parts
    return total


def _seconds(trace: Trace, chip: hardware.Chip, tensor: int) -> float:
    total = trace.traffic_bytes / chip.hbm_bandwidth
    for product in trace.products:
        computing = chip.product_seconds(product.rows, product.depth, product.columns)
        one = max(computing, product.bytes / chip.hbm_bandwidth)
        total += product.times * one / (tensor if product.splits else 1)
    return total


def _tensor_sums(trace: Trace, tensor: int) -> float:
    """Bytes of all-reduces over `tensor`."""
    sums = sum(product.times * product.sums for product in trace.products)
    return 2 * sums * (tensor - 1) / tensor


def _split_shapes(params: Any) -> dict[tuple[int, ...], int]:
    """Shapes (the last two axes) of kernels that `tensor` divides -> the axis, -2 or -1."""
    found = {}
    for path, leaf in params_lib.flatten(params).items() if params else ():
        for pattern, dim in partition.TENSOR_RULES:
            if leaf.ndim >= 2 and partition.matches(pattern, path):
                found[tuple(leaf.shape[-2:])] = dim
    return found


def _trace(
    config: Any, objective: Any, shapes: Any, examples: int, split: Mapping[tuple[int, ...], int]
) -> Trace:
    config = config.copy_and_resolve_references()
    config.global_batch = examples

    def gradient(state: Any, batch: Any) -> Any:
        return step.compute_gradient(state, batch, state.rng, objective=objective, config=config)

    traced = jax.make_jaxpr(gradient)(shapes, objective.batch_spec(examples))
    found = Trace()
    found.live_bytes = _walk(traced.jaxpr, found, 1, split, results_stay=False)
    return found


def _walk(
    jaxpr: Any,
    trace: Trace,
    times: int,
    split: Mapping[tuple[int, ...], int],
    *,
    results_stay: bool = True,
) -> float:
    """Adds a program's operations to the trace; returns the most bytes that live in it at once."""
    last_read, products, clock = {}, 0, []
    for index, equation in enumerate(jaxpr.eqns):
        last_read |= dict.fromkeys(_variables(equation.invars), index)
        products += _is_anchor(equation)
        clock.append(products)
    if results_stay:
        last_read |= dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))
    live, most = 0.0, 0.0
    dying: dict[int, list[float]] = {}
    for index, equation in enumerate(jaxpr.eqns):
        inner = _add(equation, trace, times, split)
        for variable in equation.outvars:
            end = last_read.get(variable, index)
            until = clock[min(end, len(clock) - 1)]
            is_fused = not _is_anchor(equation) and until - clock[index] <= _FUSED_WITHIN
            if not is_fused:
                live += _bytes(variable)
                dying.setdefault(end, []).append(_bytes(variable))
        most = max(most, live + inner)
        live -= sum(dying.pop(index, ()))
    return most


def _variables(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if not isinstance(value, Literal)]


def _is_anchor(equation: Any) -> bool:
    """Whether an operation's result is an array in memory, and not part of its readers."""
    name = equation.primitive.name
    if name in ("dot_general", "conv_general_dilated", "scan", "cond", "while", "pallas_call"):
        return True
    return any(_is_anchor(e) for inner in _inner(equation) for e in inner.eqns)


def _add(equation: Any, trace: Trace, times: int, split: Mapping[tuple[int, ...], int]) -> float:
    """Adds an operation; returns the bytes that live inside of it at most."""
    name, params = equation.primitive.name, equation.params
    moved = sum(map(_bytes, [*equation.invars, *equation.outvars]))
    if name == "dot_general":
        trace.products.append(_product(equation, moved, times, split))
    elif name == "conv_general_dilated":
        kernel, out = equation.invars[1].aval, equation.outvars[0].aval
        columns = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        depth = kernel.size // columns
        trace.products.append(Product(out.size / columns, depth, columns, moved, times, False, 0.0))
    elif name in _REDUCTIONS:
        trace.traffic_bytes += times * _bytes(equation.invars[0])
    elif name == "cond":
        return _branch(equation, trace, times, split)
    inner = _inner(equation)
    if name == "pallas_call":
        return 0.0
    passes = times * params["length"] if name == "scan" else times
    return max((_walk(jaxpr, trace, passes, split) for jaxpr in inner), default=0.0)


def _branch(equation: Any, trace: Trace, times: int, split: Mapping[tuple[int, ...], int]) -> float:
    """The dearest branch; where one is a kernel, its products without their intermediate arrays."""
    branches = [branch.jaxpr for branch in equation.params["branches"]]
    found = [Trace() for _ in branches]
    lives = [_walk(jaxpr, one, times, split) for jaxpr, one in zip(branches, found, strict=True)]
    dearest = max(found, key=lambda one: sum(p.times * p.rows * p.columns for p in one.products))
    if not any(_has_kernel(jaxpr) for jaxpr in branches):
        trace.products += dearest.products
        trace.traffic_bytes += dearest.traffic_bytes
        return max(lives)
    moved = sum(map(_bytes, [*equation.invars, *equation.outvars]))
    trace.traffic_bytes += times * moved
    trace.products += [product._replace(bytes=0.0) for product in dearest.products]
    return 0.0


def _has_kernel(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name == "pallas_call" or any(map(_has_kernel, _inner(equation)))
        for equation in jaxpr.eqns
    )


def _product(
    equation: Any, moved: float, times: int, split: Mapping[tuple[int, ...], int]
) -> Product:
    (contracted, by_kernel), (batched, _) = equation.params["dimension_numbers"]
    left, right = (variable.aval.shape for variable in equation.invars)
    out = equation.outvars[0].aval
    depth = math.prod(left[axis] for axis in contracted)
    columns = math.prod(right) // depth // math.prod(left[axis] for axis in batched)
    splits = any(shape in split for shape in (left, right, out.shape))
    is_summed = right in split and tuple(by_kernel) == (split[right] % 2,)
    sums = _bytes(equation.outvars[0]) if is_summed else 0.0
    return Product(out.size / max(columns, 1), depth, columns, moved, times, splits, sums)


def _bytes(variable: Any) -> float:
    aval = variable.aval
    size = getattr(aval, "size", 0)
    return float(size * getattr(getattr(aval, "dtype", None), "itemsize", 0) or 0)


def _inner(equation: Any) -> Iterator[Any]:
    """The programs inside of an operation."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
