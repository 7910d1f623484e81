"""Runs a module on a fixture: official weights and inputs in, official outputs out."""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax import errors
from defi_jax.models import params as params_lib
from defi_jax.weights import fields, sources

Arrays = Mapping[str, np.ndarray]
Outputs = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """How the fixtures of one kind are run.

    Attributes:
        name: name of the kind.
        part: its module and table.
        forward: (module, inputs) -> outputs in official layouts, by name; traced.
        inputs: axes of each input, as `check_inputs` has them.
        make_config: the module's config from the reference's fields; None where these are its own.
    """

    name: str
    part: sources.Part
    forward: Callable[[Any, dict[str, jax.Array]], Outputs]
    inputs: Mapping[str, str]
    make_config: Callable[[Mapping[str, Any]], Any] | None = None

    def __call__(
        self, config: Mapping[str, Any], params: Arrays, inputs: Arrays
    ) -> dict[str, np.ndarray]:
        """Runs the module on the reference's state dict and inputs; returns its outputs by name.

        Fields of `config` whose names start with "_" are the reference's own bookkeeping.

        Raises:
            UserError: unknown, missing or contradictory config fields; inputs of other shapes.
            DataError: weights whose names or shapes do not fit the config.
        """
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        ours: Any = (
            fields.make_config(type(self.part.config), given, self.name)
            if self.make_config is None
            else self.make_config(given)
        )
        check_inputs(inputs, self.inputs, ours, self.name)

        def make(rngs):
            return self.part.module(ours, rngs=rngs)

        imported = self.part.plan_import(ours, params, self.name).params()
        arrays = {name: jnp.asarray(value) for name, value in inputs.items()}
        run = jax.jit(lambda own, given: self.forward(params_lib.bind(make, own), given))
        return {name: np.asarray(value) for name, value in run(imported, arrays).items()}


def check_inputs(inputs: Arrays, specs: Mapping[str, str], config: Any, where: str) -> None:
    """Checks the inputs that a kind needs; more of them are no harm.

    Args:
        inputs: name to array.
        specs: name to axes; "a|b" asks for one of several inputs. Axes are numbers, fields of the
            config (dotted where configs nest) or letters that stand for one size in all inputs:
            "B 2 N feature_dim". A leading "int" asks for whole numbers; a trailing "..." leaves the
            rest to the module.
        config: the module's config.
        where: the kind, for messages.

    Raises:
        UserError: inputs that are missing or have another shape, all of them.
    """
    letters: dict[str, int] = {}
    wanted = [(names.split("|"), spec) for names, spec in specs.items()]
    problems = [f"lacks {names[0]!r}" for names, _ in wanted if not inputs.keys() & set(names)]
    given = [(name, spec) for names, spec in wanted for name in names if name in inputs]
    for name, spec in given:
        if not _fits(inputs[name], spec.split(), config, letters):
            problems.append(f"{name} is {inputs[name].dtype}{inputs[name].shape}, not [{spec}]")
    if problems:
        raise errors.UserError(
            f"fixture {'; '.join(problems)}", where, "record every input of the kind"
        )


def _fits(value: np.ndarray, axes: list[str], config: Any, letters: dict[str, int]) -> bool:
    """Whether an array has these axes; notes the sizes of letters seen for the first time."""
    if axes[0] == "int":
        if not np.issubdtype(value.dtype, np.integer):
            return False
        axes = axes[1:]
    shape = value.shape
    if axes[-1] == "...":
        axes = axes[:-1]
        shape = shape[: len(axes)]
    if len(shape) != len(axes) or 0 in shape:
        return False
    return all(
        size == _expected(axis, size, config, letters)
        for axis, size in zip(axes, shape, strict=True)
    )


def _expected(axis: str, size: int, config: Any, letters: dict[str, int]) -> int:
    """The size that an axis must have; `size` itself where it is free."""
    if axis.isdigit():
        return int(axis)
    if len(axis) == 1:
        return letters.setdefault(axis, size)
    field = operator.attrgetter(axis)(config)
    return field if isinstance(field, int) else size  # one of several, by level
