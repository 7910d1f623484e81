"""The one bridge between NNX modules and parameters as plain nested dicts.

Modules are built by a `Make`: a function from `nnx.Rngs` to a module that holds only `nnx.Param`
variables. Outside this file parameters are nested dicts with string keys, so that checkpoints,
weight tables, sharding rules and the optimizer know nothing of NNX.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx

from defi_jax.array_typing import Params

_M = TypeVar("_M", bound=nnx.Module)
Make = Callable[[nnx.Rngs], _M]


def init_params(make: Make, rng: jax.Array) -> Params:
    """Returns freshly initialised parameters; call under `jax.jit` for large modules."""
    return _to_nested(nnx.split(make(nnx.Rngs(rng)))[1])


def abstract_params(make: Make) -> Params:
    """Returns the parameters' shapes and dtypes without computing them."""
    return jax.eval_shape(lambda: init_params(make, jax.random.key(0)))


def bind(make: Callable[[nnx.Rngs], _M], params: Params) -> _M:
    """Returns the module with `params` in place; meant for use inside a traced function.

    Raises:
        ValueError: if a parameter is missing, unknown or of another shape.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    abstract, given = flatten(_to_nested(state)), flatten(params)
    problems = [f"missing {path}" for path in sorted(abstract.keys() - given.keys())]
    problems += [f"unknown {path}" for path in sorted(given.keys() - abstract.keys())]
    problems += [
        f"{path} is {given[path].shape}, not {leaf.shape}"
        for path, leaf in sorted(abstract.items())
        if path in given and given[path].shape != leaf.shape
    ]
    if problems:
        raise ValueError(f"parameters do not fit the module: {'; '.join(problems[:20])}")
    filled = {
        path: variable.replace(given["/".join(map(str, path))])
        for path, variable in nnx.to_flat_state(state)
    }
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"a/b/c": leaf} of a nested dict."""
    flat = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{path}": leaf for path, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Inverse of `flatten`."""
    nested: Params = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return nested


def count(params: Params) -> int:
    """Number of scalars in the tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def subtree(params: Params, name: str) -> Params:
    """Returns `params[name]`, or {} where a part (a frozen encoder) has no parameters."""
    return params.get(name, {})


def _to_nested(state: nnx.State) -> Params:
    return unflatten(
        {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    )
