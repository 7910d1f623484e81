"""The one bridge between NNX modules and parameters as plain nested dicts.

Modules are built by a `Make`: a function from `nnx.Rngs` to a module that holds only `nnx.Param`
variables. Outside this file parameters are nested dicts with string keys, so that checkpoints,
weight tables, sharding rules and the optimizer know nothing of NNX.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx, traverse_util

from defi_jax.array_typing import Params

_M = TypeVar("_M", bound=nnx.Module)
Make = Callable[[nnx.Rngs], _M]


def init_params(make: Make, rng: jax.Array) -> Params:
    """Returns freshly initialised parameters; call under `jax.jit` for large modules."""
    return unflatten(flatten(nnx.to_pure_dict(nnx.split(make(_Rngs(rng)))[1])))


def abstract_params(make: Make) -> Params:
    """Returns the parameters' shapes and dtypes without computing them."""
    return jax.eval_shape(lambda: init_params(make, jax.random.key(0)))


def bind(make: Callable[[nnx.Rngs], _M], params: Params) -> _M:
    """Returns the module with `params` in place; meant for use inside a traced function.

    Raises:
        ValueError: if a parameter is missing, unknown or of another shape.
    """
    graphdef, abstract = _split(make)
    wanted, given = flatten(nnx.to_pure_dict(abstract)), flatten(params)
    problems = [f"missing {path}" for path in sorted(wanted.keys() - given.keys())]
    problems += [f"unknown {path}" for path in sorted(given.keys() - wanted.keys())]
    problems += [
        f"{path} is {given[path].shape}, not {leaf.shape}"
        for path, leaf in sorted(wanted.items())
        if path in given and given[path].shape != leaf.shape
    ]
    if problems:
        raise ValueError(f"parameters do not fit the module: {'; '.join(problems[:20])}")
    state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy, which the next line changes
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def method(make: Make, name: str = "__call__") -> Callable[..., Any]:
    """Returns a method of the module as a function of its parameters and inputs."""
    return lambda params, *inputs: getattr(bind(make, params), name)(*inputs)


@functools.lru_cache(maxsize=64)
def _split(make: Make) -> tuple[Any, nnx.State]:
    """Structure and abstract parameters of a module: built once, whoever traces it how often."""
    return nnx.split(nnx.eval_shape(lambda: make(_Rngs(jax.random.key(0)))))


class _Stream(nnx.RngStream):
    """The keys of `nnx.RngStream`, counted in Python.

    NNX counts in a traced variable. Each change of it makes jax look through all equations that
    were traced before, so that the abstract parameters of a large model take ten times as long.
    """

    def __init__(self, key: jax.Array, *, tag: str):
        super().__init__(key, tag=tag)
        self.drawn = 0

    def __call__(self) -> jax.Array:
        self.drawn += 1
        return jax.random.fold_in(self.key[...], self.drawn - 1)


class _Rngs(nnx.Rngs):
    default: _Stream

    def __init__(self, key: jax.Array):
        super().__init__()
        self.default = _Stream(key, tag="default")


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"a/b/c": leaf} of a nested dict."""
    return {"/".join(map(str, k)): v for k, v in traverse_util.flatten_dict(params).items()}


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def count(params: Params) -> int:
    """Number of scalars in the tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def subtree(params: Params, *names: str) -> Params:
    """Returns `params[a][b]...`, or {} where a part (a frozen encoder) has no parameters."""
    return functools.reduce(lambda tree, name: tree.get(name, {}), names, params)
